//! A small HTTP client for what surrounds a measurement.

use anyhow::{Context, Result, ensure};
use axum::body::Body;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

#[derive(Clone)]
pub struct Http {
    base: String,
    client: Client<HttpConnector, Body>,
}

pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: bytes::Bytes,
}

impl Reply {
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.bytes).with_context(|| format!("not JSON: {:?}", self.bytes))
    }
}

impl Http {
    pub fn new(base: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self {
            base: base.to_owned(),
            client: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    /// Any answer but 2xx is an error.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Result<Reply> {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.client.request(request.body(body.into())?).await?;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await?.to_bytes();
        ensure!(
            parts.status.is_success(),
            "{method} {path}: {} {}",
            parts.status,
            String::from_utf8_lossy(&bytes)
        );
        Ok(Reply {
            status: parts.status,
            headers: parts.headers,
            bytes,
        })
    }

    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Value> {
        self.send(Method::GET, path, headers, Body::empty())
            .await?
            .json()
    }

    pub async fn json(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Result<Value> {
        let mut all = headers.to_vec();
        all.push(("content-type", "application/json"));
        self.send(method, path, &all, body.to_string())
            .await?
            .json()
    }
}

/// The text at `key`.
pub fn text(value: &Value, key: &str) -> Result<String> {
    let text = value[key]
        .as_str()
        .with_context(|| format!("no {key} in {value}"))?;
    Ok(text.to_owned())
}
