//! Who guesses or floods waits; nobody else does.

use super::*;

#[tokio::test]
async fn repeated_failures_make_the_guesser_wait_and_nobody_else() {
    let world = world().await;
    world.sign_up("a@example.com").await;
    world.sign_up("b@example.com").await;
    for email in ["a@example.com", "nobody@example.com"] {
        for _ in 0..5 {
            let answer = world.log_in(email, "wrong horse").await;
            assert_eq!(
                (answer.status, answer.code()),
                (StatusCode::UNAUTHORIZED, "INVALID_CREDENTIALS")
            );
        }
        let answer = world.log_in(email, "correct horse").await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_ATTEMPTS")
        );
        assert!((25..=30).contains(&answer.retry_after.unwrap()));
    }
    let right = json!({"email": "a@example.com", "password": "correct horse"});
    let elsewhere = world.post_from(THERE, "/api/v1/auth/login", right).await;
    assert_eq!(elsewhere.status, StatusCode::OK);
    assert_eq!(
        world.log_in("b@example.com", "correct horse").await.status,
        StatusCode::OK
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_in_parallel_gains_nothing() {
    let fresh = world().await;
    let world = std::sync::Arc::new(on(fresh.pool, &["--password-hashes", "2"]));
    world.sign_up("a@example.com").await;
    let crowd: Vec<_> = (0..40)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move { world.log_in("a@example.com", "wrong horse").await.status })
        })
        .collect();
    let mut tried = 0;
    for one in crowd {
        match one.await.unwrap() {
            StatusCode::UNAUTHORIZED => tried += 1,
            status => assert_eq!(status, StatusCode::TOO_MANY_REQUESTS),
        }
    }
    // Two passwords are hashed at a time, so one more than the free tries can be under way.
    assert!((5..=6).contains(&tried), "{tried} guesses were looked at");
}

#[tokio::test]
async fn one_address_cannot_flood() {
    let fresh = world().await;
    let world = on(
        fresh.pool,
        &[
            "--signup-rate",
            "1",
            "--signup-burst",
            "2",
            "--login-rate",
            "1",
            "--login-burst",
            "2",
        ],
    );
    for (path, first) in [
        ("/api/v1/users", StatusCode::UNPROCESSABLE_ENTITY),
        ("/api/v1/auth/login", StatusCode::UNAUTHORIZED),
    ] {
        let body = json!({"email": "x", "password": "y", "name": ""});
        for _ in 0..2 {
            assert_eq!(world.post(path, body.clone()).await.status, first);
        }
        let answer = world.post(path, body.clone()).await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_REQUESTS")
        );
        assert_eq!(answer.retry_after, Some(1));
        assert_eq!(world.post_from(THERE, path, body).await.status, first);
    }
}

#[tokio::test]
async fn an_unknown_address_is_refused_no_sooner_than_a_wrong_password() {
    let world = world().await;
    world.sign_up("a@example.com").await;
    let mut times: [Vec<Duration>; 2] = Default::default();
    for round in 0..8_u8 {
        let unknown = format!("nobody{round}@example.com");
        for (of, email) in times.iter_mut().zip(["a@example.com", &unknown]) {
            let from = Ipv4Addr::new(198, 51, 100, round);
            let body = json!({"email": email, "password": "wrong horse"});
            let started = Instant::now();
            world.post_from(from, "/api/v1/auth/login", body).await;
            of.push(started.elapsed());
        }
    }
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    let [wrong, unknown] = times.map(median);
    assert!(
        unknown > wrong * 0.5,
        "unknown {unknown} s, wrong password {wrong} s"
    );
}
