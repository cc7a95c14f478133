//! Log lines to stderr, by a thread of their own: whoever logs never waits for whoever reads.

use std::{
    io::{self, Write},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use tracing::Level;

use super::{
    flood,
    line::{Fields, Renderer},
};
use crate::platform::metrics::Metrics;

/// Lines that wait for stderr; further ones are lost, and counted.
const WAITING_LINES_MAX: usize = 8_192;
const WAITING_BYTES_MAX: usize = 4 << 20;
/// Lines that wait are written together, up to this many bytes.
const WRITE_BYTES_MAX: usize = 64 * 1024;
/// How often floods that have ended are summarised.
const TICK: Duration = Duration::from_secs(1);

static LOST: LazyLock<Counter> = LazyLock::new(Counter::default);

pub(super) fn register(metrics: &Metrics) {
    metrics.register(|registry| {
        registry.register(
            "log_lines_lost",
            "Log lines that stderr did not take in time",
            LOST.clone(),
        );
    });
}

#[derive(Default)]
struct Waiting {
    bytes: AtomicUsize,
    lost: AtomicU64,
}

/// Takes lines without waiting. Cheap to clone.
#[derive(Clone)]
pub(super) struct Writer {
    lines: SyncSender<String>,
    waiting: Arc<Waiting>,
}

impl Writer {
    /// Starts the thread that writes to stderr.
    pub(super) fn start(renderer: Renderer) -> Self {
        Self::to(io::stderr(), renderer)
    }

    fn to(out: impl Write + Send + 'static, renderer: Renderer) -> Self {
        let (lines, taken) = sync_channel(WAITING_LINES_MAX);
        let waiting = Arc::new(Waiting::default());
        let loop_ = Loop {
            out,
            renderer,
            waiting: waiting.clone(),
        };
        let thread = std::thread::Builder::new().name("log".to_owned());
        // Without the thread nothing is taken from the channel: lines are counted as lost.
        let _ = thread.spawn(move || loop_.run(&taken));
        Self { lines, waiting }
    }

    pub(super) fn send(&self, line: String) {
        let bytes = line.len();
        let before = self.waiting.bytes.fetch_add(bytes, Relaxed);
        if before + bytes > WAITING_BYTES_MAX || self.lines.try_send(line).is_err() {
            self.waiting.bytes.fetch_sub(bytes, Relaxed);
            self.waiting.lost.fetch_add(1, Relaxed);
            LOST.inc();
        }
    }

    /// Waits until everything is written, at most `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let begun = Instant::now();
        while self.waiting.bytes.load(Relaxed) > 0 && begun.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

struct Loop<W> {
    out: W,
    renderer: Renderer,
    waiting: Arc<Waiting>,
}

impl<W: Write> Loop<W> {
    fn run(mut self, lines: &Receiver<String>) {
        let mut ticked = Instant::now();
        loop {
            match lines.recv_timeout(TICK) {
                Ok(mut text) => {
                    while text.len() < WRITE_BYTES_MAX
                        && let Ok(more) = lines.try_recv()
                    {
                        text.push_str(&more);
                    }
                    self.write(&text);
                    self.waiting.bytes.fetch_sub(text.len(), Relaxed);
                    self.say_lost();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                for (level, target, fields) in flood::ended() {
                    let line = self.renderer.line(level, target, &fields, &[]);
                    self.write(&line);
                }
            }
        }
    }

    fn write(&mut self, text: &str) {
        let mut left = text.as_bytes();
        while !left.is_empty() {
            match self.out.write(left) {
                // It takes nothing any more: there is nobody to tell.
                Ok(0) => return,
                Ok(taken) => left = &left[taken..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Shared with somebody who has made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(_) => return,
            }
        }
    }

    fn say_lost(&mut self) {
        let lost = self.waiting.lost.swap(0, Relaxed);
        if lost > 0 {
            let message = format!("{lost} log lines were lost: stderr was not read fast enough");
            let fields = Fields(vec![("message", message.into()), ("lost", lost.into())]);
            let line = self.renderer.line(Level::WARN, "ticketping", &fields, &[]);
            self.write(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::platform::telemetry::LogFormat;

    /// A reader that has gone to sleep, until it is woken.
    #[derive(Clone, Default)]
    struct Slow {
        awake: Arc<Mutex<()>>,
        read: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _awake = self.awake.lock().unwrap();
            self.read.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_and_what_was_lost_is_said() {
        let slow = Slow::default();
        let asleep = slow.awake.lock().unwrap();
        let renderer = Renderer::new(LogFormat::Text, false, "all", "h".to_owned());
        let writer = Writer::to(slow.clone(), renderer);
        let begun = Instant::now();
        for i in 0..20_000 {
            writer.send(format!("line {i}\n"));
        }
        writer.flush(Duration::from_millis(50));
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert!(writer.waiting.bytes.load(Relaxed) <= WAITING_BYTES_MAX);
        drop(asleep);
        writer.flush(Duration::from_secs(10));
        let deadline = Instant::now() + Duration::from_secs(10);
        let read = || String::from_utf8(slow.read.lock().unwrap().clone()).unwrap();
        while !read().contains("log lines were lost") {
            assert!(Instant::now() < deadline, "{}", read().len());
            std::thread::sleep(Duration::from_millis(5));
        }
        let kept = read().lines().filter(|l| l.starts_with("line ")).count();
        assert!((1_000..20_000).contains(&kept), "{kept}");
    }
}
