//! A real Apache Kafka broker (KRaft, one node) for tests, on a free loopback port.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::sync::OnceCell;

use super::{data_dir, free_port, reaper};

/// A JVM on a busy two-core machine, with everything else starting beside it.
const READY_WITHIN: Duration = Duration::from_secs(90);

/// The address of the broker that all tests of this process share; do not stop it.
/// A test that does starts its own. Name topics and groups with `harness::prefix`.
pub async fn kafka() -> &'static str {
    static SHARED: OnceCell<Kafka> = OnceCell::const_new();
    &SHARED.get_or_init(Kafka::start).await.bootstrap
}

/// Whom a secure broker lets in.
pub const USER: &str = "ada";
pub const PASSWORD: &str = "correct-horse-battery";

/// What a broker needs for TLS by `keystore` and logins of [`USER`].
fn secure_listener(keystore: &Path) -> String {
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    let plain = format!(
        "org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";"
    );
    let name = "listener.name.secure";
    format!(
        "ssl.keystore.type=PEM\nssl.keystore.location={}\n\
         sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
         {name}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
         {name}.plain.sasl.jaas.config={plain}\n\
         {name}.scram-sha-256.sasl.jaas.config={scram}\n\
         {name}.scram-sha-512.sasl.jaas.config={scram}\n",
        keystore.display()
    )
}

pub struct Kafka {
    /// `host:port`, the same after a restart.
    pub bootstrap: String,
    /// Where it answers without TLS and login.
    plain: String,
    dir: PathBuf,
    jars: String,
    /// Arguments of the storage tool.
    format: Vec<String>,
    broker: Option<Child>,
}

impl Kafka {
    /// Formats a storage directory and starts a broker on it.
    pub async fn start() -> Self {
        tokio::task::spawn_blocking(|| {
            // A port can be taken between being found free and being bound.
            (0..3).find_map(|_| Self::format_and_start(None)).unwrap()
        })
        .await
        .unwrap()
    }

    /// One that speaks TLS by a certificate of its own and asks for a login, and the file of the
    /// authority to trust: the certificate itself.
    pub async fn start_secure() -> (Self, PathBuf) {
        tokio::task::spawn_blocking(|| {
            let dir = data_dir();
            fs::create_dir(&dir).unwrap();
            let (certificate, both) = (dir.join("ca.pem"), dir.join("broker.pem"));
            let key = dir.join("key.pem");
            let made = Command::new("openssl")
                .args([
                    "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                ])
                .args(["-subj", "/CN=127.0.0.1", "-addext"])
                .arg("subjectAltName=IP:127.0.0.1,DNS:localhost")
                .arg("-keyout")
                .arg(&key)
                .arg("-out")
                .arg(&certificate)
                .output()
                .unwrap();
            let failure = String::from_utf8_lossy(&made.stderr);
            assert!(made.status.success(), "{failure}");
            let text =
                fs::read_to_string(&key).unwrap() + &fs::read_to_string(&certificate).unwrap();
            fs::write(&both, text).unwrap();
            let kafka = (0..3).find_map(|_| Self::format_and_start(Some(&both)));
            (kafka.unwrap(), certificate)
        })
        .await
        .unwrap()
    }

    fn format_and_start(keystore: Option<&Path>) -> Option<Self> {
        let dir = data_dir();
        fs::create_dir(&dir).unwrap();
        let (port, controller_port) = (free_port(), free_port());
        let (plain_port, secure) = match keystore {
            None => (port, String::new()),
            Some(keystore) => (free_port(), secure_listener(keystore)),
        };
        let mut format = vec!["--cluster-id", "dGlja2V0cGluZy10ZXN0cw"];
        let scram = ["SCRAM-SHA-256", "SCRAM-SHA-512"]
            .map(|mechanism| format!("{mechanism}=[name={USER},password={PASSWORD}]"));
        if keystore.is_some() {
            format.extend(scram.iter().flat_map(|user| ["--add-scram", user]));
        }
        let data = dir.join("data");
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller_port}\n\
             controller.listener.names=CONTROLLER\n\
             listeners=PLAINTEXT://127.0.0.1:{plain_port},CONTROLLER://127.0.0.1:{controller_port}{listener}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{plain_port}{listener}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL\n\
             inter.broker.listener.name=PLAINTEXT\n\
             {secure}\
             log.dirs={}\n\
             num.partitions=4\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=1\n\
             share.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\n",
            data.display(),
            listener = match keystore {
                Some(_) => format!(",SECURE://127.0.0.1:{port}"),
                None => String::new(),
            },
        );
        fs::write(dir.join("server.properties"), properties).unwrap();
        let mut kafka = Self {
            bootstrap: format!("127.0.0.1:{port}"),
            plain: format!("127.0.0.1:{plain_port}"),
            jars: format!("{}/*", super::fetched("kafka-fetch").display()),
            dir,
            format: Vec::new(),
            broker: None,
        };
        kafka.format = format.into_iter().map(str::to_owned).collect();
        kafka.format();
        kafka.launch().ok().map(|()| kafka)
    }

