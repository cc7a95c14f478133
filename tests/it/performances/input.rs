//! Whatever is asked for, the answer is a problem or a page.

use super::*;

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table of inputs, not a procedure")]
async fn bad_input_is_told_what_is_wrong() {
    let world = world().await;
    let open = world.in_state("OPEN").await;
    let id = open["id"].as_str().unwrap();
    let none = Uuid::now_v7();
    for (path, status, code) in [
        (
            format!("/api/v1/performances/{none}"),
            404,
            "PERFORMANCE_NOT_FOUND",
        ),
        (
            "/api/v1/performances/no-uuid".to_owned(),
            404,
            "PERFORMANCE_NOT_FOUND",
        ),
        (
            format!("/api/v1/performances/{none}/schedules"),
            404,
            "PERFORMANCE_NOT_FOUND",
        ),
        (
            "/api/v1/performances/%00/schedules".to_owned(),
            404,
            "PERFORMANCE_NOT_FOUND",
        ),
        (
            format!("/api/v1/schedules/{none}"),
            404,
            "SCHEDULE_NOT_FOUND",
        ),
        ("/api/v1/schedules/7".to_owned(), 404, "SCHEDULE_NOT_FOUND"),
        (
            "/api/v1/schedules/%ff".to_owned(),
            404,
            "SCHEDULE_NOT_FOUND",
        ),
        (
            "/api/v1/performances?limit=0".to_owned(),
            422,
            "VALIDATION_FAILED",
        ),
        (
            "/api/v1/performances?limit=101".to_owned(),
            422,
            "VALIDATION_FAILED",
        ),
        (
            "/api/v1/performances?limit=many".to_owned(),
            422,
            "VALIDATION_FAILED",
        ),
        (
            "/api/v1/performances?limit=-99999999999999999999".to_owned(),
            422,
            "VALIDATION_FAILED",
        ),
        (
            "/api/v1/performances?cursor=zzz".to_owned(),
            422,
            "VALIDATION_FAILED",
        ),
        (
            "/api/v1/performances?cursor=%00".to_owned(),
            422,
            "VALIDATION_FAILED",
        ),
        (
            format!("/api/v1/performances/{id}/schedules?limit=x"),
            422,
            "VALIDATION_FAILED",
        ),
        (
            format!("/api/v1/performances/{id}/schedules?cursor=x"),
            422,
            "VALIDATION_FAILED",
        ),
        ("/api/v1/performance".to_owned(), 404, "NOT_FOUND"),
    ] {
        let answer = world.get(&path).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (status, code),
            "{path}"
        );
    }
    let unknown_cursor = world
        .get(&format!(
            "/api/v1/performances/{id}/schedules?cursor={none}"
        ))
        .await;
    assert_eq!(
        (unknown_cursor.status.as_u16(), unknown_cursor.items().len()),
        (200, 0)
    );
    for path in [
        "/api/v1/performances".to_owned(),
        format!("/api/v1/performances/{id}"),
        format!("/api/v1/schedules/{none}"),
    ] {
        for method in [Method::POST, Method::DELETE, Method::PATCH] {
            let request = Request::builder()
                .method(method)
                .uri(&path)
                .body(Body::from("x"))
                .unwrap();
            assert_eq!(
                world.send(request).await.status,
                StatusCode::METHOD_NOT_ALLOWED
            );
        }
    }
}
