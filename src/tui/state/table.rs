//! The table of queues: its columns, their order, and what the filter lets through.

use std::{cmp::Ordering, collections::BTreeSet};

use unicode_normalization::UnicodeNormalization as _;
use uuid::Uuid;

use crate::platform::overview::{Phase, QueueRow};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Title,
    Phase,
    Waiting,
    Trend,
    Working,
    Admitted,
    NoShows,
    Estimate,
    Remaining,
    Held,
    Expiries,
    Sold,
}

impl Column {
    pub const ALL: [Self; 12] = [
        Self::Title,
        Self::Phase,
        Self::Waiting,
        Self::Trend,
        Self::Working,
        Self::Admitted,
        Self::NoShows,
        Self::Estimate,
        Self::Remaining,
        Self::Held,
        Self::Expiries,
        Self::Sold,
    ];

    pub fn sortable(self) -> bool {
        self != Self::Trend
    }

    /// Where a first look wants the biggest on top.
    fn descends(self) -> bool {
        !matches!(self, Self::Title | Self::Phase | Self::Remaining)
    }

    fn compare(self, a: &QueueRow, b: &QueueRow) -> Ordering {
        match self {
            Self::Title | Self::Trend => Ordering::Equal,
            Self::Phase => a.phase.cmp(&b.phase),
            Self::Waiting => (a.waiting + a.registered).cmp(&(b.waiting + b.registered)),
            Self::Working => share(a.working, a.max_working)
                .total_cmp(&share(b.working, b.max_working))
                .then(a.working.cmp(&b.working)),
            Self::Admitted => a.admitted_per_minute.total_cmp(&b.admitted_per_minute),
            Self::NoShows => a.no_shows.cmp(&b.no_shows),
            Self::Estimate => longest(a).cmp(&longest(b)),
            Self::Remaining => a.remaining_seats.cmp(&b.remaining_seats),
            Self::Held => a.held_seats.cmp(&b.held_seats),
            Self::Expiries => a
                .hold_expiries_next_minute
                .cmp(&b.hold_expiries_next_minute),
            Self::Sold => a.sold_seats.cmp(&b.sold_seats),
        }
    }
}

fn longest(row: &QueueRow) -> Option<u64> {
    row.estimated_wait_seconds.map(|range| range.max)
}

/// Part of a whole, 0 when there is no whole.
pub fn share(part: u64, whole: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a ratio for a bar")]
    let share = if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    };
    share
}

#[derive(Debug, Clone)]
pub struct Table {
    pub sort: Column,
    pub descending: bool,
    pub filter: String,
    /// By id, so that the cursor stays on its queue while rows change places.
    pub selected: Option<Uuid>,
    /// What the next change is for, instead of one queue.
    pub marked: BTreeSet<Uuid>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            sort: Column::Waiting,
            descending: true,
            filter: String::new(),
            selected: None,
            marked: BTreeSet::new(),
        }
    }
}

impl Table {
    /// The rows to show, in order. Ties stand by title, then id: rows never jump about.
    pub fn rows<'a>(&self, queues: &'a [QueueRow]) -> Vec<&'a QueueRow> {
        let words: Vec<String> = self.filter.split_whitespace().map(folded).collect();
        let mut rows: Vec<&QueueRow> = queues.iter().filter(|row| matches(row, &words)).collect();
        rows.sort_by(|a, b| {
            let order = self.sort.compare(a, b);
            let order = if self.descending {
                order.reverse()
            } else {
                order
            };
            let by_title = a.title.cmp(&b.title);
            let by_title = if self.sort == Column::Title && self.descending {
                by_title.reverse()
            } else {
                by_title
            };
            // Without a live queue: below those that have one.
            let idle = |row: &QueueRow| row.phase == Phase::Unknown;
            idle(a)
                .cmp(&idle(b))
                .then(order)
                .then(by_title)
                .then(a.performance_id.cmp(&b.performance_id))
        });
        rows
    }

    /// Where the cursor stands among `rows`: on its queue, else on the first.
    pub fn cursor(&self, rows: &[&QueueRow]) -> Option<usize> {
        if rows.is_empty() {
            return None;
        }
        let found = rows
            .iter()
            .position(|row| Some(row.performance_id) == self.selected);
        Some(found.unwrap_or(0))
    }

    /// Marks the queue under the cursor, or takes its mark away, and goes on to the next.
    pub fn mark(&mut self, queues: &[QueueRow]) {
        let rows = self.rows(queues);
        if let Some(id) = self.cursor(&rows).map(|cursor| rows[cursor].performance_id) {
            if !self.marked.remove(&id) {
                self.marked.insert(id);
            }
            self.step(queues, 1);
        }
    }

    /// Marks all that are shown; again, and none of them is.
    pub fn mark_all(&mut self, queues: &[QueueRow]) {
        let shown: Vec<Uuid> = (self.rows(queues).iter())
            .map(|row| row.performance_id)
            .collect();
        if shown.iter().all(|id| self.marked.contains(id)) {
            self.marked.retain(|id| !shown.contains(id));
        } else {
            self.marked.extend(shown);
        }
    }

    /// The queues that a change is for: the marked ones, shown or not, else the one under the cursor.
    pub fn targets<'a>(&self, queues: &'a [QueueRow]) -> Vec<&'a QueueRow> {
        let marked: Vec<&QueueRow> = (queues.iter())
            .filter(|row| self.marked.contains(&row.performance_id))
            .collect();
        if !marked.is_empty() {
            return marked;
        }
        let rows = self.rows(queues);
        let chosen = self.cursor(&rows).map(|cursor| rows[cursor]);
        chosen.into_iter().collect()
    }

    /// Moves the cursor, stopping at both ends.
    pub fn step(&mut self, queues: &[QueueRow], by: isize) {
        let rows = self.rows(queues);
        if let Some(cursor) = self.cursor(&rows) {
            let target = cursor.saturating_add_signed(by).min(rows.len() - 1);
            self.selected = rows.get(target).map(|row| row.performance_id);
        }
    }

    pub fn sort_next(&mut self, forward: bool) {
        let columns: Vec<Column> = Column::ALL
            .into_iter()
            .filter(|column| column.sortable())
            .collect();
        let at = columns
            .iter()
            .position(|column| *column == self.sort)
            .unwrap_or(0);
        let step = if forward { 1 } else { columns.len() - 1 };
        self.sort = columns[(at + step) % columns.len()];
        self.descending = self.sort.descends();
    }
}

