//! docker-compose.yml is true: what it starts, started here as processes with its very
//! commands and environment (host names mapped to loopback ports), sells a ticket; what
//! Prometheus asks and Grafana draws is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::{Connection, PgConnection};
use ticketping::platform::embedded::{EmbeddedStores, Options};

use crate::harness::{self, client, kafka, readme, reaper};

/// Debug builds of seven roles at once, on a machine that runs other tests beside.
const READY_WITHIN: Duration = Duration::from_secs(120);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The file as the compose client reads it with these profiles, and with the demo secrets.
fn compose(profiles: &[&str]) -> Value {
    let output = Command::new(harness::fetched("compose-config-fetch"))
        .arg(root())
        .arg(root().join(".env.example"))
        .args(profiles)
        .output()
        .unwrap();
    let failure = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{failure}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn words(list: &Value) -> Vec<&str> {
    let list = list.as_array().into_iter().flatten();
    list.map(|word| word.as_str().unwrap()).collect()
}

/// What is reached at `host:port` inside the compose network is here at a loopback port.
struct Addresses(BTreeMap<String, String>);

impl Addresses {
    fn here(&mut self, host: &str, port: u16) -> String {
        let local = || format!("127.0.0.1:{}", harness::free_port());
        let key = format!("{host}:{port}");
        self.0.entry(key).or_insert_with(local).clone()
    }

    /// `value` of `service`'s environment, with every address mapped.
    fn mapped(&self, service: &str, value: &str) -> String {
        let own = value.strip_prefix("0.0.0.0:");
        if let Some(here) = own.and_then(|port| self.0.get(&format!("{service}:{port}"))) {
            return here.clone();
        }
        self.0
            .iter()
            .fold(value.to_owned(), |value, (there, here)| {
                value.replace(there, here)
            })
    }
}

struct Role {
    name: String,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    ops: String,
    log: PathBuf,
}

impl Role {
    fn start(&self) -> Child {
        let log = fs::File::create(&self.log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_ticketping"))
            .args(&self.command)
            .env_clear()
            .envs(&self.env)
            .current_dir(self.log.parent().unwrap())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        reaper::end(child.id(), &self.command[1]);
        child
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

/// The services that run our image, in the file's order.
fn roles(compose: &Value, addresses: &mut Addresses, dir: &Path) -> Vec<Role> {
    let services = compose["services"].as_object().unwrap();
    let tmp = dir.join("tmp");
    fs::create_dir(&tmp).unwrap();
    let ours = || {
        services
            .iter()
            .filter(|(_, service)| service["image"] == "ticketping")
    };
    for (name, service) in ours() {
        let env = service["environment"].as_object().unwrap();
        for listen in env.values().filter_map(Value::as_str) {
            if let Some(port) = listen.strip_prefix("0.0.0.0:") {
                addresses.here(name, port.parse().unwrap());
            }
        }
    }
    ours()
        .map(|(name, service)| Role {
            name: name.clone(),
            command: words(&service["command"])
                .into_iter()
                .map(|word| word.replace("/tmp", &tmp.display().to_string()))
                .collect(),
            env: service["environment"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(key, value)| {
                    let value = value.as_str().unwrap();
                    (key.clone(), addresses.mapped(name, value))
                })
                .collect(),
            ops: addresses.mapped(name, "0.0.0.0:9090"),
            log: dir.join(format!("{name}.out")),
        })
        .collect()
}

/// Stores of this test's own, with the passwords that the file gives them.
async fn stores(compose: &Value, addresses: &mut Addresses, dir: &Path) -> EmbeddedStores {
    let options = Options {
        durable: false,
        ..Options::default()
    };
    let stores = EmbeddedStores::start_with(dir, options).await.unwrap();
    let services = &compose["services"];

    let password = words(&services["redis"]["command"])[2];
    let client = redis::Client::open(stores.redis_url()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("CONFIG")
        .arg(&["SET", "requirepass", password])
        .exec_async(&mut redis)
        .await
        .unwrap();

    let password = services["postgres"]["environment"]["POSTGRES_PASSWORD"].as_str();
    let statement = format!("alter role ticketping password '{}'", password.unwrap());
    let mut database = PgConnection::connect(stores.database_url()).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(statement))
        .execute(&mut database)
        .await
        .unwrap();

    let broker = kafka::kafka().await;
    for (there, url) in [
        ("postgres:5432", stores.database_url()),
        ("redis:6379", stores.redis_url()),
        ("kafka:9092", &format!("kafka://{broker}")),
    ] {
        let url = url::Url::parse(url).unwrap();
        let here = format!("127.0.0.1:{}", url.port().unwrap());
        addresses.0.insert(there.to_owned(), here);
    }
    stores
}

async fn until_ready(running: &mut [(&Role, Child)]) {
    let deadline = Instant::now() + READY_WITHIN;
    for (role, process) in running {
        let url = format!("http://{}/readyz", role.ops);
        loop {
            let answer = if TcpStream::connect(&role.ops).is_ok() {
                client::get(&url).await
            } else {
                (0, String::new())
            };
            if answer.0 == 200 {
                break;
            }
            let ended = process.try_wait().unwrap();
            assert!(ended.is_none(), "{} ended: {}", role.name, role.said());
            assert!(
                Instant::now() < deadline,
                "{} is not ready: {} {}",
                role.name,
                answer.1,
                role.said()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Metric names in a dashboard or an alert: `ticketping_` and what follows.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices("ticketping_")
        .map(|(at, _)| text[at..].chars().take_while(|c| name(*c)).collect())
        .collect()
}

/// What dashboards and alerts ask for is told by some role, or registered by its code:
/// a metric with labels says nothing before its first sample.
fn assert_drawn_is_told(told: &BTreeSet<String>) {
    let mut drawn = files_below("deploy/grafana/dashboards");
    drawn.push(root().join("deploy/prometheus/alerts.yml"));
    let code = sources(&root().join("src"));
    let registered = |metric: &str| {
        let name = metric.trim_start_matches("ticketping_");
        let suffixes = ["", "_total", "_bucket", "_sum", "_count"];
        let mut bases = suffixes
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix));
        bases.any(|base| code.contains(&format!("\"{base}\"")))
    };
    for file in drawn {
        let wanted = metrics_in(&fs::read_to_string(&file).unwrap());
        assert!(!wanted.is_empty(), "{} asks for nothing", file.display());
        let unknown: Vec<_> = wanted
            .iter()
            .filter(|metric| !told.contains(*metric) && !registered(metric))
            .collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", file.display());
    }
}

fn sources(dir: &Path) -> String {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .map(|path| match path.is_dir() {
            true => sources(&path),
            false if path.extension().is_some_and(|ext| ext == "rs") => {
                fs::read_to_string(path).unwrap()
            }
            false => String::new(),
        })
        .collect()
}

fn files_below(dir: &str) -> Vec<PathBuf> {
    fs::read_dir(root().join(dir))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

#[tokio::test]
async fn the_roles_of_the_compose_file_sell_a_ticket() {
    let compose = compose(&["demo"]);
    let dir = harness::data_dir();
    let mut addresses = Addresses(BTreeMap::new());
    let stores = stores(&compose, &mut addresses, &dir).await;
    let roles = roles(&compose, &mut addresses, &dir);
    let (seeds, servers): (Vec<&Role>, Vec<&Role>) =
        roles.iter().partition(|role| role.name == "seed");

    // All at once, as they come up there: none may need another to start.
    let mut running: Vec<(&Role, Child)> = servers
        .into_iter()
        .map(|role| (role, role.start()))
        .collect();
    for seed in &seeds {
        let status = seed.start().wait().unwrap();
        assert!(status.success(), "seed: {}", seed.said());
    }
    until_ready(&mut running).await;

    let api = format!("http://{}/api/v1", addresses.here("gateway", 8080));
    let stripe = format!("http://{}", addresses.here("stripe-sandbox", 12111));
    let told = readme::journey(&api, &stripe).await;
    assert!(told.contains("\"status\":\"CONFIRMED\""), "{told}");

    let mut known = BTreeSet::new();
    for (role, _) in &running {
        let (status, text) = client::get(&format!("http://{}/metrics", role.ops)).await;
        assert_eq!(status, 200);
        known.extend(metrics_in(&text));
    }
    assert_drawn_is_told(&known);

    for (_, process) in &running {
        harness::send(process.id(), nix::sys::signal::Signal::SIGTERM);
    }
    for (role, process) in &mut running {
        let status = process.wait().unwrap();
        assert!(status.success(), "{}: {status} {}", role.name, role.said());
    }
    stores.stop().await;
}

#[test]
fn every_role_is_started_scraped_and_given_its_secrets_without_default() {
    let production = compose(&[]);
    for demo in ["seed", "stripe-sandbox"] {
        assert!(
            production["services"].get(demo).is_none(),
            "{demo} is for the demo only"
        );
    }
    let compose = compose(&["demo"]);
    let services = compose["services"].as_object().unwrap();
    let prometheus = fs::read_to_string(root().join("deploy/prometheus/prometheus.yml")).unwrap();
    let help = Command::new(env!("CARGO_BIN_EXE_ticketping"))
        .args(["serve", "--help"])
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let roles: Vec<&str> = help
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- "))
        .filter_map(|line| line.split_once(':'))
        .map(|(role, _)| role)
        .take_while(|role| *role != "text")
        .filter(|role| *role != "all")
        .collect();
    assert!(roles.len() >= 7, "{roles:?}");
    for role in roles {
        let service = services.get(role).unwrap_or_else(|| panic!("no {role}"));
        assert_eq!(words(&service["command"]), ["serve", role]);
        assert!(prometheus.contains(&format!("- {role}\n")), "{role}");
        // A port of the host would be there for one instance only.
        let ports = service["ports"].as_array().map_or(0, Vec::len);
        assert_eq!(ports > 0, role == "stripe-sandbox", "{role} scales");
        assert!(
            service["ulimits"]["nofile"]["soft"].as_u64() > Some(100_000),
            "{role}"
        );
    }
    let proxies = &services["users"]["environment"]["TICKETPING_TRUSTED_PROXIES"];
    let subnet = &compose["networks"]["default"]["ipam"]["config"][0]["subnet"];
    assert!(
        proxies.is_string() && proxies == subnet,
        "{proxies} {subnet}"
    );
    for (name, service) in services {
        assert!(
            service["logging"]["options"]["max-size"].is_string(),
            "{name}"
        );
    }

    // Without the environment the file is refused, by a sentence that says the way out.
    let empty = harness::data_dir();
    fs::write(&empty, "").unwrap();
    let output = Command::new(harness::fetched("compose-config-fetch"))
        .arg(root())
        .arg(&empty)
        .output()
        .unwrap();
    assert!(!output.status.success());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("run deploy/make-env"), "{told}");
    fs::remove_file(&empty).unwrap();
}
