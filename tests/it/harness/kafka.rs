//! A real Apache Kafka broker (KRaft, one node) for tests, on a free loopback port.

use std::fs;
use std::path::PathBuf;
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

pub struct Kafka {
    /// `host:port`, the same after a restart.
    pub bootstrap: String,
    dir: PathBuf,
    jars: String,
    broker: Option<Child>,
}

impl Kafka {
    /// Formats a storage directory and starts a broker on it.
    pub async fn start() -> Self {
        tokio::task::spawn_blocking(|| {
            // A port can be taken between being found free and being bound.
            (0..3).find_map(|_| Self::format_and_start()).unwrap()
        })
        .await
        .unwrap()
    }

    fn format_and_start() -> Option<Self> {
        let dir = data_dir();
        fs::create_dir(&dir).unwrap();
        let (port, controller_port) = (free_port(), free_port());
        let data = dir.join("data");
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller_port}\n\
             controller.listener.names=CONTROLLER\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
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
            data.display()
        );
        fs::write(dir.join("server.properties"), properties).unwrap();
        let mut kafka = Self {
            bootstrap: format!("127.0.0.1:{port}"),
            jars: format!("{}/*", super::fetched("kafka-fetch").display()),
            dir,
            broker: None,
        };
        let cluster = [
            "format",
            "--cluster-id",
            "dGlja2V0cGluZy10ZXN0cw",
            "--config",
        ];
        let formatted = kafka
            .java("kafka.tools.StorageTool")
            .args(cluster)
            .arg(kafka.dir.join("server.properties"))
            .status()
            .unwrap();
        assert!(formatted.success(), "format: {}", kafka.log());
        kafka.launch().ok().map(|()| kafka)
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
            .set("bootstrap.servers", &self.bootstrap)
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
