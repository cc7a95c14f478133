//! What a seed says when it is done.

use std::{path::PathBuf, time::Duration};

use chrono::Utc;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};

use super::{
    load::Added,
    members::PASSWORD,
    plan::{Performance, Plan},
};

/// More performances than this are counted, not listed.
const LISTED_MAX: usize = 20;

/// What was seeded.
pub struct Summary {
    pub(super) plan: Plan,
    pub(super) added: Added,
    pub(super) members: u64,
    pub(super) first_email: String,
    pub(super) tokens: Vec<PathBuf>,
    pub(super) token_ttl: Duration,
    pub(super) took: Duration,
}

impl Summary {
    /// What was added to what was there.
    pub fn added(&self) -> Added {
        self.added
    }

    /// The whole text, ending in a newline.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.plan.performances.is_empty() {
            text.push_str(&self.table());
        }
        let counts = [
            ("halls", self.plan.venues.len() as u64, self.added.venues),
            (
                "performances",
                self.plan.performances.len() as u64,
                self.added.performances,
            ),
            (
                "schedules",
                self.plan
                    .performances
                    .iter()
                    .map(|p| p.schedules.len() as u64)
                    .sum(),
                self.added.schedules,
            ),
            ("seats", self.plan.seats(), self.added.seats),
            ("members", self.members, self.added.members),
        ];
        let mut table = table(&["", "seeded", "new"]);
        for (what, seeded, new) in counts {
            table.add_row([what.to_owned(), seeded.to_string(), new.to_string()]);
        }
        right_align(&mut table, &[1, 2]);
        text.push_str(&format!("{table}\n"));
        if self.members > 0 {
            text.push_str(&format!(
                "Members log in as {} and so on, password \"{PASSWORD}\".\n",
                self.first_email
            ));
        }
        for path in &self.tokens {
            text.push_str(&format!(
                "Access tokens, valid {}: {}\n",
                humantime::format_duration(self.token_ttl),
                path.display()
            ));
        }
        text.push_str(&format!("Done in {:.1} s.\n", self.took.as_secs_f64()));
        text
    }

    fn table(&self) -> String {
        let mut table = table(&["performance", "hall", "booking", "shows", "seats", "left"]);
        for performance in self.plan.performances.iter().take(LISTED_MAX) {
            table.add_row(self.row(performance));
        }
        right_align(&mut table, &[3, 4, 5]);
        match self.plan.performances.len().checked_sub(LISTED_MAX) {
            None | Some(0) => format!("{table}\n"),
            Some(more) => format!("{table}\n... and {more} more\n"),
        }
    }

    fn row(&self, performance: &Performance) -> [String; 6] {
        let venue = &self.plan.venues[performance.venue];
        let hall = venue.hall.len();
        let left: u64 = performance
            .schedules
            .iter()
            .map(|s| u64::from(s.left.unwrap_or(hall)))
            .sum();
        [
            format!("{}\n{}", performance.title, performance.id),
            venue.name.clone(),
            booking(performance, left).to_owned(),
            performance.schedules.len().to_string(),
            (u64::from(hall) * performance.schedules.len() as u64).to_string(),
            left.to_string(),
        ]
    }
}

/// As it was seeded; sales since then are not looked up.
fn booking(performance: &Performance, left: u64) -> &'static str {
    let now = Utc::now();
    if performance.booking_opens_at > now {
        match performance.pre_queue_opens_at {
            Some(_) => "pre-queue",
            None => "upcoming",
        }
    } else if performance.booking_closes_at <= now {
        "closed"
    } else if left == 0 {
        "sold out"
    } else {
        "open"
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

fn right_align(table: &mut Table, columns: &[usize]) {
    for column in columns {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}
