//! Natural batching: one call in flight, and whoever arrives meanwhile goes with
//! the next. No timer, so nothing waits while it is idle.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard},
};

use tokio::sync::oneshot;

/// More than this many are not kept waiting: they are told to come again.
const PENDING_MAX: usize = 200_000;

/// Requests that wait for the call in flight.
#[derive(Debug)]
pub struct Batcher<I, O> {
    state: Mutex<State<I, O>>,
}

#[derive(Debug)]
struct State<I, O> {
    pending: VecDeque<(I, oneshot::Sender<O>)>,
    running: bool,
}

/// One request's turn in the batch.
pub struct Ticket<O> {
    /// Its answer, later.
    pub answer: oneshot::Receiver<O>,
    /// Nobody is calling: the caller must start the loop.
    pub start: bool,
}

impl<I, O> Default for Batcher<I, O> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                pending: VecDeque::new(),
                running: false,
            }),
        }
    }
}

impl<I, O> Batcher<I, O> {
    /// Adds a request; None when too many wait already.
    pub fn submit(&self, item: I) -> Option<Ticket<O>> {
        let (sender, answer) = oneshot::channel();
        let mut state = self.lock();
        if state.pending.len() >= PENDING_MAX {
            return None;
        }
        state.pending.push_back((item, sender));
        let start = !state.running;
        state.running = true;
        Some(Ticket { answer, start })
    }

    /// The next batch, in order of arrival; None ends the loop.
    pub fn take(&self, max: usize) -> Option<(Vec<I>, Vec<oneshot::Sender<O>>)> {
        let mut state = self.lock();
        // A caller that has hung up hears no answer: nothing is done for it.
        while (state.pending.front()).is_some_and(|(_, caller)| caller.is_closed()) {
            state.pending.pop_front();
        }
        if state.pending.is_empty() {
            state.running = false;
            return None;
        }
        let count = state.pending.len().min(max);
        let batch = state.pending.drain(..count);
        Some(batch.filter(|(_, caller)| !caller.is_closed()).unzip())
    }

    fn lock(&self) -> MutexGuard<'_, State<I, O>> {
        self.state
            .lock()
            .expect("nothing panics while it holds this lock")
    }
}
