//! The one writer. Calls that arrive while a batch is being committed make up the
//! next one, so an idle sandbox answers at once and a busy one shares its commits.
//! A batch is one transaction: remembered answers and intents are read, each call
//! runs in turn, and effects, events, deliveries and answers are written together.
//! Nothing is answered before that commit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use sqlx::PgPool;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::platform::tasks;

use super::error::ApiError;
use super::execute::{self, Command, Context, Target};
use super::faults::{self, Dice, Faults};
use super::idempotency::{Kept, Key, Running};
use super::ids;
use super::model::Intent;
use super::objects::{self, Origin};
use super::store::{self, Changes, NewDelivery, NewEvent};

/// More than this waiting means the database is not keeping up; callers wait.
const QUEUE_MAX: usize = 1024;
/// Bounds the transaction, and how long the first caller of a batch waits for
/// the last.
const BATCH_MAX: usize = 64;
/// The key under which an intent carries faults of its own.
pub const FAULT_METADATA: &str = "sandbox_fault";
/// Events of one call, reordered, are sent so far apart, last first; the gap to
/// the first lets the next call's events overtake.
const REORDER_STEP_MS: i64 = 300;
const REORDER_FIRST_MS: i64 = 1200;

#[derive(Debug)]
pub struct Job {
    pub command: Command,
    pub key: Option<Key>,
    /// Faults asked for by header, or drawn from the standing profile.
    pub faults: Faults,
    pub origin: Origin,
    pub base_url: String,
    running: Option<Running>,
    reply: oneshot::Sender<Reply>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: String,
    /// The request that was answered first, when this is its answer again.
    pub replay_of: Option<String>,
    pub faults: Faults,
    /// Held by who pretends to be still at work.
    pub running: Option<Running>,
}

#[derive(Clone)]
pub struct Engine {
    jobs: mpsc::Sender<Job>,
}

/// What the engine needs from its surroundings.
#[derive(Clone)]
pub struct Surroundings {
    pub pool: PgPool,
    pub dice: Arc<Mutex<Dice>>,
    /// Woken when deliveries have been written.
    pub deliveries: Arc<Notify>,
    /// Woken when something is to follow by itself.
    pub follow_ups: Arc<Notify>,
    pub endpoints: usize,
    /// Event types that the endpoints asked for; a trailing `*` stands for any.
    pub event_types: Arc<[String]>,
}

impl Engine {
    /// Starts the writer; it ends when the last handle to it is gone, so that
    /// whatever was accepted is answered.
    pub fn start(around: Surroundings) -> Self {
        let (jobs, mut queue) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(async move {
            let mut batch = Vec::with_capacity(BATCH_MAX);
            while queue.recv_many(&mut batch, BATCH_MAX).await > 0 {
                let jobs = std::mem::take(&mut batch);
                // Those of a batch that panics are answered by an error.
                let _ = tasks::job("stripe-sandbox-engine", around.run(jobs)).await;
            }
        });
        Self { jobs }
    }

    pub async fn call(
        &self,
        command: Command,
        key: Option<Key>,
        running: Option<Running>,
        faults: Faults,
        origin: Origin,
        base_url: String,
    ) -> Result<Reply, ApiError> {
        let (reply, answer) = oneshot::channel();
        let job = Job {
            command,
            key,
            faults,
            origin,
            base_url,
            running,
            reply,
        };
        self.jobs.send(job).await.map_err(ApiError::internal)?;
        answer.await.map_err(ApiError::internal)
    }
}

pub fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
}

/// One call's answer, before it is known to be durable.
struct Answer {
    status: u16,
    body: String,
    replay_of: Option<String>,
    faults: Faults,
}

impl Answer {
    fn error(error: &ApiError, faults: Faults) -> Self {
        Self {
            status: error.status().as_u16(),
            body: error.body().to_string(),
            replay_of: None,
            faults,
        }
    }
}

impl Surroundings {
    async fn run(&self, jobs: Vec<Job>) {
        match self.commit(&jobs).await {
            Ok(answers) => finish(jobs, answers),
            // One call that the database refuses must not take the others along.
            Err(sqlx::Error::Database(error)) if jobs.len() > 1 => {
                tracing::warn!(%error, jobs = jobs.len(), "a batch was refused: each on its own");
                for job in jobs {
                    let one = vec![job];
                    match self.commit(&one).await {
                        Ok(answers) => finish(one, answers),
                        Err(error) => fail(one, &error),
                    }
                }
            }
            Err(error) => fail(jobs, &error),
        }
    }

