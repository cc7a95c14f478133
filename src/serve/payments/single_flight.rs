//! Single flight: callers who want the same thing at the same moment share one piece of work.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;
use uuid::Uuid;

type Shared<T> = Arc<OnceCell<T>>;

/// Work under way, by what it is about. What is done is not remembered.
pub struct SingleFlight<T>(Mutex<HashMap<Uuid, Shared<T>>>);

impl<T> Default for SingleFlight<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> SingleFlight<T> {
    /// What `work` gives, or what it gives to a caller that was first. When the first one gives
    /// up, the next one begins.
    pub async fn run<Fut: Future<Output = T>>(&self, id: Uuid, work: impl FnOnce() -> Fut) -> T {
        let shared = self.lock().entry(id).or_default().clone();
        let _landed = Landed {
            all: self,
            id,
            shared: &shared,
        };
        shared.get_or_init(work).await.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Shared<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets the work once it is done or its last caller is gone.
struct Landed<'a, T> {
    all: &'a SingleFlight<T>,
    id: Uuid,
    shared: &'a Shared<T>,
}

impl<T> Drop for Landed<'_, T> {
    fn drop(&mut self) {
        let mut flights = (self.all.0.lock()).unwrap_or_else(PoisonError::into_inner);
        let mine = flights
            .get(&self.id)
            .is_some_and(|known| Arc::ptr_eq(known, self.shared));
        // The map and this caller hold one each.
        if mine && (self.shared.initialized() || Arc::strong_count(self.shared) <= 2) {
            flights.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn many_at_once_are_one_call_and_nothing_is_remembered() {
        let flights = Arc::new(SingleFlight::default());
        let calls = Arc::new(AtomicU32::new(0));
        let id = Uuid::now_v7();
        let ask = |flights: Arc<SingleFlight<u32>>, calls: Arc<AtomicU32>| async move {
            let work = || async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                calls.fetch_add(1, Ordering::SeqCst) + 1
            };
            flights.run(id, work).await
        };
        let all: Vec<_> = (0..20)
            .map(|_| tokio::spawn(ask(flights.clone(), calls.clone())))
            .collect();
        for one in all {
            assert_eq!(one.await.unwrap(), 1);
        }
        assert!(flights.lock().is_empty());
        assert_eq!(ask(flights.clone(), calls.clone()).await, 2);
        // The first caller hangs up: the next does the work.
        let first = tokio::spawn(ask(flights.clone(), calls.clone()));
        tokio::time::sleep(Duration::from_millis(10)).await;
        let second = tokio::spawn(ask(flights.clone(), calls.clone()));
        tokio::time::sleep(Duration::from_millis(10)).await;
        first.abort();
        assert_eq!(second.await.unwrap(), 3);
        assert!(flights.lock().is_empty());
    }
}
