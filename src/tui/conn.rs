//! Reads the server: finds it, keeps the token fresh, backs off when it is gone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use chrono::{TimeDelta, Utc};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::state::recent::AuditLine;
use super::state::{Effect, Event};
use crate::platform::overview::Overview;
use crate::platform::secret::Secret;

/// A thousand queues are under 2 MB.
const BODY_MAX: usize = 32 << 20;
/// Longer than any healthy answer; a hung server is a lost one.
const TIMEOUT: Duration = Duration::from_secs(5);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Where the server is, and who asks.
#[derive(Debug, Clone)]
pub enum Source {
    Named {
        url: String,
        token: Option<Secret>,
        data_dir: PathBuf,
    },
    /// By `<data-dir>/runtime.json`, read again whenever the server is lost: it may come back elsewhere.
    Found {
        data_dir: PathBuf,
        token: Option<Secret>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Runtime {
    url: String,
    /// Plain HTTP for this machine, where `url` is HTTPS.
    local_url: Option<String>,
}

impl Source {
    pub fn url(&self) -> anyhow::Result<String> {
        match self {
            Self::Named { url, .. } => Ok(url.trim_end_matches('/').to_owned()),
            Self::Found { data_dir, .. } => {
                let path = data_dir.join("runtime.json");
                let text = std::fs::read_to_string(&path).map_err(|error| {
                    anyhow!(
                        "no running server found by {} ({error}): start `ticketping serve all`, or name one with --url",
                        path.display()
                    )
                })?;
                let runtime: Runtime = serde_json::from_str(&text)
                    .with_context(|| format!("{} is damaged", path.display()))?;
                let url = runtime.local_url.unwrap_or(runtime.url);
                Ok(url.trim_end_matches('/').to_owned())
            }
        }
    }

    fn token(&self) -> anyhow::Result<Secret> {
        let (token, data_dir) = match self {
            Self::Named {
                token, data_dir, ..
            }
            | Self::Found { token, data_dir } => (token, data_dir),
        };
        match token {
            Some(token) => Ok(token.clone()),
            None => read_token(data_dir),
        }
    }
}

fn read_token(data_dir: &Path) -> anyhow::Result<Secret> {
    let path = data_dir.join("ops-token");
    let text = std::fs::read_to_string(&path).map_err(|error| {
        anyhow!(
            "no access token: {} cannot be read ({error}); give an ADMIN one with --token (`ticketping token --role admin`)",
            path.display()
        )
    })?;
    Ok(Secret::new(text.trim()))
}

#[derive(Debug)]
pub struct Reader {
    source: Source,
    url: String,
    token: Secret,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Reader {
    /// Finds the server's address and a token; does not call it yet.
    pub fn new(source: Source) -> anyhow::Result<Self> {
        let url = source.url()?;
        let parsed = url::Url::parse(&url).with_context(|| format!("--url {url:?} is no URL"))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            bail!("--url {url:?} is no http(s) URL");
        }
        let token = source.token()?;
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(1)
            .build(connector);
        Ok(Self {
            source,
            url,
            token,
            client,
        })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The server may have come back on another port, with another token.
    fn find_again(&mut self) {
        if let Ok(url) = self.source.url() {
            self.url = url;
        }
        if let Ok(token) = self.source.token() {
            self.token = token;
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let bytes = body
            .map(|body| Bytes::from(body.to_string()))
            .unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header(
                header::AUTHORIZATION,
                format!("Bearer {}", self.token.expose()),
            )
            .header(header::ACCEPT, "application/json");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(bytes))?;
        let work = async {
            let response = self
                .client
                .request(request)
                .await
                .map_err(|error| anyhow!("{}", root_cause(&error)))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
            let body = body
                .map_err(|error| anyhow!("the answer broke off: {error}"))?
                .to_bytes();
            anyhow::Ok((status, body))
        };
        tokio::time::timeout(TIMEOUT, work)
            .await
            .unwrap_or_else(|_| bail!("no answer within {} s", TIMEOUT.as_secs()))
    }

    /// One call; a refused token is read anew and tried once more.
    async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Bytes> {
        let (mut status, mut bytes) = self.send(method.clone(), path, body).await?;
        if status == StatusCode::UNAUTHORIZED {
            self.find_again();
            (status, bytes) = self.send(method, path, body).await?;
        }
        if status.is_success() {
            Ok(bytes)
        } else {
            bail!("{}", refusal(status, &bytes))
        }
    }

    /// The overview as the server gave it.
    pub async fn raw(&mut self, detail: Option<Uuid>) -> anyhow::Result<Bytes> {
        let path = match detail {
            Some(id) => format!("/admin/v1/overview?detail={id}"),
            None => "/admin/v1/overview".to_owned(),
        };
        self.call(Method::GET, &path, None).await
    }

    pub async fn overview(&mut self, detail: Option<Uuid>) -> anyhow::Result<Overview> {
        let bytes = self.raw(detail).await?;
        serde_json::from_slice(&bytes).context("the answer is no overview")
    }

    async fn audit(&mut self) -> anyhow::Result<Vec<AuditLine>> {
        #[derive(Deserialize)]
        struct Page {
            items: Vec<Value>,
        }
        let bytes = self
            .call(Method::GET, "/admin/v1/audit?limit=100", None)
            .await?;
        let page: Page = serde_json::from_slice(&bytes)?;
        // A line of another shape is left out rather than losing all.
        Ok(page
            .items
            .into_iter()
            .filter_map(|line| serde_json::from_value(line).ok())
            .collect())
    }

    async fn change(&mut self, performance: Uuid, body: &Value) -> Result<String, String> {
        let path = format!("/admin/v1/queues/{performance}");
        match self.call(Method::PATCH, &path, Some(body)).await {
            Ok(_) => Ok("It is kept in the audit, with your reason.".into()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The innermost reason: "Connection refused", not "client error (Connect)".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// What a problem says; else the status.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Problem {
        code: Option<String>,
        detail: Option<String>,
        #[serde(default)]
        errors: Vec<FieldProblem>,
    }
    #[derive(Deserialize)]
    struct FieldProblem {
        field: String,
        message: String,
    }
    let Ok(problem) = serde_json::from_slice::<Problem>(body) else {
        return status.to_string();
    };
    let fields: String = problem
        .errors
        .iter()
        .map(|error| format!("; {}: {}", error.field, error.message))
        .collect();
    let code = problem.code.unwrap_or_else(|| status.to_string());
    format!("{code} {}{fields}", problem.detail.unwrap_or_default())
        .trim()
        .to_owned()
}

/// How long to wait after so many failures in a row.
fn backoff(failures: u32, interval: Duration) -> Duration {
    interval
        .max(Duration::from_secs(1))
        .saturating_mul(1 << failures.saturating_sub(1).min(6))
        .min(BACKOFF_MAX)
}

/// Reads on and on; takes orders in between. Ends when nobody listens.
pub async fn keep_reading(
    mut reader: Reader,
    interval: Duration,
    events: mpsc::Sender<Event>,
    mut orders: mpsc::Receiver<Effect>,
) {
    let mut told = reader.url().to_owned();
    let mut detail = None;
    let mut failures = 0;
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => {}
            order = orders.recv() => match order {
                Some(Effect::Read { detail: wanted }) => detail = wanted,
                Some(order) => {
                    let Some(event) = obey(&mut reader, order).await else { continue };
                    if events.send(event).await.is_err() {
                        return;
                    }
                    continue;
                }
                None => return,
            }
        }
        let started = Instant::now();
        let event = match reader.overview(detail).await {
            Ok(overview) => {
                failures = 0;
                // From the start of the last read, without catching up: no bursts after a slow answer.
                next = (started + interval).max(Instant::now());
                Event::Overview {
                    overview: Box::new(overview),
                    latency: started.elapsed(),
                }
            }
            Err(error) => {
                failures += 1;
                let wait = backoff(failures, interval);
                next = Instant::now() + wait;
                reader.find_again();
                let retry_at = Utc::now() + TimeDelta::from_std(wait).unwrap_or_default();
                Event::Lost {
                    error: format!("{error:#}"),
                    retry_at,
                }
            }
        };
        if reader.url() != told {
            reader.url().clone_into(&mut told);
            if events.send(Event::Moved(told.clone())).await.is_err() {
                return;
            }
        }
        if events.send(event).await.is_err() {
            return;
        }
    }
}

async fn obey(reader: &mut Reader, order: Effect) -> Option<Event> {
    match order {
        Effect::Change { queues, body } => {
            let mut outcomes = Vec::new();
            for (id, title) in queues {
                outcomes.push((title, reader.change(id, &body).await));
            }
            Some(Event::Changed(summed(outcomes)))
        }
        Effect::ReadAudit => reader.audit().await.ok().map(Event::Audit),
        Effect::Read { .. } | Effect::Quit | Effect::Suspend | Effect::Redraw => None,
    }
}

/// Refusals that are named; the others are counted.
const NAMED_MAX: usize = 3;

/// What became of a change of some queues, in a sentence: each that was refused is counted.
fn summed(mut outcomes: Vec<(String, Result<String, String>)>) -> Result<String, String> {
    let all = outcomes.len();
    if all == 1 {
        return outcomes.remove(0).1;
    }
    let refused: Vec<String> = (outcomes.into_iter())
        .filter_map(|(title, outcome)| Some(format!("{title}: {}", outcome.err()?)))
        .collect();
    if refused.is_empty() {
        return Ok(format!("All {all} queues are changed."));
    }
    let named = refused[..refused.len().min(NAMED_MAX)].join("; ");
    let more = match refused.len().checked_sub(NAMED_MAX) {
        Some(more @ 1..) => format!("; and {more} more"),
        _ => String::new(),
    };
    let rest = match all - refused.len() {
        0 => String::new(),
        1 => "; the other one is changed".to_owned(),
        rest => format!("; the other {rest} are changed"),
    };
    Err(format!(
        "{} of {all} queues: {named}{more}{rest}",
        refused.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_many_counts_who_was_refused() {
        let outcomes = |refused: usize, all: usize| {
            (0..all).map(move |n| {
                let outcome = if n < refused {
                    Err("FORBIDDEN".into())
                } else {
                    Ok("kept".into())
                };
                (format!("show {n}"), outcome)
            })
        };
        let sum = |refused, all| summed(outcomes(refused, all).collect());
        assert_eq!(sum(0, 1), Ok("kept".into()));
        assert_eq!(sum(1, 1), Err("FORBIDDEN".into()));
        assert_eq!(sum(0, 40), Ok("All 40 queues are changed.".into()));
        assert_eq!(
            sum(1, 3),
            Err("1 of 3 queues: show 0: FORBIDDEN; the other 2 are changed".into())
        );
        let all = sum(5, 5).unwrap_err();
        assert!(
            all.starts_with("5 of 5") && all.ends_with("; and 2 more"),
            "{all}"
        );
    }

    #[test]
    fn backoff_doubles_up_to_ten_seconds() {
        let waits: Vec<u64> = (1..8)
            .map(|n| backoff(n, Duration::from_millis(200)).as_secs())
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 10, 10, 10]);
    }

    #[test]
    fn a_problem_is_told_in_its_own_words() {
        let body = br#"{"code":"VALIDATION_FAILED","detail":"bad input","errors":[{"field":"maxWorking","message":"at least 1"}]}"#;
        assert_eq!(
            refusal(StatusCode::UNPROCESSABLE_ENTITY, body),
            "VALIDATION_FAILED bad input; maxWorking: at least 1"
        );
        assert_eq!(
            refusal(StatusCode::BAD_GATEWAY, b"<html>"),
            "502 Bad Gateway"
        );
    }
}
