//! A whole sale of this test's own, and the hand that strikes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use ticketping::cmd::audit;
use ticketping::platform::embedded::runtime::RuntimeFile;
use ticketping::platform::embedded::{EmbeddedStores, Options};
use ticketping::platform::secret::Secret;
use ticketping::serve::secrets::Kept;
use tokio::task::JoinHandle;

use super::plan::{Blow, LINKS, ROLES, Shape, Size, Strike, Victim};
use crate::harness::apart::{Apart, Stores};
use crate::harness::client::Http;
use crate::harness::kafka::Kafka;
use crate::harness::partition::Link;
use crate::harness::process::{self, Process};
use crate::harness::steps::{self, Buyer};
use crate::harness::{self, send};

/// What ended by itself (a store was away when it started) is started again after so long,
/// as a service manager would.
const RESTART_AFTER: Duration = Duration::from_millis(300);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What the sandbox does to calls that nobody here makes by hand; buyers bring faults of their own.
const STANDING_FAULTS: &str = "create/error_after@0.05,create/error_before@0.05,\
     create/error_stored@0.03,read/error_before@0.05,cancel/error_before@0.1,\
     cancel/error_after@0.1,refund/error_before@0.1,refund/error_after@0.1,\
     refund/error_stored@0.05,refund/webhook_drop@0.2,cancel/webhook_drop@0.2,\
     settle/webhook_drop@0.2,skew@0.1";

enum Broker {
    Up(Kafka),
    Down(Kafka),
    Starting(JoinHandle<Kafka>),
    /// For the moment of changing hands.
    None,
}

enum House {
    Apart {
        apart: Box<Apart>,
        stores: Box<EmbeddedStores>,
        kafka: Broker,
        /// One for each of [`LINKS`].
        links: Vec<Link>,
    },
    All {
        server: Option<Process>,
        args: Vec<String>,
        envs: Vec<(&'static str, String)>,
    },
}

/// Something that comes later.
enum Due {
    Start(Victim),
    Resume(Victim, Vec<u32>),
    Heal(usize),
}

pub struct World {
    house: House,
    dir: PathBuf,
    pub api: Http,
    pub stripe: Http,
    pub buyers: Vec<Buyer>,
    due: Vec<(Instant, Due)>,
    /// Strikes that met somebody, by kind.
    pub struck: BTreeMap<String, u32>,
    /// Processes started again, stores included.
    pub recoveries: u32,
}

fn environment(seed: u64) -> Vec<(&'static str, String)> {
    vec![
        ("TICKETPING_PAYMENT_RECONCILE_AFTER", "2s".into()),
        ("TICKETPING_STRIPE_SANDBOX_RETRY_FIRST", "200ms".into()),
        ("TICKETPING_STRIPE_SANDBOX_RETRY_MAX", "2s".into()),
        ("TICKETPING_STRIPE_SANDBOX_FAULTS", STANDING_FAULTS.into()),
        ("TICKETPING_STRIPE_SANDBOX_FAULT_SEED", seed.to_string()),
    ]
}

impl World {
    pub async fn open(shape: Shape, size: Size, seed: u64) -> Self {
        let dir = harness::data_dir();
        std::fs::create_dir_all(&dir).unwrap();
        let mut world = match shape {
            Shape::Apart => Self::apart(dir, seed).await,
            Shape::All => Self::all(dir, seed).await,
        };
        world.seed(size).await;
        world
    }

