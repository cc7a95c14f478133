//! Holds that run out. A wake-up key's expiry rings at the very moment; a sweep
//! every second makes up for bells that were lost. Whoever hears it asks
//! Postgres, which has the clock that counts, so any number may.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use redis::AsyncCommands;
use sqlx::Row as _;
use uuid::Uuid;

use super::{
    Reservations,
    scripts::Keys,
    settle::SettleError,
    steps::{Cause, StepError},
};
use crate::platform::{
    keyspace_listener::{self, Listener},
    tasks::{self, Tasks},
};

/// Orders closed in one sweep; the next one comes within a second.
const SWEEP_MAX: i64 = 500;
/// Orders closed at the same time.
const CONCURRENT: usize = 8;
/// Redis and Postgres may be this far apart before the sweep finds a hold in
/// Redis that should be gone.
const LATE_MS: i64 = 200;

impl Reservations {
    /// The hold of an order may have run out.
    ///
    /// # Errors
    /// When a store is away.
    pub async fn lapse(&self, performance: Uuid, order: Uuid) -> Result<(), SettleError> {
        match self.step(order, &Cause::HoldLapsed, None).await {
            Ok(_) | Err(StepError::NotFound) => {}
            Err(StepError::Database(error)) => return Err(error.into()),
            Err(
                StepError::Refused(_)
                | StepError::CutOff
                | StepError::TicketUsed
                | StepError::Disputed,
            ) => {}
        }
        self.show(performance, order).await
    }

    /// One sweep over Postgres, which knows every deadline, and over Redis, for
    /// holds whose order was never written.
    ///
    /// # Errors
    /// When a store is away.
    pub async fn sweep(&self) -> Result<(), SettleError> {
        let due = sqlx::query(
            "select id, performance_id, closing is not null as closing from orders
             where state in ('PENDING', 'PAYING') and expires_at <= now()
               and (closing is null or closing_at < now() - make_interval(secs => $2))
             limit $1",
        )
        .bind(SWEEP_MAX)
        .bind(self.config.payment_wait_max().as_seconds_f64())
        .fetch_all(&self.pool)
        .await?;
        let mut orders = Vec::with_capacity(due.len());
        for row in due {
            let (id, performance): (Uuid, Uuid) = (row.try_get(0)?, row.try_get(1)?);
            orders.push((id, performance, row.try_get::<bool, _>(2)?));
        }
        futures_util::stream::iter(orders)
            .for_each_concurrent(CONCURRENT, |(id, performance, closing)| async move {
                let done = if closing {
                    self.give_up_waiting(performance, id).await
                } else {
                    self.lapse(performance, id).await
                };
                log(id, done);
            })
            .await;
        self.sweep_redis().await
    }

    async fn give_up_waiting(&self, performance: Uuid, order: Uuid) -> Result<(), SettleError> {
        let cause = Cause::WaitedEnough(self.config.payment_wait_max());
        match self.step(order, &cause, None).await {
            Err(StepError::Database(error)) => Err(error.into()),
            _ => self.show(performance, order).await,
        }
    }

    async fn sweep_redis(&self) -> Result<(), SettleError> {
        let mut redis = self.redis.clone();
        let live: Vec<String> = redis.smembers(self.live_key()).await?;
        let now = chrono::Utc::now().timestamp_millis() - LATE_MS;
        for performance in live.iter().filter_map(|p| p.parse().ok()) {
            let due: Vec<Vec<u8>> = redis
                .zrangebyscore_limit(self.keys(performance).holds(), "-inf", now, 0, 100)
                .await?;
            for order in due.iter().filter_map(|o| Uuid::from_slice(o).ok()) {
                log(order, self.lapse(performance, order).await);
            }
        }
        Ok(())
    }

    pub(super) fn spawn_expiry(&self, tasks: &Tasks) {
        let sweeper = self.clone();
        tasks.every("hold-sweep", Duration::from_secs(1), move || {
            let this = sweeper.clone();
            async move {
                if let Err(error) = this.sweep().await {
                    tracing::warn!(%error, "the sweep of holds will be tried again");
                }
            }
        });
        let (this, stop) = (self.clone(), tasks.token());
        tasks.spawn("hold-bells", move || {
            let redis = this.redis.clone();
            keyspace_listener::run("hold-bells", redis, Arc::new(this.clone()), stop.clone())
        });
    }
}

impl Listener for Reservations {
    fn expired(&self, key: &[u8]) {
        let key = String::from_utf8_lossy(key);
        let Some((performance, order)) = Keys::parse_wake(&self.prefix, &key) else {
            return;
        };
        let this = self.clone();
        tokio::spawn(tasks::job("hold-bells", async move {
            // Many may ring at once; the pool sets the pace.
            let _turn = this.lapsing.acquire().await;
            log(order, this.lapse(performance, order).await);
        }));
    }
}

fn log(order: Uuid, done: Result<(), SettleError>) {
    if let Err(error) = done {
        tracing::warn!(order.id = %order, %error, "a hold that ran out will be looked at again");
    }
}
