//! Every role in its own process, on one Redis, one PostgreSQL and Kafka.

use std::path::{Path, PathBuf};

use super::{
    client::Http,
    process::{self, Process},
    steps::{self, Buyer},
};
use crate::support;

/// The roles' processes and where to reach the sale.
pub struct Apart {
    pub processes: Vec<Process>,
    pub api: Http,
    pub stripe: Http,
    envs: Vec<(&'static str, String)>,
    dir: PathBuf,
}

const ROLES: [&str; 6] = [
    "users",
    "performances",
    "queue",
    "reservations",
    "payments",
    "gateway",
];

impl Apart {
    /// Starts them all, and waits until every one of them is ready.
    pub async fn start(dir: &Path) -> Self {
        let redis = support::stores().await.redis_url.clone();
        let database = support::fresh_database().await;
        let brokers = support::kafka::kafka().await.to_owned();
        let ports: Vec<u16> = (0..=ROLES.len()).map(|_| support::free_port()).collect();
        let url = |i: usize| format!("http://127.0.0.1:{}", ports[i]);
        let stripe = url(ROLES.len());
        let random = |n: usize| hex::encode((0..n).map(|_| rand::random()).collect::<Vec<u8>>());
        let key = dir.join("jwt.pem");
        let (_, pem) = ticketping::platform::auth::Signer::generate().unwrap();
        std::fs::write(&key, pem).unwrap();
        let envs = vec![
            ("TICKETPING_REDIS_URL", redis),
            ("TICKETPING_REDIS_PREFIX", support::prefix()),
            ("TICKETPING_DATABASE_URL", database),
            ("TICKETPING_DATABASE_CONNECTIONS", "4".into()),
            ("TICKETPING_KAFKA_BROKERS", brokers),
            ("TICKETPING_KAFKA_PREFIX", support::prefix()),
            ("TICKETPING_JWT_KEY_FILE", key.to_str().unwrap().to_owned()),
            ("TICKETPING_INTERNAL_SECRET", random(32)),
            ("TICKETPING_PLACE_KEYS", format!("1:{}", random(32))),
            ("TICKETPING_TICKET_KEY", random(32)),
            ("TICKETPING_USERS_URL", url(0)),
            ("TICKETPING_PERFORMANCES_URL", url(1)),
            ("TICKETPING_QUEUE_URL", url(2)),
            ("TICKETPING_RESERVATIONS_URL", url(3)),
            ("TICKETPING_PAYMENTS_URL", url(4)),
            ("TICKETPING_OPS_LISTEN", "127.0.0.1:0".into()),
            (
                "TICKETPING_STRIPE_SANDBOX_LISTEN",
                format!("127.0.0.1:{}", ports[ROLES.len()]),
            ),
            (
                "TICKETPING_STRIPE_SANDBOX_WEBHOOK_URL",
                format!("{}/api/v1/payments/webhook", url(5)),
            ),
            ("STRIPE_URL", stripe.clone()),
            ("STRIPE_SECRET_KEY", format!("sk_test_{}", random(16))),
            ("STRIPE_PUBLISHABLE_KEY", format!("pk_test_{}", random(16))),
            ("STRIPE_WEBHOOK_SECRET", format!("whsec_{}", random(16))),
        ];
        let log = |role: &str| dir.join(format!("{role}.log"));
        let mut processes = vec![Process::start(
            &["serve", "stripe-sandbox"],
            &envs,
            &log("stripe-sandbox"),
        )];
        for (i, role) in ROLES.iter().enumerate() {
            let listen = format!("127.0.0.1:{}", ports[i]);
            let args = ["serve", role, "--listen", &listen];
            processes.push(Process::start(&args, &envs, &log(role)));
        }
        let this = Self {
            processes,
            api: Http::new(&url(5)),
            stripe: Http::new(&stripe),
            envs,
            dir: dir.to_owned(),
        };
        this.wait_until_ready(&log).await;
        this
    }

    async fn wait_until_ready(&self, log: &dyn Fn(&str) -> PathBuf) {
        let begun = std::time::Instant::now();
        loop {
            let logs = ROLES.iter().chain(&["stripe-sandbox"]);
            let mut missing =
                logs.filter(|r| !std::fs::read_to_string(log(r)).unwrap().contains("serving"));
            let Some(role) = missing.next() else { return };
            let text = || std::fs::read_to_string(log(role)).unwrap();
            assert!(
                begun.elapsed().as_secs() < 60,
                "{role} never served:\n{}",
                text()
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Seeds through the stores, as an operator of such an installation would.
    pub async fn seed(&self, args: &[&str]) -> Vec<Buyer> {
        let tokens = self.dir.join("tokens.jsonl");
        let data_dir = self.dir.to_str().unwrap();
        let mut all = vec!["seed", "--yes", "--data-dir", data_dir];
        all.extend(args);
        let (code, out, err) = process::run(&all, &self.envs).await;
        assert_eq!(code, 0, "{out}\n{err}");
        steps::buyers(&tokens)
    }
}

impl Drop for Apart {
    /// A failed test shows what the roles said.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for role in ROLES.iter().chain(&["stripe-sandbox"]) {
            let text = std::fs::read_to_string(self.dir.join(format!("{role}.log")));
            let text = text.unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(30).collect();
            println!("== {role}");
            lines.iter().rev().for_each(|line| println!("{line}"));
        }
    }
}
