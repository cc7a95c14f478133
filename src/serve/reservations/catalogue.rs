//! The seats of a schedule as performances lists them: which there are, what they cost and until when they are sold, not
//! who has them. That changes seldom, so a process keeps the answer until it hears of a change.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Mutex},
};

use chrono::{DateTime, Utc};
use http::StatusCode;
use quick_cache::{Weighter, sync::Cache};
use serde::Deserialize;
use uuid::Uuid;

use crate::platform::{
    problem::Problem,
    upstream::{Upstream, UpstreamError},
};

/// Seats of all the catalogues kept at once. At near 300 bytes a seat this
/// bounds them to some 90 MB; beyond it the least used are asked for again.
const SEATS_KEPT_MAX: u64 = 300_000;

/// The JSON around a seat's status, in the order of the catalogue.
#[derive(Debug)]
struct Rendered {
    text: String,
    /// Where each seat's part ends in `text`.
    ends: Vec<u32>,
}

/// One seat of a hall.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Its id in the API.
    pub id: Uuid,
    /// Part of the hall.
    pub section: Arc<str>,
    /// Row, as the hall calls it.
    pub row: Arc<str>,
    /// Number in the row.
    pub number: i32,
    /// Price class.
    pub grade: Arc<str>,
    /// In the currency's minor unit.
    pub price: i64,
}

/// Seats side by side: `[start, start + length)`, and of them those wanted, `[from, to)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Index of the first seat.
    pub start: u32,
    /// How many seats stand together.
    pub length: u32,
    /// Index of the first seat wanted.
    pub from: u32,
    /// Index after the last seat wanted.
    pub to: u32,
}

/// A schedule and all its seats, in the order of their bytes in Redis.
#[derive(Debug)]
pub struct Catalogue {
    /// The schedule.
    pub schedule_id: Uuid,
    /// Its performance.
    pub performance_id: Uuid,
    /// The performance's title.
    pub title: String,
    /// When the show starts.
    pub starts_at: DateTime<Utc>,
    /// Until when it is sold; no later than its start.
    pub sales_end_at: DateTime<Utc>,
    /// When booking ends.
    pub booking_closes_at: DateTime<Utc>,
    /// Of every price.
    pub currency: Arc<str>,
    /// In index order.
    pub seats: Vec<Seat>,
    by_id: HashMap<Uuid, u32>,
    rendered: Rendered,
    /// What this process had heard of changes when it asked for this.
    asked_at: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    schedule_id: Uuid,
    performance_id: Uuid,
    performance_title: String,
    starts_at: DateTime<Utc>,
    /// From performances of an earlier version: its start.
    #[serde(default)]
    sales_end_at: Option<DateTime<Utc>>,
    booking_closes_at: DateTime<Utc>,
    seats: Vec<ListedSeat>,
}

#[derive(Deserialize)]
struct ListedSeat {
    id: Uuid,
    section: String,
    row: String,
    number: i32,
    grade: String,
    price: i64,
    currency: String,
}

/// Few names are shared by many seats.
#[derive(Default)]
struct Names(HashMap<String, Arc<str>>);

impl Names {
    fn share(&mut self, name: String) -> Arc<str> {
        if let Some(shared) = self.0.get(&name) {
            return shared.clone();
        }
        let shared: Arc<str> = name.as_str().into();
        self.0.insert(name, shared.clone());
        shared
    }
}

impl From<Listed> for Catalogue {
    fn from(listed: Listed) -> Self {
        let mut names = Names::default();
        let currency: Arc<str> = listed.seats.first().map_or("krw", |s| &s.currency).into();
        let seats: Vec<Seat> = listed
            .seats
            .into_iter()
            .map(|s| Seat {
                id: s.id,
                section: names.share(s.section),
                row: names.share(s.row),
                number: s.number,
                grade: names.share(s.grade),
                price: s.price,
            })
            .collect();
        let by_id = (0_u32..).zip(&seats).map(|(i, s)| (s.id, i)).collect();
        let rendered = render(&seats, &currency);
        Self {
            schedule_id: listed.schedule_id,
            performance_id: listed.performance_id,
            title: listed.performance_title,
            starts_at: listed.starts_at,
            sales_end_at: listed.sales_end_at.unwrap_or(listed.starts_at),
            asked_at: 0,
            booking_closes_at: listed.booking_closes_at,
            currency,
            seats,
            by_id,
            rendered,
        }
    }
}

