//! An outside client: it knows api.md's contract and nothing of the crate.

use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::Client, client::legacy::connect::HttpConnector, rt::TokioExecutor,
};
use serde_json::Value;

/// How long a condition may take before the test says it never came.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct Http {
    pub base: String,
    client: Client<HttpConnector, Body>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
    pub text: String,
}

impl Reply {
    /// The answer, which must have this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
    }

    /// The answer, which must be a problem with this status and code.
    #[track_caller]
    pub fn problem(self, status: u16, code: &str) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(
            self.headers["content-type"], "application/problem+json",
            "{}",
            self.text
        );
        assert_eq!(self.body["code"], code, "{}", self.text);
        assert_eq!(self.body["status"], status, "{}", self.text);
        assert_eq!(
            self.body["requestId"].as_str().unwrap(),
            self.headers["x-request-id"].to_str().unwrap()
        );
        self
    }

    #[track_caller]
    pub fn str(&self, key: &str) -> String {
        self.body[key]
            .as_str()
            .unwrap_or_else(|| panic!("no {key} in {}", self.text))
            .to_owned()
    }
}

impl Http {
    pub fn new(base: &str) -> Self {
        Self {
            base: base.to_owned(),
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Reply {
        self.try_send(method, path, headers, body).await.unwrap()
    }

    /// As [`Self::send`], where there may be nobody who answers.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Result<Reply, anyhow::Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self
            .client
            .request(request.body(body.into()).unwrap())
            .await?;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Ok(Reply {
            status: parts.status,
            headers: parts.headers,
            body,
            text,
        })
    }

    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.send(Method::GET, path, headers, Body::empty()).await
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: Value) -> Reply {
        let mut all = headers.to_vec();
        all.push(("content-type", "application/json"));
        self.send(Method::POST, path, &all, body.to_string()).await
    }

    pub async fn delete(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.send(Method::DELETE, path, headers, Body::empty())
            .await
    }

    /// The same as clients of the contract ask: 503 is asked again after its `Retry-After`. For the
    /// steps that a test is not about; what is asked must bear to be asked twice.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Reply {
        let mut all = headers.to_vec();
        all.push(("content-type", "application/json"));
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let begun = std::time::Instant::now();
        loop {
            let reply = self.send(method.clone(), path, &all, body.clone()).await;
            let busy = reply.status == StatusCode::SERVICE_UNAVAILABLE
                || reply.body["code"] == "IDEMPOTENCY_IN_PROGRESS";
            if !busy || begun.elapsed() > PATIENCE {
                return reply;
            }
            let after = reply.headers.get("retry-after");
            let after = after.and_then(|after| after.to_str().ok()?.parse().ok());
            tokio::time::sleep(Duration::from_secs(after.unwrap_or(1))).await;
        }
    }

    /// Asks `path` until `done` says so.
    pub async fn until(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        done: impl Fn(&Reply) -> bool,
    ) -> Reply {
        let begun = std::time::Instant::now();
        loop {
            let reply = self.get(path, headers).await;
            if done(&reply) {
                return reply;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{path} never got there: {}",
                reply.text
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Status and body; status 0 and the reason where nothing answers.
pub async fn get(url: &str) -> (u16, String) {
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let answer = async {
        let response = client.get(url.parse().unwrap()).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    let answer: Result<_, Box<dyn std::error::Error>> = answer.await;
    answer.unwrap_or_else(|error| (0, error.to_string()))
}