    async fn apart(dir: PathBuf, seed: u64) -> Self {
        // Forgetful: what is killed here is processes, not the machine.
        let forgetful = Options {
            durable: false,
            ..Options::default()
        };
        let own = harness::data_dir();
        let (stores, kafka) =
            tokio::join!(EmbeddedStores::start_with(&own, forgetful), Kafka::start());
        let stores = stores.unwrap();
        let on = Stores {
            redis_url: stores.redis_url().to_owned(),
            redis_prefix: "tp".to_owned(),
            database_url: stores.database_url().to_owned(),
            brokers: kafka.bootstrap.clone(),
            kafka_prefix: "ticketping".to_owned(),
        };
        let links = std::sync::Mutex::new(Vec::new());
        let own = async |envs: &[(&'static str, String)]| {
            let (made, own) = linked(envs).await;
            *links.lock().unwrap() = made;
            own
        };
        let apart = Apart::start_with(&dir, &on, &environment(seed), 1, own).await;
        let links = links.into_inner().unwrap();
        let (api, stripe) = (apart.api.clone(), apart.stripe.clone());
        let house = House::Apart {
            apart: Box::new(apart),
            stores: Box::new(stores),
            kafka: Broker::Up(kafka),
            links,
        };
        Self::new(house, dir, api, stripe)
    }

    async fn all(dir: PathBuf, seed: u64) -> Self {
        let (api, stripe) = (harness::free_port(), harness::free_port());
        let at = |port: u16| format!("127.0.0.1:{port}");
        let args = [
            "serve",
            "all",
            "--data-dir",
            dir.to_str().unwrap(),
            "--listen",
            &at(api),
            "--ops-listen",
            "127.0.0.1:0",
            "--stripe-sandbox-listen",
            &at(stripe),
        ];
        let house = House::All {
            server: None,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            envs: environment(seed),
        };
        let url = |port: u16| Http::new(&format!("http://{}", at(port)));
        let mut world = Self::new(house, dir, url(api), url(stripe));
        world.start(Victim::Server);
        process::runtime_file(&world.dir, &world.log()).await;
        world.recoveries = 0;
        world
    }

    fn new(house: House, dir: PathBuf, api: Http, stripe: Http) -> Self {
        Self {
            house,
            dir,
            api,
            stripe,
            buyers: Vec::new(),
            due: Vec::new(),
            struck: BTreeMap::new(),
            recoveries: 0,
        }
    }

    fn log(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// One performance, open, with somewhat more seats than buyers and few who may book at once.
    async fn seed(&mut self, size: Size) {
        let (seats, users) = (size.buyers.max(16).to_string(), size.buyers.to_string());
        let working = (size.buyers / 2).min(60).to_string();
        let args = [
            ["--performances", "1"],
            ["--schedules", "1"],
            ["--seats", &seats],
            ["--users", &users],
            ["--max-working", &working],
            ["--hold-ttl", "4s"],
            ["--working-ttl", "8s"],
            ["--claim-ttl", "3s"],
            ["--queue-factor", "0"],
        ]
        .concat();
        self.buyers = match &self.house {
            House::Apart { apart, .. } => apart.seed(&args).await,
            House::All { .. } => {
                let dir = self.dir.to_str().unwrap();
                let all = [&["seed", "--yes", "--data-dir", dir], &args[..]].concat();
                let (code, out, err) = process::run(&all, &[]).await;
                assert_eq!(code, 0, "{out}\n{err}");
                steps::buyers(&self.dir.join("tokens.jsonl"))
            }
        };
    }

    /// Carries out the plan for as long as `busy` is; who dies is started again.
    pub async fn storm(&mut self, strikes: &[Strike], busy: impl Fn() -> bool) {
        let begun = Instant::now();
        let mut strikes = strikes.iter().peekable();
        while busy() {
            while let Some(strike) = strikes.next_if(|strike| strike.at <= begun.elapsed()) {
                self.strike(strike).await;
            }
            self.tend().await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn strike(&mut self, strike: &Strike) {
        let victim = strike.victim;
        if let (Victim::Link(at), Blow::Cut(time, cut)) = (victim, strike.blow) {
            let House::Apart { links, .. } = &self.house else {
                return;
            };
            links[at].cut(cut);
            self.due.push((Instant::now() + time, Due::Heal(at)));
            *self
                .struck
                .entry(format!("cut {}", victim.name()))
                .or_default() += 1;
            return;
        }
        let Some(pid) = self.pid(victim) else { return };
        let (kind, later) = match strike.blow {
            Blow::Kill(down) => {
                self.kill(victim, pid).await;
                self.recoveries += u32::from(matches!(victim, Victim::Redis | Victim::Postgres));
                ("kill", (down, Due::Start(victim)))
            }
            Blow::Pause(time) => {
                // Stopping PostgreSQL's first process alone stops none of those that work.
                let pids = match victim {
                    Victim::Postgres => stop_all(pid),
                    _ => {
                        send(pid, Signal::SIGSTOP);
                        vec![pid]
                    }
                };
                ("pause", (time, Due::Resume(victim, pids)))
            }
            Blow::Cut(..) => return,
        };
        self.due.push((Instant::now() + later.0, later.1));
        *self
            .struck
            .entry(format!("{kind} {}", victim.name()))
            .or_default() += 1;
    }

    /// `None`: it is down already.
    fn pid(&self, victim: Victim) -> Option<u32> {
        let of = |process: &Option<Process>| {
            let process = process.as_ref()?;
            process.child.id()
        };
        match (&self.house, victim) {
            (House::Apart { stores, .. }, Victim::Redis) => alive(stores.redis_pid()),
            (House::Apart { stores, .. }, Victim::Postgres) => alive(stores.postgres_pid()),
            (House::Apart { kafka, .. }, Victim::Kafka) => match kafka {
                Broker::Up(kafka) => Some(kafka.pid()),
                Broker::Down(_) | Broker::Starting(_) | Broker::None => None,
            },
            (House::Apart { apart, .. }, Victim::Role(at)) => of(&apart
                .roles
                .iter()
                .find(|role| role.name == ROLES[at])?
                .process),
            (House::All { .. }, Victim::Redis) => recorded(&self.dir, "redis"),
            (House::All { .. }, Victim::Postgres) => recorded(&self.dir, "postgres"),
            (House::All { server, .. }, Victim::Server) => of(server),
            (_, Victim::Link(_)) => None,
            (House::Apart { .. }, Victim::Server)
            | (House::All { .. }, Victim::Kafka | Victim::Role(_)) => None,
        }
    }

    async fn kill(&mut self, victim: Victim, pid: u32) {
        let process = match (&mut self.house, victim) {
            (_, Victim::Redis | Victim::Postgres) => {
                // Whoever keeps it starts it again.
                send(pid, Signal::SIGKILL);
                None
            }
            (House::Apart { kafka, .. }, _) if victim == Victim::Kafka => {
                if let Broker::Up(mut broker) = std::mem::replace(kafka, Broker::None) {
                    broker.kill();
                    *kafka = Broker::Down(broker);
                }
                None
            }
            (House::Apart { apart, .. }, _) => (apart.roles.iter_mut())
                .find(|role| role.name == victim.name())
                .and_then(|role| role.process.take()),
            (House::All { server, .. }, _) => server.take(),
        };
        if let Some(process) = process {
            process.kill().await;
        }
    }

    fn start(&mut self, victim: Victim) {
        let log = self.log();
        match (&mut self.house, victim) {
            (_, Victim::Redis | Victim::Postgres) => return,
            (House::Apart { kafka, .. }, Victim::Kafka) => {
                match std::mem::replace(kafka, Broker::None) {
                    Broker::Down(broker) => {
                        *kafka = Broker::Starting(tokio::spawn(broker.start_again()));
                    }
                    other => *kafka = other,
                }
            }
            (House::Apart { apart, .. }, _) => {
                let at = (apart.roles.iter()).position(|role| role.name == victim.name());
                let at = at.expect("a role of the plan");
                if apart.roles[at].process.is_some() {
                    return;
                }
                apart.start_role(at);
            }
            (House::All { server, args, envs }, _) => {
                if server.is_some() {
                    return;
                }
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                *server = Some(Process::start(&args, envs, &log));
            }
        }
        self.recoveries += 1;
    }

    /// Does what is due, and notices who has ended by itself.
    async fn tend(&mut self) {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.due)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.due = later;
        for (_, due) in due {
            self.carry_out(due);
        }
        if let House::Apart { kafka, .. } = &mut self.house
            && let Broker::Starting(starting) = kafka
            && starting.is_finished()
        {
            *kafka = Broker::Up(starting.await.unwrap());
        }
        for victim in self.ended() {
            self.due.push((now + RESTART_AFTER, Due::Start(victim)));
        }
    }

    fn carry_out(&mut self, due: Due) {
        match due {
            Due::Start(victim) => self.start(victim),
            // Its first process may have been killed meanwhile, and what is left of it keeps a new
            // one from starting while it stands still.
            Due::Resume(Victim::Postgres, pids) => {
                let is_postgres = |pid: &&u32| {
                    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
                    name.is_ok_and(|name| name.starts_with("postgres"))
                };
                for pid in pids.iter().rev().filter(is_postgres) {
                    let pid = nix::unistd::Pid::from_raw(i32::try_from(*pid).unwrap());
                    let _ = nix::sys::signal::kill(pid, Signal::SIGCONT);
                }
            }
            // Killed meanwhile, its pid may be anybody's.
            Due::Resume(victim, pids) if self.pid(victim) == pids.first().copied() => {
                send(pids[0], Signal::SIGCONT);
            }
            Due::Resume(..) => {}
            Due::Heal(at) => {
                if let House::Apart { links, .. } = &self.house {
                    links[at].heal();
                }
            }
        }
    }

    fn ended(&mut self) -> Vec<Victim> {
        let gone = |process: &mut Option<Process>| {
            let ended = (process.as_mut())
                .is_some_and(|process| process.child.try_wait().unwrap().is_some());
            if ended {
                *process = None;
            }
            ended
        };
        match &mut self.house {
            House::Apart { apart, .. } => (ROLES.iter().enumerate())
                .filter(|(_, name)| {
                    let role = apart.roles.iter_mut().find(|role| role.name == **name);
                    gone(&mut role.expect("a role of the plan").process)
                })
                .map(|(at, _)| Victim::Role(at))
                .collect(),
            House::All { server, .. } => {
                gone(server).then_some(Victim::Server).into_iter().collect()
            }
        }
    }

    /// Everything runs again; goes on tending until then.
    pub async fn calm(&mut self) {
        let now = Instant::now();
        for (at, _) in &mut self.due {
            *at = now;
        }
        loop {
            self.tend().await;
            let starting = match &self.house {
                House::Apart { kafka, .. } => !matches!(kafka, Broker::Up(_)),
                House::All { .. } => false,
            };
            if self.due.is_empty() && !starting {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Looks after the processes until `done` ends: a role whose store was away ends once more.
    pub async fn tended<T>(&mut self, done: impl Future<Output = T>) -> T {
        tokio::pin!(done);
        loop {
            tokio::select! {
                result = &mut done => return result,
                () = tokio::time::sleep(LOOK_EVERY) => self.tend().await,
            }
        }
    }

    /// The books of this sale, with nothing excused for being young.
    pub fn books(&self, wait: Duration) -> audit::Config {
        let (database_url, redis_url, key) = match &self.house {
            House::Apart { apart, stores, .. } => (
                stores.database_url().to_owned(),
                stores.redis_url().to_owned(),
                apart.stripe_key.clone(),
            ),
            House::All { .. } => {
                let runtime = RuntimeFile::read(&self.dir).unwrap().unwrap();
                let key = Kept::load(&self.dir).unwrap().stripe_secret_key;
                (runtime.database_url, runtime.redis_url, key)
            }
        };
        audit::Config {
            database_url,
            redis_url: Some(redis_url),
            redis_prefix: "tp".to_owned(),
            redis_ca: None,
            stripe: Some((self.stripe.base.clone(), Secret::new(&*key))),
            wait,
            young: Duration::ZERO,
            since: None,
            statement_timeout: std::time::Duration::from_secs(30),
            progress: false,
        }
    }

    /// What the processes said last, for who must find out what went wrong.
    pub fn last_words(&self) -> String {
        let mut words = String::new();
        for name in ROLES.iter().chain(&["server"]) {
            let text = std::fs::read_to_string(self.dir.join(format!("{name}.log")));
            let text = text.unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(25)..] {
                words.push_str(&format!("{name}: {line}\n"));
            }
        }
        words
    }

    /// Ends all of it.
    pub async fn close(self) {
        match self.house {
            House::Apart {
                mut apart, stores, ..
            } => {
                for role in &mut apart.roles {
                    if let Some(process) = role.process.take() {
                        process.kill().await;
                    }
                }
                stores.stop().await;
            }
            House::All { server, .. } => {
                let server = server.expect("it was calm");
                assert_eq!(server.interrupt().await, Some(0), "an orderly end");
            }
        }
    }
}

/// The [`LINKS`], and what each role is told so that it goes through them.
async fn linked(
    envs: &[(&'static str, String)],
) -> (Vec<Link>, Vec<(&'static str, &'static str, String)>) {
    let (mut links, mut own) = (Vec::new(), Vec::new());
    for (who, to) in LINKS {
        let variable = match to {
            "redis" => "TICKETPING_REDIS_URL",
            "postgres" => "TICKETPING_DATABASE_URL",
            "queue" => "TICKETPING_QUEUE_URL",
            "reservations" => "TICKETPING_RESERVATIONS_URL",
            "payments" => "TICKETPING_PAYMENTS_URL",
            "performances" => "TICKETPING_PERFORMANCES_URL",
            other => panic!("no link to {other}"),
        };
        let (_, real) = envs
            .iter()
            .rev()
            .find(|(name, _)| *name == variable)
            .unwrap();
        let url = url::Url::parse(real).unwrap();
        let address = (url.host_str().unwrap(), url.port().unwrap());
        let link = Link::start(&format!("{}:{}", address.0, address.1)).await;
        let through = link.instead_of(real);
        let through = through.trim_end_matches('/').to_owned();
        let whose: Vec<&'static str> = match who {
            "*" => ROLES.into_iter().filter(|role| *role != to).collect(),
            one => vec![one],
        };
        own.extend(
            whose
                .into_iter()
                .map(|role| (role, variable, through.clone())),
        );
        links.push(link);
    }
    (links, own)
}

/// Stops a process and, parents first, all that it has begotten; a stopped parent begets no more.
fn stop_all(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while at < all.len() {
        let parent = all[at];
        let raw = nix::unistd::Pid::from_raw(i32::try_from(parent).unwrap());
        let _ = nix::sys::signal::kill(raw, Signal::SIGSTOP);
        all.extend(children(parent));
        at += 1;
    }
    all
}

fn children(of: u32) -> Vec<u32> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{of}/task")) else {
        return Vec::new();
    };
    tasks
        .filter_map(Result::ok)
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            let pids = text.split_whitespace().map(|pid| pid.parse().ok());
            pids.flatten().collect::<Vec<u32>>()
        })
        .collect()
}

fn alive(pid: u32) -> Option<u32> {
    Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
}

/// The pid of an embedded store, by the record beside it.
fn recorded(dir: &Path, store: &str) -> Option<u32> {
    let record = std::fs::read(dir.join(format!("{store}.json"))).ok()?;
    let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
    alive(u32::try_from(record["pid"].as_u64()?).ok()?)
}