fn render(seats: &[Seat], currency: &str) -> Rendered {
    let mut text = String::with_capacity(seats.len() * 160);
    let mut ends = Vec::with_capacity(seats.len());
    for seat in seats {
        write!(
            text,
            r#"{{"id":"{}","section":{},"row":{},"number":{},"grade":{},"price":{},"currency":{},"status":""#,
            seat.id,
            quoted(&seat.section),
            quoted(&seat.row),
            seat.number,
            quoted(&seat.grade),
            seat.price,
            quoted(currency),
        )
        .expect("writing to a String cannot fail");
        ends.push(u32::try_from(text.len()).expect("a catalogue is at most 64 MB"));
    }
    Rendered { text, ends }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl Catalogue {
    /// The index of a seat.
    pub fn index_of(&self, seat: Uuid) -> Option<u32> {
        self.by_id.get(&seat).copied()
    }

    /// The seat at `index`.
    pub fn seat(&self, index: u32) -> Option<&Seat> {
        self.seats.get(usize::try_from(index).ok()?)
    }

    /// Every seat's JSON up to the value of its status, in index order.
    pub fn rendered(&self) -> impl Iterator<Item = &str> {
        let mut start = 0;
        self.rendered.ends.iter().map(move |end| {
            let end = *end as usize;
            let part = &self.rendered.text[start..end];
            start = end;
            part
        })
    }

    /// Seats that stand side by side, best first as the catalogue orders them,
    /// narrowed to those of `grade` where one is named.
    pub fn stretches(&self, grade: Option<&str>) -> Vec<Stretch> {
        let mut found = Vec::new();
        let mut start = 0;
        while start < self.seats.len() {
            let mut end = start + 1;
            while end < self.seats.len() && side_by_side(&self.seats[end - 1], &self.seats[end]) {
                end += 1;
            }
            self.wanted(start, end, grade, &mut found);
            start = end;
        }
        found
    }

    fn wanted(&self, start: usize, end: usize, grade: Option<&str>, found: &mut Vec<Stretch>) {
        let as_u32 = |i: usize| u32::try_from(i).expect("fewer than 2^32 seats");
        let mut from = start;
        while from < end {
            let fits = |i: usize| grade.is_none_or(|g| *self.seats[i].grade == *g);
            if !fits(from) {
                from += 1;
                continue;
            }
            let to = (from..end).find(|i| !fits(*i)).unwrap_or(end);
            found.push(Stretch {
                start: as_u32(start),
                length: as_u32(end - start),
                from: as_u32(from),
                to: as_u32(to),
            });
            from = to;
        }
    }
}

fn side_by_side(left: &Seat, right: &Seat) -> bool {
    left.section == right.section && left.row == right.row && left.number + 1 == right.number
}

#[derive(Clone)]
struct BySeats;

impl Weighter<Uuid, Arc<Catalogue>> for BySeats {
    fn weight(&self, _: &Uuid, catalogue: &Arc<Catalogue>) -> u64 {
        catalogue.seats.len() as u64 + 1
    }
}

/// Performances whose last change is remembered one by one; beyond it, everything is asked for again.
const CHANGED_MAX: usize = 10_000;

/// Which changes this process has heard of, counted as they come: a catalogue that was asked for before the last one of its
/// performance is old, also when its answer arrives only afterwards.
#[derive(Debug, Default)]
struct Heard {
    count: u64,
    /// Anything asked for before this is old.
    all: u64,
    of: HashMap<Uuid, u64>,
}

impl Heard {
    fn note(&mut self, performance: Uuid) {
        self.count += 1;
        if self.of.len() >= CHANGED_MAX {
            self.note_all();
        }
        self.of.insert(performance, self.count);
    }

    fn note_all(&mut self) {
        self.count += 1;
        self.all = self.count;
        self.of.clear();
    }

    fn is_old(&self, catalogue: &Catalogue) -> bool {
        let last = self.of.get(&catalogue.performance_id);
        catalogue.asked_at < self.all.max(last.copied().unwrap_or(0))
    }
}

/// A catalogue that changes each time it is asked for is taken as it is in the end.
const ASKED_MAX: usize = 3;

/// The schedules of a performance.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Schedules {
    /// All of them.
    #[serde(rename = "scheduleIds")]
    pub all: Vec<Uuid>,
    /// Those that are still sold; none named by performances of an earlier version.
    #[serde(default, rename = "openScheduleIds")]
    open: Option<Vec<Uuid>>,
}

