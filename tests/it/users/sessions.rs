//! Refresh tokens: each works once, and a session ends as a whole.

use super::*;

#[tokio::test]
async fn a_refresh_token_works_once_and_its_reuse_ends_that_session_only() {
    let world = world().await;
    world.sign_up("a@example.com").await;
    let (first, other) = (
        world.session("a@example.com").await,
        world.session("a@example.com").await,
    );
    let second = refresh_token(&world.refresh(&first).await);
    let third = refresh_token(&world.refresh(&second).await);
    assert_ne!(second, third);

    let reused = world.refresh(&first).await;
    assert_eq!(
        (reused.status, reused.code()),
        (StatusCode::UNAUTHORIZED, "REFRESH_REUSED")
    );
    let newest = world.refresh(&third).await;
    assert_eq!(
        (newest.status, newest.code()),
        (StatusCode::UNAUTHORIZED, "REFRESH_REUSED")
    );
    assert_eq!(
        world.refresh(&other).await.status,
        StatusCode::OK,
        "another session goes on"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_twenty_simultaneous_refreshes_one_wins_and_the_session_ends() {
    let world = std::sync::Arc::new(world().await);
    world.sign_up("a@example.com").await;
    for _ in 0..5 {
        let token = world.session("a@example.com").await;
        let crowd: Vec<_> = (0..20)
            .map(|_| {
                let (world, token) = (world.clone(), token.clone());
                tokio::spawn(async move { world.refresh(&token).await })
            })
            .collect();
        let mut won = Vec::new();
        for one in crowd {
            let answer = one.await.unwrap();
            match answer.status {
                StatusCode::OK => won.push(refresh_token(&answer)),
                _ => assert_eq!(answer.code(), "REFRESH_REUSED"),
            }
        }
        assert_eq!(won.len(), 1);
        assert_eq!(world.refresh(&won[0]).await.code(), "REFRESH_REUSED");
    }
}

#[tokio::test]
async fn logging_out_ends_the_session_and_may_be_repeated() {
    let world = world().await;
    world.sign_up("a@example.com").await;
    let first = world.session("a@example.com").await;
    let second = refresh_token(&world.refresh(&first).await);
    for token in [&first, &second, "never given out"] {
        let answer = world
            .post("/api/v1/auth/logout", json!({"refreshToken": token}))
            .await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
    }
    let after = world.refresh(&second).await;
    assert_eq!(
        (after.status, after.code()),
        (StatusCode::UNAUTHORIZED, "INVALID_REFRESH_TOKEN")
    );
    assert_eq!(
        world.refresh("never given out").await.code(),
        "INVALID_REFRESH_TOKEN"
    );
}

#[tokio::test]
async fn a_session_ends_in_time_and_no_token_is_kept_in_the_clear() {
    let world = world().await;
    world.sign_up("a@example.com").await;
    let token = world.session("a@example.com").await;
    let dump: String = sqlx::query_scalar(
        "select concat((select string_agg(t::text, ' ') from refresh_tokens t), (select string_agg(u::text, ' ') from users u))",
    )
    .fetch_one(&world.pool)
    .await
    .unwrap();
    assert!(
        dump.contains("$argon2id$") && !dump.contains("correct horse") && !dump.contains(&token)
    );
    sqlx::query("update refresh_families set expires_at = now()")
        .execute(&world.pool)
        .await
        .unwrap();
    assert_eq!(world.refresh(&token).await.code(), "INVALID_REFRESH_TOKEN");
}
