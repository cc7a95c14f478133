//! What we are held against: the same answer, byte for byte, from a bare axum handler,
//! and from a constant handler behind our own gateway. Each in a process of its own.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use axum::{Router, response::Response, routing::any};
use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use ticketping::{
    platform::{
        edge::{self, Edge, FastPath, Limits},
        metrics::Metrics,
    },
    serve::gateway::Fast,
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_util::sync::CancellationToken;

use super::client::Reply;

/// The hidden arguments that make this program such a server.
pub const FLAG: &str = "--constant";

/// What stands around the constant answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `axum::serve`, a route, a handler.
    Bare,
    /// Our edge and the gateway's fast path.
    Gateway,
}

/// An answer to repeat.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    /// What `reply` said; the server itself adds the headers left out.
    pub fn of(reply: &Reply) -> Self {
        const ADDED: [&str; 4] = ["date", "content-length", "transfer-encoding", "connection"];
        let headers = reply.headers.iter();
        let headers = headers.filter(|(name, _)| !ADDED.contains(&name.as_str()));
        let text = |v: &HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
        Self {
            status: reply.status.as_u16(),
            headers: headers.map(|(n, v)| (n.to_string(), text(v))).collect(),
            body: BASE64_STANDARD.encode(&reply.bytes),
        }
    }
}

/// The answer, ready to be repeated.
#[derive(Clone)]
struct Constant {
    status: StatusCode,
    headers: HeaderMap,
    body: bytes::Bytes,
}

impl Constant {
    fn of(answer: &Answer) -> Result<Self> {
        let mut headers = HeaderMap::new();
        for (name, value) in &answer.headers {
            headers.insert(name.parse::<HeaderName>()?, value.parse()?);
        }
        Ok(Self {
            status: StatusCode::from_u16(answer.status)?,
            headers,
            body: BASE64_STANDARD.decode(&answer.body)?.into(),
        })
    }

    fn response(&self) -> Response {
        let mut response = Response::new(self.body.clone().into());
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response
    }
}

impl FastPath for Constant {
    fn answer(&self, _: &Method, _: &Uri, _: &HeaderMap) -> Option<Response> {
        Some(self.response())
    }
}

/// Such a server, while this lives.
pub struct Peer {
    child: Child,
    pub url: String,
}

impl Peer {
    /// Starts one that answers `path` with `answer`.
    pub async fn start(dir: &Path, kind: Kind, path: &str, answer: &Answer) -> Result<Self> {
        let file = dir.join("answer.json");
        std::fs::write(&file, serde_json::to_vec(answer)?)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args([
                FLAG,
                if kind == Kind::Bare {
                    "bare"
                } else {
                    "gateway"
                },
                path,
            ])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().context("its stdout is piped")?;
        let out = tokio::process::ChildStdout::from_std(out)?;
        let mut peer = Self {
            child,
            url: String::new(),
        };
        let first = BufReader::new(out).lines().next_line().await?;
        peer.url = first.context("the constant server did not start")?;
        Ok(peer)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is such a server until it is killed.
pub async fn serve(kind: &str, path: &str, file: &str) -> Result<()> {
    let answer: Answer = serde_json::from_slice(&std::fs::read(file)?)?;
    let mut constant = Constant::of(&answer)?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    match kind {
        "bare" => {
            let answer = move || std::future::ready(constant.response());
            let router = Router::new().route(path, any(answer));
            let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
                // As our own server does.
                let _ = stream.set_nodelay(true);
            });
            axum::serve(listener, router).await?;
        }
        "gateway" => {
            // The edge makes an id for each request, as it does for ours.
            constant.headers.remove(edge::REQUEST_ID);
            let fast = Fast::new(Arc::new(constant), false);
            let metrics = Metrics::default();
            let edge = Edge::new(
                Router::new(),
                Some(Arc::new(fast)),
                &metrics,
                Arc::default(),
            );
            let forever = CancellationToken::new();
            edge::serve(listener, edge, Limits::default(), forever).await;
        }
        other => bail!("{FLAG} {other}: want bare or gateway"),
    }
    Ok(())
}
