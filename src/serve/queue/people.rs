//! What people do: enter, ask, leave. How they come back after a loss: [`super::returns`].

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use uuid::Uuid;

use super::{
    State, epochs,
    error::Error,
    live::{Answer, Live, now_ms},
    poll::Step,
    scripts::{BATCH_MAX, Batch, CheckIn, Code, End, Outcome, ScriptError, Seen},
    snapshot::Snapshot,
};
use crate::platform::{
    overview::Phase,
    place::{Place, PlaceState, Turn},
    tasks,
};

/// A loss, a ceiling or an epoch that just changed: asking again settles it.
pub(super) const TRIES: u32 = 4;

impl State {
    /// `user` enters: a place, new or the one there is. A token of an earlier epoch brings its place back first.
    pub(super) async fn enter(
        &self,
        performance: Uuid,
        user: Uuid,
        token: Option<&str>,
    ) -> Result<Response, Error> {
        self.count_change(performance, user)?;
        let live = self.live(performance).await?;
        if live.is_cut_off() {
            return Err(Error::CutOff);
        }
        if let Some(place) = token.and_then(|t| self.prove(performance, Some(t), Some(user)).ok()) {
            let snapshot = live.snapshot.load_full();
            if place.epoch < snapshot.epoch() && !snapshot.keeps(&place) {
                match self.put_back(&live, place).await {
                    // That turn is over: a new place.
                    Err(Error::Ended) => {}
                    came_back => return came_back,
                }
            }
        }
        let outcome = self.enter_outcome(&live, user).await?;
        let status = match outcome.new {
            true => StatusCode::CREATED,
            false => StatusCode::OK,
        };
        self.show(&live, user, outcome, 0, status)
    }

    async fn enter_outcome(&self, live: &Arc<Live>, user: Uuid) -> Result<Outcome, Error> {
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
        Ok(outcome)
    }

