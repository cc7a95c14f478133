//! Whether Stripe answers, for the operator's overview: as the calls of buyers found it, or,
//! where there were none, as a small call of our own does.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Failed, Stripe};
use crate::platform::overview::{Health, Store};

/// Without a buyer's call for so long, Stripe is asked something small.
const QUIET_MAX: Duration = Duration::from_secs(10);

/// The last answer, or its absence.
#[derive(Default)]
pub(super) struct Seen(Mutex<Option<Last>>);

struct Last {
    at: Instant,
    took: Duration,
    /// What is wrong.
    wrong: Option<(Health, String)>,
}

impl Seen {
    /// What came of a call. One that was never sent says nothing about Stripe.
    pub(super) fn note(&self, failed: Option<&Failed>, took: Duration) {
        let wrong = match failed {
            Some(Failed::NoToken(_)) => return,
            Some(Failed::NoAnswer { why, .. }) => Some((Health::Down, why.clone())),
            Some(Failed::KeyRefused { why, .. }) => {
                Some((Health::Degraded, format!("refuses our key: {why}")))
            }
            // A refusal is an answer, and so is "later".
            None | Some(Failed::Later { .. } | Failed::Refused { .. } | Failed::Burnt(_)) => None,
        };
        let at = Instant::now();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Last { at, took, wrong });
    }

    fn quiet(&self) -> bool {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().is_none_or(|l| l.at.elapsed() >= QUIET_MAX)
    }

    fn store(&self) -> Store {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, detail, took) = match &*last {
            None => (Health::Up, "not asked yet".to_owned(), None),
            Some(Last {
                wrong: None, took, ..
            }) => (Health::Up, String::new(), Some(*took)),
            Some(Last {
                wrong: Some((health, why)),
                ..
            }) => (*health, why.clone(), None),
        };
        Store {
            name: "stripe".to_owned(),
            state,
            detail,
            latency_ms: took.map(|took| took.as_secs_f64() * 1000.0),
        }
    }
}

impl Stripe {
    /// Asks Stripe for its latest event when nobody asked anything for ten seconds.
    pub async fn look_when_quiet(&self) {
        if !self.inner.seen.quiet() {
            return;
        }
        // What came of it is in `seen`.
        drop(self.background().read("/events?limit=1").await);
    }

    /// Stripe as it was last seen.
    pub fn health(&self) -> Store {
        self.inner.seen.store()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_an_answer_and_so_is_later_and_silence_is_not() {
        let seen = Seen::default();
        assert!(seen.quiet());
        let refused = Failed::Refused {
            status: 402,
            code: "card_declined".into(),
            message: "no".into(),
        };
        let later = Failed::Later {
            why: "429".into(),
            retry_after: None,
        };
        for answer in [refused, later] {
            seen.note(Some(&answer), Duration::from_millis(8));
            let store = seen.store();
            assert_eq!((store.state, store.latency_ms), (Health::Up, Some(8.0)));
        }
        assert!(!seen.quiet());
        let silence = Failed::NoAnswer {
            why: "no answer in time".into(),
            again: true,
        };
        seen.note(Some(&silence), QUIET_MAX);
        seen.note(Some(&Failed::NoToken(String::new())), QUIET_MAX);
        let store = seen.store();
        assert_eq!((store.state, store.latency_ms), (Health::Down, None));
        assert_eq!(store.detail, "no answer in time");
        let why = "401".to_owned();
        seen.note(Some(&Failed::KeyRefused { status: 401, why }), QUIET_MAX);
        assert_eq!(seen.store().state, Health::Degraded);
    }
}
