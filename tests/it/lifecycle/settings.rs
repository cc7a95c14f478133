//! Settings from a file, from the environment and from files of secrets; what the start suggests.

use std::time::Duration;

use crate::harness::{self, process, server::Server};

#[tokio::test]
async fn a_file_is_read_under_flags_and_variables() {
    let dir = harness::data_dir();
    std::fs::create_dir_all(&dir).unwrap();
    let (file, key) = (dir.join("own.toml"), dir.join("place-key"));
    let text = "hold-ttl = \"3m\"\n[serve]\nlisten = \"localhost:8099\"\ntrusted-proxies = [\"10.0.0.0/8\"]\n";
    std::fs::write(&file, text).unwrap();
    std::fs::write(&key, format!("1:{}\n", "ab".repeat(32))).unwrap();
    let (path, key) = (file.to_str().unwrap(), key.to_str().unwrap());
    let envs = [
        ("TICKETPING_HOLD_TTL", "4m".to_owned()),
        ("TICKETPING_PLACE_KEYS_FILE", key.to_owned()),
    ];
    let (code, out, err) = process::run(&["config", "--config", path], &envs).await;
    assert_eq!(code, 0, "{err}");
    let line = |start: &str| out.lines().find(|line| line.starts_with(start));
    for (want, from) in [
        ("listen = \"localhost:8099\"", path),
        ("hold-ttl = \"4m\"", "TICKETPING_HOLD_TTL"),
        ("trusted-proxies = \"10.0.0.0/8\"", path),
        ("# place-keys = \"***\"", key),
        ("idle-timeout = \"75s\"", "default"),
    ] {
        let line = line(want).unwrap_or_else(|| panic!("no {want} in {out}"));
        assert!(line.ends_with(&format!("# {from}")), "{line}");
    }
    // What is printed is such a file.
    std::fs::write(&file, &out).unwrap();
    let (code, again, err) = process::run(&["config", "--config", path], &[]).await;
    assert_eq!(code, 0, "{err}");
    assert!(again.contains("hold-ttl = \"4m\""), "{again}");

    std::fs::write(&file, "hold-ttl = \"soon\"").unwrap();
    for command in [&["config"][..], &["serve", "all"], &["serve", "queue"]] {
        let args = [command, &["--config", path]].concat();
        let (code, _, err) = process::run(&args, &[]).await;
        assert_eq!(code, 2, "{args:?}: {err}");
        assert!(err.contains("--hold-ttl"), "{err}");
        assert!(err.contains(path) || command == ["config"], "{err}");
    }
}

#[tokio::test]
async fn shells_and_manuals_take_what_is_printed() {
    let (code, script, err) = process::run(&["completions", "bash"], &[]).await;
    assert_eq!(code, 0, "{err}");
    let dir = harness::data_dir();
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("completions.bash");
    std::fs::write(&file, &script).unwrap();
    let completes = "source \"$0\"; COMP_WORDS=(ticketping se); COMP_CWORD=1; _ticketping ticketping se ticketping; echo ${COMPREPLY[*]}";
    let bash = tokio::process::Command::new("bash")
        .args(["-c", completes, file.to_str().unwrap()])
        .output();
    let told = String::from_utf8(bash.await.unwrap().stdout).unwrap();
    assert_eq!(told.trim(), "seed serve", "{told}");

    let (code, page, _) = process::run(&["man"], &[]).await;
    assert_eq!(code, 0);
    assert!(
        page.contains(".TH ticketping 1") && page.contains("serve"),
        "{page}"
    );
    let (code, _, err) = process::run(&["man", "--dir", "/no/such"], &[]).await;
    assert_eq!(code, 1);
    assert!(err.contains("/no/such"), "{err}");
}

/// What the start suggests works as it is printed, by whoever copies it.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_start_suggests_works() {
    let server = Server::start(harness::data_dir(), &["--demo"], &[]).await;
    harness::eventually("the greeting", async || {
        server.log().contains("Ctrl-C stops")
    })
    .await;
    let log = server.log();
    let (_, rest) = log
        .split_once("Try next, from another terminal:\n")
        .unwrap();
    let (block, _) = rest.split_once("\n\n").unwrap();
    let suggestions: Vec<&str> = block
        .lines()
        .map(|line| line.trim_start().split("    ").next().unwrap())
        .collect();
    assert_eq!(suggestions.len(), 3, "{block}");
    for suggestion in suggestions {
        // top is for a terminal; once is its picture.
        let command = match suggestion.contains(" top") {
            true => format!("{suggestion} --once"),
            false => suggestion.to_owned(),
        };
        let ran = tokio::process::Command::new("sh")
            .args(["-c", &command])
            .kill_on_drop(true)
            .output();
        let ran = tokio::time::timeout(Duration::from_secs(240), ran).await;
        let ran = ran
            .unwrap_or_else(|_| panic!("{command} never ends"))
            .unwrap();
        let told = String::from_utf8_lossy(&ran.stdout).into_owned()
            + &String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{command}: {told}");
    }
}
