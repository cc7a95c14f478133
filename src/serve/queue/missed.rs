//! Orders that were confirmed and of which no event told: their places are given up all the same.

use std::{collections::BTreeMap, sync::Mutex, sync::PoisonError, time::Duration};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use uuid::Uuid;

use crate::platform::alarms;

use super::{State, epochs, error::Error, scripts::End};

/// How often reservations is asked what it has confirmed.
pub(super) const ASK_EVERY: Duration = Duration::from_secs(15);
/// How long an event may take to arrive before a place is given up without it.
const LATE: chrono::Duration = chrono::Duration::seconds(20);
/// A turn lasts less than this; what was confirmed before has no place any more.
const TURN_MAX: chrono::Duration = chrono::Duration::hours(2);
/// Pages in one tick.
const PAGES: usize = 5;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sale {
    user_id: Uuid,
    performance_id: Uuid,
    place_number: Option<i64>,
    at: DateTime<Utc>,
}

#[derive(Deserialize)]
struct Sales {
    sales: Vec<Sale>,
    more: bool,
}

/// Up to when the confirmed orders have been seen; every instance looks for itself, since it
/// costs a read of what was sold since the last time.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<Option<DateTime<Utc>>>);

impl State {
    /// Messages that were put aside raise an alarm.
    pub(super) async fn watch_dead_letters(&self) {
        let watched = async {
            let mut conn = self.deps().pool.acquire().await?;
            alarms::watch_dead_letters(&mut conn).await
        };
        if let Err(error) = watched.await {
            tracing::debug!(%error, "dead letters are not known now");
        }
    }

    /// Gives up the places of orders that were confirmed unheard.
    pub(super) async fn end_missed(&self, seen: &Seen) -> Result<(), Error> {
        let to = Utc::now() - LATE;
        for _ in 0..PAGES {
            let known = *seen.0.lock().unwrap_or_else(PoisonError::into_inner);
            let from = known.unwrap_or(to - TURN_MAX);
            let path = format!(
                "/internal/v1/sales?from={}&to={}",
                from.format("%Y-%m-%dT%H:%M:%S%.6fZ"),
                to.format("%Y-%m-%dT%H:%M:%S%.6fZ")
            );
            let page: Sales = self.deps().reservations.get_json(&path).await?;
            let Some(last) = page.sales.last().map(|sale| sale.at) else {
                return Ok(());
            };
            self.end_those_not_ended(&page.sales).await?;
            let next = match page.more {
                true => last,
                false => last + chrono::Duration::microseconds(1),
            };
            *seen.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(next);
            if !page.more {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn end_those_not_ended(&self, sales: &[Sale]) -> Result<(), Error> {
        let mut by_performance: BTreeMap<Uuid, BTreeMap<i64, Uuid>> = BTreeMap::new();
        for sale in sales {
            if let Some(number) = sale.place_number {
                let numbers = by_performance.entry(sale.performance_id).or_default();
                numbers.insert(number, sale.user_id);
            }
        }
        let pool = &self.deps().pool;
        for (performance, places) in by_performance {
            let numbers: Vec<i64> = places.keys().copied().collect();
            let ended = epochs::ended_among(pool, performance, &numbers).await?;
            for (number, user) in places.iter().filter(|(n, _)| !ended.contains(n)) {
                let live = match self.live(performance).await {
                    Ok(live) => live,
                    // The performance is gone, and its queue with it.
                    Err(Error::NotFound) => break,
                    Err(error) => return Err(error),
                };
                self.end(&live, End::Completed, *user, &[*number]).await?;
                let note = epochs::Ended {
                    number: *number,
                    user: *user,
                    reason: "COMPLETED",
                };
                epochs::note_ended(pool, performance, &[note]).await?;
                self.tick_soon(&live);
                tracing::warn!(
                    performance.id = %performance, place.number = number,
                    "place {number} had bought and no event told; it is given up now"
                );
            }
        }
        Ok(())
    }
}
