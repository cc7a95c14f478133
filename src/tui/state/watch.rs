//! What is wrong, seen from consecutive overviews. Pure: time comes in with them.

use std::collections::{HashMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::alarms::Severity;
use super::turns::{Seen, no_show_share, remember, stuck};
use crate::platform::overview::{Events, Health, Overview, Phase, QueueRow};

/// One thing wrong, now.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    pub code: String,
    pub subject: String,
    pub performance: Option<Uuid>,
    pub severity: Severity,
    pub message: String,
    pub look_at: String,
}

/// The sweep frees an overdue place within a second; five is five times too many.
const LEAK_AFTER: TimeDelta = TimeDelta::seconds(5);
/// A hold being paid waits for Stripe's answer past its deadline: give it longer.
const HOLD_LEAK_AFTER: TimeDelta = TimeDelta::seconds(60);
const ERRORS_AFTER: TimeDelta = TimeDelta::seconds(3);
const ERROR_RATE: f64 = 0.01;
/// Far above the budget of 50 ms, long enough not to be one slow batch.
const SLOW_AFTER: TimeDelta = TimeDelta::seconds(10);
const SLOW_P99_MS: f64 = 500.0;
const LAG_WINDOW: TimeDelta = TimeDelta::seconds(15);
const LAG_MIN: u64 = 100;
const OUTBOX_OLD_SECONDS: u64 = 30;

/// What must be remembered between overviews.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// Since when a condition holds without a break.
    since: HashMap<(&'static str, Uuid), DateTime<Utc>>,
    queues: HashMap<Uuid, Seen>,
    lag: VecDeque<(DateTime<Utc>, u64)>,
}

impl Watch {
    /// Everything wrong at `now`.
    pub fn observe(&mut self, now: DateTime<Utc>, overview: &Overview) -> Vec<Finding> {
        let mut found = Vec::new();
        self.stores(overview, &mut found);
        self.http(now, overview, &mut found);
        self.events(now, &overview.events, &mut found);
        if overview.payments.refunds_stuck > 0 {
            found.push(critical(
                "REFUND_STUCK",
                "payments",
                format!(
                    "{} refunds were refused by Stripe",
                    overview.payments.refunds_stuck
                ),
                "GET /admin/v1/alarms, and the payment at Stripe: someone's money is not back",
            ));
        }
        for notice in &overview.alarms {
            let title = overview
                .queues
                .iter()
                .find(|row| Some(row.performance_id) == notice.performance_id);
            found.push(Finding {
                code: notice.code.clone(),
                subject: title.map_or_else(|| "server".into(), |row| row.title.clone()),
                performance: notice.performance_id,
                severity: match notice.critical {
                    true => Severity::Critical,
                    false => Severity::Warning,
                },
                message: notice.message.clone(),
                look_at: notice.look_at.clone(),
            });
        }
        for row in &overview.queues {
            self.queue(now, row, &mut found);
        }
        self.queues
            .retain(|id, _| overview.queues.iter().any(|row| row.performance_id == *id));
        found
    }

    /// How long `holds` has been true without a break.
    fn lasting(
        &mut self,
        now: DateTime<Utc>,
        code: &'static str,
        about: Uuid,
        holds: bool,
    ) -> Option<TimeDelta> {
        if holds {
            Some(now - *self.since.entry((code, about)).or_insert(now))
        } else {
            self.since.remove(&(code, about));
            None
        }
    }

    fn stores(&self, overview: &Overview, found: &mut Vec<Finding>) {
        for store in overview
            .stores
            .iter()
            .filter(|store| store.state != Health::Up)
        {
            let (code, severity) = match store.state {
                Health::Down => ("STORE_DOWN", Severity::Critical),
                Health::Degraded | Health::Up => ("STORE_DEGRADED", Severity::Warning),
            };
            let words = if store.detail.is_empty() {
                "gives no answer"
            } else {
                &store.detail
            };
            found.push(Finding {
                code: code.into(),
                subject: store.name.clone(),
                performance: None,
                severity,
                message: format!("{} {words}", store.name),
                look_at: store_hint(&store.name).into(),
            });
        }
        for role in overview
            .roles
            .iter()
            .filter(|role| role.state == Health::Down)
        {
            found.push(critical(
                "ROLE_DOWN",
                &role.role,
                format!("{}: {}", role.role, role.detail),
                "the role's process and its /readyz; its figures here are missing",
            ));
        }
    }

    fn http(&mut self, now: DateTime<Utc>, overview: &Overview, found: &mut Vec<Finding>) {
        let http = &overview.http;
        let failing = http.error_rate >= ERROR_RATE && http.requests_per_second >= 1.0;
        if self
            .lasting(now, "ERROR_BURST", Uuid::nil(), failing)
            .is_some_and(|lasted| lasted >= ERRORS_AFTER)
        {
            let worst = http.by_route.iter().max_by(|a, b| {
                (a.error_rate * a.requests_per_second)
                    .total_cmp(&(b.error_rate * b.requests_per_second))
            });
            let route = worst
                .map(|route| format!(", most on {}", route.route))
                .unwrap_or_default();
            found.push(critical(
                "ERROR_BURST",
                "gateway",
                format!(
                    "{:.1}% of answers are 5xx at {:.0} a second{route}",
                    http.error_rate * 100.0,
                    http.requests_per_second
                ),
                "the server's log for status=5xx, then the stores above",
            ));
        }
        let slow = http.p99_ms >= SLOW_P99_MS;
        if self
            .lasting(now, "SLOW", Uuid::nil(), slow)
            .is_some_and(|lasted| lasted >= SLOW_AFTER)
        {
            found.push(warning(
                "SLOW",
                "gateway",
                format!("p99 is {:.0} ms", http.p99_ms),
                "CPU of the server, round trips of the stores, then lower max working",
            ));
        }
    }

