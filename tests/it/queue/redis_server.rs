//! A Redis of a test's own: to flush, to kill, to keep from notifying, to fail over.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::world::until;
use crate::harness::{self, free_port, reaper};

pub struct RedisServer {
    pub port: u16,
    args: Vec<String>,
    dir: PathBuf,
    child: Child,
    password: Option<String>,
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16, dir: &PathBuf, args: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    if let [conf, sentinel] = args
        && sentinel == "--sentinel"
    {
        command.args([conf, sentinel]);
    } else {
        command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--dir"])
            .arg(dir)
            .args(args);
    }
    let child = command
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed");
    // It shows its port as its title.
    reaper::end(child.id(), &port.to_string());
    child
}

impl RedisServer {
    pub async fn start(args: &[&str]) -> Self {
        let args = args.iter().map(|&a| a.to_owned()).collect();
        Self::start_in(harness::data_dir(), free_port(), args, None).await
    }

    /// One that asks for `password`, as a primary and of its primary.
    pub async fn start_with_password(password: &str, args: &[&str]) -> Self {
        let login = ["--requirepass", password, "--masterauth", password];
        let args = login.iter().chain(args).map(|&a| a.to_owned()).collect();
        let password = Some(password.to_owned());
        Self::start_in(harness::data_dir(), free_port(), args, password).await
    }

    /// A Sentinel with a password that watches a primary's port, with its own, as `service`; it fails over
    /// after half a second.
    pub async fn start_sentinel(
        (primary, login): (u16, &str),
        (service, password): (&str, &str),
    ) -> Self {
        let (dir, port) = (harness::data_dir(), free_port());
        std::fs::create_dir_all(&dir).unwrap();
        let conf = dir.join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nrequirepass {password}\n\
             sentinel monitor {service} 127.0.0.1 {} 1\nsentinel auth-pass {service} {login}\n\
             sentinel down-after-milliseconds {service} 500\nsentinel failover-timeout {service} 5000\n",
            dir.display(),
            primary,
        );
        std::fs::write(&conf, text).unwrap();
        let args = vec![conf.display().to_string(), "--sentinel".into()];
        Self::start_in(dir, port, args, Some(password.to_owned())).await
    }

    async fn start_in(
        dir: PathBuf,
        port: u16,
        args: Vec<String>,
        password: Option<String>,
    ) -> Self {
        std::fs::create_dir_all(&dir).unwrap();
        let child = spawn(port, &dir, &args);
        let server = Self {
            port,
            args,
            dir,
            child,
            password,
        };
        server.wait().await;
        server
    }

    async fn wait(&self) {
        let up = until(Duration::from_secs(10), async || {
            let client = redis::Client::open(self.url()).unwrap();
            match client.get_multiplexed_async_connection().await {
                Ok(mut c) => redis::cmd("PING")
                    .query_async::<String>(&mut c)
                    .await
                    .is_ok(),
                Err(_) => false,
            }
        })
        .await;
        assert!(up.is_some(), "Redis starts");
    }

    pub fn url(&self) -> String {
        let login = self.password.as_ref().map(|p| format!(":{p}@"));
        format!(
            "redis://{}127.0.0.1:{}",
            login.unwrap_or_default(),
            self.port
        )
    }

    pub async fn command(&self, words: &[&str]) -> redis::Value {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query_async(&mut connection).await.unwrap()
    }

    /// A word of `INFO replication`.
    pub async fn info(&self, field: &str) -> String {
        let info = self.command(&["INFO", "replication"]).await;
        let text: String = redis::from_redis_value(info).unwrap();
        let found = text
            .lines()
            .find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
        found.unwrap_or_default().trim().to_owned()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub async fn kill_and_start(&mut self) {
        self.kill();
        self.child = spawn(self.port, &self.dir, &self.args);
        self.wait().await;
    }
}
