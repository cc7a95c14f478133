//! Single requests beside the load: looking at the target before, sampling its
//! queue meanwhile, checking what it kept afterwards.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use url::Url;

#[derive(Clone)]
pub struct Fetch {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    base: Url,
    timeout: Duration,
}

pub struct Fetched {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Fetch {
    pub fn new(base: Url, timeout: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(timeout));
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http();
        let client =
            Client::builder(TokioExecutor::new()).build(https.enable_http1().wrap_connector(tcp));
        Self {
            client,
            base,
            timeout,
        }
    }

    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> anyhow::Result<Fetched> {
        let url = format!("{}{path}", self.base.as_str().trim_end_matches('/'));
        let mut request = Request::get(&url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::new())?;
        let answer = async {
            let response = self.client.request(request).await?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, 32 << 20)
                .collect()
                .await
                .map_err(|err| anyhow!("{err}"))?
                .to_bytes();
            anyhow::Ok(Fetched {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body,
            })
        };
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(answer) => {
                answer.map_err(|err| anyhow!("{} does not answer: {}", self.base, root(&err)))
            }
            Err(_) => bail!("{} does not answer within {:?}", self.base, self.timeout),
        }
    }

    /// The JSON of a 200, or what came instead.
    pub async fn json<T: DeserializeOwned>(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<T> {
        let answer = self.get(path, headers).await?;
        let start =
            || String::from_utf8_lossy(&answer.body[..answer.body.len().min(160)]).into_owned();
        let base = self.base.as_str().trim_end_matches('/');
        if let Some(to) = answer.headers.get("location")
            && (300..400).contains(&answer.status)
        {
            let to = String::from_utf8_lossy(to.as_bytes());
            // What stands before the path is the server that should have been named.
            let server = to.strip_suffix(path).filter(|server| !server.is_empty());
            bail!(
                "{base}{path} answers {} and leads to {to}: name {} by --url",
                answer.status,
                server.unwrap_or("that server")
            );
        }
        if answer.status != 200 {
            bail!("{base}{path} answers {}: {}", answer.status, start());
        }
        serde_json::from_slice(&answer.body).with_context(|| {
            format!(
                "{} answers, but not as Ticketping does ({path}: {})",
                self.base,
                start()
            )
        })
    }
}

/// The last cause: "Connection refused" says more than "client error (Connect)".
fn root(err: &anyhow::Error) -> String {
    err.root_cause().to_string()
}
