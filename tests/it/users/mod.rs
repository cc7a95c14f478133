//! Members, over their own routes and a real PostgreSQL.

mod input;
mod limits;
mod sessions;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use axum::{Router, body::Body, extract::ConnectInfo};
use clap::Parser;
use http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};
use sqlx::PgPool;
use ticketping::{
    platform::{
        auth::{Jwks, Role, Signer, Verifier},
        db,
        http::finish,
        metrics::Metrics,
    },
    serve::users::{self, Users},
};
use tower::ServiceExt;
use uuid::Uuid;

use crate::harness;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: users::Config,
}

struct World {
    router: Router,
    pool: PgPool,
    signer: Signer,
    verifier: Verifier,
}

async fn world() -> World {
    let url = harness::fresh_database().await;
    let pool = db::pool(&url, users::SCHEMA, 10).unwrap();
    db::migrate(&pool, users::SCHEMA, &users::MIGRATOR)
        .await
        .unwrap();
    on(pool, &[])
}

/// The role on `pool`, with flags before its defaults.
fn on(pool: PgPool, flags: &[&str]) -> World {
    let flags = ["users"].iter().chain(flags);
    let config = Flags::parse_from(flags).config;
    let (signer, _) = Signer::generate().unwrap();
    let jwks = Jwks {
        keys: vec![signer.jwk().clone()],
    };
    let verifier = Verifier::new(&jwks).unwrap();
    let metrics = Metrics::default();
    let state = Users::new(
        config,
        pool.clone(),
        signer.clone(),
        jwks,
        verifier.clone(),
        &metrics,
    );
    let (router, _) = users::router(state).split_for_parts();
    World {
        router: finish(router),
        pool,
        signer,
        verifier,
    }
}

struct Answer {
    status: StatusCode,
    retry_after: Option<u64>,
    body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

impl World {
    async fn send(&self, from: Ipv4Addr, request: Request<Body>) -> Answer {
        let mut request = request;
        let peer = SocketAddr::new(IpAddr::V4(from), 4_000);
        request.extensions_mut().insert(ConnectInfo(peer));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.map(|v| v.to_str().unwrap().parse().unwrap());
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20)
            .await
            .unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer {
            status,
            retry_after,
            body,
        }
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.post_from(HERE, path, body).await
    }

    async fn post_from(&self, from: Ipv4Addr, path: &str, body: Value) -> Answer {
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()))
            .unwrap();
        self.send(from, request).await
    }

    async fn get(&self, path: &str, token: Option<&str>) -> Answer {
        let mut request = Request::get(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        self.send(HERE, request.body(Body::empty()).unwrap()).await
    }

    async fn sign_up(&self, email: &str) -> Answer {
        let body = json!({"email": email, "password": "correct horse", "name": "김민준"});
        self.post("/api/v1/users", body).await
    }

    async fn log_in(&self, email: &str, password: &str) -> Answer {
        let body = json!({"email": email, "password": password});
        self.post("/api/v1/auth/login", body).await
    }

    async fn refresh(&self, token: &str) -> Answer {
        self.post("/api/v1/auth/refresh", json!({"refreshToken": token}))
            .await
    }

    /// Logs in, and gives the refresh token.
    async fn session(&self, email: &str) -> String {
        let answer = self.log_in(email, "correct horse").await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        refresh_token(&answer)
    }
}

fn refresh_token(answer: &Answer) -> String {
    answer.body["refreshToken"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_member_signs_up_logs_in_and_is_known_by_the_token() {
    let world = world().await;
    let made = world.sign_up("  Kim@Example.COM ").await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    assert_eq!(made.body["email"], "kim@example.com");
    let id: Uuid = made.body["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(id.get_version_num(), 7);
    assert!(made.body["createdAt"].as_str().unwrap().ends_with('Z'));

    let tokens = world.log_in("KIM@example.com", "correct horse").await;
    assert_eq!(
        (tokens.status, &tokens.body["tokenType"]),
        (StatusCode::OK, &json!("Bearer"))
    );
    assert_eq!(tokens.body["expiresIn"], 900);
    let access = tokens.body["accessToken"].as_str().unwrap();
    let claims = world.verifier.verify(access).unwrap();
    assert_eq!((claims.sub, claims.role), (id, Role::User));

    let me = world.get("/api/v1/users/me", Some(access)).await;
    assert_eq!((me.status, &me.body), (StatusCode::OK, &made.body));
    let keys = world.get("/.well-known/jwks.json", None).await;
    assert_eq!(keys.body["keys"][0]["kid"], world.signer.jwk().kid.as_str());
    assert_eq!(keys.body["keys"][0]["alg"], "EdDSA");
}

#[tokio::test]
async fn who_the_token_names_must_exist_and_be_shown_to_be() {
    let world = world().await;
    let me = "/api/v1/users/me";
    assert_eq!(world.get(me, None).await.code(), "UNAUTHENTICATED");
    assert_eq!(
        world.get(me, Some("nonsense")).await.code(),
        "UNAUTHENTICATED"
    );
    let gone = world
        .signer
        .sign(Uuid::now_v7(), Role::User, Duration::from_secs(60));
    assert_eq!(world.get(me, Some(&gone)).await.code(), "UNAUTHENTICATED");
    let old = world
        .signer
        .sign(Uuid::now_v7(), Role::User, Duration::ZERO);
    // A token counts until its last second is over.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let answer = world.get(me, Some(&old)).await;
    assert_eq!(
        (answer.status, answer.code()),
        (StatusCode::UNAUTHORIZED, "TOKEN_EXPIRED")
    );
}

#[tokio::test]
async fn an_operator_is_one_by_the_database() {
    let world = world().await;
    world.sign_up("ops@example.com").await;
    sqlx::query("update users set role = 'ADMIN'")
        .execute(&world.pool)
        .await
        .unwrap();
    let first = world.log_in("ops@example.com", "correct horse").await;
    let next = world.refresh(&refresh_token(&first)).await;
    for answer in [first, next] {
        let claims = world
            .verifier
            .verify(answer.body["accessToken"].as_str().unwrap())
            .unwrap();
        assert_eq!(claims.role, Role::Admin);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_fifty_simultaneous_sign_ups_has_the_address() {
    let world = std::sync::Arc::new(world().await);
    let crowd: Vec<_> = (0..50)
        .map(|n| {
            let world = world.clone();
            // Every other one types it in another case.
            let email = if n % 2 == 0 {
                "same@example.com"
            } else {
                "SAME@example.com"
            };
            tokio::spawn(async move { world.sign_up(email).await })
        })
        .collect();
    let mut statuses = HashMap::new();
    for one in crowd {
        let answer = one.await.unwrap();
        *statuses
            .entry((answer.status.as_u16(), answer.code().to_owned()))
            .or_insert(0) += 1;
    }
    let want = HashMap::from([
        ((201, String::new()), 1),
        ((409, "EMAIL_TAKEN".to_owned()), 49),
    ]);
    assert_eq!(statuses, want);
    let count: i64 = sqlx::query_scalar("select count(*) from users")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(count, 1);
}
