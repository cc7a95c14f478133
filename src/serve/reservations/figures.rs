//! What Prometheus reads of this role.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
};

use super::{machine::Step, scripts::Held};
use crate::platform::metrics::Metrics;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// The role's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Figures {
    holds: Family<Outcome, Counter>,
    hold_seconds: Arc<Histogram>,
    steps: Family<Outcome, Counter>,
    /// Orders written.
    pub opened: Counter,
    /// Seat maps rendered.
    pub maps_rendered: Counter,
    /// Orders that Redis showed otherwise than Postgres.
    pub repaired: Counter,
    /// Repairs that could not be made.
    pub repair_failures: Counter,
}

impl Figures {
    /// Registers the metrics.
    pub fn new(metrics: &Metrics) -> Self {
        let this = Self {
            holds: Family::default(),
            // 0.1 ms to some 6 s.
            hold_seconds: Arc::new(Histogram::new(exponential_buckets(0.0001, 2.0, 16))),
            steps: Family::default(),
            opened: Counter::default(),
            maps_rendered: Counter::default(),
            repaired: Counter::default(),
            repair_failures: Counter::default(),
        };
        metrics.register(|r| {
            r.register(
                "holds",
                "Attempts to hold seats, by outcome",
                this.holds.clone(),
            );
            r.register(
                "hold_duration_seconds",
                "How long the hold script takes, with its way there and back",
                (*this.hold_seconds).clone(),
            );
            r.register(
                "order_steps",
                "Steps of orders, by what was done",
                this.steps.clone(),
            );
            r.register("orders_opened", "Orders written", this.opened.clone());
            r.register(
                "seat_maps_rendered",
                "Seat maps rendered",
                this.maps_rendered.clone(),
            );
            r.register(
                "seats_repaired_orders",
                "Orders that Redis showed otherwise than Postgres",
                this.repaired.clone(),
            );
            r.register(
                "seat_repair_failures",
                "Repairs of seats that could not be made; they come again",
                this.repair_failures.clone(),
            );
        });
        this
    }

    /// An attempt to hold seats has ended.
    pub fn held(&self, held: &Held, took: Duration) {
        let outcome = match held {
            Held::Seats { .. } => "held",
            Held::Taken(_) => "taken",
            Held::Limit(_) => "limit",
            Held::NoPlace(_) => "no_place",
            Held::Exhausted => "exhausted",
            Held::SalesEnded => "sales_ended",
            Held::Absent | Held::Lost(_) | Held::Uncounted | Held::Stopped => "unavailable",
        };
        self.holds.get_or_create(&Outcome { outcome }).inc();
        self.hold_seconds.observe(took.as_secs_f64());
    }

    /// The machine has taken a step.
    pub fn stepped(&self, step: &Step) {
        let outcome = match step {
            Step::Same => "same",
            Step::To(_) => "closed",
            Step::AskPayments(_) => "asked_payments",
            Step::Confirm => "confirmed",
            Step::Reacquire => "paid_late",
            Step::Refund(_) => "refunded_capture",
            Step::GiveBack => "given_back",
            Step::Refuse(_) => "refused",
        };
        self.steps.get_or_create(&Outcome { outcome }).inc();
    }
}
