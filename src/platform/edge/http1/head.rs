//! Heads of HTTP/1.1 requests: what is taken, and what is refused with which status.
//!
//! Stricter than RFC 9112 where leniency lets two servers in a row read different requests from
//! the same bytes: no bare LF, no `Content-Length` beside `Transfer-Encoding` or twice, no
//! transfer coding but `chunked`, exactly one `Host`.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};

use super::{
    super::limits::{HEAD_MAX, HEADERS_MAX, TARGET_MAX},
    body::Framing,
};
use crate::platform::problem::Problem;

/// Empty lines in front of a request are skipped, up to so many bytes (RFC 9112, 2.2).
const BLANK_MAX: usize = 8;

/// A request's head.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) version: Version,
    pub(super) headers: HeaderMap,
    pub(super) framing: Framing,
    /// Whether the client wants the connection to go on after the answer.
    pub(super) keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// 400: what is wrong with it.
    Malformed(&'static str),
    /// 414.
    TargetTooLong,
    /// 431.
    HeadersTooLarge,
    /// 405: `CONNECT`.
    NoProxy,
}

use Refusal::Malformed;

impl Refusal {
    pub(super) fn problem(self) -> Problem {
        let (status, code, detail) = match self {
            Malformed(what) => (StatusCode::BAD_REQUEST, "MALFORMED_REQUEST", what),
            Self::TargetTooLong => return target_too_long(),
            Self::HeadersTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "HEADERS_TOO_LARGE",
                "The request has more than 100 headers, or its head is longer than 32 KiB.",
            ),
            Self::NoProxy => (
                StatusCode::METHOD_NOT_ALLOWED,
                "METHOD_NOT_ALLOWED",
                "This server is no proxy: it does not take CONNECT.",
            ),
        };
        Problem::new(status, code, detail)
    }
}

/// 414.
pub(in super::super) fn target_too_long() -> Problem {
    Problem::new(
        StatusCode::URI_TOO_LONG,
        "URI_TOO_LONG",
        "The path and query are longer than 8 KiB.",
    )
}

/// How far the bytes of a head have been looked at.
#[derive(Debug, Default)]
pub(super) struct Progress {
    scanned: usize,
    blank: usize,
    /// The first line has ended, so that its length is settled.
    has_line: bool,
    /// A head still without an end is parsed once it is so long, twice as long each time:
    /// garbage is refused early, and a head that comes byte by byte costs no more than any other.
    parse_at: usize,
}

/// Takes the next head off `buf`; `None`: it has not all arrived.
///
/// # Errors
/// Why the request is refused; what follows it on the connection means nothing then.
pub(super) fn take(buf: &mut BytesMut, progress: &mut Progress) -> Result<Option<Head>, Refusal> {
    skip_blank_lines(buf, progress)?;
    let Some(end) = find_end(buf, progress)? else {
        if buf.len() >= progress.parse_at.max(1) {
            progress.parse_at = buf.len() * 2;
            check_beginning(buf)?;
        }
        return Ok(None);
    };
    if end > HEAD_MAX {
        return Err(Refusal::HeadersTooLarge);
    }
    *progress = Progress::default();
    parse(&buf.split_to(end).freeze()).map(Some)
}

fn skip_blank_lines(buf: &mut BytesMut, progress: &mut Progress) -> Result<(), Refusal> {
    while !progress.has_line && buf.starts_with(b"\r\n") {
        buf.advance(2);
        progress.scanned = 0;
        progress.blank += 2;
        if progress.blank > BLANK_MAX {
            return Err(Malformed("Empty lines are not a request."));
        }
    }
    Ok(())
}

/// Where the head ends: behind its empty line. Refuses lines that do not end in CR LF, and
/// heads and first lines that are too long already.
fn find_end(buf: &[u8], progress: &mut Progress) -> Result<Option<usize>, Refusal> {
    while let Some(found) = buf[progress.scanned..]
        .iter()
        .position(|&byte| byte == b'\n')
    {
        let at = progress.scanned + found;
        if at == 0 || buf[at - 1] != b'\r' {
            return Err(Malformed("A line of the head does not end in CR LF."));
        }
        if !progress.has_line && at > TARGET_MAX + 64 {
            return Err(Refusal::TargetTooLong);
        }
        if !progress.has_line && !is_request_line(&buf[..at - 1]) {
            return Err(Malformed("The request line is not METHOD PATH HTTP/1.1."));
        }
        progress.has_line = true;
        progress.scanned = at + 1;
        if at >= 3 && buf[at - 3..=at] == *b"\r\n\r\n" {
            return Ok(Some(at + 1));
        }
    }
    progress.scanned = buf.len();
    if !progress.has_line && buf.len() > TARGET_MAX + 64 {
        return Err(match buf.iter().take(64).any(|&byte| byte == b' ') {
            true => Refusal::TargetTooLong,
            false => Malformed("This is not HTTP."),
        });
    }
    if buf.len() > HEAD_MAX {
        return Err(Refusal::HeadersTooLarge);
    }
    Ok(None)
}

