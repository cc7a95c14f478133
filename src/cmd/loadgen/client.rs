//! One connection and one request on it, over hyper's lowest client: no pool, no
//! retries, no redirects of its own, so that nothing is counted behind our back.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioTimer;
use tower::Service;

/// Seat maps of the largest halls stay far below; more is nonsense or an attack.
const BODY_BYTES_MAX: usize = 32 << 20;

/// Why there is no answer: a stable code, and what happened in words.
#[derive(Clone, Debug)]
pub struct Lost {
    pub code: &'static str,
    pub detail: String,
}

impl Lost {
    fn new(code: &'static str, detail: impl std::fmt::Display) -> Self {
        Self {
            code,
            detail: detail.to_string(),
        }
    }
}

/// An answer, its body kept in a buffer of the connection.
#[derive(Clone, Debug, Default)]
pub struct Head {
    pub status: u16,
    pub retry_after_s: Option<u32>,
    pub etag: Option<Bytes>,
    pub gzip: bool,
    /// Where a redirection leads.
    pub location: Option<String>,
}

/// A failed attempt; the request comes back when not one byte of it was written.
pub struct Unsent {
    pub lost: Lost,
    pub request: Option<Request<Full<Bytes>>>,
}

#[derive(Clone)]
pub struct Dialer {
    connector: HttpsConnector<HttpConnector>,
    uri: Uri,
    http2: bool,
    timeout: Duration,
}

pub enum Connection {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Dialer {
    pub fn new(uri: Uri, http2: bool, timeout: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(timeout));
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http();
        let connector = if http2 {
            https.enable_http2().wrap_connector(tcp)
        } else {
            https.enable_http1().wrap_connector(tcp)
        };
        Self {
            connector,
            uri,
            http2,
            timeout,
        }
    }

    /// Connects and shakes hands; the connection's own work runs as a task beside.
    pub async fn dial(&self) -> Result<Connection, Lost> {
        match tokio::time::timeout(self.timeout, self.connect()).await {
            Ok(connected) => connected,
            Err(_) => Err(Lost::new(
                "CONNECT_TIMEOUT",
                format_args!("no connection within {:?}", self.timeout),
            )),
        }
    }

    async fn connect(&self) -> Result<Connection, Lost> {
        let io = self
            .connector
            .clone()
            .call(self.uri.clone())
            .await
            .map_err(|err| connect_failure(&*err))?;
        let failed = |err: hyper::Error| Lost::new("CONNECT_FAILED", err);
        if self.http2 {
            let (sender, driver) = http2::Builder::new(LocalExecutor)
                .timer(TokioTimer::new())
                .handshake(io)
                .await
                .map_err(failed)?;
            tokio::task::spawn_local(driver);
            Ok(Connection::Two(sender))
        } else {
            let (sender, driver) = http1::handshake(io).await.map_err(failed)?;
            tokio::task::spawn_local(driver);
            Ok(Connection::One(sender))
        }
    }
}

impl Connection {
    pub fn is_closed(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_closed(),
            Self::Two(sender) => sender.is_closed(),
        }
    }

    /// Whether others use it too, and its own pings keep it: HTTP/2.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Two(_))
    }

    /// Another handle on the same HTTP/2 connection.
    pub fn share(&self) -> Option<Self> {
        match self {
            Self::One(_) => None,
            Self::Two(sender) => Some(Self::Two(sender.clone())),
        }
    }

    async fn start(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Unsent> {
        let unsent = |err: &hyper::Error, request| Unsent {
            lost: exchange_failure(err),
            request,
        };
        match self {
            Self::One(sender) => {
                if let Err(err) = sender.ready().await {
                    return Err(unsent(&err, Some(request)));
                }
                sender.try_send_request(request).await.map_err(|mut err| {
                    let message = err.take_message();
                    unsent(err.error(), message)
                })
            }
            Self::Two(sender) => {
                if let Err(err) = sender.ready().await {
                    return Err(unsent(&err, Some(request)));
                }
                sender.try_send_request(request).await.map_err(|mut err| {
                    let message = err.take_message();
                    unsent(err.error(), message)
                })
            }
        }
    }

    /// Sends, and reads the whole answer into `body`.
    pub async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
        body: &mut Vec<u8>,
    ) -> Result<Head, Unsent> {
        body.clear();
        let response = self.start(request).await?;
        let (parts, mut incoming) = response.into_parts();
        let head = read_head(&parts);
        while let Some(frame) = incoming.frame().await {
            let frame = frame.map_err(|err| Unsent {
                lost: exchange_failure(&err),
                request: None,
            })?;
            if let Some(data) = frame.data_ref() {
                if body.len() + data.len() > BODY_BYTES_MAX {
                    let lost = Lost::new(
                        "BODY_TOO_LARGE",
                        format_args!("more than {BODY_BYTES_MAX} bytes"),
                    );
                    return Err(Unsent {
                        lost,
                        request: None,
                    });
                }
                body.extend_from_slice(data);
            }
        }
        Ok(head)
    }
}

fn read_head(parts: &http::response::Parts) -> Head {
    use http::header::{CONTENT_ENCODING, ETAG, LOCATION, RETRY_AFTER};
    let header = |name| parts.headers.get(name);
    Head {
        status: parts.status.as_u16(),
        retry_after_s: header(RETRY_AFTER)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.trim().parse().ok()),
        etag: header(ETAG).map(|value| Bytes::copy_from_slice(value.as_bytes())),
        gzip: header(CONTENT_ENCODING)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"gzip")),
        location: header(LOCATION)
            .filter(|_| parts.status.is_redirection())
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()),
    }
}

fn io_cause<'a>(err: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut cause = Some(err);
    while let Some(err) = cause {
        if let Some(io) = err.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        cause = err.source();
    }
    None
}

fn connect_failure(err: &(dyn std::error::Error + 'static)) -> Lost {
    let Some(io) = io_cause(err) else {
        return Lost::new("CONNECT_FAILED", err);
    };
    let code = match io.kind() {
        std::io::ErrorKind::ConnectionRefused => "CONNECT_REFUSED",
        std::io::ErrorKind::TimedOut => "CONNECT_TIMEOUT",
        std::io::ErrorKind::AddrNotAvailable => "OUT_OF_LOCAL_PORTS",
        // Too many open files: ours, not the server's.
        _ if io.raw_os_error() == Some(24) => "OUT_OF_FILE_DESCRIPTORS",
        _ => "CONNECT_FAILED",
    };
    Lost::new(code, io)
}

fn exchange_failure(err: &hyper::Error) -> Lost {
    if err.is_parse() || err.is_parse_status() {
        Lost::new("NOT_HTTP", err)
    } else if err.is_timeout() {
        Lost::new("TIMEOUT", err)
    } else {
        match io_cause(err) {
            Some(io) => Lost::new("CONNECTION_CLOSED", io),
            None => Lost::new("CONNECTION_CLOSED", err),
        }
    }
}

/// HTTP/2's tasks stay on the generator's thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
