//! Whatever is sent, and whatever is away, the answer is a problem.

use super::*;

/// Every route with everything that can be wrong about a body: a problem each time, never a 500.
#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table of inputs, not a procedure")]
async fn bad_input_is_told_what_is_wrong() {
    let fresh = world().await;
    let world = on(fresh.pool, &["--signup-rate", "0", "--login-rate", "0"]);
    let long = format!("{}@example.com", "x".repeat(300));
    let huge = format!("{{\"email\":\"{}\"}}", "x".repeat(1 << 20));
    let (json, text) = (Some("application/json"), Some("text/plain"));
    let everywhere = [
        (json, "", 400),
        (json, "{", 400),
        (json, "\u{0}", 400),
        (json, "[]", 422),
        (json, "null", 422),
        (json, "7", 422),
        (text, "{}", 415),
        (None, "{}", 415),
        (json, huge.as_str(), 413),
    ];
    for path in [
        "/api/v1/users",
        "/api/v1/auth/login",
        "/api/v1/auth/refresh",
        "/api/v1/auth/logout",
    ] {
        for (kind, body, status) in everywhere {
            let mut request = Request::post(path);
            if let Some(kind) = kind {
                request = request.header(header::CONTENT_TYPE, kind);
            }
            let answer = world
                .send(HERE, request.body(Body::from(body.to_owned())).unwrap())
                .await;
            let shown: String = body.chars().take(20).collect();
            assert_eq!(
                answer.status.as_u16(),
                status,
                "{path} {shown:?}: {}",
                answer.body
            );
            assert!(!answer.code().is_empty());
        }
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .body(Body::empty())
                .unwrap();
            let answer = world.send(HERE, request).await;
            assert_eq!(
                (answer.status.as_u16(), answer.code()),
                (405, "METHOD_NOT_ALLOWED")
            );
        }
    }
    for (body, fields) in [
        (json!({}), vec!["email", "password", "name"]),
        (
            json!({"email": "a", "password": "short", "name": " "}),
            vec!["email", "password", "name"],
        ),
        (
            json!({"email": long, "password": "long enough", "name": "n"}),
            vec!["email"],
        ),
        (
            json!({"email": "a@example.com", "password": "x".repeat(129), "name": "n"}),
            vec!["password"],
        ),
        (
            json!({"email": "a@example.com", "password": "long enough", "name": "n\u{0}"}),
            vec!["name"],
        ),
        (
            json!({"email": "a\u{0}@example.com", "password": "long enough", "name": "n"}),
            vec!["email"],
        ),
    ] {
        let answer = world.post("/api/v1/users", body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (422, "VALIDATION_FAILED")
        );
        let told: Vec<_> = answer.body["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["field"].as_str().unwrap())
            .collect();
        assert_eq!(told, fields);
    }
    for (body, status) in [
        (json!({"email": 7, "password": "x"}), 422),
        (json!({"email": "a@example.com"}), 422),
        (
            json!({"email": "a\u{0}@example.com", "password": "\u{0}"}),
            401,
        ),
        (
            json!({"email": "a@example.com", "password": "x".repeat(60_000)}),
            401,
        ),
    ] {
        assert_eq!(
            world.post("/api/v1/auth/login", body).await.status.as_u16(),
            status
        );
    }
    for token in [json!(""), json!("\u{0}"), json!("x".repeat(60_000))] {
        let answer = world
            .post("/api/v1/auth/refresh", json!({"refreshToken": token}))
            .await;
        assert_eq!(answer.code(), "INVALID_REFRESH_TOKEN");
    }
}

#[tokio::test]
async fn without_postgres_it_is_503_and_soon() {
    let nowhere = db::pool("postgres://nobody@127.0.0.1:1/nothing", users::SCHEMA, 2).unwrap();
    let world = on(nowhere, &[]);
    let started = Instant::now();
    let body = json!({"email": "a@example.com", "password": "correct horse", "name": "n"});
    for (path, body) in [
        ("/api/v1/users", body.clone()),
        ("/api/v1/auth/login", body),
        ("/api/v1/auth/refresh", json!({"refreshToken": "x"})),
    ] {
        let answer = world.post(path, body).await;
        assert_eq!(
            (answer.status, answer.retry_after),
            (StatusCode::SERVICE_UNAVAILABLE, Some(1))
        );
    }
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
}
