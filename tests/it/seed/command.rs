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
    let args = [
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
