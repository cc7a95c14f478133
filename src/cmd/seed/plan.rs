//! What a seed consists of, as plain values: made by [`numbered`] or by the demo set, written by
//! `load`. Pure, but for the day it is given.

use std::time::Duration;

use chrono::{DateTime, Days, FixedOffset, NaiveDate, NaiveTime, Utc};
use uuid::Uuid;

use super::{
    hall::Hall,
    ids::Ids,
    words::{Genre, HALLS, SHOWS},
};

/// Korea has had no summer time since 1988.
const KST_OFFSET_S: i32 = 9 * 3_600;

/// Everything to be written, members aside.
pub struct Plan {
    pub venues: Vec<Venue>,
    pub performances: Vec<Performance>,
    /// Settings for the queues of all of them, before their own.
    pub given: Settings,
}

pub struct Venue {
    pub id: Uuid,
    pub name: String,
    pub address: String,
    pub hall: Hall,
}

pub struct Performance {
    pub id: Uuid,
    /// Its place in [`Plan::venues`].
    pub venue: usize,
    pub genre: Genre,
    pub title: String,
    pub description: String,
    pub booking_opens_at: DateTime<Utc>,
    pub booking_closes_at: DateTime<Utc>,
    pub pre_queue_opens_at: Option<DateTime<Utc>>,
    pub schedules: Vec<Schedule>,
    /// Its queue's, when it is first seeded.
    pub settings: Settings,
}

pub struct Schedule {
    pub id: Uuid,
    pub starts_at: DateTime<Utc>,
    /// How many seats are left, where the box office has sold the others.
    pub left: Option<u32>,
}

/// Settings of a performance's queue; what is not given stays as it is, or as the
/// server's own defaults have it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settings {
    pub max_working: Option<u32>,
    pub working_ttl: Option<Duration>,
    pub claim_ttl: Option<Duration>,
    pub hold_ttl: Option<Duration>,
    pub queue_factor: Option<f64>,
}

