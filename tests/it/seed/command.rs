//! The command: its questions, its refusals, and stores of its own.

use super::*;

#[tokio::test]
async fn reset_asks_and_then_takes_the_live_state_along() {
    let world = world().await;
    world.seed(&["--users", "5"]).await;
    let redis_url = &harness::stores().await.redis_url;
    let prefix = harness::prefix();
    let mut redis = redis::Client::open(redis_url.as_str())
        .unwrap()
        .get_multiplexed_async_connection()
        .await
        .unwrap();
    let (mine, other) = (
        format!("{prefix}:{{x}}:meta"),
        format!("{prefix}x:{{x}}:meta"),
    );
    for key in [&mine, &other] {
        let () = redis.set(key, "1").await.unwrap();
    }
    let reset = [
        "--reset",
        "--redis-url",
        redis_url.as_str(),
        "--redis-prefix",
        &prefix,
        "--performances",
        "1",
        "--seats",
        "5",
        "--users",
        "1",
    ];
    let refused = world.run(&reset).await;
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        text(&refused.stderr).contains("--yes"),
        "{}",
        text(&refused.stderr)
    );
    assert_eq!(
        world
            .count("select count(*) from performances.performances")
            .await,
        7
    );

    world.seed(&[&reset[..], &["--yes"]].concat()).await;
    assert_eq!(
        world
            .count("select count(*) from performances.performances")
            .await,
        1
    );
    assert_eq!(
        world.count("select count(*) from performances.seats").await,
        5
    );
    assert_eq!(
        world
            .count("select count(*) from reservations.orders")
            .await,
        0
    );
    assert_eq!(world.count("select count(*) from users.users").await, 1);
    let (gone, kept): (bool, bool) = (
        redis.exists(&mine).await.unwrap(),
        redis.exists(&other).await.unwrap(),
    );
    assert_eq!((gone, kept), (false, true));
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table of calls, not a procedure")]
async fn what_is_wrong_is_one_sentence_and_an_exit_code() {
    let world = world().await;
    for (args, code, says) in [
        (vec!["--performances", "many"], 2, "--performances"),
        (vec!["--seats", "0"], 2, "--seats"),
        (vec!["--working-ttl", "7"], 2, "--working-ttl"),
        (vec!["--claim-ttl", "2h"], 2, "1h"),
        (vec!["--queue-factor", "-1"], 2, "0 or more"),
        (vec!["--queue-factor=-1"], 2, "0 or more"),
        (vec!["--queue-factor", "1e308"], 2, "1000000"),
        (vec!["--token-ttl", "0s"], 2, "1s to 1year"),
        (vec!["--token-ttl", "1000years"], 2, "1s to 1year"),
        (vec!["--reset", "--yes"], 2, "--redis-url"),
        (
            vec![
                "--tokens",
                "/nowhere/tokens.jsonl",
                "--users",
                "1",
                "--performances",
                "0",
            ],
            1,
            "/nowhere/tokens.jsonl",
        ),
    ] {
        let output = world.run(&args).await;
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
    }
    let dir = world.dir.path().join("empty");
    let dir = dir.to_str().unwrap();
    for (args, code, says) in [
        (
            vec!["--database-url", "nonsense", "--users", "0"],
            2,
            "database URL",
        ),
        (
            vec![
                "--database-url",
                "postgres://u:hunter2@127.0.0.1:1/d",
                "--users",
                "0",
            ],
            1,
            "cannot migrate",
        ),
        (
            vec!["--database-url", &world.url, "--data-dir", dir],
            2,
            "--jwt-key-file",
        ),
    ] {
        let output = binary(&args).await;
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(
            said.contains(says) && !said.contains("hunter2"),
            "{args:?}: {said}"
        );
    }
}

