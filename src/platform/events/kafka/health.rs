//! Whether the brokers answer: for the operator's overview, and a log line when that changes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Publisher;
use crate::platform::overview::{Health, Store};

/// An operator sees an outage within this and [`ANSWER_MAX`]: less than five seconds.
const EVERY: Duration = Duration::from_secs(2);
const ANSWER_MAX: Duration = Duration::from_millis(1_500);

/// Asks the brokers again and again who they are, and notes the answer in `seen`.
pub(in super::super) async fn look(
    publisher: Arc<Publisher>,
    seen: Arc<Mutex<Option<Store>>>,
    stop: CancellationToken,
) {
    let mut away_since: Option<Instant> = None;
    loop {
        let publisher = publisher.clone();
        // The client's own call blocks its thread until there is an answer.
        let asked = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let brokers = publisher.brokers(ANSWER_MAX);
            (brokers, begun.elapsed())
        });
        let store = match asked.await {
            Ok((brokers, took)) => store(brokers, took),
            Err(error) => down(error.to_string()),
        };
        report(&store, &mut away_since);
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(store);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

fn report(store: &Store, away_since: &mut Option<Instant>) {
    match (store.state == Health::Up, *away_since) {
        (false, None) => {
            *away_since = Some(Instant::now());
            tracing::warn!(
                error = store.detail,
                "Kafka is away: events wait in the outbox until it is back"
            );
        }
        (true, Some(since)) => {
            *away_since = None;
            tracing::info!(
                away_s = since.elapsed().as_secs(),
                "Kafka is back: the events that waited are being delivered"
            );
        }
        (true, None) | (false, Some(_)) => {}
    }
}

fn store(brokers: Result<usize, String>, took: Duration) -> Store {
    match brokers {
        Ok(count) => Store {
            name: "kafka".to_owned(),
            state: Health::Up,
            detail: format!("{count} broker{}", if count == 1 { "" } else { "s" }),
            latency_ms: Some(took.as_secs_f64() * 1000.0),
        },
        Err(error) => down(error),
    }
}

fn down(detail: String) -> Store {
    Store {
        name: "kafka".to_owned(),
        state: Health::Down,
        detail,
        latency_ms: None,
    }
}