    fn format(&self) {
        let formatted = self
            .java("kafka.tools.StorageTool")
            .arg("format")
            .args(&self.format)
            .arg("--config")
            .arg(self.dir.join("server.properties"))
            .status()
            .unwrap();
        assert!(formatted.success(), "format: {}", self.log());
    }

    /// After `kill`: all of its data is gone.
    pub fn forget(&self) {
        fs::remove_dir_all(self.dir.join("data")).unwrap();
        self.format();
    }

    fn java(&self, main: &str) -> Command {
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.dir.join("kafka.log"))
            .unwrap();
        let mut command = Command::new("java");
        command
            // Quick to start and small; the broker has little to do.
            .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
            .args(["-cp", &self.jars, main])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        command
    }

    fn launch(&mut self) -> Result<(), String> {
        let mut command = self.java("kafka.Kafka");
        let mut broker = command
            .arg(self.dir.join("server.properties"))
            .spawn()
            .unwrap();
        reaper::end(broker.id(), &self.dir.display().to_string());
        let deadline = Instant::now() + READY_WITHIN;
        while !self.answers() {
            if let Some(status) = broker.try_wait().unwrap() {
                return Err(format!("Kafka ended with {status}: {}", self.log()));
            }
            assert!(Instant::now() < deadline, "Kafka hangs: {}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        self.broker = Some(broker);
        Ok(())
    }

    fn answers(&self) -> bool {
        let asker: Result<BaseConsumer, _> = ClientConfig::new()
            .set("bootstrap.servers", &self.plain)
            .set("log_level", "0")
            .create();
        asker.is_ok_and(|asker| asker.fetch_metadata(None, Duration::from_secs(1)).is_ok())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("kafka.log")).unwrap_or_default()
    }

    /// Of the running broker.
    pub fn pid(&self) -> u32 {
        self.broker.as_ref().expect("it runs").id()
    }

    /// SIGKILL: no goodbye to anyone.
    pub fn kill(&mut self) {
        let mut broker = self.broker.take().expect("it runs");
        broker.kill().unwrap();
        broker.wait().unwrap();
    }

    /// An orderly end.
    pub async fn stop(&mut self) {
        let mut broker = self.broker.take().expect("it runs");
        let pid = Pid::from_raw(broker.id().try_into().unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        tokio::task::spawn_blocking(move || broker.wait().unwrap())
            .await
            .unwrap();
    }

    /// After `kill` or `stop`: the same broker, on its port, with its data.
    pub async fn start_again(self) -> Self {
        let mut this = self;
        tokio::task::spawn_blocking(move || {
            this.launch().unwrap();
            this
        })
        .await
        .unwrap()
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if self.broker.is_some() {
            self.kill();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