#[tokio::test]
async fn without_a_server_it_starts_the_stores_for_as_long_as_it_takes() {
    let dir = harness::data_dir();
    // A name that was mistyped is no new world.
    let mistyped = binary(&["--data-dir", dir.to_str().unwrap()]).await;
    let said = text(&mistyped.stderr);
    assert_eq!(mistyped.status.code(), Some(2), "{said}");
    assert!(said.contains("--create") && !dir.exists(), "{said}");
    let args = [
        "--create",
        "--data-dir",
        dir.to_str().unwrap(),
        "--performances",
        "1",
        "--seats",
        "20",
        "--users",
        "3",
    ];
    for new in ["20", "0"] {
        let output = binary(&args).await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said = text(&output.stdout);
        let row = said
            .lines()
            .find(|line| line.contains("seats") && !line.contains("left"))
            .unwrap()
            .to_owned();
        assert!(row.trim_end_matches(['│', ' ']).ends_with(new), "{row}");
        assert_eq!(
            std::fs::read_to_string(dir.join("tokens.jsonl"))
                .unwrap()
                .lines()
                .count(),
            3
        );
    }
    let pid_file = std::fs::read_to_string(dir.join("runtime.json"));
    assert!(pid_file.is_err(), "no server is announced");
}

/// What a script does that waits for readiness and then goes by `runtime.json`.
#[tokio::test(flavor = "multi_thread")]
async fn beside_a_server_the_copy_of_the_tokens_may_be_the_file_itself() {
    let dir = harness::data_dir();
    let (data_dir, log) = (dir.to_str().unwrap(), dir.with_extension("log"));
    let ops = format!("127.0.0.1:{}", harness::free_port());
    let any = "127.0.0.1:0";
    let mut serve = vec!["serve", "all", "--data-dir", data_dir, "--listen", any];
    serve.extend(["--ops-listen", &ops, "--stripe-sandbox-listen", any]);
    let server = harness::process::Process::start(&serve, &[], &log);
    harness::eventually("ready", async || {
        harness::client::get(&format!("http://{ops}/readyz"))
            .await
            .0
            == 200
    })
    .await;
    let runtime = std::fs::read(dir.join("runtime.json")).expect("it is there before readiness");
    let runtime: serde_json::Value = serde_json::from_slice(&runtime).unwrap();
    let redis_url = runtime["redisUrl"].as_str().unwrap();
    assert!(redis_url.starts_with("redis://default:"), "{redis_url}");
    let pong = Command::new("redis-cli")
        .args(["-u", redis_url, "ping"])
        .output()
        .await
        .unwrap();
    assert_eq!(text(&pong.stdout).trim(), "PONG", "{}", text(&pong.stderr));

    let tokens = dir.join("tokens.jsonl");
    let link = dir.join("link.jsonl");
    std::os::unix::fs::symlink(&tokens, &link).unwrap();
    for copy in [&tokens, &link] {
        let copy = copy.to_str().unwrap();
        let args = [
            "--data-dir",
            data_dir,
            "--users",
            "5",
            "--performances",
            "0",
            "--tokens",
            copy,
        ];
        let output = binary(&args).await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        let lines = std::fs::read_to_string(&tokens).unwrap();
        assert_eq!(lines.lines().count(), 5, "{copy}");
    }
    server.interrupt().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_takes_the_stores_along() {
    let dir = harness::data_dir();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ticketping"));
    let child = command
        .args(["seed", "--create", "--data-dir", dir.to_str().unwrap()])
        .args(["--performances", "1", "--users", "5000000"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let postgres = dir.join("postgres/postmaster.pid");
    harness::eventually("PostgreSQL runs", async || postgres.exists()).await;
    harness::send(child.id().unwrap(), nix::sys::signal::Signal::SIGTERM);
    let output = tokio::time::timeout(Duration::from_secs(120), child.wait_with_output());
    let output = output.await.unwrap().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("interrupted"), "{said}");
    assert!(!postgres.exists(), "PostgreSQL was stopped");
    let left: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("tokens"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
