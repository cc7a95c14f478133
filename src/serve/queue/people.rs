//! What people do: enter, ask, leave, come back.

use std::{collections::HashSet, sync::Arc};

use axum::response::Response;
use http::StatusCode;
use uuid::Uuid;

use super::{
    State, epochs,
    error::Error,
    live::{Answer, Live, now_ms},
    poll::Step,
    scripts::{BATCH_MAX, Batch, CheckIn, Code, End, Outcome, ScriptError, Seen},
};
use crate::platform::place::{Place, PlaceState};

/// A loss, a ceiling or an epoch that just changed: asking again settles it.
const TRIES: u32 = 4;

impl State {
    /// `user` enters: a place, new or the one there is.
    pub(super) async fn enter(&self, performance: Uuid, user: Uuid) -> Result<Response, Error> {
        let live = self.live(performance).await?;
        let ticket = live
            .entering
            .submit(user)
            .ok_or_else(|| Error::unavailable("too many people enter at once"))?;
        if ticket.start {
            let (state, live) = (self.clone(), live.clone());
            tokio::spawn(async move { state.enter_loop(&live).await });
        }
        let outcome = ticket.answer.await.map_err(Error::unavailable)??;
        self.0.figures.entered(outcome.code);
        let status = match outcome.new {
            true => StatusCode::CREATED,
            false => StatusCode::OK,
        };
        self.show(&live, user, outcome, 0, status)
    }

    async fn enter_loop(&self, live: &Arc<Live>) {
        while let Some((users, senders)) = live.entering.take(BATCH_MAX) {
            let answers = self.enter_batch(live, &users).await;
            for (sender, answer) in senders.into_iter().zip(answers) {
                // Who hung up has a place all the same: entering again gives it.
                let _ = sender.send(answer);
            }
        }
    }

    async fn enter_batch(&self, live: &Arc<Live>, users: &[Uuid]) -> Vec<Answer> {
        let mut failure = Error::unavailable("the queue is being set up again");
        for _ in 0..TRIES {
            match live.room.enter(live.seen(), users).await {
                Ok(batch) => {
                    self.after_batch(live, &batch);
                    let short = batch.outcomes.iter().any(|o| o.code == Code::NoNumber);
                    if !short {
                        return batch.outcomes.into_iter().map(Ok).collect();
                    }
                    // Who has a place is told again that it is there: entering twice keeps it.
                    let from = i64::try_from(batch.ceiling).unwrap_or(i64::MAX);
                    if let Err(error) = self.raise_ceiling(live, from).await {
                        failure = error;
                        break;
                    }
                }
                Err(error) => match self.heal(live, error).await {
                    Ok(()) => {}
                    Err(error) => {
                        failure = error;
                        break;
                    }
                },
            }
        }
        users.iter().map(|_| Err(failure.clone())).collect()
    }

    fn after_batch(&self, live: &Arc<Live>, batch: &Batch) {
        live.saw(batch.seen);
        let room = batch.ceiling.saturating_sub(batch.seen.last);
        if room < epochs::BLOCK.unsigned_abs() / 2 {
            self.note_soon(live);
        }
    }

    /// A lost state is recovered; anything else stays an error.
    pub(super) async fn heal(&self, live: &Arc<Live>, error: ScriptError) -> Result<(), Error> {
        match error {
            ScriptError::Lost(why) => {
                self.recover(live, &why).await?;
                self.tick_once(live).await
            }
            ScriptError::Redis(_) => Err(error.into()),
        }
    }

