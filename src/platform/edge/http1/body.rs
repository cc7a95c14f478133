//! Bodies of HTTP/1.1 requests: taken off the connection as their handler reads them.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes, BytesMut};
use hyper::body::{Frame, SizeHint};

/// Chunk extensions and trailers of one body are at most this long together; nobody reads them.
const EXTRAS_MAX: usize = 8 * 1024;

/// How much of a body is still to come.
#[derive(Clone, Debug)]
pub(super) enum Framing {
    /// Nothing.
    Done,
    /// So many bytes.
    Length(u64),
    /// Chunks, up to an empty one.
    Chunked(Chunked),
}

/// Where in the chunks the next byte stands.
#[derive(Clone, Debug)]
pub(super) struct Chunked {
    state: State,
    extras: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// In a chunk's size, after so many digits.
    Size(u8, u64),
    /// In what may stand behind the size, which is ignored.
    Extension(u64),
    /// Before the LF of the size's line.
    SizeEnd(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// At the beginning of a line behind the last chunk.
    Trailer,
    /// Inside such a line.
    TrailerLine,
    TrailerLf,
    /// Before the last LF of all.
    LastLf,
}

/// What the next bytes of a body are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    Data(Bytes),
    /// More bytes are needed.
    More,
    End,
    /// They are no body.
    Malformed,
}

impl Framing {
    pub(super) fn chunked() -> Self {
        Self::Chunked(Chunked {
            state: State::Size(0, 0),
            extras: 0,
        })
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Takes the next bytes of the body off `buf`.
    pub(super) fn decode(&mut self, buf: &mut BytesMut) -> Decoded {
        let decoded = match self {
            Self::Done => Decoded::End,
            Self::Length(0) => Decoded::End,
            Self::Length(left) => take(left, buf),
            Self::Chunked(chunked) => chunked.decode(buf),
        };
        if decoded == Decoded::End || matches!(self, Self::Length(0)) {
            *self = Self::Done;
        }
        decoded
    }
}

fn take(left: &mut u64, buf: &mut BytesMut) -> Decoded {
    if buf.is_empty() {
        return Decoded::More;
    }
    let length = usize::try_from(*left).map_or(buf.len(), |left| left.min(buf.len()));
    *left -= length as u64;
    Decoded::Data(buf.split_to(length).freeze())
}

impl Chunked {
    fn decode(&mut self, buf: &mut BytesMut) -> Decoded {
        loop {
            if let State::Data(left) = &mut self.state {
                let decoded = take(left, buf);
                if *left == 0 {
                    self.state = State::DataCr;
                }
                return decoded;
            }
            let Some(&byte) = buf.first() else {
                return Decoded::More;
            };
            buf.advance(1);
            let Some(next) = self.step(byte) else {
                return Decoded::Malformed;
            };
            match next {
                Some(state) => self.state = state,
                None => return Decoded::End,
            }
        }
    }

    /// The state after `byte`: `Some(None)` is the end, `None` a malformed body.
    fn step(&mut self, byte: u8) -> Option<Option<State>> {
        let is_text = byte == b'\t' || (b' '..=b'~').contains(&byte) || byte >= 0x80;
        let next = match (self.state, byte) {
            (State::Size(digits, size), _) if byte.is_ascii_hexdigit() => {
                // Sixteen million gigabytes would be the next digit.
                let digit = char::from(byte).to_digit(16)?;
                (digits < 15).then(|| State::Size(digits + 1, size << 4 | u64::from(digit)))?
            }
            (State::Size(0, _), _) => return None,
            (State::Size(_, size), b'\r') | (State::Extension(size), b'\r') => State::SizeEnd(size),
            (State::Size(_, size), b';') => State::Extension(size),
            (State::Extension(size), _) if is_text => self.extra(State::Extension(size))?,
            (State::SizeEnd(0), b'\n') => State::Trailer,
            (State::SizeEnd(size), b'\n') => State::Data(size),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size(0, 0),
            (State::Trailer, b'\r') => State::LastLf,
            (State::TrailerLine, b'\r') => State::TrailerLf,
            (State::Trailer | State::TrailerLine, _) if is_text => {
                self.extra(State::TrailerLine)?
            }
            (State::TrailerLf, b'\n') => State::Trailer,
            (State::LastLf, b'\n') => return Some(None),
            _ => return None,
        };
        Some(Some(next))
    }

