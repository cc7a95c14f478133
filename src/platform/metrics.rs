//! Prometheus metrics: one registry a process, each role registers its own.

use std::sync::{Arc, Mutex};

use prometheus_client::{encoding::text::encode, registry::Registry};

/// The process's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Default for Metrics {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Registry::with_prefix("ticketping"))))
    }
}

impl Metrics {
    /// Lets `register` add metrics; names get the prefix `ticketping_`.
    pub fn register(&self, register: impl FnOnce(&mut Registry)) {
        register(
            &mut self
                .0
                .lock()
                .expect("a panic while registering metrics ends the process"),
        );
    }

    /// The Prometheus (OpenMetrics) text of everything registered.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let registry = self
            .0
            .lock()
            .expect("a panic while registering metrics ends the process");
        encode(&mut text, &registry).expect("writing to a String cannot fail");
        text
    }
}
