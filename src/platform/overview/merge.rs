//! Joining the roles' slices. Pure, and the same whatever order they come in.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Events, Health, Http, Notice, Overview, OverviewSlice, Payments, PerformanceSlice, QueueRow,
    QueueSlice, RoleHealth, SeatSlice, Server, Store,
};
use crate::platform::tasks;

impl OverviewSlice {
    /// The same, with the background tasks of this process that fail again and again.
    #[must_use]
    pub fn with_failing_tasks(mut self) -> Self {
        let failing = tasks::troubles();
        let failing = failing.iter().filter(|(_, trouble)| trouble.is_degraded());
        self.alarms.extend(failing.map(|(name, trouble)| Notice {
            code: "TASK_FAILS".to_owned(),
            performance_id: None,
            message: format!(
                "background task {name} fails again and again: {}",
                trouble.cause
            ),
            look_at: "/readyz of the role, and its log".to_owned(),
            critical: true,
        }));
        self
    }

    /// An empty slice of a role, to be filled.
    pub fn of(role: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            ..Self::default()
        }
    }

    /// What the gateway puts in the place of a role that it could not ask.
    pub fn down(role: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            down: Some(reason.into()),
            ..Self::default()
        }
    }
}

impl Overview {
    /// Joins what the roles gave. A performance has a row when the queue or
    /// reservations speaks of it: a title alone makes none.
    pub fn merge(as_of: DateTime<Utc>, server: Server, mut slices: Vec<OverviewSlice>) -> Self {
        slices.sort_by(|a, b| a.role.cmp(&b.role));
        let mut rows: BTreeMap<Uuid, QueueRow> = BTreeMap::new();
        let mut http = Http::default();
        let mut events = Events::default();
        let mut payments = Payments::default();
        let mut stores: BTreeMap<String, Store> = BTreeMap::new();
        let mut roles: BTreeMap<String, RoleHealth> = BTreeMap::new();
        let mut alarms: Vec<Notice> = Vec::new();
        let mut open_alarms = 0;
        let mut titles: Vec<PerformanceSlice> = Vec::new();
        for slice in slices {
            add_role(&mut roles, &slice);
            for queue in slice.queues {
                rows.entry(queue.performance_id)
                    .or_default()
                    .take_queue(queue);
            }
            for seats in slice.seats {
                rows.entry(seats.performance_id)
                    .or_default()
                    .take_seats(seats);
            }
            titles.extend(slice.performances);
            http.add(slice.http.unwrap_or_default());
            events.add(slice.events.unwrap_or_default());
            payments.add(&slice.payments.unwrap_or_default());
            for store in slice.stores {
                add_store(&mut stores, store);
            }
            alarms.extend(slice.alarms);
            open_alarms += slice.open_alarms;
        }
        for performance in titles {
            if let Some(row) = rows.get_mut(&performance.performance_id) {
                row.title = performance.title;
                row.venue_name = performance.venue_name;
            }
        }
        alarms.sort_by(|a, b| {
            (&a.code, a.performance_id, &a.message).cmp(&(&b.code, b.performance_id, &b.message))
        });
        alarms.dedup();
        Self {
            as_of,
            server,
            queues: rows.into_values().collect(),
            http,
            events,
            payments,
            stores: stores.into_values().collect(),
            roles: roles.into_values().collect(),
            alarms,
            open_alarms,
        }
    }
}

fn add_role(roles: &mut BTreeMap<String, RoleHealth>, slice: &OverviewSlice) {
    let worst_store = slice
        .stores
        .iter()
        .map(|store| store.state)
        .max()
        .unwrap_or_default();
    let health = match &slice.down {
        Some(reason) => RoleHealth {
            role: slice.role.clone(),
            state: Health::Down,
            detail: reason.clone(),
        },
        // A role whose store is away still answers: it is degraded, not down.
        None => RoleHealth {
            role: slice.role.clone(),
            state: worst_store.min(Health::Degraded),
            detail: String::new(),
        },
    };
    let known = roles
        .entry(slice.role.clone())
        .or_insert_with(|| health.clone());
    if health.state > known.state {
        *known = health;
    }
}