    fn extra(&mut self, state: State) -> Option<State> {
        self.extras += 1;
        (self.extras <= EXTRAS_MAX).then_some(state)
    }
}

/// The body broke off, or is malformed.
#[derive(Debug, thiserror::Error)]
#[error("the request's body broke off")]
pub(super) struct Broken;

/// What the connection hands to the handler's side.
#[derive(Default)]
struct Shared {
    chunk: Option<Bytes>,
    end: Option<Result<(), ()>>,
    /// The reader waits.
    wanted: bool,
    is_dropped: bool,
    reader: Option<Waker>,
    connection: Option<Waker>,
}

impl Shared {
    fn wake_reader(&mut self) {
        self.wanted = false;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

type Slot = Arc<Mutex<Shared>>;

fn lock(slot: &Slot) -> MutexGuard<'_, Shared> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The connection's side of a body.
pub(super) struct Feed(Slot);

/// The handler's side of a body.
pub(super) struct Incoming {
    slot: Slot,
    left: Option<u64>,
}

/// A body of `framing`, and what feeds it.
pub(super) fn channel(framing: &Framing) -> (Feed, Incoming) {
    let slot = Slot::default();
    let left = match framing {
        Framing::Done => Some(0),
        Framing::Length(length) => Some(*length),
        Framing::Chunked(_) => None,
    };
    (Feed(slot.clone()), Incoming { slot, left })
}

impl Feed {
    /// Whether the reader waits for bytes; `cx` is woken when it does.
    pub(super) fn is_wanted(&self, cx: &Context<'_>) -> bool {
        let mut shared = lock(&self.0);
        if !shared
            .connection
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            shared.connection = Some(cx.waker().clone());
        }
        shared.wanted && !shared.is_dropped
    }

    pub(super) fn send(&self, chunk: Bytes) {
        let mut shared = lock(&self.0);
        shared.chunk = Some(chunk);
        shared.wake_reader();
    }

    pub(super) fn end(&self, how: Result<(), ()>) {
        let mut shared = lock(&self.0);
        shared.end = Some(how);
        shared.wake_reader();
    }
}

impl hyper::body::Body for Incoming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let slot = self.slot.clone();
        let mut shared = lock(&slot);
        if let Some(chunk) = shared.chunk.take() {
            if let Some(left) = &mut self.left {
                *left = left.saturating_sub(chunk.len() as u64);
            }
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        match shared.end {
            Some(Ok(())) => return Poll::Ready(None),
            Some(Err(())) => return Poll::Ready(Some(Err(Broken))),
            None => {}
        }
        shared.wanted = true;
        shared.reader = Some(cx.waker().clone());
        if let Some(connection) = &shared.connection {
            connection.wake_by_ref();
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let mut shared = lock(&self.slot);
        shared.is_dropped = true;
        shared.chunk = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of the body in `text`, given in pieces of `step` bytes; what is left behind it.
    fn decoded(text: &[u8], step: usize) -> Result<(Vec<u8>, Vec<u8>), &'static str> {
        let (mut framing, mut buf, mut body) = (Framing::chunked(), BytesMut::new(), Vec::new());
        let mut pieces = text.chunks(step);
        loop {
            match framing.decode(&mut buf) {
                Decoded::Data(data) => body.extend_from_slice(&data),
                Decoded::End => {
                    let mut left = buf.to_vec();
                    pieces.for_each(|piece| left.extend_from_slice(piece));
                    return Ok((body, left));
                }
                Decoded::Malformed => return Err("malformed"),
                Decoded::More => buf.extend_from_slice(pieces.next().ok_or("more")?),
            }
        }
    }

    #[test]
    fn chunks_are_the_same_however_they_arrive() {
        let text = b"5;x=\"y\"\r\nhello\r\n001\r\n!\r\n0\r\nTrailer: t\r\n\r\nGET /";
        for step in 1..text.len() {
            let (body, left) = decoded(text, step).unwrap();
            assert_eq!((&body[..], &left[..]), (&b"hello!"[..], &b"GET /"[..]));
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        for text in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "0x5\r\nhello\r\n",
            " 5\r\nhello",
            "5 \r\nhello",
            "5\nhello\n0\n\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhelloX\r\n",
            "5;\n",
            "fffffffffffffffff\r\n",
            "0\r\nx: y\n\r\n",
            "0\r\n\rx",
        ] {
            assert_eq!(decoded(text.as_bytes(), 1), Err("malformed"), "{text:?}");
        }
        let endless = format!("1;{}", "x".repeat(EXTRAS_MAX + 1));
        assert_eq!(decoded(endless.as_bytes(), 1), Err("malformed"));
        let trailers = format!("0\r\n{}", "x: y\r\n".repeat(EXTRAS_MAX));
        assert_eq!(decoded(trailers.as_bytes(), 9), Err("malformed"));
    }

    #[test]
    fn a_length_ends_where_it_says() {
        let (mut framing, mut buf) = (Framing::Length(5), BytesMut::from(&b"helloGET"[..]));
        assert_eq!(
            framing.decode(&mut buf),
            Decoded::Data(Bytes::from_static(b"hello"))
        );
        assert!(framing.is_done());
        assert_eq!(&buf[..], b"GET");
    }
}