/// Before a word that is looked for in ids: hardly a short word that no id has somewhere.
const OF_ID: &str = "id:";

/// As words are compared: what a Mac writes as letter and accent is the letter with its accent.
fn folded(text: &str) -> String {
    text.nfkc()
        .collect::<String>()
        .to_lowercase()
        .nfkc()
        .collect()
}

fn matches(row: &QueueRow, words: &[String]) -> bool {
    if words.is_empty() {
        return true;
    }
    let text = folded(&format!("{} {} {:?}", row.title, row.venue_name, row.phase));
    words.iter().all(|word| match word.strip_prefix(OF_ID) {
        Some(id) => row.performance_id.to_string().contains(id),
        None => text.contains(word),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues() -> Vec<QueueRow> {
        let row = |n: u128, title: &str, waiting, phase| QueueRow {
            performance_id: Uuid::from_u128(n),
            title: title.into(),
            waiting,
            phase,
            ..QueueRow::default()
        };
        vec![
            row(1, "Swan Lake", 5, Phase::Open),
            row(2, "Cats", 900, Phase::Paused),
            row(3, "Aida", 5, Phase::Open),
            row(4, "Cats on Ice", 70, Phase::SoldOut),
        ]
    }

    fn titles(table: &Table, queues: &[QueueRow]) -> Vec<String> {
        table
            .rows(queues)
            .iter()
            .map(|row| row.title.clone())
            .collect()
    }

    #[test]
    fn the_longest_queue_stands_first_and_ties_by_title() {
        let table = Table::default();
        assert_eq!(
            titles(&table, &queues()),
            ["Cats", "Cats on Ice", "Aida", "Swan Lake"]
        );
    }

    #[test]
    fn every_word_of_the_filter_must_be_there() {
        let mut table = Table {
            filter: "cats".into(),
            ..Table::default()
        };
        assert_eq!(titles(&table, &queues()), ["Cats", "Cats on Ice"]);
        table.filter = "CATS paused".into();
        assert_eq!(titles(&table, &queues()), ["Cats"]);
        table.filter = "nothing".into();
        assert_eq!(table.cursor(&table.rows(&queues())), None);
    }

    #[test]
    fn ids_are_asked_for_and_accents_may_stand_apart() {
        let mut queues = queues();
        queues[2].title = "Die Ta\u{308}nzerin".into();
        queues[3].title = "\u{1112}\u{1161}\u{11ab}강".into();
        let mut table = Table {
            filter: "00".into(),
            ..Table::default()
        };
        assert!(titles(&table, &queues).is_empty(), "every id has 00");
        table.filter = "id:0002".into();
        assert_eq!(titles(&table, &queues), ["Cats"]);
        table.filter = "TÄNZERIN".into();
        assert_eq!(titles(&table, &queues), [queues[2].title.clone()]);
        table.filter = "한강".into();
        assert_eq!(titles(&table, &queues), [queues[3].title.clone()]);
        table.filter = "ta\u{308}nz open".into();
        assert_eq!(titles(&table, &queues), [queues[2].title.clone()]);
    }

    #[test]
    fn the_cursor_stays_on_its_queue_when_rows_move() {
        let mut queues = queues();
        let mut table = Table::default();
        table.step(&queues, 1);
        assert_eq!(table.selected, Some(Uuid::from_u128(4)));
        queues[0].waiting = 5000;
        assert_eq!(table.cursor(&table.rows(&queues)), Some(2));
        table.step(&queues, -100);
        assert_eq!(table.selected, Some(Uuid::from_u128(1)));
        table.step(&queues, 100);
        assert_eq!(table.cursor(&table.rows(&queues)), Some(3));
    }

    #[test]
    fn sorting_goes_round_all_columns_and_back() {
        let mut table = Table::default();
        let mut seen = vec![table.sort];
        for _ in 1..Column::ALL.len() - 1 {
            table.sort_next(true);
            assert!(!seen.contains(&table.sort));
            seen.push(table.sort);
        }
        table.sort_next(true);
        assert_eq!(table.sort, Column::Waiting);
        table.sort_next(false);
        assert_eq!(table.sort, Column::Phase);
        table.sort_next(false);
        assert_eq!(
            titles(&table, &queues()),
            ["Aida", "Cats", "Cats on Ice", "Swan Lake"]
        );
        table.descending = true;
        assert_eq!(titles(&table, &queues())[0], "Swan Lake");
    }
}