/// Whether a first line ends as a request's does.
fn is_request_line(line: &[u8]) -> bool {
    line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0")
}

/// Whether `buf` may be the beginning of a head.
fn check_beginning(buf: &[u8]) -> Result<(), Refusal> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(buf, &mut headers) {
        Ok(_) => Ok(()),
        Err(error) => Err(refusal(error)),
    }
}

fn refusal(error: httparse::Error) -> Refusal {
    Malformed(match error {
        httparse::Error::TooManyHeaders => return Refusal::HeadersTooLarge,
        httparse::Error::HeaderName => "The name of a header is malformed.",
        httparse::Error::HeaderValue => "The value of a header is malformed.",
        httparse::Error::Version => "The HTTP version is not 1.0 or 1.1.",
        httparse::Error::NewLine => "A line of the head does not end in CR LF.",
        httparse::Error::Token | httparse::Error::Status => "The request line is malformed.",
    })
}

fn parse(head: &Bytes) -> Result<Head, Refusal> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut headers) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Malformed("The head is malformed.")),
        Err(error) => return Err(refusal(error)),
    }
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(Malformed("The request line is malformed."));
    };
    if target.len() > TARGET_MAX {
        return Err(Refusal::TargetTooLong);
    }
    let method =
        Method::from_bytes(method.as_bytes()).map_err(|_| Malformed("The method is malformed."))?;
    if method == Method::CONNECT {
        return Err(Refusal::NoProxy);
    }
    let uri = Uri::from_maybe_shared(head.slice_ref(target.as_bytes()))
        .map_err(|_| Malformed("The path is malformed."))?;
    let version = match version {
        1 => Version::HTTP_11,
        _ => Version::HTTP_10,
    };
    let mut rules = Rules::default();
    let mut map = HeaderMap::with_capacity(request.headers.len());
    for line in request.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes())
            .map_err(|_| Malformed("The name of a header is malformed."))?;
        rules.header(&name, line.value)?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(line.value))
            .map_err(|_| Malformed("The value of a header is malformed."))?;
        map.try_append(name, value)
            .map_err(|_| Refusal::HeadersTooLarge)?;
    }
    rules.finish(method, uri, version, map)
}

/// What the headers of one request say about it.
#[derive(Default)]
struct Rules {
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
}

