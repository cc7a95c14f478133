//! Whether Stripe answers, for the operator's overview: as the calls of buyers found it, or,
//! where there were none, as a small call of our own does.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use super::{Stripe, StripeFailure};
use crate::platform::overview::{Health, Store};

/// Without a buyer's call for so long, Stripe is asked something small.
const QUIET_MAX: Duration = Duration::from_secs(10);

/// The last answer, or its absence.
#[derive(Default)]
pub(super) struct Seen(Mutex<Option<Last>>);

struct Last {
    at: Instant,
    took: Duration,
    /// Why there was no answer.
    missing: Option<String>,
}

impl Seen {
    pub(super) fn note(&self, answer: &Result<Bytes, StripeFailure>, took: Duration) {
        let missing = match answer {
            Err(StripeFailure::Unknown(why)) => Some(why.clone()),
            // A refusal is an answer.
            Ok(_) | Err(StripeFailure::Refused { .. } | StripeFailure::Burnt(_)) => None,
        };
        let at = Instant::now();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Last { at, took, missing });
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
                missing: None,
                took,
                ..
            }) => (Health::Up, String::new(), Some(*took)),
            Some(Last {
                missing: Some(why), ..
            }) => (Health::Down, why.clone(), None),
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
        if !self.0.seen.quiet() {
            return;
        }
        let request = Request::get(format!("{}/v1/events?limit=1", self.0.base))
            .header(http::header::AUTHORIZATION, &self.0.authorization)
            .body(Full::<Bytes>::default());
        match request {
            // What came of it is in `seen`.
            Ok(request) => drop(self.send(request).await),
            Err(error) => tracing::warn!(%error, "cannot ask Stripe how it is"),
        }
    }

    /// Stripe as it was last seen.
    pub fn health(&self) -> Store {
        self.0.seen.store()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_an_answer_and_silence_is_not() {
        let seen = Seen::default();
        assert!(seen.quiet());
        let refused = StripeFailure::Refused {
            status: 402,
            code: "card_declined".into(),
            message: "no".into(),
        };
        seen.note(&Err(refused), Duration::from_millis(8));
        let store = seen.store();
        assert_eq!((store.state, store.latency_ms), (Health::Up, Some(8.0)));
        assert!(!seen.quiet());
        seen.note(
            &Err(StripeFailure::Unknown("no answer in time".into())),
            QUIET_MAX,
        );
        let store = seen.store();
        assert_eq!((store.state, store.latency_ms), (Health::Down, None));
        assert_eq!(store.detail, "no answer in time");
    }
}
