use std::process::{Child, Command, Stdio};

use super::{start::environment, *};
use crate::harness::{client::Http, process, reaper};

struct Bouncer {
    child: Child,
    url: String,
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// PgBouncer as Debian ships it, in front of `database`.
async fn bouncer(database: &str, pool_mode: &str) -> Bouncer {
    let to = url::Url::parse(database).unwrap();
    let dir = tempfile::tempdir().unwrap().keep();
    harness::clean_up(&dir);
    let port = harness::free_port();
    let users = dir.join("users.txt");
    let password = to.password().unwrap_or_default();
    std::fs::write(&users, format!("\"{}\" \"{password}\"\n", to.username())).unwrap();
    let name = to.path().trim_start_matches('/');
    let config = dir.join("pgbouncer.ini");
    let text = format!(
        "[databases]\n{name} = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = plain\nauth_file = {}\npool_mode = {pool_mode}\n",
        to.host_str().unwrap(),
        to.port().unwrap(),
        users.display(),
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("pgbouncer");
    if nix::unistd::geteuid().is_root() {
        use std::os::unix::fs::PermissionsExt;
        // It refuses to be root; what it reads then has to be readable.
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        command.args(["-u", "nobody"]);
    }
    let child = command
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.join("log")).unwrap())
        .spawn()
        .expect("pgbouncer is installed (scripts/setup --tests)");
    reaper::end(child.id(), &config.display().to_string());
    let mut url = to;
    url.set_port(Some(port)).unwrap();
    let bouncer = Bouncer {
        child,
        url: url.into(),
    };
    eventually("PgBouncer takes connections", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_ok()
    })
    .await;
    bouncer
}

#[tokio::test]
async fn a_pooler_of_sessions_works() {
    let database = harness::fresh_database().await;
    let bouncer = bouncer(&database, "session").await;
    let dir = harness::data_dir();
    let mut envs = environment(&bouncer.url, &dir);
    envs.push(("TICKETPING_OPS_LISTEN", "127.0.0.1:0".to_owned()));
    let listen = format!("127.0.0.1:{}", harness::free_port());
    let log = dir.with_extension("log");
    let process = process::Process::start(&["serve", "users", "--listen", &listen], &envs, &log);
    eventually("it serves", async || {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("serving"))
    })
    .await;
    let api = Http::new(&format!("http://{listen}"));
    let member =
        json!({"email": "ada@example.com", "password": "correct horse battery", "name": "Ada"});
    api.post("/api/v1/users", &[], member).await.expect(201);
    let mut direct = sqlx::PgConnection::connect(&database).await.unwrap();
    let tables: Vec<String> = sqlx::query_scalar(
        "select distinct schemaname::text from pg_tables where tablename = '_sqlx_migrations'",
    )
    .fetch_all(&mut direct)
    .await
    .unwrap();
    assert_eq!(tables, ["users"], "nothing went into another schema");
    assert_eq!(process.interrupt().await, Some(0));
}

#[tokio::test]
async fn a_pooler_of_transactions_is_refused_with_the_reason() {
    let database = harness::fresh_database().await;
    let bouncer = bouncer(&database, "transaction").await;
    let dir = harness::data_dir();
    let mut envs = environment(&bouncer.url, &dir);
    envs.push(("TICKETPING_OPS_LISTEN", "127.0.0.1:0".to_owned()));
    // A server that takes the pooler would run until it is stopped.
    let refused = process::run(&["serve", "users"], &envs);
    let (code, _, err) = tokio::time::timeout(std::time::Duration::from_secs(60), refused)
        .await
        .expect("the server ends, as it cannot work so");
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("pool_mode = session"), "{err}");
}
