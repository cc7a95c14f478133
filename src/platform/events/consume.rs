//! One event, one consumer: try, try a bad message a few times more, give it up.
//! The same for delivery in the process and by Kafka.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tracing::Instrument;

use super::{Event, HandlerError, Subscription, dead};
use crate::platform::telemetry::traces;

/// A message that is itself bad stays bad; a few tries tell it from an unlucky moment.
const POISON_ATTEMPTS: u32 = 4;
const POISON_PAUSE: Duration = Duration::from_millis(50);
/// No handler needs longer; one that hangs must not hold its key for ever.
const HANDLER_TIMEOUT: Duration = Duration::from_secs(30);

/// Hands `event` to one subscription. `Ok` means that it never needs to come again: handled,
/// or buried with its reason. The error says why it must.
pub(super) async fn consume(
    subscription: &Subscription,
    event: &Event,
    origin: &str,
) -> Result<Outcome, anyhow::Error> {
    let mut attempt = 1;
    loop {
        let error = match attempt_once(subscription, event).await {
            Ok(()) => return Ok(Outcome::Handled),
            Err(HandlerError::Retry(cause)) => return Err(cause),
            Err(error @ HandlerError::Poison(_)) => error,
        };
        if attempt == POISON_ATTEMPTS {
            dead::bury(
                &subscription.pool,
                subscription.consumer,
                origin,
                event,
                &error,
            )
            .await?;
            return Ok(Outcome::Buried(error.to_string()));
        }
        tokio::time::sleep(POISON_PAUSE * 2_u32.pow(attempt - 1)).await;
        attempt += 1;
    }
}

pub(super) enum Outcome {
    Handled,
    /// Given up, with the reason; Kafka also sends it to the `.dlq` topic.
    Buried(String),
}

/// One try with every subscription of the consumer that wants the event.
pub(super) async fn attempt_all(
    subscriptions: &[Subscription],
    event: &Event,
) -> Result<(), HandlerError> {
    for subscription in subscriptions.iter().filter(|one| one.wants(event)) {
        attempt_once(subscription, event).await?;
    }
    Ok(())
}

async fn attempt_once(subscription: &Subscription, event: &Event) -> Result<(), HandlerError> {
    let span = traces::consumer(
        subscription.consumer,
        &event.kind,
        &event.id.to_string(),
        event.traceparent.as_deref(),
    );
    let outcome = attempt_within(subscription, event)
        .instrument(span.clone())
        .await;
    if let Err(error) = &outcome {
        traces::failed(&span, error);
    }
    outcome
}

async fn attempt_within(subscription: &Subscription, event: &Event) -> Result<(), HandlerError> {
    let run = AssertUnwindSafe(subscription.handler.handle(event)).catch_unwind();
    match tokio::time::timeout(HANDLER_TIMEOUT, run).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(HandlerError::Poison(anyhow::anyhow!(
            "handler panicked: {}",
            words(&*panic)
        ))),
        Err(_) => Err(HandlerError::Retry(anyhow::anyhow!(
            "handler did not end within {} s",
            HANDLER_TIMEOUT.as_secs()
        ))),
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