    async fn commit(&self, jobs: &[Job]) -> Result<Vec<Answer>, sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        store::lock(&mut tx).await?;
        let keys: Vec<&str> = jobs
            .iter()
            .filter_map(|job| job.key.as_ref().map(|key| key.key.as_str()))
            .collect();
        let kept = store::kept(&mut tx, &keys).await?;
        let targets: Vec<Target<'_>> = jobs.iter().map(|job| job.command.target()).collect();
        let mut intents = store::targets(&mut tx, &targets).await?;
        let mut changes = Changes::default();
        let answers = jobs
            .iter()
            .map(|job| self.answer(job, &kept, &mut intents, &mut changes))
            .collect();
        let (deliveries, follow_ups) = (!changes.deliveries.is_empty(), changes.follow_ups());
        store::save(&mut tx, changes).await?;
        tx.commit().await?;
        if deliveries {
            self.deliveries.notify_one();
        }
        if follow_ups {
            self.follow_ups.notify_one();
        }
        Ok(answers)
    }

    fn answer(
        &self,
        job: &Job,
        kept: &HashMap<String, Kept>,
        intents: &mut HashMap<String, Intent>,
        changes: &mut Changes,
    ) -> Answer {
        if let Some(key) = &job.key
            && let Some(first) = kept.get(&key.key)
        {
            return match first.check(key) {
                Err(error) => Answer::error(&error, job.faults.clone()),
                Ok(()) => Answer {
                    status: first.status,
                    body: first.body.clone(),
                    replay_of: Some(first.request_id.clone()),
                    faults: job.faults.clone(),
                },
            };
        }
        let found = find(intents, job.command.target()).cloned();
        let faults = self.faults_of(job, found.as_ref());
        if let Some(status) = faults.error_before {
            return Answer::error(&edge_error(status), faults);
        }
        if faults.hang_before {
            return Answer::error(&edge_error(503), faults);
        }
        let context = Context {
            now_ms: now_ms(),
            base_url: &job.base_url,
            faults: &faults,
        };
        let is_new = matches!(job.command, Command::Create(_));
        let outcome = execute::run(&job.command, found, &context);
        if let Some(intent) = outcome.intent {
            self.note_events(
                job,
                &intent.id,
                outcome.events,
                &faults,
                context.now(),
                changes,
            );
            changes.note_intent(&intent, is_new);
            intents.insert(intent.id.clone(), intent);
        }
        let (status, value) = match outcome.answer {
            Ok(value) => (200, value),
            Err(error) => (error.status().as_u16(), error.body()),
        };
        let (status, body) = match faults.error_stored {
            Some(status) => (status, edge_error(status).body().to_string()),
            None => (status, shaped(value, &faults)),
        };
        if let Some(key) = &job.key {
            changes.kept.push((
                key.key.clone(),
                Kept {
                    path: key.path.clone(),
                    fingerprint: key.fingerprint.clone(),
                    request_id: job.origin.request.clone().unwrap_or_default(),
                    status,
                    body: body.clone(),
                },
            ));
        }
        Answer {
            status,
            body,
            replay_of: None,
            faults,
        }
    }

    /// Faults of the call and those the intent carries. Text that is no fault was
    /// refused when it was set.
    fn faults_of(&self, job: &Job, found: Option<&Intent>) -> Faults {
        let mut faults = job.faults.clone();
        let metadata = match (&job.command, found) {
            (Command::Create(create), _) => Some(&create.metadata),
            (_, Some(intent)) => Some(&intent.metadata),
            (_, None) => None,
        };
        if let Some(text) = metadata.and_then(|metadata| metadata.get(FAULT_METADATA))
            && let Ok(terms) = faults::parse(text)
        {
            self.dice
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .cast(&terms, job.command.operation(), &mut faults);
        }
        faults
    }

    fn note_events(
        &self,
        job: &Job,
        intent: &str,
        events: execute::Events,
        faults: &Faults,
        now: i64,
        changes: &mut Changes,
    ) {
        let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
        for (at, (kind, object)) in (0_i64..).zip(events) {
            let id = ids::event();
            let mut doc = objects::event(&id, kind, now, &object, &job.origin);
            let wanted = self
                .event_types
                .iter()
                .any(|pattern| matches(pattern, kind));
            let endpoints = if wanted { self.endpoints } else { 0 };
            doc["pending_webhooks"] = endpoints.into();
            changes.events.push(NewEvent {
                id: id.clone(),
                kind,
                created: now,
                intent: intent.to_owned(),
                doc,
            });
            let webhook = &faults.webhook;
            let mut delay_ms = webhook
                .delay
                .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
            if webhook.reorder {
                delay_ms += REORDER_FIRST_MS + (count - 1 - at) * REORDER_STEP_MS;
            }
            for endpoint in 0..endpoints {
                for _ in 0..webhook.copies.unwrap_or(1) {
                    changes.deliveries.push(NewDelivery {
                        event: id.clone(),
                        endpoint: i32::try_from(endpoint).unwrap_or(i32::MAX),
                        delay_ms,
                        dropped: webhook.drop,
                        lose: i32::try_from(webhook.lose).unwrap_or(i32::MAX),
                        two_signatures: webhook.two_signatures,
                        forged: webhook.forge,
                        skewed: faults.skew,
                    });
                }
            }
        }
    }
}