    async fn enter_loop(&self, live: &Arc<Live>) {
        while let Some((users, senders)) = live.entering.take(BATCH_MAX) {
            if users.is_empty() {
                continue;
            }
            let answered = tasks::job("queue.enter", self.enter_batch(live, &users)).await;
            // Those of a batch that panics are told to come again.
            let answers = answered.unwrap_or_default();
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
                    match self.note_draw(live, &batch).await {
                        Ok(true) => {}
                        // Another epoch has begun meanwhile: who entered the one before enters this one.
                        Ok(false) => continue,
                        Err(error) => {
                            failure = error;
                            break;
                        }
                    }
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

    pub(super) fn after_batch(&self, live: &Arc<Live>, batch: &Batch) {
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
            ScriptError::Redis(_) | ScriptError::Late | ScriptError::Old => Err(error.into()),
        }
    }

    /// The answer for an outcome of a batch; `told` is the position last heard.
    pub(super) fn show(
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
            turn: Turn::default(),
            position: told,
        };
        Ok(match outcome.code {
            Code::Waiting => {
                let position = Some(outcome.position);
                self.waiting(&snapshot, &place, None, position, now, status)
            }
            Code::Working => self.working(&snapshot, &place, outcome.epoch, outcome.turn, status),
            Code::Registered => {
                let place = Place {
                    state: PlaceState::Registered,
                    ..place
                };
                let drawn = drawn(&snapshot, place);
                match drawn.state {
                    PlaceState::Registered => self.registered(&snapshot, &place, None, now, status),
                    PlaceState::Waiting | PlaceState::Working => {
                        self.waiting(&snapshot, &drawn, None, None, now, status)
                    }
                }
            }
            Code::SoldOut => return Err(sold_out(&snapshot, outcome.number)),
            Code::Full => return Err(Error::QueueFull),
            Code::NotOpen => return Err(not_open(&snapshot, outcome.number)),
            Code::Draining => return Err(Error::Draining),
            Code::NoNumber => return Err(Error::unavailable("no numbers are left")),
            Code::Ended | Code::Drawing => return Err(Error::Ended),
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
        let proved = self.prove(performance, token, caller)?;
        let live = self.live(performance).await?;
        let mut counted = false;
        if live.is_cut_off() {
            return Err(Error::CutOff);
        }
        self.freshen(&live).await;
        for _ in 0..TRIES {
            let snapshot = live.snapshot.load_full();
            let place = drawn(&snapshot, proved);
            let now = now_ms();
            let step = match self.look(&snapshot, &place, None, now) {
                Step::Answer(response) => return Ok(response),
                Step::Refuse(error) => return Err(error),
                step => step,
            };
            // What costs Redis something is counted before it does.
            if !std::mem::replace(&mut counted, true) {
                self.count_poll(&place, now)?;
            }
            match step {
                Step::Answer(_) | Step::Refuse(_) => {}
                Step::Refresh => {
                    live.saw(Seen {
                        epoch: place.epoch,
                        last: 0,
                    });
                    self.tick_once(&live).await?;
                }
                Step::PutBack => {
                    return self.put_back(&live, place).await;
                }
                Step::Anew => {
                    let outcome = self.enter_outcome(&live, place.user).await?;
                    return self.show(&live, place.user, outcome, 0, StatusCode::OK);
                }
                Step::CheckIn => {
                    if let Some(response) = self.check_in(&live, &place, now).await? {
                        return Ok(response);
                    }
                }
            }
        }
        Err(Error::unavailable("the queue is being set up again"))
    }

    /// None: the state has changed under it, so look again.
    async fn check_in(
        &self,
        live: &Arc<Live>,
        place: &Place,
        now: u64,
    ) -> Result<Option<Response>, Error> {
        let asked = live
            .room
            .check_in(live.seen(), place.user, place.number, place.epoch)
            .await;
        let ok = StatusCode::OK;
        Ok(match asked {
            Ok(CheckIn::Working(turn) | CheckIn::Closed(turn)) => {
                let snapshot = live.snapshot.load();
                let epoch = snapshot.epoch().max(place.epoch);
                Some(self.working(&snapshot, place, epoch, turn, ok))
            }
            Ok(CheckIn::Shut) => {
                return Err(not_open(&live.snapshot.load(), place.number));
            }
            // It worked before the moments that were lost: its token proves it.
            Ok(CheckIn::Waiting(_)) if place.state == PlaceState::Working => {
                return self.put_back(live, *place).await.map(Some);
            }
            Ok(CheckIn::Waiting(position)) => {
                let snapshot = live.snapshot.load();
                Some(self.waiting(&snapshot, place, None, Some(position), now, ok))
            }
            Ok(CheckIn::Ended { unnoted }) => {
                if unnoted > 0 {
                    self.note_ended(live).await?;
                }
                return Err(Error::Ended);
            }
            // What was put back in the moments that were lost may come back once more.
            Ok(CheckIn::Old) if live.snapshot.load().epoch() > place.epoch => {
                return self.put_back(live, *place).await.map(Some);
            }
            Ok(CheckIn::Old) => {
                self.tick_once(live).await?;
                None
            }
            Err(error) => {
                self.heal(live, error).await?;
                None
            }
        })
    }

    /// The place behind `token` is given up; nothing that ended already is an error.
    pub(super) async fn leave(
        &self,
        performance: Uuid,
        token: Option<&str>,
        caller: Option<Uuid>,
    ) -> Result<(), Error> {
        let place = self.prove(performance, token, caller)?;
        self.count_change(performance, place.user)?;
        let live = self.live(performance).await?;
        let mut names = live.snapshot.load().names(&place);
        let ended = self.end(&live, End::Left, place.user, &names).await?;
        if ended == 0 && place.state == PlaceState::Registered {
            // Redis may have drawn it before this instance has heard of it.
            self.tick_once(&live).await?;
            names = live.snapshot.load().names(&place);
            self.end(&live, End::Left, place.user, &names).await?;
        }
        // Known to Postgres before the answer, also where Redis had nothing to end (it may have been lost).
        let note = |&number: &i64| epochs::Ended {
            number,
            user: place.user,
            reason: "LEFT",
        };
        let pool = &self.deps().pool;
        // Leaving again writes nothing again.
        let known = epochs::ended_among(pool, live.id, &names).await?;
        let ended: Vec<_> = names
            .iter()
            .filter(|name| !known.contains(name))
            .map(note)
            .collect();
        if !ended.is_empty() {
            epochs::note_ended(pool, live.id, &ended).await?;
        }
        self.tick_soon(&live);
        Ok(())
    }

    /// Counts an entry or a leave, before anything is spent on it.
    fn count_change(&self, performance: Uuid, user: Uuid) -> Result<(), Error> {
        let counted = self.0.pace_of_changes.count(performance, user, now_ms());
        counted.map_err(|seconds| Error::TooOften { seconds })
    }

    /// Ends one place by any of its names, whatever became of Redis meanwhile; how many it was (0 or 1).
    pub(super) async fn end(
        &self,
        live: &Arc<Live>,
        reason: End,
        user: Uuid,
        names: &[i64],
    ) -> Result<u64, Error> {
        let places: Vec<_> = names.iter().map(|&name| (user, name)).collect();
        for _ in 0..TRIES {
            match live.room.end(live.seen(), reason, &places).await {
                Ok(ended) => return Ok(ended),
                Err(error) => self.heal(live, error).await?,
            }
        }
        Err(Error::unavailable("the queue is being set up again"))
    }
}

/// Booking is not open, or not any more, with the times of it.
pub(super) fn not_open(snapshot: &Snapshot, number: u64) -> Error {
    let view = &snapshot.view;
    Error::NotOpen {
        opens: view.opens_at,
        pre_queue_opens: view.pre_queue_opens_at,
        closes: view.closes_at,
        poll_after_ms: snapshot
            .poll_suspended_ms(number)
            .filter(|_| snapshot.phase == Phase::Closed),
    }
}

/// No seat is left; for a while they may come back.
pub(super) fn sold_out(snapshot: &Snapshot, number: u64) -> Error {
    Error::SoldOut {
        poll_after_ms: snapshot.poll_suspended_ms(number),
    }
}

/// A registration whose number the draw has told is that number's place.
fn drawn(snapshot: &Snapshot, place: Place) -> Place {
    let number = match place.state {
        PlaceState::Registered => snapshot.drawn(place.number),
        PlaceState::Waiting | PlaceState::Working => None,
    };
    number.map_or(place, |number| Place {
        number,
        state: PlaceState::Waiting,
        position: 0,
        ..place
    })
}