impl Schedules {
    /// Those whose sales have not ended.
    pub fn open(&self) -> &[Uuid] {
        self.open.as_deref().unwrap_or(&self.all)
    }
}

/// The catalogues that this process knows. Cheap to clone.
#[derive(Clone)]
pub struct Catalogues {
    known: Arc<Cache<Uuid, Arc<Catalogue>, BySeats>>,
    heard: Arc<Mutex<Heard>>,
    performances: Upstream,
}

impl Catalogues {
    /// Asks `performances` for what is not known yet.
    pub fn new(performances: Upstream) -> Self {
        Self {
            known: Arc::new(Cache::with_weighter(256, SEATS_KEPT_MAX, BySeats)),
            heard: Arc::default(),
            performances,
        }
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard
            .lock()
            .expect("nothing panics while it holds this lock")
    }

    /// Times, prices or schedules of a performance have changed; none: of any.
    pub fn changed(&self, performance: Option<Uuid>) {
        let mut heard = self.heard();
        match performance {
            Some(performance) => heard.note(performance),
            None => heard.note_all(),
        }
    }

    /// The catalogue of a schedule, where this process knows it and it is not old.
    pub fn known(&self, schedule: Uuid) -> Option<Arc<Catalogue>> {
        let known = self.known.get(&schedule)?;
        (!self.heard().is_old(&known)).then_some(known)
    }

    /// The catalogue of a schedule; one question at a time for each.
    ///
    /// # Errors
    /// 404 `SCHEDULE_NOT_FOUND`, or 503 when performances does not answer.
    pub async fn get(&self, schedule: Uuid) -> Result<Arc<Catalogue>, Problem> {
        let ask = || {
            self.known
                .get_or_insert_async(&schedule, self.ask(schedule))
        };
        let mut catalogue = ask().await?;
        for _ in 1..ASKED_MAX {
            if !self.heard().is_old(&catalogue) {
                break;
            }
            // Only the old one: another request may have replaced it already.
            self.known
                .remove_if(&schedule, |known| Arc::ptr_eq(known, &catalogue));
            catalogue = ask().await?;
        }
        Ok(catalogue)
    }

    async fn ask(&self, schedule: Uuid) -> Result<Arc<Catalogue>, Problem> {
        let asked_at = self.heard().count;
        let path = format!("/internal/v1/schedules/{schedule}/catalogue");
        match self.performances.get_json::<Listed>(&path).await {
            Ok(listed) => Ok(Arc::new(Catalogue {
                asked_at,
                ..listed.into()
            })),
            Err(error) => Err(missing(&error, "SCHEDULE_NOT_FOUND", "schedule")),
        }
    }

