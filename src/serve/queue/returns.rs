//! How people come back: a token of an earlier epoch puts its place back, once.

use std::{collections::HashSet, sync::Arc};

use axum::response::Response;
use http::StatusCode;

use super::{
    State, epochs,
    error::Error,
    live::{Answer, Before, Live, now_ms},
    people::TRIES,
    scripts::{BATCH_MAX, Batch, Code, May, Return, ScriptError},
    snapshot::Snapshot,
};
use crate::platform::{
    place::{Place, PlaceState, Turn},
    tasks,
};

impl State {
    pub(super) async fn put_back(&self, live: &Arc<Live>, place: Place) -> Result<Response, Error> {
        let ticket = live
            .returning
            .submit(place)
            .ok_or_else(|| Error::unavailable("too many people come back at once"))?;
        if ticket.start {
            let (state, live) = (self.clone(), live.clone());
            tokio::spawn(async move { state.return_loop(&live).await });
        }
        let outcome = ticket.answer.await.map_err(Error::unavailable)??;
        match outcome.code {
            Code::Ended => {
                self.note_ended(live).await?;
                Err(Error::Ended)
            }
            // The token stays one of the earlier epoch, so that it is put back at its number.
            Code::Drawing => {
                let snapshot = live.snapshot.load();
                Ok(self.registered(&snapshot, &place, None, now_ms(), StatusCode::OK))
            }
            Code::NotOpen
            | Code::Waiting
            | Code::Working
            | Code::Registered
            | Code::SoldOut
            | Code::Full
            | Code::Draining
            | Code::NoNumber => {
                self.show(live, place.user, outcome, place.position, StatusCode::OK)
            }
        }
    }

    async fn return_loop(&self, live: &Arc<Live>) {
        while let Some((places, senders)) = live.returning.take(BATCH_MAX) {
            if places.is_empty() {
                continue;
            }
            let answered = tasks::job("queue.returns", self.return_batch(live, &places)).await;
            // Those of a batch that panics are told to come again.
            let answers = answered.unwrap_or_default();
            for (sender, answer) in senders.into_iter().zip(answers) {
                // Who hung up is back all the same: asking again shows it.
                let _ = sender.send(answer);
            }
        }
    }

    async fn return_batch(&self, live: &Arc<Live>, places: &[Place]) -> Vec<Answer> {
        let mut failure = Error::unavailable("the queue is being set up again");
        for _ in 0..TRIES {
            match self.try_return(live, places).await {
                Ok(Ok(batch)) => {
                    self.after_batch(live, &batch);
                    return batch.outcomes.into_iter().map(Ok).collect();
                }
                Ok(Err(lost)) => {
                    if let Err(error) = self.heal(live, lost).await {
                        failure = error;
                        break;
                    }
                }
                Err(error) => {
                    failure = error;
                    break;
                }
            }
        }
        places.iter().map(|_| Err(failure.clone())).collect()
    }

    async fn try_return(
        &self,
        live: &Arc<Live>,
        places: &[Place],
    ) -> Result<Result<Batch, ScriptError>, Error> {
        let snapshot = live.snapshot.load_full();
        let before = self.before(live, live.seen().epoch).await?;
        let names = places.iter().flat_map(|place| snapshot.names(place));
        let names: Vec<i64> = names.collect();
        let ended = epochs::ended_among(&self.deps().pool, live.id, &names).await?;
        let claim_ms = live.rules.load().settings.claim_ttl_ms.unsigned_abs();
        let now = now_ms();
        let returns: Vec<_> = places
            .iter()
            .map(|place| {
                // Time in which nobody could be served is given back to turns of before.
                let place = &lengthened(place, before);
                let runs = place.turn.deadline_ms > now;
                Return {
                    user: place.user,
                    number: place.number,
                    turn: Turn {
                        deadline_ms: if runs { place.turn.deadline_ms } else { 0 },
                        ..place.turn
                    },
                    may: may(place, &ended, &snapshot, before, claim_ms, now),
                    registered: place.state == PlaceState::Registered,
                }
            })
            .collect();
        Ok(live.room.restore(live.seen(), &returns).await)
    }
}

fn lengthened(place: &Place, before: Before) -> Place {
    let longer = |at: u64| match at {
        0 => 0,
        at => at.saturating_add(before.lost_ms),
    };
    let lost = place.epoch < before.epoch;
    Place {
        turn: match lost {
            true => Turn {
                deadline_ms: longer(place.turn.deadline_ms),
                holding_ms: longer(place.turn.holding_ms),
                last_ms: longer(place.turn.last_ms),
            },
            false => place.turn,
        },
        issued_ms: match lost {
            true => longer(place.issued_ms),
            false => place.issued_ms,
        },
        ..*place
    }
}

/// A turn cannot have ended unnoticed when its number was never served, or when its claim
/// window, counted from the last poll, still runs; and never when Postgres says so.
fn may(
    place: &Place,
    ended: &HashSet<i64>,
    snapshot: &Snapshot,
    before: Before,
    claim_ms: u64,
    now: u64,
) -> May {
    // Who gave a registration up before the draw gets no turn by the number that it would have drawn.
    let over = snapshot
        .names(place)
        .iter()
        .any(|name| ended.contains(name));
    // Nothing extends a turn beyond the bound that it began with.
    let spent = place.state == PlaceState::Working && place.turn.last_ms <= now;
    if over || spent || place.epoch < before.fresh_from {
        return May::Never;
    }
    let told = snapshot.interval_ms(u64::from(place.position));
    let claim = claim_ms.max(told.saturating_mul(3) / 2);
    let in_time = match place.state {
        PlaceState::Registered => true,
        PlaceState::Waiting => {
            place.number > before.served || now < place.issued_ms.saturating_add(claim)
        }
        PlaceState::Working => place.turn.deadline_ms > now,
    };
    if in_time { May::Yes } else { May::IfThere }
}