    /// The answer for an outcome of a batch; `told` is the position last heard.
    fn show(
        &self,
        live: &Live,
        user: Uuid,
        outcome: Outcome,
        told: u32,
        status: StatusCode,
    ) -> Result<Response, Error> {
        let snapshot = live.snapshot.load();
        let now = now_ms();
        let place = Place {
            queue: live.id,
            user,
            epoch: outcome.epoch,
            number: outcome.number,
            state: PlaceState::Waiting,
            issued_ms: now,
            deadline_ms: 0,
            position: told,
        };
        let v = &snapshot.view;
        Ok(match outcome.code {
            Code::Waiting => {
                let position = Some(outcome.position);
                self.waiting(&snapshot, &place, None, position, now, status)
            }
            Code::Working => self.working(&place, outcome.epoch, outcome.deadline_ms, now, status),
            Code::Registered => {
                let place = Place {
                    state: PlaceState::Registered,
                    ..place
                };
                match snapshot.drawn(place.number) {
                    Some(number) => {
                        let drawn = Place { number, ..place };
                        let drawn = Place {
                            state: PlaceState::Waiting,
                            ..drawn
                        };
                        self.waiting(&snapshot, &drawn, None, None, now, status)
                    }
                    None => self.registered(&snapshot, &place, None, now, status),
                }
            }
            Code::SoldOut => return Err(Error::SoldOut),
            Code::Full => return Err(Error::QueueFull),
            Code::NotOpen => {
                return Err(Error::NotOpen {
                    opens: v.opens_at,
                    closes: v.closes_at,
                });
            }
            Code::Draining => return Err(Error::Draining),
            Code::NoNumber => return Err(Error::unavailable("no numbers are left")),
            Code::Ended => return Err(Error::Ended),
        })
    }

    /// The place that `token` proves, for this performance and (where there is one) this caller.
    pub(super) fn prove(
        &self,
        performance: Uuid,
        token: Option<&str>,
        caller: Option<Uuid>,
    ) -> Result<Place, Error> {
        let token = token.ok_or(Error::InvalidToken("there is no Queue-Token"))?;
        let place = self
            .deps()
            .keys
            .open(token)
            .map_err(|_| Error::InvalidToken("the Queue-Token is not one of ours"))?;
        if place.queue != performance {
            return Err(Error::InvalidToken(
                "the Queue-Token is for another performance",
            ));
        }
        if caller.is_some_and(|caller| caller != place.user) {
            return Err(Error::InvalidToken("the Queue-Token is somebody else's"));
        }
        Ok(place)
    }

    /// Somebody asks for the place behind `token`.
    pub(super) async fn ask(
        &self,
        performance: Uuid,
        token: Option<&str>,
        caller: Option<Uuid>,
    ) -> Result<Response, Error> {
        let mut place = self.prove(performance, token, caller)?;
        let live = self.live(performance).await?;
        for _ in 0..TRIES {
            let snapshot = live.snapshot.load_full();
            if let Some(number) = (place.state == PlaceState::Registered)
                .then(|| snapshot.drawn(place.number))
                .flatten()
            {
                place = Place {
                    number,
                    state: PlaceState::Waiting,
                    ..place
                };
            }
            let now = now_ms();
            match self.look(&snapshot, &place, None, now) {
                Step::Answer(response) => return Ok(response),
                Step::Refuse(error) => return Err(error),
                Step::Refresh => {
                    live.saw(Seen {
                        epoch: place.epoch,
                        last: 0,
                    });
                    self.tick_once(&live).await?;
                }
                Step::PutBack => return self.put_back(&live, place).await,
                Step::CheckIn => {
                    let asked = live
                        .room
                        .check_in(live.seen(), place.user, place.number, place.epoch)
                        .await;
                    match asked {
                        Ok(CheckIn::Working(until) | CheckIn::Closed(until)) => {
                            return Ok(self.working(
                                &place,
                                place.epoch,
                                until,
                                now,
                                StatusCode::OK,
                            ));
                        }
                        Ok(CheckIn::Waiting(position)) => {
                            return Ok(self.waiting(
                                &snapshot,
                                &place,
                                None,
                                Some(position),
                                now,
                                StatusCode::OK,
                            ));
                        }
                        Ok(CheckIn::Ended { unnoted }) => {
                            if unnoted > 0 {
                                self.note_ended(&live).await?;
                            }
                            return Err(Error::Ended);
                        }
                        Ok(CheckIn::Old) => self.tick_once(&live).await?,
                        Err(error) => self.heal(&live, error).await?,
                    }
                }
            }
        }
        Err(Error::unavailable("the queue is being set up again"))
    }

