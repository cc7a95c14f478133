//! Counters of a listener's connections.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use crate::platform::metrics::Metrics;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Counters of a listener's connections. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub(super) open: Gauge,
    pub(super) max: Gauge,
    pub(super) refused: Counter,
    pub(super) accept_errors: Counter,
    cut: Family<Reason, Counter>,
}

impl Counters {
    /// Shows them among `metrics`.
    pub fn register(&self, metrics: &Metrics) {
        metrics.register(|registry| {
            registry.register(
                "http_connections",
                "Connections open now",
                self.open.clone(),
            );
            registry.register(
                "http_connections_limit",
                "Connections that may be open at the same time",
                self.max.clone(),
            );
            registry.register(
                "http_connections_refused",
                "Connections closed at once because all were in use",
                self.refused.clone(),
            );
            registry.register(
                "http_accept_errors",
                "Connections that could not be accepted, for want of file descriptors as a rule",
                self.accept_errors.clone(),
            );
            registry.register(
                "http_connections_cut",
                "Connections ended because a limit was reached, by limit",
                self.cut.clone(),
            );
        });
    }

    /// A connection was ended for `reason`.
    pub(super) fn cut(&self, reason: &'static str) {
        self.cut.get_or_create(&Reason { reason }).inc();
    }
}
