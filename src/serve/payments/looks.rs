//! Single flight: many who ask about one intent at the same moment cause one call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::Instant;
use uuid::Uuid;

use super::stripe::{Intent, StripeFailure};

/// A look so recent answers again: buyers poll, and Stripe allows a hundred reads a second.
const FRESH: Duration = Duration::from_millis(300);
/// When to sweep out what nobody asks about any more.
const SWEEP_AT: usize = 4_096;

type Shared = Arc<OnceCell<Result<Intent, String>>>;

/// Looks under way and just done, by payment.
#[derive(Default)]
pub struct Looks(Mutex<HashMap<Uuid, (Instant, Shared)>>);

impl Looks {
    /// What `read` gives, or what it gave to somebody who asked at the same moment.
    pub async fn look<F, Fut>(&self, payment: Uuid, read: F) -> Result<Intent, String>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<Intent, StripeFailure>>,
    {
        let shared = self.join(payment);
        shared
            .get_or_init(|| async { read().await.map_err(|failure| failure.to_string()) })
            .await
            .clone()
    }

    fn join(&self, payment: Uuid) -> Shared {
        let now = Instant::now();
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if looks.len() >= SWEEP_AT {
            looks.retain(|_, (begun, _)| now.duration_since(*begun) < FRESH);
        }
        if let Some((begun, shared)) = looks.get(&payment) {
            let failed = matches!(shared.get(), Some(Err(_)));
            if !failed && (shared.get().is_none() || now.duration_since(*begun) < FRESH) {
                return shared.clone();
            }
        }
        let shared = Shared::default();
        looks.insert(payment, (now, shared.clone()));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn many_at_once_are_one_call_and_a_failure_is_not_kept() {
        let looks = Arc::new(Looks::default());
        let calls = Arc::new(AtomicU32::new(0));
        let id = Uuid::now_v7();
        let ask = |looks: Arc<Looks>, calls: Arc<AtomicU32>| async move {
            looks
                .look(id, || async move {
                    calls.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Err(StripeFailure::Unknown("away".into()))
                })
                .await
        };
        let all = (0..20).map(|_| tokio::spawn(ask(looks.clone(), calls.clone())));
        for one in all.collect::<Vec<_>>() {
            assert!(one.await.unwrap().is_err());
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        let _ = ask(looks.clone(), calls.clone()).await;
        assert_eq!(
            calls.load(Ordering::SeqCst),
            2,
            "a failure was served again"
        );
    }
}