    fn events(&mut self, now: DateTime<Utc>, events: &Events, found: &mut Vec<Finding>) {
        let lag = events.outbox_pending + events.kafka_lag.unwrap_or(0);
        self.lag.push_back((now, lag));
        while self
            .lag
            .front()
            .is_some_and(|(at, _)| now - *at > LAG_WINDOW)
        {
            self.lag.pop_front();
        }
        let first = self.lag.front().copied().unwrap_or((now, lag));
        let window_full = now - first.0 >= LAG_WINDOW - TimeDelta::seconds(2);
        let growing = window_full && lag > first.1.saturating_mul(5) / 4 && lag >= LAG_MIN;
        if growing || events.oldest_seconds >= OUTBOX_OLD_SECONDS {
            found.push(critical("LAG_GROWING", "events",
                format!("{lag} events wait (were {}), the oldest for {} s", first.1, events.oldest_seconds),
                "the relay and the consumers: Kafka up? a consumer paused by its store? Orders are not confirmed meanwhile"));
        }
        if events.dlq > 0 {
            found.push(warning(
                "DEAD_LETTERS",
                "events",
                format!("{} messages were put aside as bad", events.dlq),
                "<topic>.dlq has the error with each; ticketping events replay once it is fixed",
            ));
        }
    }

    fn queue(&mut self, now: DateTime<Utc>, row: &QueueRow, found: &mut Vec<Finding>) {
        let id = row.performance_id;
        let before = self.queues.get(&id).cloned();
        let seen = remember(now, row, before.clone());
        let mut add = |code: &str, severity, message: String, look_at: &str| {
            found.push(Finding {
                code: code.into(),
                subject: row.title.clone(),
                performance: Some(id),
                severity,
                message,
                look_at: look_at.into(),
            });
        };
        let leak = self.lasting(now, "SLOT_LEAK", id, row.overdue_places > 0);
        if leak.is_some_and(|lasted| lasted >= LEAK_AFTER) {
            add(
                "SLOT_LEAK",
                Severity::Critical,
                format!("{} places stay past their deadline", row.overdue_places),
                "the queue role's sweep: its log, and Redis's notify-keyspace-events",
            );
        }
        let leak = self.lasting(now, "HOLD_LEAK", id, row.overdue_holds > 0);
        if leak.is_some_and(|lasted| lasted >= HOLD_LEAK_AFTER) {
            add(
                "HOLD_LEAK",
                Severity::Critical,
                format!("{} holds stay past their deadline", row.overdue_holds),
                "the reservations role's sweep; holds being paid wait for Stripe to cancel",
            );
        }
        if let Some(before) = &before
            && row.working > row.max_working
            && row.working > before.working
            && row.max_working >= before.max_working
        {
            add(
                "OVERSHOOT",
                Severity::Critical,
                format!("{} work where {} may", row.working, row.max_working),
                "ticketping audit; this must never happen",
            );
        }
        if let Some((message, look_at)) = stuck(now, row, &seen) {
            add("WORKING_STUCK", Severity::Critical, message, look_at);
        }
        if row.phase == Phase::Recovering {
            add(
                "RECOVERING",
                Severity::Warning,
                format!("epoch {}: places come back from the people", row.epoch),
                "what happened to Redis: a restart, a failover, a full disk. Nobody new is admitted meanwhile",
            );
        }
        if let Some((no_shows, admitted)) = no_show_share(&seen) {
            add(
                "NO_SHOWS",
                Severity::Warning,
                format!("{no_shows} of the last {admitted} admitted did not come"),
                "claim window too short for the poll interval? bots? (c changes the window)",
            );
        }
        self.queues.insert(id, seen);
    }
}

fn store_hint(name: &str) -> &'static str {
    match name {
        "redis" => {
            "redis-cli ping; its memory, its disk, maxmemory-policy. Waiting people keep their places"
        }
        "postgres" => "pg_isready; connections, disk. Sales wait, nothing accepted is lost",
        "kafka" => "the brokers; events stay in the outbox until it is back",
        "stripe" => "status.stripe.com and the secret key; holds being paid are kept for a while",
        _ => "its process and its log",
    }
}

/// The server itself is gone.
pub(super) fn lost_server(lasted: TimeDelta, error: &str, source: &str) -> Finding {
    critical(
        "LOST_SERVER",
        source,
        format!("no answer for {} s: {error}", lasted.num_seconds()),
        "the server's process and log, the network between; buyers may see the same",
    )
}

fn critical(code: &str, subject: &str, message: String, look_at: &str) -> Finding {
    Finding {
        code: code.into(),
        subject: subject.into(),
        performance: None,
        severity: Severity::Critical,
        message,
        look_at: look_at.into(),
    }
}

fn warning(code: &str, subject: &str, message: String, look_at: &str) -> Finding {
    Finding {
        severity: Severity::Warning,
        ..critical(code, subject, message, look_at)
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