fn add_store(stores: &mut BTreeMap<String, Store>, store: Store) {
    let known = stores
        .entry(store.name.clone())
        .or_insert_with(|| store.clone());
    known.latency_ms = match (known.latency_ms, store.latency_ms) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    };
    if store.state > known.state || (store.state == known.state && known.detail.is_empty()) {
        known.state = store.state;
        known.detail = store.detail;
    }
}

impl QueueRow {
    fn take_queue(&mut self, queue: QueueSlice) {
        let seats_and_names = std::mem::take(self);
        *self = Self {
            performance_id: queue.performance_id,
            phase: queue.phase,
            epoch: queue.epoch,
            waiting: queue.waiting,
            registered: queue.registered,
            working: queue.working,
            max_working: queue.max_working,
            served_number: queue.served_number,
            last_number: queue.last_number,
            admitted_per_minute: queue.admitted_per_minute,
            admitted: queue.admitted,
            no_shows: queue.no_shows,
            expired: queue.expired,
            completed: queue.completed,
            left: queue.left,
            estimated_wait_seconds: queue.estimated_wait_seconds,
            remaining_seats: queue.remaining_seats,
            place_expiries_next_minute: queue.place_expiries_next_minute,
            overdue_places: queue.overdue_places,
            place_expiries: queue.place_expiries,
            settings: queue.settings,
            opens_at: queue.opens_at,
            closes_at: queue.closes_at,
            ..seats_and_names
        };
    }

    fn take_seats(&mut self, seats: SeatSlice) {
        self.performance_id = seats.performance_id;
        self.held_seats = seats.held_seats;
        self.sold_seats = seats.sold_seats;
        self.open_orders = seats.open_orders;
        self.hold_expiries_next_minute = seats.hold_expiries_next_minute;
        self.overdue_holds = seats.overdue_holds;
        self.hold_expiries = seats.hold_expiries;
    }
}

impl Http {
    /// Rates add up, shares are weighted by them; a percentile of several cannot
    /// be known from theirs, so the worst stands (never too good).
    fn add(&mut self, other: Self) {
        let total = self.requests_per_second + other.requests_per_second;
        let share = |mine: f64, theirs: f64| {
            if total > 0.0 {
                (mine * self.requests_per_second + theirs * other.requests_per_second) / total
            } else {
                0.0
            }
        };
        self.error_rate = share(self.error_rate, other.error_rate);
        self.client_error_rate = share(self.client_error_rate, other.client_error_rate);
        self.requests_per_second = total;
        self.p50_ms = self.p50_ms.max(other.p50_ms);
        self.p99_ms = self.p99_ms.max(other.p99_ms);
        self.in_flight += other.in_flight;
        self.by_route.extend(other.by_route);
    }
}

impl Events {
    fn add(&mut self, other: Self) {
        if self.delivery.is_empty() {
            self.delivery = other.delivery;
        }
        self.outbox_pending += other.outbox_pending;
        self.oldest_seconds = self.oldest_seconds.max(other.oldest_seconds);
        self.kafka_lag = match (self.kafka_lag, other.kafka_lag) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        self.dlq += other.dlq;
    }
}

impl Payments {
    fn add(&mut self, other: &Self) {
        self.open += other.open;
        self.unknown += other.unknown;
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.refunded += other.refunded;
        self.refunds_pending += other.refunds_pending;
        self.refunds_stuck += other.refunds_stuck;
        self.webhooks_pending += other.webhooks_pending;
        self.creates_per_second_max = self.creates_per_second_max.or(other.creates_per_second_max);
        self.create_wait_ms = self.create_wait_ms.max(other.create_wait_ms);
        self.calls_waiting += other.calls_waiting;
    }
}

#[cfg(test)]
mod tests;