    /// Tells performances what was sold: it counts what it has missed, and says how many.
    ///
    /// # Errors
    /// When performances does not answer.
    pub async fn tell_sales<Told: serde::de::DeserializeOwned>(
        &self,
        sales: &(impl serde::Serialize + Sync),
    ) -> Result<Told, UpstreamError> {
        self.performances
            .post_json("/internal/v1/sales", sales)
            .await
    }

    /// The schedules of a performance, asked anew each time.
    ///
    /// # Errors
    /// 404 `PERFORMANCE_NOT_FOUND`, or 503 when performances does not answer.
    pub async fn schedules_of(&self, performance: Uuid) -> Result<Schedules, Problem> {
        let path = format!("/internal/v1/performances/{performance}");
        match self.performances.get_json::<Schedules>(&path).await {
            Ok(found) => Ok(found),
            Err(error) => Err(missing(&error, "PERFORMANCE_NOT_FOUND", "performance")),
        }
    }
}

fn missing(error: &UpstreamError, code: &'static str, what: &str) -> Problem {
    if error.status() == Some(StatusCode::NOT_FOUND) {
        Problem::new(
            StatusCode::NOT_FOUND,
            code,
            format!("There is no such {what}."),
        )
    } else {
        Problem::unavailable(error)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Rows of seats; a gap in a row's text is an aisle.
    pub fn hall(rows: &[(&str, &str)]) -> Catalogue {
        let mut seats = Vec::new();
        for (row, plan) in rows {
            for (number, grade) in (1..).zip(plan.chars()) {
                if grade == ' ' {
                    continue;
                }
                seats.push(ListedSeat {
                    id: Uuid::now_v7(),
                    section: "Stalls".into(),
                    row: (*row).into(),
                    number,
                    grade: grade.to_string(),
                    price: 50_000,
                    currency: "krw".into(),
                });
            }
        }
        Listed {
            schedule_id: Uuid::now_v7(),
            performance_id: Uuid::now_v7(),
            performance_title: "Play".into(),
            starts_at: Utc::now(),
            sales_end_at: None,
            booking_closes_at: Utc::now(),
            seats,
        }
        .into()
    }

    #[test]
    fn a_catalogue_asked_for_before_a_change_is_old() {
        let (mut heard, hall) = (Heard::default(), hall(&[("A", "V")]));
        assert!(!heard.is_old(&hall));
        heard.note(Uuid::now_v7());
        assert!(!heard.is_old(&hall), "another performance");
        heard.note(hall.performance_id);
        assert!(heard.is_old(&hall));
        let again = Catalogue {
            asked_at: heard.count,
            ..hall
        };
        assert!(!heard.is_old(&again));
        for _ in 0..=CHANGED_MAX {
            heard.note(Uuid::now_v7());
        }
        assert!(
            heard.is_old(&again) && heard.of.len() <= CHANGED_MAX,
            "bounded"
        );
    }

    #[test]
    fn stretches_end_at_rows_and_aisles_and_narrow_to_a_grade() {
        let hall = hall(&[("A", "VVV RR"), ("B", "RRVV")]);
        let s = |start, length, from, to| Stretch {
            start,
            length,
            from,
            to,
        };
        assert_eq!(
            hall.stretches(None),
            [s(0, 3, 0, 3), s(3, 2, 3, 5), s(5, 4, 5, 9)]
        );
        assert_eq!(hall.stretches(Some("R")), [s(3, 2, 3, 5), s(5, 4, 5, 7)]);
        assert_eq!(hall.stretches(Some("X")), []);
    }

    #[test]
    fn what_is_rendered_is_json_once_the_status_is_put_in() {
        let hall = hall(&[("A\"1", "VV")]);
        for (part, seat) in hall.rendered().zip(&hall.seats) {
            let value: serde_json::Value =
                serde_json::from_str(&format!("{part}AVAILABLE\"}}")).unwrap();
            assert_eq!(value["id"], seat.id.to_string());
            assert_eq!(value["row"], "A\"1");
            assert_eq!(value["status"], "AVAILABLE");
        }
    }
}
