//! What the queue hears: an order is confirmed, so the place it was made from is
//! given up and the next in line is admitted.

use serde::Deserialize;
use uuid::Uuid;

use super::{State, epochs, error::Error, scripts::End};
use crate::platform::events::{Event, HandlerError, Subscription, handler, inbox};

const CONSUMER: &str = "queue";

/// What this role listens to.
pub fn subscriptions(state: &State) -> Vec<Subscription> {
    let heard = state.clone();
    vec![Subscription {
        consumer: CONSUMER,
        sources: &["reservations"],
        types: &["order.confirmed"],
        handler: handler(move |event| {
            let state = heard.clone();
            async move { state.confirmed(&event).await }
        }),
        pool: state.deps().pool.clone(),
    }]
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Confirmed {
    user_id: Uuid,
    performance_id: Uuid,
    /// Unique over all epochs: it alone names the place. None: the order used none up.
    place_number: Option<u64>,
}

impl State {
    /// The script first, since it is idempotent; then the note that the turn is over,
    /// with the event's own. A crash between the two repeats the script, which finds nothing.
    async fn confirmed(&self, event: &Event) -> Result<(), HandlerError> {
        let order: Confirmed = event.data()?;
        let Some(place_number) = order.place_number else {
            return Ok(());
        };
        let live = match self.live(order.performance_id).await {
            Ok(live) => live,
            Err(error @ Error::NotFound) => return Err(HandlerError::poison(error)),
            Err(error) => return Err(HandlerError::retry(error)),
        };
        let number = i64::try_from(place_number).map_err(HandlerError::poison)?;
        self.end(&live, End::Completed, order.user_id, &[number])
            .await
            .map_err(HandlerError::retry)?;
        let mut tx = self.deps().pool.begin().await?;
        if inbox::first_time(&mut tx, CONSUMER, event.id).await? {
            let ended = epochs::Ended {
                number,
                user: order.user_id,
                reason: "COMPLETED",
            };
            epochs::note_ended(&mut *tx, order.performance_id, &[ended]).await?;
            tx.commit().await?;
        }
        self.tick_soon(&live);
        Ok(())
    }
}
