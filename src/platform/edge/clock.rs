//! One timer for a whole connection.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// A deadline that is moved with every request and hardly ever reached: moving it later costs
/// nothing, since the timer is set anew only when it fires.
pub(super) struct Clock {
    sleep: Pin<Box<Sleep>>,
    deadline: Instant,
}

impl Clock {
    pub(super) fn new(within: Duration) -> Self {
        let deadline = Instant::now() + within;
        Self {
            sleep: Box::pin(sleep_until(deadline)),
            deadline,
        }
    }

    pub(super) fn set(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    pub(super) fn within(&mut self, time: Duration) {
        self.set(Instant::now() + time);
    }

    /// Whether the deadline has passed; `cx` is woken when it does.
    pub(super) fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            if self.deadline < self.sleep.deadline() {
                self.sleep.as_mut().reset(self.deadline);
            }
            match self.sleep.as_mut().poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(()) if Instant::now() >= self.deadline => return true,
                Poll::Ready(()) => self.sleep.as_mut().reset(self.deadline),
            }
        }
    }
}
