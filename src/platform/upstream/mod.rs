//! How one role asks another: a plain call inside one process, HTTP between two.

mod addresses;
mod remote;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{Router, body::Body, response::Response};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde::{Serialize, de::DeserializeOwned};
use tower::ServiceExt;

pub use self::remote::UpstreamMetrics;
use self::remote::{Failed, Remote};
use super::auth::InternalSecret;

/// No internal answer is larger: a catalogue of 100,000 seats is near 16 MB.
const BODY_MAX: usize = 64 << 20;

/// The connection-pooling client for calls between processes.
pub type HttpClient = Client<HttpConnector, Body>;

/// A client with pooled keep-alive connections and TCP_NODELAY.
pub fn http_client() -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(Duration::from_secs(2)));
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(60))
        .build(connector)
}

/// The same for servers outside, by TLS where the URL says so.
pub type HttpsClient<B> = Client<HttpsConnector<HttpConnector>, B>;

/// Idle connections end below the keep-alive of servers outside, so that a pooled one is not
/// one that was just closed.
const OUTSIDE_IDLE_MAX: Duration = Duration::from_secs(20);

/// A client for servers outside: certificates of the public authorities, HTTP/1.1.
pub fn https_client<B>() -> HttpsClient<B>
where
    B: hyper::body::Body + Send,
    B::Data: Send,
{
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(Duration::from_secs(2)));
    let connector = HttpsConnectorBuilder::new()
        .with_webpki_roots()
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(OUTSIDE_IDLE_MAX)
        .build(connector)
}

/// Where another role is. Cheap to clone.
#[derive(Clone)]
pub struct Upstream {
    target: Target,
    secret: InternalSecret,
}

#[derive(Clone)]
enum Target {
    /// Filled once all roles of the process are put together.
    Local(Arc<OnceLock<Router>>),
    Remote(Arc<Remote>),
}

/// Why another role gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It could not be reached in time.
    #[error("cannot reach {path}: {cause}")]
    Unreachable {
        /// The path that was asked.
        path: String,
        /// What went wrong.
        cause: String,
    },
    /// The body of the request to pass on could not be read.
    #[error("the body of the request to {path} broke off: {cause}")]
    Body {
        /// The path that was asked.
        path: String,
        /// What went wrong.
        cause: String,
        /// It is larger than any request to a role.
        too_large: bool,
    },
    /// It answered with another status than 2xx.
    #[error("{path} answered {status}: {body}")]
    Status {
        /// The path that was asked.
        path: String,
        /// Its answer's status.
        status: StatusCode,
        /// Its answer's body, a problem as a rule.
        body: String,
    },
}

impl UpstreamError {
    /// The status answered, where there was an answer.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Unreachable { .. } | Self::Body { .. } => None,
            Self::Status { status, .. } => Some(*status),
        }
    }

    /// The `code` of the problem answered, where it was one.
    pub fn code(&self) -> Option<String> {
        let Self::Status { body, .. } = self else {
            return None;
        };
        let body: serde_json::Value = serde_json::from_str(body).ok()?;
        Some(body.get("code")?.as_str()?.to_owned())
    }
}

impl Upstream {
    /// A role of this process; `slot` is filled when all are put together.
    pub fn local(slot: Arc<OnceLock<Router>>, secret: InternalSecret) -> Self {
        Self {
            target: Target::Local(slot),
            secret,
        }
    }

    /// `role` in other processes, at `urls` such as `http://10.0.0.7:8080`; each host name may
    /// stand for several addresses.
    pub fn remote(
        role: &'static str,
        urls: &[url::Url],
        metrics: UpstreamMetrics,
        secret: InternalSecret,
    ) -> Self {
        Self {
            target: Target::Remote(Arc::new(Remote::new(role, urls, metrics))),
            secret,
        }
    }

    /// Whether the role is in another process.
    pub fn is_remote(&self) -> bool {
        matches!(self.target, Target::Remote(_))
    }

    /// Passes `request` on as it is (path and query kept).
    ///
    /// # Errors
    /// When there is no answer in time.
    pub async fn call(&self, request: Request<Body>) -> Result<Response, UpstreamError> {
        let path = request.uri().path().to_owned();
        match &self.target {
            Target::Local(slot) => {
                let Some(router) = slot.get() else {
                    let cause = "still starting".to_owned();
                    return Err(UpstreamError::Unreachable { path, cause });
                };
                match router.clone().oneshot(request).await {
                    Ok(response) => Ok(response),
                    Err(never) => match never {},
                }
            }
            Target::Remote(remote) => remote.call(request).await.map_err(|failed| match failed {
                Failed::Body { cause, too_large } => UpstreamError::Body {
                    path,
                    cause,
                    too_large,
                },
                Failed::Unreachable(cause) => UpstreamError::Unreachable { path, cause },
            }),
        }
    }

    /// `GET path`, with the internal secret, as JSON.
    ///
    /// # Errors
    /// When there is no answer, it is not 2xx, or it is not a `T`.
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, UpstreamError> {
        self.json(Method::GET, path, Body::empty()).await
    }

    /// `POST path` with `body` as JSON, with the internal secret.
    ///
    /// # Errors
    /// When there is no answer, it is not 2xx, or it is not a `T`.
    pub async fn post_json<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, UpstreamError> {
        let body = serde_json::to_vec(body).map_err(|e| UpstreamError::Unreachable {
            path: path.to_owned(),
            cause: format!("cannot write the request: {e}"),
        })?;
        self.json(Method::POST, path, Body::from(body)).await
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<T, UpstreamError> {
        let fail = |cause: String| UpstreamError::Unreachable {
            path: path.to_owned(),
            cause,
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            )
            .header(header::AUTHORIZATION, self.secret.header())
            .body(body)
            .map_err(|e| fail(e.to_string()))?;
        let response = self.call(request).await?;
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), BODY_MAX)
            .collect()
            .await
            .map_err(|e| fail(e.to_string()))?
            .to_bytes();
        if !status.is_success() {
            return Err(UpstreamError::Status {
                path: path.to_owned(),
                status,
                body: String::from_utf8_lossy(&body).into_owned(),
            });
        }
        serde_json::from_slice(&body).map_err(|e| fail(format!("unexpected answer: {e}")))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