    async fn put_back(&self, live: &Arc<Live>, place: Place) -> Result<Response, Error> {
        let ticket = live
            .returning
            .submit(place)
            .ok_or_else(|| Error::unavailable("too many people come back at once"))?;
        if ticket.start {
            let (state, live) = (self.clone(), live.clone());
            tokio::spawn(async move { state.return_loop(&live).await });
        }
        let outcome = ticket.answer.await.map_err(Error::unavailable)??;
        if matches!(outcome.code, Code::Ended | Code::NotOpen) {
            self.note_ended(live).await?;
            return Err(Error::Ended);
        }
        self.show(live, place.user, outcome, place.position, StatusCode::OK)
    }

    async fn return_loop(&self, live: &Arc<Live>) {
        while let Some((places, senders)) = live.returning.take(BATCH_MAX) {
            let answers = self.return_batch(live, &places).await;
            for (sender, answer) in senders.into_iter().zip(answers) {
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

    /// A turn cannot have ended unnoticed when its number was never served, or when its claim
    /// window, counted from the last poll, still runs; and never when Postgres says so.
    async fn try_return(
        &self,
        live: &Arc<Live>,
        places: &[Place],
    ) -> Result<Result<Batch, ScriptError>, Error> {
        let snapshot = live.snapshot.load_full();
        let served = self.lost_served(live, live.seen().epoch).await?;
        let numbers: Vec<i64> = places.iter().map(noted_as).collect();
        let ended: HashSet<i64> = epochs::ended_among(&self.deps().pool, live.id, &numbers).await?;
        let claim_ms = live.rules.load().settings.claim_ttl_ms.unsigned_abs();
        let now = now_ms();
        let returns: Vec<_> = places
            .iter()
            .map(|place| {
                let over = ended.contains(&noted_as(place));
                let told = snapshot.interval_ms(u64::from(place.position));
                let claim = claim_ms.max(told.saturating_mul(3) / 2);
                let live_still = match place.state {
                    PlaceState::Registered => true,
                    PlaceState::Waiting => {
                        place.number > served || now < place.issued_ms.saturating_add(claim)
                    }
                    PlaceState::Working => place.deadline_ms > now,
                };
                let registered = place.state == PlaceState::Registered;
                Live::as_return(place, place.number, registered, live_still && !over, now)
            })
            .collect();
        Ok(live.room.restore(live.seen(), &returns).await)
    }

    /// The place behind `token` is given up; nothing that ended already is an error.
    pub(super) async fn leave(
        &self,
        performance: Uuid,
        token: Option<&str>,
        caller: Option<Uuid>,
    ) -> Result<(), Error> {
        let place = self.prove(performance, token, caller)?;
        let live = self.live(performance).await?;
        let drawn = match place.state {
            PlaceState::Registered => live.snapshot.load().drawn(place.number),
            PlaceState::Waiting | PlaceState::Working => Some(place.number),
        };
        let number = drawn.unwrap_or(place.number);
        self.end(&live, End::Left, place.user, number).await?;
        // Known to Postgres before the answer, also where Redis had nothing to end (it may have been lost).
        let noted = i64::try_from(number).unwrap_or(i64::MAX);
        let ended = epochs::Ended {
            number: if drawn.is_some() { noted } else { -noted },
            user: place.user,
            reason: "LEFT",
        };
        epochs::note_ended(&self.deps().pool, live.id, &[ended]).await?;
        self.tick_soon(&live);
        Ok(())
    }

    /// Ends one place, whatever became of Redis meanwhile.
    pub(super) async fn end(
        &self,
        live: &Arc<Live>,
        reason: End,
        user: Uuid,
        number: u64,
    ) -> Result<(), Error> {
        for _ in 0..TRIES {
            match live.room.end(live.seen(), reason, &[(user, number)]).await {
                Ok(_) => return Ok(()),
                Err(error) => self.heal(live, error).await?,
            }
        }
        Err(Error::unavailable("the queue is being set up again"))
    }
}

/// How Postgres names a place that ended: by its number, or by its registration as a
/// negative one, since somebody else may draw a number that equals it.
fn noted_as(place: &Place) -> i64 {
    let number = i64::try_from(place.number).unwrap_or(i64::MAX);
    match place.state {
        PlaceState::Registered => -number,
        PlaceState::Waiting | PlaceState::Working => number,
    }
}