impl Settings {
    /// These, and `other`'s where these say nothing.
    pub fn or(self, other: Self) -> Self {
        Self {
            max_working: self.max_working.or(other.max_working),
            working_ttl: self.working_ttl.or(other.working_ttl),
            claim_ttl: self.claim_ttl.or(other.claim_ttl),
            hold_ttl: self.hold_ttl.or(other.hold_ttl),
            queue_factor: self.queue_factor.or(other.queue_factor),
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Plan {
    pub fn seats(&self) -> u64 {
        let halls = self
            .performances
            .iter()
            .map(|p| u64::from(self.venues[p.venue].hall.len()) * p.schedules.len() as u64);
        halls.sum()
    }
}

/// Days and hours in Seoul, counted from one day.
#[derive(Clone, Copy)]
pub struct Calendar {
    today: NaiveDate,
}

impl Calendar {
    /// Counted from the day that `now` is in Seoul, so that a seed run twice
    /// a day says the same.
    pub fn from(now: DateTime<Utc>) -> Self {
        Self {
            today: now.with_timezone(&seoul()).date_naive(),
        }
    }

    /// `hour:minute` in Seoul, `days` from today.
    pub fn at(self, days: i64, hour: u32, minute: u32) -> DateTime<Utc> {
        let shift = Days::new(days.unsigned_abs());
        let day = if days < 0 {
            self.today.checked_sub_days(shift)
        } else {
            self.today.checked_add_days(shift)
        };
        let time = NaiveTime::from_hms_opt(hour, minute, 0).unwrap_or_default();
        day.unwrap_or(self.today)
            .and_time(time)
            .and_local_timezone(seoul())
            .single()
            .map_or_else(Utc::now, |t| t.with_timezone(&Utc))
    }
}

fn seoul() -> FixedOffset {
    FixedOffset::east_opt(KST_OFFSET_S).expect("nine hours are less than a day")
}

/// What `--performances`, `--schedules` and `--seats` ask for.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    pub performances: u32,
    pub schedules: u32,
    pub seats: u32,
}

/// N performances, open for booking, every seat free, shows two weeks ahead and later.
/// More of anything adds to what fewer have made; another number of seats is
/// another hall, and so another performance.
pub fn numbered(ids: Ids, calendar: Calendar, numbers: Numbers, given: Settings) -> Plan {
    let size = u64::from(numbers.seats);
    let venues = HALLS.iter().enumerate().take(numbers.performances as usize);
    let venues = venues.map(|(n, (name, address))| Venue {
        id: ids.id("venue", &[size, n as u64], n as u64),
        name: (*name).to_owned(),
        address: (*address).to_owned(),
        hall: Hall::with(numbers.seats),
    });
    let performances = (0..u64::from(numbers.performances)).map(|p| {
        let (genre, show) = SHOWS[(p % SHOWS.len() as u64) as usize];
        let season = p / SHOWS.len() as u64 + 1;
        let title = if season == 1 {
            show.to_owned()
        } else {
            format!("{show} 시즌 {season}")
        };
        let schedules = (0..u64::from(numbers.schedules)).map(|s| Schedule {
            id: ids.id("schedule", &[size, p, s], p * 10_000 + s),
            starts_at: show_time(calendar, s, numbers.schedules),
            left: None,
        });
        let schedules: Vec<_> = schedules.collect();
        Performance {
            id: ids.id("performance", &[size, p], p),
            venue: (p % HALLS.len() as u64) as usize,
            genre,
            description: format!(
                "{title}. {} 관객을 만납니다.",
                HALLS[(p % HALLS.len() as u64) as usize].0
            ),
            title,
            booking_opens_at: calendar.at(-7, 20, 0),
            booking_closes_at: closing(&schedules, calendar),
            pre_queue_opens_at: None,
            schedules,
            settings: Settings::default(),
        }
    });
    Plan {
        performances: performances.collect(),
        venues: venues.collect(),
        given,
    }
}

/// Evenings; two a day where there is more than one.
pub fn show_time(calendar: Calendar, nth: u64, of: u32) -> DateTime<Utc> {
    let day = 14 + i64::try_from(nth / 2).unwrap_or(0);
    if of > 1 && nth.is_multiple_of(2) {
        calendar.at(day, 14, 30)
    } else {
        calendar.at(day, 19, 30)
    }
}

/// Booking ends an hour before the last show.
pub fn closing(schedules: &[Schedule], calendar: Calendar) -> DateTime<Utc> {
    let last = schedules.iter().map(|s| s.starts_at).max();
    last.unwrap_or_else(|| calendar.at(14, 19, 30)) - chrono::Duration::hours(1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn plan(performances: u32, schedules: u32, seats: u32, now: DateTime<Utc>) -> Plan {
        let numbers = Numbers {
            performances,
            schedules,
            seats,
        };
        numbered(
            Ids::new(1),
            Calendar::from(now),
            numbers,
            Settings::default(),
        )
    }

    #[test]
    fn a_numbered_seed_is_open_and_its_shows_are_a_week_ahead_at_any_hour() {
        for hour in 0..24 {
            let now = Utc::now() + chrono::Duration::hours(hour);
            for performance in plan(3, 5, 10, now).performances {
                assert!(performance.booking_opens_at < now);
                assert!(performance.booking_closes_at > now);
                assert!(performance.pre_queue_opens_at.is_none());
                for schedule in &performance.schedules {
                    assert!(schedule.starts_at >= now + chrono::Duration::days(7));
                    assert!(schedule.left.is_none());
                }
            }
        }
    }

    #[test]
    fn more_adds_to_fewer() {
        let now = Utc::now();
        let ids = |plan: &Plan| -> HashSet<Uuid> {
            let schedules = plan
                .performances
                .iter()
                .flat_map(|p| p.schedules.iter().map(|s| s.id));
            let own = plan.performances.iter().map(|p| p.id);
            own.chain(schedules)
                .chain(plan.venues.iter().map(|v| v.id))
                .collect()
        };
        let (few, many) = (plan(2, 2, 100, now), plan(20, 3, 100, now));
        assert!(ids(&few).is_subset(&ids(&many)));
        assert_eq!(ids(&many).len(), 20 + 60 + 5);
        assert!(ids(&few).is_disjoint(&ids(&plan(2, 2, 101, now))));
        assert_eq!((few.seats(), many.seats()), (400, 6_000));
    }
}
