//! Prometheus metrics: one registry a process, each role registers its own.

use std::sync::{Arc, Mutex};

use prometheus_client::{encoding::text::encode, registry::Registry};

use super::lease::LeaseMetrics;

/// The process's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    leases: LeaseMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("ticketping");
        let leases = LeaseMetrics::default();
        leases.register(&mut registry);
        Self {
            registry: Arc::new(Mutex::new(registry)),
            leases,
        }
    }
}

impl Metrics {
    /// Lets `register` add metrics; names get the prefix `ticketping_`.
    pub fn register(&self, register: impl FnOnce(&mut Registry)) {
        register(
            &mut self
                .registry
                .lock()
                .expect("a panic while registering metrics ends the process"),
        );
    }

    /// What the leases of every role in this process show.
    pub(super) fn leases(&self) -> LeaseMetrics {
        self.leases.clone()
    }

    /// The Prometheus (OpenMetrics) text of everything registered.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let registry = self
            .registry
            .lock()
            .expect("a panic while registering metrics ends the process");
        encode(&mut text, &registry).expect("writing to a String cannot fail");
        text
    }
}
