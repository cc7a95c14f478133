//! A link that a test can cut as a network does: packets vanish, and nobody is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Which way nothing passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub to_server: bool,
    pub to_client: bool,
    /// Connections that were open during the cut stay silent for ever, as behind a firewall that
    /// has forgotten them; else what was held back arrives when the link heals.
    pub forget: bool,
}

/// A link between clients and one server.
pub struct Link {
    pub port: u16,
    cut: watch::Sender<Option<Cut>>,
    /// Grows with each cut that forgets; a connection of an earlier generation is dead.
    generation: Arc<AtomicU64>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// How often a pump that waits sees whether its connection is still remembered.
const AGAIN: Duration = Duration::from_millis(50);

impl Link {
    /// Forwards to `server`, `host:port`.
    pub async fn start(server: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cut, seen) = watch::channel(None);
        let generation = Arc::new(AtomicU64::new(0));
        let (server, known) = (server.to_owned(), generation.clone());
        let serving = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else {
                    continue;
                };
                let (server, seen, known) = (server.clone(), seen.clone(), known.clone());
                tokio::spawn(pass(client, server, seen, known));
            }
        });
        Self {
            port,
            cut,
            generation,
            serving,
        }
    }

    pub fn cut(&self, how: Cut) {
        if how.forget {
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
        self.cut.send_replace(Some(how));
    }

    pub fn heal(&self) {
        self.cut.send_replace(None);
    }

    /// The address in `url` replaced by this link's.
    pub fn instead_of(&self, url: &str) -> String {
        let mut url = url::Url::parse(url).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.port)).unwrap();
        url.to_string()
    }
}

async fn pass(
    client: TcpStream,
    server: String,
    cut: watch::Receiver<Option<Cut>>,
    generation: Arc<AtomicU64>,
) {
    let born = generation.load(Ordering::SeqCst);
    // A connection that is made during a cut hangs, as one whose first packet is lost.
    let mut wait = cut.clone();
    let _ = wait.wait_for(Option::is_none).await;
    let Ok(server) = TcpStream::connect(&server).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let life = Life { born, generation };
    let up = pump(
        from_client,
        to_server,
        cut.clone(),
        |cut| cut.to_server,
        &life,
    );
    let down = pump(from_server, to_client, cut, |cut| cut.to_client, &life);
    tokio::join!(up, down);
}

struct Life {
    born: u64,
    generation: Arc<AtomicU64>,
}

impl Life {
    fn is_forgotten(&self) -> bool {
        self.generation.load(Ordering::SeqCst) != self.born
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut cut: watch::Receiver<Option<Cut>>,
    applies: fn(&Cut) -> bool,
    life: &Life,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await;
        while life.is_forgotten() || cut.borrow().is_some_and(|cut| applies(&cut)) {
            // Whatever came, an end included, is lost or held back.
            let _ = tokio::time::timeout(AGAIN, cut.changed()).await;
            if life.is_forgotten() && matches!(read, Ok(0) | Err(_)) {
                return;
            }
        }
        match read {
            Ok(0) | Err(_) => {
                let _ = to.shutdown().await;
                return;
            }
            Ok(n) if to.write_all(&buffer[..n]).await.is_err() => return,
            Ok(_) => {}
        }
    }
}

#[tokio::test]
async fn a_cut_link_holds_back_or_forgets_and_heals() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = Link::start(&server.local_addr().unwrap().to_string()).await;
    let mut client = TcpStream::connect(("127.0.0.1", link.port)).await.unwrap();
    let (mut peer, _) = server.accept().await.unwrap();
    let mut one = [0; 1];
    client.write_all(b"a").await.unwrap();
    peer.read_exact(&mut one).await.unwrap();
    let cut = |forget| Cut {
        to_server: true,
        to_client: false,
        forget,
    };
    link.cut(cut(false));
    client.write_all(b"b").await.unwrap();
    let held = tokio::time::timeout(AGAIN * 4, peer.read_exact(&mut one)).await;
    assert!(held.is_err(), "passed through a cut");
    peer.write_all(b"c").await.unwrap();
    client.read_exact(&mut one).await.unwrap();
    link.heal();
    peer.read_exact(&mut one).await.unwrap();
    assert_eq!(&one, b"b", "what was held back arrives");
    link.cut(cut(true));
    link.heal();
    client.write_all(b"d").await.unwrap();
    let lost = tokio::time::timeout(AGAIN * 4, peer.read_exact(&mut one)).await;
    assert!(lost.is_err(), "a forgotten connection spoke");
    let mut fresh = TcpStream::connect(("127.0.0.1", link.port)).await.unwrap();
    let (mut peer, _) = server.accept().await.unwrap();
    fresh.write_all(b"e").await.unwrap();
    peer.read_exact(&mut one).await.unwrap();
    assert_eq!(&one, b"e");
}