impl Rules {
    fn header(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), Refusal> {
        match *name {
            header::HOST => {
                self.hosts += 1;
                let fits = |b: &u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(b);
                if self.hosts > 1 || value.is_empty() || !value.iter().all(fits) {
                    return Err(Malformed("Send exactly one Host, with a host's name."));
                }
            }
            header::CONTENT_LENGTH => {
                let digits =
                    (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
                if self.length.is_some() || self.chunked || !digits {
                    return Err(Malformed(
                        "Send at most one Content-Length, a number, and none beside Transfer-Encoding.",
                    ));
                }
                self.length = Some(
                    value
                        .iter()
                        .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')),
                );
            }
            header::TRANSFER_ENCODING => {
                if self.chunked || self.length.is_some() || !value.eq_ignore_ascii_case(b"chunked")
                {
                    return Err(Malformed(
                        "Send at most one Transfer-Encoding, which is chunked, and no Content-Length beside it.",
                    ));
                }
                self.chunked = true;
            }
            header::CONNECTION => {
                for option in value.split(|&byte| byte == b',') {
                    let option = option.trim_ascii();
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            header::EXPECT => self.expects_continue = value.eq_ignore_ascii_case(b"100-continue"),
            _ => {}
        }
        Ok(())
    }

    fn finish(
        self,
        method: Method,
        uri: Uri,
        version: Version,
        headers: HeaderMap,
    ) -> Result<Head, Refusal> {
        let is_11 = version == Version::HTTP_11;
        if is_11 && self.hosts == 0 {
            return Err(Malformed("Send a Host header: HTTP/1.1 requires it."));
        }
        if self.chunked && !is_11 {
            return Err(Malformed("HTTP/1.0 has no Transfer-Encoding."));
        }
        let framing = match (self.chunked, self.length) {
            (true, _) => Framing::chunked(),
            (false, None | Some(0)) => Framing::Done,
            (false, Some(length)) => Framing::Length(length),
        };
        Ok(Head {
            method,
            uri,
            version,
            headers,
            keep_alive: !self.close && (is_11 || self.keep_alive),
            expects_continue: self.expects_continue && is_11 && !framing.is_done(),
            framing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &[u8]) -> Result<Option<Head>, Refusal> {
        take(&mut BytesMut::from(text), &mut Progress::default())
    }

    /// Byte by byte; what is left of the buffer too.
    fn dribbled(text: &[u8]) -> (Result<Option<Head>, Refusal>, usize) {
        let (mut buf, mut progress) = (BytesMut::new(), Progress::default());
        for byte in text {
            buf.extend_from_slice(&[*byte]);
            match take(&mut buf, &mut progress) {
                Ok(None) => {}
                outcome => return (outcome, buf.len()),
            }
        }
        (Ok(None), buf.len())
    }

    #[test]
    fn a_head_is_the_same_however_it_arrives() {
        let text =
            b"\r\nPOST /a?b=c HTTP/1.1\r\nhost: h:1\r\nX-Y:  z \r\nContent-Length: 5\r\n\r\n";
        for head in [whole(text), dribbled(text).0] {
            let head = head.unwrap().unwrap();
            assert_eq!((head.method, head.uri.path()), (Method::POST, "/a"));
            assert_eq!(head.headers["x-y"], "z");
            assert!(matches!(head.framing, Framing::Length(5)));
            assert!(head.keep_alive && !head.expects_continue);
        }
    }

    #[test]
    fn what_two_servers_could_read_differently_is_refused() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a, b\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: u@a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost:\r\n\r\n",
            "GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n",
            "GET / HTTP/1.1\nhost: a\n\n",
            "GET / HTTP/1.1\r\nhost: a\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nx: y\rz: w\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 1\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n folded: b\r\n\r\n",
            "GET / HTTP/1.1\r\n host: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nx: \u{0}\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n: b\r\n\r\n",
            "GET / HTTP/2.0\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.2\r\nhost: a\r\n\r\n",
            "GET /\r\n",
            "GET  / HTTP/1.1\r\nhost: a\r\n\r\n",
            "G@T / HTTP/1.1\r\nhost: a\r\n\r\n",
            "\u{16}\u{3}\u{1}",
            "\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "hello\r\n\r\n",
        ] {
            let (dribbled, _) = dribbled(head.as_bytes());
            for outcome in [whole(head.as_bytes()), dribbled] {
                assert!(
                    matches!(outcome, Err(Malformed(_))),
                    "{head:?}: {outcome:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_too_long_is_called_that() {
        let long = format!(
            "GET /{} HTTP/1.1\r\nhost: a\r\n\r\n",
            "x".repeat(TARGET_MAX)
        );
        assert!(matches!(
            whole(long.as_bytes()),
            Err(Refusal::TargetTooLong)
        ));
        let endless = format!("GET /{}", "x".repeat(TARGET_MAX + 100));
        assert!(matches!(
            dribbled(endless.as_bytes()).0,
            Err(Refusal::TargetTooLong)
        ));
        let large = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "x".repeat(HEAD_MAX));
        assert!(matches!(
            whole(large.as_bytes()),
            Err(Refusal::HeadersTooLarge)
        ));
        let many = format!(
            "GET / HTTP/1.1\r\nhost: a\r\n{}\r\n",
            "x: y\r\n".repeat(HEADERS_MAX)
        );
        assert!(matches!(
            whole(many.as_bytes()),
            Err(Refusal::HeadersTooLarge)
        ));
        let fits = format!(
            "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
            "x".repeat(30_000)
        );
        assert!(whole(fits.as_bytes()).unwrap().is_some());
    }

    #[test]
    fn connections_go_on_as_the_version_has_it() {
        let keeps = |head: &str| whole(head.as_bytes()).unwrap().unwrap().keep_alive;
        assert!(keeps("GET / HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert!(!keeps(
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: x, Close\r\n\r\n"
        ));
        assert!(!keeps("GET / HTTP/1.0\r\n\r\n"));
        assert!(keeps("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"));
        assert!(!keeps(
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nconnection: keep-alive\r\n\r\n"
        ));
    }

    #[test]
    fn the_next_request_stays_in_the_buffer() {
        let mut buf = BytesMut::from(
            &b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        );
        let mut progress = Progress::default();
        for path in ["/1", "/2"] {
            let head = take(&mut buf, &mut progress).unwrap().unwrap();
            assert_eq!(head.uri.path(), path);
        }
        assert!(take(&mut buf, &mut progress).unwrap().is_none());
    }
}
