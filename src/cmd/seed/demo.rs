//! The demo set: a small season in which every state that a sale can be in
//! is there to be seen.

use chrono::{DateTime, Utc};

use super::{
    hall::Hall,
    ids::Ids,
    plan::{Calendar, Performance, Plan, Schedule, Settings, Venue, closing, show_time},
    words::Genre,
};

/// One performance of the demo set.
struct Show {
    genre: Genre,
    title: &'static str,
    description: &'static str,
    hall: (&'static str, &'static str, u32),
    booking: Window,
    /// Seats left of each schedule; `None` is all.
    left: &'static [Option<u32>],
    max_working: u32,
}

#[derive(Clone, Copy)]
enum Window {
    Open,
    Upcoming,
    PreQueue,
    Closed,
}

const SHOWS: &[Show] = &[
    Show {
        genre: Genre::Musical,
        title: "뮤지컬 〈달의 정원〉",
        description: "Open, a big hall, three shows: the place for a first ticket.",
        hall: (
            "한빛아트센터 대극장",
            "서울특별시 중구 세종대로 1010",
            1_200,
        ),
        booking: Window::Open,
        left: &[None, None, None],
        max_working: 100,
    },
    Show {
        genre: Genre::Concert,
        title: "밴드 여백 단독공연 〈여름의 끝〉",
        description: "Open, a small club, two people at a time: a queue forms at once.",
        hall: ("홍대 소극장 무브", "서울특별시 마포구 와우산로 77", 120),
        booking: Window::Open,
        left: &[None],
        max_working: 2,
    },
    Show {
        genre: Genre::Play,
        title: "연극 〈마지막 우체국〉",
        description: "Almost sold out: three seats left of the first show, one of the second.",
        hall: ("대학로 은행나무극장", "서울특별시 종로구 대학로 120", 240),
        booking: Window::Open,
        left: &[Some(3), Some(1)],
        max_working: 10,
    },
    Show {
        genre: Genre::Concert,
        title: "NOVA9 월드투어 앙코르",
        description: "Sold out: nobody is let in to wait for nothing.",
        hall: ("올림픽공원 별빛홀", "서울특별시 송파구 올림픽로 424", 900),
        booking: Window::Open,
        left: &[Some(0)],
        max_working: 100,
    },
    Show {
        genre: Genre::Classic,
        title: "한강필하모닉 제214회 정기연주회",
        description: "Upcoming: booking opens at 20:00 in three days.",
        hall: ("한강 콘서트홀", "서울특별시 영등포구 여의동로 330", 600),
        booking: Window::Upcoming,
        left: &[None],
        max_working: 50,
    },
    Show {
        genre: Genre::Concert,
        title: "유하린 전국투어 〈온기〉 – 서울",
        description: "Pre-queue: register now; the order of entry is drawn when booking opens tomorrow at 20:00.",
        hall: ("올림픽공원 별빛홀", "서울특별시 송파구 올림픽로 424", 900),
        booking: Window::PreQueue,
        left: &[None, None],
        max_working: 50,
    },
    Show {
        genre: Genre::Festival,
        title: "서울 여름밤 재즈 페스타",
        description: "Closed: booking has ended, the show is next week.",
        hall: (
            "난지 잔디마당 특설무대",
            "서울특별시 마포구 한강난지로 162",
            800,
        ),
        booking: Window::Closed,
        left: &[Some(260)],
        max_working: 50,
    },
];

/// The demo set.
pub fn demo(ids: Ids, calendar: Calendar, given: Settings) -> Plan {
    let mut venues: Vec<Venue> = Vec::new();
    let performances = SHOWS.iter().zip(0_u64..).map(|(show, nth)| {
        let venue = venue(ids, &mut venues, show.hall);
        performance(ids, calendar, show, nth, venue)
    });
    let performances = performances.collect();
    Plan {
        venues,
        performances,
        given,
    }
}

/// The hall's place among `venues`, added if it is new there.
fn venue(ids: Ids, venues: &mut Vec<Venue>, (name, address, seats): (&str, &str, u32)) -> usize {
    if let Some(known) = venues.iter().position(|venue| venue.name == name) {
        return known;
    }
    let nth = venues.len() as u64;
    venues.push(Venue {
        id: ids.id("demo venue", &[nth], nth),
        name: name.to_owned(),
        address: address.to_owned(),
        hall: Hall::with(seats),
    });
    venues.len() - 1
}

fn performance(ids: Ids, calendar: Calendar, show: &Show, nth: u64, venue: usize) -> Performance {
    let of = show.left.len() as u32;
    let schedules = show.left.iter().zip(0_u64..).map(|(left, s)| Schedule {
        id: ids.id("demo schedule", &[nth, s], nth * 10_000 + s),
        starts_at: show_time(calendar, s, of),
        left: *left,
    });
    let schedules: Vec<_> = schedules.collect();
    let (opens, closes, pre_queue) = window(show.booking, calendar, closing(&schedules, calendar));
    Performance {
        id: ids.id("demo performance", &[nth], nth),
        venue,
        genre: show.genre,
        title: show.title.to_owned(),
        description: show.description.to_owned(),
        booking_opens_at: opens,
        booking_closes_at: closes,
        pre_queue_opens_at: pre_queue,
        schedules,
        settings: Settings {
            max_working: Some(show.max_working),
            ..Settings::default()
        },
    }
}

fn window(
    window: Window,
    calendar: Calendar,
    last: DateTime<Utc>,
) -> (DateTime<Utc>, DateTime<Utc>, Option<DateTime<Utc>>) {
    match window {
        Window::Open => (calendar.at(-7, 20, 0), last, None),
        Window::Upcoming => (calendar.at(3, 20, 0), last, None),
        Window::PreQueue => (calendar.at(1, 20, 0), last, Some(calendar.at(0, 0, 0))),
        Window::Closed => (calendar.at(-30, 20, 0), calendar.at(-1, 18, 0), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_of_a_sale_is_there_at_any_hour() {
        for hour in 0..24 {
            let now = Utc::now() + chrono::Duration::hours(hour);
            let plan = demo(Ids::new(1), Calendar::from(now), Settings::default());
            let open = |p: &&Performance| p.booking_opens_at <= now && now < p.booking_closes_at;
            let left = |p: &Performance| -> u32 {
                let all = plan.venues[p.venue].hall.len();
                p.schedules.iter().map(|s| s.left.unwrap_or(all)).sum()
            };
            let shows = &plan.performances;
            assert_eq!(
                shows.iter().filter(open).filter(|p| left(p) == 0).count(),
                1
            );
            assert_eq!(
                shows
                    .iter()
                    .filter(open)
                    .filter(|p| (1..10).contains(&left(p)))
                    .count(),
                1
            );
            assert_eq!(
                shows.iter().filter(open).filter(|p| left(p) >= 100).count(),
                2
            );
            assert_eq!(shows.iter().filter(|p| p.booking_opens_at > now).count(), 2);
            assert_eq!(
                shows.iter().filter(|p| p.booking_closes_at <= now).count(),
                1
            );
            let drawn = shows
                .iter()
                .filter(|p| p.pre_queue_opens_at.is_some_and(|at| at <= now));
            assert_eq!(drawn.count(), 1);
        }
    }
}
