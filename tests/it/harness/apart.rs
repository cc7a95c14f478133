//! Every role in its own process, on one Redis, one PostgreSQL and Kafka.

use std::path::{Path, PathBuf};

use super::{
    client::Http,
    process::{self, Process},
    steps::{self, Buyer},
};
use crate::harness;

/// What the roles stand on.
pub struct Stores {
    pub redis_url: String,
    pub redis_prefix: String,
    pub database_url: String,
    pub brokers: String,
    pub kafka_prefix: String,
}

impl Stores {
    /// Those that all tests share, with a prefix and a database of this test's own.
    pub async fn shared() -> Self {
        Self {
            redis_url: harness::stores().await.redis_url.clone(),
            redis_prefix: harness::prefix(),
            database_url: harness::fresh_database().await,
            brokers: harness::kafka::kafka().await.to_owned(),
            kafka_prefix: harness::prefix(),
        }
    }
}

/// A role: how it is started, and its process while it runs.
pub struct Role {
    pub name: &'static str,
    listen: Option<String>,
    further: bool,
    /// What it is told otherwise than the others.
    own: Vec<(&'static str, String)>,
    pub process: Option<Process>,
}

impl Role {
    /// The address that it listens on.
    pub fn address(&self) -> Option<&str> {
        self.listen.as_deref()
    }

    /// The first instance logs under the role's name, further ones under their ports too.
    fn log_name(&self) -> String {
        match (&self.listen, self.further) {
            (Some(listen), true) => format!("{}-{}", self.name, listen.replace(':', "-")),
            _ => self.name.to_owned(),
        }
    }
}

/// The roles' processes and where to reach the sale.
pub struct Apart {
    pub roles: Vec<Role>,
    pub api: Http,
    pub stripe: Http,
    /// The secret key that the sandbox takes.
    pub stripe_key: String,
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
/// Where the first of them are told to the others.
const URLS: [&str; 5] = [
    "TICKETPING_USERS_URL",
    "TICKETPING_PERFORMANCES_URL",
    "TICKETPING_QUEUE_URL",
    "TICKETPING_RESERVATIONS_URL",
    "TICKETPING_PAYMENTS_URL",
];
pub(super) const SANDBOX: &str = "stripe-sandbox";

impl Apart {
    /// Starts them all, and waits until every one of them is ready.
    pub async fn start(dir: &Path) -> Self {
        Self::start_on(dir, &Stores::shared().await, &[]).await
    }

