//! Heads of HTTP/1.1 answers.

use std::{cell::RefCell, io::Write as _, time::SystemTime};

use http::{Method, StatusCode, Version, header, response};

/// What follows an answer's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// No body, whatever the answer carries.
    None,
    /// So many bytes.
    Exact(u64),
    /// Chunks.
    Chunked,
    /// Everything until the connection ends: HTTP/1.0 knows no chunks.
    UntilClose,
}

/// What the client's request means for its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) is_head: bool,
    pub(super) is_10: bool,
}

impl Asked {
    pub(super) fn new(method: &Method, version: Version) -> Self {
        Self {
            is_head: method == Method::HEAD,
            is_10: version == Version::HTTP_10,
        }
    }

    /// How the body of an answer with `status` is sent, where `exact` bytes of it are known to come.
    pub(super) fn length(self, status: StatusCode, exact: Option<u64>) -> Length {
        let never = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
        match exact {
            _ if never || self.is_head => Length::None,
            Some(exact) => Length::Exact(exact),
            None if self.is_10 => Length::UntilClose,
            None => Length::Chunked,
        }
    }
}

/// Writes the head of an answer; `exact` is what its body would be long.
pub(super) fn head(
    out: &mut Vec<u8>,
    parts: &response::Parts,
    asked: Asked,
    length: Length,
    exact: Option<u64>,
    close: bool,
) {
    out.reserve(512);
    match parts.status {
        StatusCode::OK => out.extend_from_slice(b"HTTP/1.1 200 OK\r\n"),
        status => {
            let reason = status.canonical_reason().unwrap_or("Unknown");
            line(
                out,
                &[
                    b"HTTP/1.1 ",
                    status.as_str().as_bytes(),
                    b" ",
                    reason.as_bytes(),
                ],
            );
        }
    }
    for (name, value) in &parts.headers {
        // The connection decides on these; on a HEAD, the handler's length is what a GET's would be.
        let ours = name == header::CONNECTION
            || name == header::TRANSFER_ENCODING
            || (name == header::CONTENT_LENGTH && !asked.is_head);
        if !ours {
            line(out, &[name.as_str().as_bytes(), b": ", value.as_bytes()]);
        }
    }
    let mut number = itoa::Buffer::new();
    match length {
        Length::Exact(bytes) => line(out, &[b"content-length: ", number.format(bytes).as_bytes()]),
        Length::Chunked => line(out, &[b"transfer-encoding: chunked"]),
        Length::None => {
            let unsaid = asked.is_head && !parts.headers.contains_key(header::CONTENT_LENGTH);
            if let Some(bytes) = exact.filter(|&bytes| unsaid && bytes > 0) {
                line(out, &[b"content-length: ", number.format(bytes).as_bytes()]);
            }
        }
        Length::UntilClose => {}
    }
    if close {
        out.extend_from_slice(b"connection: close\r\n");
    } else if asked.is_10 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    if !parts.headers.contains_key(header::DATE) {
        date(out);
    }
    out.extend_from_slice(b"\r\n");
}

fn line(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
}

/// The `Date` line, rendered once a second and thread.
fn date(out: &mut Vec<u8>) {
    thread_local! {
        static LINE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs());
    LINE.with_borrow_mut(|(second, line)| {
        if *second != now || line.is_empty() {
            *second = now;
            let at = chrono::DateTime::from_timestamp(i64::try_from(now).unwrap_or(0), 0);
            let at = at.unwrap_or_default();
            *line = at.format("date: %a, %d %b %Y %H:%M:%S GMT\r\n").to_string();
        }
        out.extend_from_slice(line.as_bytes());
    });
}

/// The line in front of a chunk of `length` bytes.
pub(super) fn chunk_size(out: &mut Vec<u8>, length: usize) {
    // Writing to a Vec cannot fail.
    let _infallible = write!(out, "{length:x}\r\n");
}

/// The end of a chunked body.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    fn written(response: Response<()>, asked: Asked, exact: Option<u64>, close: bool) -> String {
        let (parts, ()) = response.into_parts();
        let length = asked.length(parts.status, exact);
        let mut out = Vec::new();
        head(&mut out, &parts, asked, length, exact, close);
        String::from_utf8(out).unwrap()
    }

    const ASKED: Asked = Asked {
        is_head: false,
        is_10: false,
    };

    #[test]
    fn framing_is_the_connections() {
        let answer = || {
            Response::builder()
                .header("content-length", "7")
                .header("x", "y")
        };
        let plain = written(answer().body(()).unwrap(), ASKED, Some(5), false);
        assert!(
            plain.starts_with("HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 5\r\ndate: "),
            "{plain}"
        );
        assert!(plain.ends_with(" GMT\r\n\r\n"), "{plain}");
        let chunked = written(answer().body(()).unwrap(), ASKED, None, true);
        assert!(
            chunked.contains("transfer-encoding: chunked\r\nconnection: close\r\n"),
            "{chunked}"
        );
        let old = Asked {
            is_10: true,
            ..ASKED
        };
        let old = written(answer().body(()).unwrap(), old, None, true);
        assert!(
            !old.contains("chunked") && !old.contains("content-length"),
            "{old}"
        );
        let head = Asked {
            is_head: true,
            ..ASKED
        };
        let head = written(answer().body(()).unwrap(), head, Some(0), false);
        assert!(head.contains("content-length: 7\r\n"), "{head}");
        let none = written(
            Response::builder().status(204).body(()).unwrap(),
            ASKED,
            Some(0),
            false,
        );
        assert!(
            none.starts_with("HTTP/1.1 204 No Content\r\ndate: "),
            "{none}"
        );
    }
}
