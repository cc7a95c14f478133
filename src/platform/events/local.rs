//! Delivery inside the process: the relay hands an event to every subscribed handler.

use std::collections::HashMap;
use std::sync::Mutex;

use uuid::Uuid;

use super::consume::consume;
use super::{Event, Subscription};

/// The handlers of this process.
pub struct Dispatcher {
    subscriptions: Vec<Subscription>,
    /// Who has already handled an event that somebody else could not yet. Only spares work:
    /// after a restart they hear it again, and their inbox says no.
    partly: Mutex<HashMap<Uuid, Vec<usize>>>,
}

impl Dispatcher {
    #[must_use]
    pub fn new(subscriptions: Vec<Subscription>) -> Self {
        Self {
            subscriptions,
            partly: Mutex::default(),
        }
    }

    /// `Ok` once every handler that wants the event has returned.
    pub(super) async fn deliver(&self, event: &Event) -> Result<(), anyhow::Error> {
        let mut done = self.partly().remove(&event.id).unwrap_or_default();
        let mut failure = None;
        for (index, subscription) in self.subscriptions.iter().enumerate() {
            if done.contains(&index) || !subscription.wants(event) {
                continue;
            }
            match consume(subscription, event, &event.source).await {
                Ok(_) => done.push(index),
                Err(cause) => {
                    failure = Some(cause.context(format!("consumer {}", subscription.consumer)));
                }
            }
        }
        match failure {
            None => Ok(()),
            Some(cause) => {
                if !done.is_empty() {
                    self.partly().insert(event.id, done);
                }
                Err(cause)
            }
        }
    }

    fn partly(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Vec<usize>>> {
        self.partly
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
