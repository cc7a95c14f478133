//! Two instances of the whole system (`serve all`) on the same stores, events inside each
//! process, and the sandbox apart from both.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use ticketping::cmd::audit;
use ticketping::platform::secret::Secret;

use super::apart::{SANDBOX, Stores, environment, random};
use super::client::Http;
use super::process::{self, Process};
use super::steps::{self, Sale};
use crate::harness;

pub struct Twins {
    /// Started first, so it has taken every relay's lease before the other came.
    pub first: Process,
    /// The names under which it holds them, one for each role.
    pub first_holders: Vec<String>,
    pub second: Process,
    /// The sale as each instance serves it. Webhooks go to the second.
    pub at_first: Sale,
    pub at_second: Sale,
    pub database_url: String,
    sandbox: Process,
    stores: Stores,
    stripe_key: String,
    envs: Vec<(&'static str, String)>,
    dir: PathBuf,
}

impl Twins {
    pub async fn start(more: &[(&'static str, String)]) -> Self {
        let dir = harness::data_dir();
        std::fs::create_dir_all(&dir).unwrap();
        let stores = Stores {
            redis_url: harness::stores().await.redis_url.clone(),
            redis_prefix: harness::prefix(),
            database_url: harness::fresh_database().await,
            brokers: String::new(),
            kafka_prefix: String::new(),
        };
        let ports: Vec<u16> = (0..8).map(|_| harness::free_port()).collect();
        let stripe_key = format!("sk_test_{}", random(16));
        let mut envs = environment(&dir, &stores, &ports, &stripe_key);
        // Events stay in the process that delivers them.
        envs.retain(|(name, _)| !name.contains("KAFKA"));
        envs.extend(more.iter().cloned());
        let start = |args: &[&str], name: &str| Process::start(args, &envs, &dir.join(name));
        let sandbox = start(&["serve", SANDBOX], "sandbox.log");
        ready(&dir, "sandbox.log").await;
        let at = |port: u16| format!("127.0.0.1:{port}");
        let first = start(&["serve", "all", "--listen", &at(ports[7])], "first.log");
        ready(&dir, "first.log").await;
        // A relay takes its leases just after its process is ready: the second finds all taken.
        let mut conn = PgConnection::connect(&stores.database_url).await.unwrap();
        let mut held: Vec<String> = Vec::new();
        harness::eventually("the first instance holds every relay's lease", async || {
            held = sqlx::query_scalar(
                "select holder::text from payments.leases where name like 'outbox%'
                 union all
                 select holder::text from reservations.leases where name like 'outbox%'",
            )
            .fetch_all(&mut conn)
            .await
            .unwrap();
            held.len() == 16
        })
        .await;
        held.dedup();
        let second = start(&["serve", "all", "--listen", &at(ports[5])], "second.log");
        ready(&dir, "second.log").await;
        let url = |port: u16| Http::new(&format!("http://{}", at(port)));
        let sale = |port: u16| Sale {
            api: url(port),
            stripe: url(ports[6]),
            buyers: Vec::new(),
        };
        Self {
            first,
            first_holders: held,
            second,
            at_first: sale(ports[7]),
            at_second: sale(ports[5]),
            database_url: stores.database_url.clone(),
            sandbox,
            stores,
            stripe_key,
            envs,
            dir,
        }
    }

    pub async fn seed(&mut self, args: &[&str]) {
        let dir = self.dir.to_str().unwrap();
        let all = [&["seed", "--yes", "--data-dir", dir], args].concat();
        let (code, out, err) = process::run(&all, &self.envs).await;
        assert_eq!(code, 0, "{out}\n{err}");
        let buyers = steps::buyers(&self.dir.join("tokens.jsonl"));
        self.at_first.buyers.clone_from(&buyers);
        self.at_second.buyers = buyers;
    }

    /// The books, with nothing excused for being young.
    pub async fn audit(&self) -> audit::Report {
        let config = audit::Config {
            database_url: self.stores.database_url.clone(),
            redis_url: Some(self.stores.redis_url.clone()),
            redis_prefix: self.stores.redis_prefix.clone(),
            redis_ca: None,
            stripe: Some((
                self.at_first.stripe.base.clone(),
                Secret::new(&*self.stripe_key),
            )),
            wait: Duration::from_secs(15),
            young: Duration::ZERO,
            since: None,
            statement_timeout: Duration::from_secs(30),
            progress: false,
        };
        audit::run_checks(&config).await.unwrap()
    }

    pub fn log(&self, of: &str) -> String {
        std::fs::read_to_string(self.dir.join(format!("{of}.log"))).unwrap_or_default()
    }

    pub async fn stop(self) {
        for process in [self.first, self.second, self.sandbox] {
            process.kill().await;
        }
    }
}

async fn ready(dir: &std::path::Path, log: &str) {
    let begun = Instant::now();
    loop {
        let text = std::fs::read_to_string(dir.join(log)).unwrap_or_default();
        if text.contains("serving") {
            return;
        }
        assert!(
            begun.elapsed().as_secs() < 60,
            "{log} never served:\n{text}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
