//! A primary behind a link that can be held up, its replica, and a Sentinel that watches them.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use ticketping::platform::redis::Redis;

use super::{redis_server::RedisServer, world::until};

const SERVICE: &str = "tickets";
const PASSWORD: &str = "pass-of-the-servers";
const SENTINELS: &str = "pass-of-the-sentinels";

/// The primary's address, for clients, Sentinel and replica alike. Held up, it passes nothing
/// on to the replica any more: what the primary writes from then on never arrives there.
struct Link {
    port: u16,
    open: watch::Sender<bool>,
}

impl Link {
    async fn to(primary: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, watched) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let watched = watched.clone();
                tokio::spawn(async move {
                    if let Ok(primary) = TcpStream::connect(("127.0.0.1", primary)).await {
                        pass_on(client, primary, watched).await;
                    }
                });
            }
        });
        Self { port, open }
    }
}

async fn pass_on(client: TcpStream, primary: TcpStream, mut open: watch::Receiver<bool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_primary, mut to_primary) = primary.into_split();
    let replicates = AtomicBool::new(false);
    // What the replica acknowledges goes through all the time: it only looks slow.
    let there = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = from_client.read(&mut buffer).await?;
            if count == 0 {
                return Ok::<(), std::io::Error>(());
            }
            let asks = buffer[..count].windows(5).any(|word| word == b"PSYNC");
            replicates.fetch_or(asks, Relaxed);
            to_primary.write_all(&buffer[..count]).await?;
        }
    };
    let back = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = from_primary.read(&mut buffer).await?;
            // After the read: nothing that was written during the hold-up slips through.
            let closed = replicates.load(Relaxed) && open.wait_for(|open| *open).await.is_err();
            if closed || count == 0 {
                return Ok::<(), std::io::Error>(());
            }
            to_client.write_all(&buffer[..count]).await?;
        }
    };
    tokio::select! {
        _ = there => {}
        _ = back => {}
    }
}

pub struct Watched {
    pub primary: RedisServer,
    pub replica: RedisServer,
    sentinel: RedisServer,
    link: Link,
}

impl Watched {
    pub async fn start() -> Self {
        let primary = RedisServer::start_with_password(PASSWORD, &[]).await;
        let link = Link::to(primary.port).await;
        let follow = ["--replicaof", "127.0.0.1", &link.port.to_string()];
        let replica = RedisServer::start_with_password(PASSWORD, &follow).await;
        let synced = until(Duration::from_secs(10), async || {
            replica.info("master_link_status").await == "up"
        })
        .await;
        assert!(synced.is_some(), "the replica follows");
        let sentinel =
            RedisServer::start_sentinel((link.port, PASSWORD), (SERVICE, SENTINELS)).await;
        let known = until(Duration::from_secs(15), async || {
            let replicas = sentinel.command(&["SENTINEL", "REPLICAS", SERVICE]).await;
            matches!(replicas, redis::Value::Array(ref all) if !all.is_empty())
        })
        .await;
        assert!(known.is_some(), "the Sentinel knows the replica");
        Self {
            primary,
            replica,
            sentinel,
            link,
        }
    }

    /// The first Sentinel of the list is away; the second answers.
    pub fn url(&self) -> String {
        format!(
            "redis+sentinel://:{PASSWORD}@127.0.0.1:1,127.0.0.1:{}/{SERVICE}?sentinel_password={SENTINELS}",
            self.sentinel.port
        )
    }

    /// From here on the replica falls behind.
    pub fn hold_up(&self) {
        self.link.open.send_replace(false);
    }

    /// The primary dies; waits until the Sentinel has made the replica the primary.
    pub async fn fail_over(&mut self) {
        self.primary.kill();
        // Its address is told at once, but it is the primary only when the Sentinel says that it is well.
        let promoted = until(Duration::from_secs(20), async || {
            Redis::connect(&self.url()).await.is_ok()
        })
        .await;
        assert!(promoted.is_some(), "the replica is promoted");
        assert_eq!(self.replica.info("role").await, "master");
    }
}
