//! What happened to each queue lately: differences of overviews, and the audit's lines.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use uuid::Uuid;

use super::control::Control;
use crate::platform::overview::{Overview, QueueRow, Settings};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    pub at: DateTime<Utc>,
    pub text: String,
}

/// A line of `GET /admin/v1/audit`: who changed which settings, when and why.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditLine {
    pub performance_id: Uuid,
    pub reason: String,
    pub before: Settings,
    pub after: Settings,
    pub changed_at: DateTime<Utc>,
}

const KEPT: usize = 50;

#[derive(Debug, Clone, Default)]
pub struct Recent {
    seen: HashMap<Uuid, Vec<Happening>>,
    audit: Vec<AuditLine>,
}

impl Recent {
    /// Notes what changed between two overviews.
    pub fn compare(&mut self, now: DateTime<Utc>, before: &Overview, after: &Overview) {
        let old: HashMap<Uuid, &QueueRow> = before
            .queues
            .iter()
            .map(|row| (row.performance_id, row))
            .collect();
        for row in &after.queues {
            let Some(before) = old.get(&row.performance_id) else {
                continue;
            };
            let texts = differences(before, row);
            if texts.is_empty() {
                continue;
            }
            let lines = self.seen.entry(row.performance_id).or_default();
            lines.extend(texts.into_iter().map(|text| Happening { at: now, text }));
            let extra = lines.len().saturating_sub(KEPT);
            lines.drain(..extra);
        }
    }

    pub fn set_audit(&mut self, lines: Vec<AuditLine>) {
        self.audit = lines;
    }

    /// Newest first. A change that stands in the audit says who and why, so the
    /// bare difference is left out.
    pub fn of(&self, performance: Uuid) -> Vec<Happening> {
        let audited = self
            .audit
            .iter()
            .filter(|line| line.performance_id == performance);
        let mut all: Vec<Happening> = audited
            .map(|line| Happening {
                at: line.changed_at,
                text: line.text(),
            })
            .collect();
        let changes_known = !all.is_empty();
        let seen = self.seen.get(&performance).into_iter().flatten();
        all.extend(
            seen.filter(|line| !(changes_known && line.text.starts_with(SETTING)))
                .cloned(),
        );
        all.sort_by_key(|happening| std::cmp::Reverse(happening.at));
        all
    }
}

impl AuditLine {
    fn text(&self) -> String {
        let changes = changes(&self.before, &self.after);
        let changed = if changes.is_empty() {
            "nothing changed".to_owned()
        } else {
            changes.join(", ")
        };
        format!("{changed}: {}", self.reason)
    }
}

/// `maxWorking 100 → 200`
fn changes(before: &Settings, after: &Settings) -> Vec<String> {
    Control::ALL
        .into_iter()
        .map(|control| {
            (
                control.field(),
                control.current(before),
                control.current(after),
            )
        })
        .filter(|(_, old, new)| old != new)
        .map(|(field, old, new)| format!("{field} {old} → {new}"))
        .collect()
}

const SETTING: &str = "set ";

fn differences(before: &QueueRow, after: &QueueRow) -> Vec<String> {
    let mut texts = Vec::new();
    if before.epoch != after.epoch {
        texts.push(format!(
            "Redis began a new epoch: {} → {}",
            before.epoch, after.epoch
        ));
    }
    if before.phase != after.phase {
        texts.push(format!("phase {:?} → {:?}", before.phase, after.phase));
    }
    texts.extend(
        changes(&before.settings, &after.settings)
            .into_iter()
            .map(|change| format!("{SETTING}{change}")),
    );
    for (name, old, new) in [
        ("no-shows", before.no_shows, after.no_shows),
        ("turns lapsed", before.expired, after.expired),
        ("left", before.left, after.left),
    ] {
        // One by one is the daily business; many at once are worth a line.
        let many = new.saturating_sub(old);
        if before.epoch == after.epoch && many >= 10 {
            texts.push(format!("{many} {name} at once"));
        }
    }
    if before.remaining_seats > 0 && after.remaining_seats == 0 {
        texts.push("the last seat is sold".into());
    } else if before.remaining_seats == 0 && after.remaining_seats > 0 {
        texts.push(format!("{} seats came back", after.remaining_seats));
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::overview::{Phase, Server};
    use serde_json::json;

    fn overview(row: QueueRow) -> Overview {
        let mut overview = Overview::merge(DateTime::UNIX_EPOCH, Server::default(), vec![]);
        overview.queues.push(row);
        overview
    }

    #[test]
    fn changes_are_told_once_and_the_audit_says_why() {
        let before = QueueRow {
            phase: Phase::Open,
            remaining_seats: 3,
            ..QueueRow::default()
        };
        let mut after = QueueRow {
            phase: Phase::Paused,
            remaining_seats: 0,
            no_shows: 12,
            ..QueueRow::default()
        };
        after.settings.paused = true;
        let mut recent = Recent::default();
        recent.compare(
            DateTime::UNIX_EPOCH,
            &overview(before),
            &overview(after.clone()),
        );
        recent.compare(
            DateTime::UNIX_EPOCH,
            &overview(after.clone()),
            &overview(after),
        );
        let texts = |recent: &Recent| {
            recent
                .of(Uuid::nil())
                .into_iter()
                .map(|line| line.text)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            texts(&recent),
            [
                "phase Open → Paused",
                "set paused no → yes",
                "12 no-shows at once",
                "the last seat is sold"
            ]
        );
        let line = json!({
            "performanceId": Uuid::nil(), "changedAt": "2026-01-01T00:00:00Z", "actor": Uuid::nil(),
            "before": {"paused": false, "maxWorking": 5}, "after": {"paused": true, "maxWorking": 5}, "reason": "drill",
        });
        recent.set_audit(vec![serde_json::from_value(line).unwrap()]);
        assert_eq!(texts(&recent)[0], "paused no → yes: drill");
        assert!(!texts(&recent).iter().any(|text| text.starts_with("set ")));
    }
}
