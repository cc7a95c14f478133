//! What operators see: the overview's slice and the metrics.

use std::{sync::atomic::Ordering::Relaxed, time::Instant};

use chrono::DateTime;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use uuid::Uuid;

use super::{State, live::Live, scripts::Code};
use crate::platform::{
    metrics::Metrics,
    overview::{Expiries, Health, Notice, OverviewSlice, QueueSlice, Store, WaitRange},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// This role's metrics.
pub(super) struct Figures {
    entered: Family<Outcome, Counter>,
    waiting: Gauge,
    working: Gauge,
    max_working: Gauge,
}

impl Figures {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let figures = Self {
            entered: Family::default(),
            waiting: Gauge::default(),
            working: Gauge::default(),
            max_working: Gauge::default(),
        };
        metrics.register(|registry| {
            registry.register(
                "queue_entries",
                "Entries answered, by outcome",
                figures.entered.clone(),
            );
            registry.register(
                "queue_waiting",
                "People waiting, in the queues this instance knows",
                figures.waiting.clone(),
            );
            registry.register(
                "queue_working",
                "People admitted, in the queues this instance knows",
                figures.working.clone(),
            );
            registry.register(
                "queue_max_working",
                "Places in the working sets of the queues this instance knows",
                figures.max_working.clone(),
            );
        });
        figures
    }

    pub(super) fn entered(&self, code: Code) {
        let outcome = match code {
            Code::Waiting => "waiting",
            Code::Working => "working",
            Code::Registered => "registered",
            Code::SoldOut => "sold_out",
            Code::Full => "full",
            Code::NotOpen => "not_open",
            Code::Draining => "draining",
            Code::NoNumber | Code::Ended | Code::Drawing => "refused",
        };
        self.entered.get_or_create(&Outcome { outcome }).inc();
    }

    /// Sums over the queues of this instance.
    pub(super) fn sum(&self, lives: &[std::sync::Arc<Live>]) {
        let (mut waiting, mut working, mut max) = (0, 0, 0);
        for live in lives {
            let view = &live.snapshot.load().view;
            waiting += view.waiting + view.registered;
            working += view.working;
            max += view.max_working;
        }
        self.waiting.set(waiting);
        self.working.set(working);
        self.max_working.set(max);
    }
}

fn count(n: i64) -> u64 {
    n.max(0).unsigned_abs()
}

impl State {
    /// This role's part of `GET /admin/v1/overview`; deadlines in full for `detail`.
    pub async fn overview(&self, detail: Option<Uuid>) -> OverviewSlice {
        let mut slice = OverviewSlice {
            role: super::SCHEMA.into(),
            ..OverviewSlice::default().with_failing_tasks()
        };
        // From the last tick of each: a thousand queues cost Redis nothing.
        for live in self.lives() {
            let mut queue = queue_slice(&live);
            if detail == Some(live.id) {
                let now = live.snapshot.load().view.now;
                queue.place_expiries = self.expiries(&live, now).await;
            }
            slice.queues.push(queue);
        }
        slice.queues.sort_by_key(|queue| queue.performance_id);
        slice.stores = self.stores().await;
        self.events().add_to(&mut slice, super::SCHEMA);
        self.alarms().add_to(&mut slice);
        let note = self
            .0
            .notifications
            .lock()
            .expect("nothing panics while it holds this lock")
            .clone();
        slice.alarms.extend(note.map(|message| Notice {
            code: "NO_KEYSPACE_NOTIFICATIONS".into(),
            performance_id: None,
            message,
            look_at: "notify-keyspace-events of the Redis server".into(),
            critical: false,
        }));
        slice
    }

    async fn expiries(&self, live: &Live, now: i64) -> Option<Expiries> {
        let rows: Vec<(Vec<u8>, i64)> = redis::cmd("ZRANGE")
            .arg(live.room.work_key())
            .arg(0)
            .arg(-1)
            .arg("WITHSCORES")
            .query_async(&mut live.room.redis())
            .await
            .ok()?;
        Some(Expiries::from_deadlines(
            now,
            rows.into_iter().map(|(_, at)| at),
        ))
    }

    async fn stores(&self) -> Vec<Store> {
        let begun = Instant::now();
        let redis = super::wake::usable(&mut self.deps().redis.clone(), &self.deps().prefix).await;
        let redis = redis.map_err(|unready| unready.to_string());
        let redis = store("redis", begun, redis);
        let begun = Instant::now();
        let postgres = sqlx::query("select 1").execute(&self.deps().pool).await;
        let postgres = store(
            "postgres",
            begun,
            postgres.map(drop).map_err(|e| e.to_string()),
        );
        vec![redis, postgres]
    }
}

fn store(name: &str, begun: Instant, outcome: Result<(), String>) -> Store {
    let took = begun.elapsed().as_secs_f64() * 1000.0;
    Store {
        name: name.into(),
        state: match outcome {
            Ok(()) => Health::Up,
            Err(_) => Health::Down,
        },
        latency_ms: outcome.is_ok().then_some(took),
        detail: outcome.err().unwrap_or_default(),
    }
}

/// What the last tick of `live` showed.
fn queue_slice(live: &Live) -> QueueSlice {
    let snapshot = live.snapshot.load_full();
    let v = &snapshot.view;
    let newcomer = snapshot.position(count(v.last) + 1, 0);
    let time = |ms: i64| DateTime::from_timestamp_millis(ms).filter(|_| ms >= 0);
    QueueSlice {
        performance_id: live.id,
        phase: snapshot.phase,
        epoch: count(v.epoch),
        waiting: count(v.waiting),
        registered: count(v.registered),
        working: count(v.working),
        max_working: count(v.max_working),
        served_number: count(v.served),
        last_number: count(v.last),
        admitted_per_minute: snapshot.rate.per_minute,
        admitted: count(v.admitted),
        no_shows: count(v.no_shows),
        expired: count(v.lapsed),
        completed: count(v.completed),
        left: count(v.left),
        estimated_wait_seconds: snapshot
            .estimate(newcomer)
            .map(|(min, max)| WaitRange { min, max }),
        remaining_seats: count(v.remaining),
        place_expiries_next_minute: live.soon.load(Relaxed),
        overdue_places: live.overdue.load(Relaxed),
        place_expiries: None,
        settings: live.rules.load().settings.shown(),
        opens_at: time(v.opens_at),
        closes_at: time(v.closes_at),
    }
}
