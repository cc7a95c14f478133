//! Connections: each is a task that takes the next request that is due, sends it,
//! reads the whole answer and hands it back. One request at a time each; HTTP/2
//! shares a connection among many such tasks.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::sync::Mutex;

use super::super::client::{Connection, Dialer, Head, Lost, Unsent};
use super::core::{Core, Job};

/// Common servers end a connection that was idle for five seconds or more, and may do so just as a
/// request is sent on it: like other clients, a new one is made before that.
const IDLE_MAX: Duration = Duration::from_secs(4);

pub type Shared = Rc<RefCell<Core>>;

/// How slots of one pool reach their server.
#[derive(Clone)]
pub struct Line {
    pub dialer: Dialer,
    pub timeout: Duration,
    /// With HTTP/2: the connections that slots share.
    pub shared: Rc<Vec<Mutex<Option<Connection>>>>,
}

/// Serves one slot until the engine is dropped.
pub async fn serve(core: Shared, pool: usize, id: u32, line: Line) {
    let mut slot = Slot {
        core,
        id,
        line,
        connection: None,
        used: Instant::now(),
        body: Vec::new(),
    };
    loop {
        let job = slot.next_job(pool).await;
        let built = {
            let core = slot.core.borrow();
            core.requests
                .build(job.op, &core.buyers[job.buyer as usize])
        };
        match built {
            Ok(request) => slot.perform(job, request).await,
            Err(err) => {
                let lost = Lost {
                    code: "NOT_SENT",
                    detail: format!("{err:#}"),
                };
                slot.core.borrow_mut().lost(job, &lost, None);
            }
        }
    }
}

struct Slot {
    core: Shared,
    id: u32,
    line: Line,
    connection: Option<Connection>,
    /// When it was last used.
    used: Instant,
    body: Vec<u8>,
}

impl Slot {
    async fn next_job(&self, pool: usize) -> Job {
        poll_fn(|cx| {
            let mut core = self.core.borrow_mut();
            match core.take(pool) {
                Some(job) => Poll::Ready(job),
                None => {
                    core.pools[pool].idle.push((self.id, cx.waker().clone()));
                    Poll::Pending
                }
            }
        })
        .await
    }

    async fn perform(&mut self, job: Job, request: Request<Full<Bytes>>) {
        let mut sent_us = None;
        match self.attempt(job, request, &mut sent_us).await {
            Ok(head) => self
                .core
                .borrow_mut()
                .done(job, Ok((&head, &self.body)), sent_us),
            Err(lost) => {
                self.connection = None;
                self.core.borrow_mut().lost(job, &lost, sent_us);
            }
        }
        // A seat map is large, and few slots need one again.
        if self.body.capacity() > 64 << 10 {
            self.body = Vec::new();
        }
    }

    /// Sends once; and once more on a new connection when the server had closed this one before anything was written.
    async fn attempt(
        &mut self,
        job: Job,
        request: Request<Full<Bytes>>,
        sent_us: &mut Option<u64>,
    ) -> Result<Head, Lost> {
        let mut request = request;
        loop {
            let reused = self.connect().await?;
            let Some(connection) = &mut self.connection else {
                return Err(Lost {
                    code: "CONNECT_FAILED",
                    detail: "no connection".to_owned(),
                });
            };
            {
                let mut core = self.core.borrow_mut();
                if sent_us.is_none() {
                    core.stats.sent(job.op);
                }
                *sent_us = Some(core.now_us());
            }
            let exchange = connection.exchange(request, &mut self.body);
            match tokio::time::timeout(self.line.timeout, exchange).await {
                Ok(Ok(head)) => {
                    self.used = Instant::now();
                    return Ok(head);
                }
                Ok(Err(Unsent {
                    request: Some(unsent),
                    ..
                })) if reused => {
                    self.connection = None;
                    self.core.borrow_mut().stats.reconnects += 1;
                    request = unsent;
                }
                Ok(Err(Unsent { lost, .. })) => return Err(lost),
                Err(_) => {
                    let detail = format!("no whole answer within {:?}", self.line.timeout);
                    return Err(Lost {
                        code: "TIMEOUT",
                        detail,
                    });
                }
            }
        }
    }

    /// Makes sure of a connection; true when it is one that was there before.
    async fn connect(&mut self) -> Result<bool, Lost> {
        let idle = self.used.elapsed();
        if self.connection.as_ref().is_some_and(|connection| {
            !connection.is_closed() && (connection.is_shared() || idle < IDLE_MAX)
        }) {
            return Ok(true);
        }
        let shared = &self.line.shared;
        if shared.is_empty() {
            self.connection = Some(self.line.dialer.dial().await?);
        } else {
            let mut held = shared[self.id as usize % shared.len()].lock().await;
            if let Some(connection) = held.as_ref().filter(|connection| !connection.is_closed()) {
                self.connection = connection.share();
                return Ok(true);
            }
            let fresh = self.line.dialer.dial().await?;
            self.connection = fresh.share();
            *held = Some(fresh);
        }
        self.core.borrow_mut().stats.connects += 1;
        Ok(false)
    }
}