fn find<'a>(intents: &'a HashMap<String, Intent>, target: Target<'_>) -> Option<&'a Intent> {
    match target {
        Target::New => None,
        Target::Intent(id) => intents.get(id),
        Target::Charge(id) => intents
            .values()
            .find(|intent| intent.charges.iter().any(|charge| charge.id == id)),
        Target::Refund(id) => intents
            .values()
            .find(|intent| intent.refunds.iter().any(|refund| refund.id == id)),
        Target::Dispute(id) => intents.values().find(|intent| {
            let mut disputes = intent.charges.iter().flat_map(|charge| &charge.disputes);
            disputes.any(|dispute| dispute.id == id)
        }),
    }
}

pub fn matches(pattern: &str, kind: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => kind.starts_with(prefix),
        None => pattern == kind,
    }
}

/// An error as Stripe's edge gives it, whatever happened behind.
pub fn edge_error(status: u16) -> ApiError {
    use super::error::Kind;
    use axum::http::StatusCode;
    let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match status {
        409 => ApiError::new(
            code,
            Kind::InvalidRequest,
            "This object cannot be accessed right now because another API request or Stripe \
             process is currently accessing it.",
        )
        .code("lock_timeout"),
        429 => ApiError::new(code, Kind::InvalidRequest, "Request rate limit exceeded.")
            .code("rate_limit"),
        400..500 => ApiError::new(code, Kind::InvalidRequest, "A fault that was asked for."),
        _ => ApiError::new(
            code,
            Kind::Api,
            "Sorry! There was an error while talking to one of our backends.",
        ),
    }
}

fn shaped(mut value: Value, faults: &Faults) -> String {
    if faults.skew {
        objects::skew(&mut value);
    }
    value.to_string()
}

fn finish(jobs: Vec<Job>, answers: Vec<Answer>) {
    for (job, answer) in jobs.into_iter().zip(answers) {
        // A key is free from here on, unless the call is to look unfinished.
        let running = job.running.filter(|_| answer.faults.hang_before);
        // Who hung up does not want the answer; the key remembers it.
        let _ = job.reply.send(Reply {
            status: answer.status,
            body: answer.body,
            replay_of: answer.replay_of,
            faults: answer.faults,
            running,
        });
    }
}

/// The commit's fate is unknown to us: neither kept nor denied.
fn fail(jobs: Vec<Job>, error: &sqlx::Error) {
    let answer = ApiError::internal(error);
    for job in jobs {
        let _ = job.reply.send(Reply {
            status: answer.status().as_u16(),
            body: answer.body().to_string(),
            replay_of: None,
            faults: Faults::default(),
            running: None,
        });
    }
}

/// How long a call that hangs keeps its connection: longer than any client waits.
pub const HANG: Duration = Duration::from_secs(120);