    /// The same on stores of the caller's, with more in their environment.
    pub async fn start_on(dir: &Path, stores: &Stores, more: &[(&'static str, String)]) -> Self {
        Self::start_many(dir, stores, more, 1).await
    }

    /// The same with so many instances of every role, each of which knows all of the others'.
    /// [`Apart::api`] is the first gateway.
    pub async fn start_many(
        dir: &Path,
        stores: &Stores,
        more: &[(&'static str, String)],
        instances: usize,
    ) -> Self {
        Self::start_with(dir, stores, more, instances, async |_| Vec::new()).await
    }

    /// The same, where `own` says what single roles are told otherwise: role, variable, value.
    pub async fn start_with(
        dir: &Path,
        stores: &Stores,
        more: &[(&'static str, String)],
        instances: usize,
        own: impl AsyncFnOnce(&[(&'static str, String)]) -> Vec<(&'static str, &'static str, String)>,
    ) -> Self {
        let ports: Vec<u16> = (0..=ROLES.len()).map(|_| harness::free_port()).collect();
        let others: Vec<Vec<u16>> = (1..instances)
            .map(|_| ROLES.iter().map(|_| harness::free_port()).collect())
            .collect();
        let stripe_key = format!("sk_test_{}", random(16));
        let mut envs = environment(dir, stores, &ports, &stripe_key);
        for (i, name) in URLS.iter().enumerate() {
            let all = std::iter::once(&ports).chain(&others);
            let urls = all.map(|ports| format!("http://127.0.0.1:{}", ports[i]));
            envs.push((name, urls.collect::<Vec<_>>().join(",")));
        }
        envs.extend(more.iter().cloned());
        let own = own(&envs).await;
        let url = |i: usize| format!("http://127.0.0.1:{}", ports[i]);
        let listen = |i: usize| Some(format!("127.0.0.1:{}", ports[i]));
        let named = ROLES.iter().enumerate().map(|(i, name)| (*name, listen(i)));
        let more = others.iter().flat_map(|ports| ROLES.into_iter().zip(ports));
        let more = more.map(|(name, port)| (name, Some(format!("127.0.0.1:{port}"))));
        let mut this = Self {
            roles: std::iter::once((SANDBOX, None))
                .chain(named)
                .chain(more)
                .enumerate()
                .map(|(at, (name, listen))| Role {
                    name,
                    listen,
                    further: at > ROLES.len(),
                    own: (own.iter().filter(|(of, ..)| *of == name))
                        .map(|(_, variable, value)| (*variable, value.clone()))
                        .collect(),
                    process: None,
                })
                .collect(),
            api: Http::new(&url(5)),
            stripe: Http::new(&url(ROLES.len())),
            stripe_key,
            envs,
            dir: dir.to_owned(),
        };
        for at in 0..this.roles.len() {
            this.start_role(at);
        }
        this.wait_until_ready().await;
        this
    }

    /// Starts a role that does not run; its log goes on where it was.
    pub fn start_role(&mut self, at: usize) {
        let role = &mut self.roles[at];
        let mut args = vec!["serve", role.name];
        if let Some(listen) = &role.listen {
            args.extend(["--listen", listen]);
        }
        let log = self.dir.join(format!("{}.log", role.log_name()));
        let envs = [&self.envs[..], &role.own[..]].concat();
        role.process = Some(Process::start(&args, &envs, &log));
    }

    /// Waits until the role has said so many times that it serves.
    pub async fn served(&self, at: usize, times: usize) {
        let log = self.dir.join(format!("{}.log", self.roles[at].log_name()));
        harness::eventually("it serves", async || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.matches(" serving url=").count() >= times
        })
        .await;
    }

    /// Where the first process of a role listens.
    pub fn address(&self, name: &str) -> &str {
        let role = self.roles.iter().find(|role| role.name == name);
        role.and_then(|role| role.listen.as_deref())
            .expect("a role that listens")
    }

    /// Starts one more process of a role, and waits until it answers; where that is.
    pub async fn start_another(&mut self, name: &'static str) -> Http {
        let listen = format!("127.0.0.1:{}", harness::free_port());
        let api = Http::new(&format!("http://{listen}"));
        self.roles.push(Role {
            name,
            listen: Some(listen),
            further: true,
            own: Vec::new(),
            process: None,
        });
        self.start_role(self.roles.len() - 1);
        harness::eventually("the other process answers", async || {
            let reply = api.try_send(http::Method::GET, "/", &[], "").await;
            reply.is_ok()
        })
        .await;
        api
    }

    async fn wait_until_ready(&self) {
        let log = |role: &Role| {
            std::fs::read_to_string(self.dir.join(format!("{}.log", role.log_name()))).unwrap()
        };
        let begun = std::time::Instant::now();
        loop {
            let mut missing = (self.roles.iter()).filter(|role| !log(role).contains("serving"));
            let Some(role) = missing.next() else { return };
            assert!(
                begun.elapsed().as_secs() < 120,
                "{} never served:\n{}",
                role.name,
                log(role)
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
        for role in &self.roles {
            let name = role.log_name();
            let text = std::fs::read_to_string(self.dir.join(format!("{name}.log")));
            let text = text.unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(30).collect();
            println!("== {name}");
            lines.iter().rev().for_each(|line| println!("{line}"));
        }
    }
}

pub(super) fn random(bytes: usize) -> String {
    hex::encode((0..bytes).map(|_| rand::random()).collect::<Vec<u8>>())
}

/// All of what README's table says that a role on its own needs.
pub(super) fn environment(
    dir: &Path,
    stores: &Stores,
    ports: &[u16],
    stripe_key: &str,
) -> Vec<(&'static str, String)> {
    let url = |i: usize| format!("http://127.0.0.1:{}", ports[i]);
    let key = dir.join("jwt.pem");
    let (_, pem) = ticketping::platform::auth::Signer::generate().unwrap();
    std::fs::write(&key, pem).unwrap();
    vec![
        ("TICKETPING_REDIS_URL", stores.redis_url.clone()),
        ("TICKETPING_REDIS_PREFIX", stores.redis_prefix.clone()),
        ("TICKETPING_DATABASE_URL", stores.database_url.clone()),
        ("TICKETPING_DATABASE_CONNECTIONS", "4".into()),
        ("TICKETPING_KAFKA_BROKERS", stores.brokers.clone()),
        ("TICKETPING_KAFKA_PREFIX", stores.kafka_prefix.clone()),
        ("TICKETPING_JWT_KEY_FILE", key.to_str().unwrap().to_owned()),
        ("TICKETPING_INTERNAL_SECRET", random(32)),
        ("TICKETPING_PLACE_KEYS", format!("1:{}", random(32))),
        ("TICKETPING_TICKET_KEY", random(32)),
        ("TICKETPING_USERS_URL", url(0)),
        ("TICKETPING_PERFORMANCES_URL", url(1)),
        ("TICKETPING_QUEUE_URL", url(2)),
        ("TICKETPING_RESERVATIONS_URL", url(3)),
        ("TICKETPING_PAYMENTS_URL", url(4)),
        // There is no balancer that would have to notice.
        ("TICKETPING_SHUTDOWN_DELAY", "0s".into()),
        ("TICKETPING_OPS_LISTEN", "127.0.0.1:0".into()),
        (
            "TICKETPING_STRIPE_SANDBOX_LISTEN",
            format!("127.0.0.1:{}", ports[ROLES.len()]),
        ),
        (
            "TICKETPING_STRIPE_SANDBOX_WEBHOOK_URL",
            format!("{}/api/v1/payments/webhook", url(5)),
        ),
        ("STRIPE_URL", url(ROLES.len())),
        ("STRIPE_SECRET_KEY", stripe_key.to_owned()),
        ("STRIPE_PUBLISHABLE_KEY", format!("pk_test_{}", random(16))),
        ("STRIPE_WEBHOOK_SECRET", format!("whsec_{}", random(16))),
    ]
}
