//! An alarm is shown wherever an operator looks, until a person resolves it and says why.

use serde_json::{Value, json};

use super::support::{admin_get, resolve, resolved, sold};
use crate::harness::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_is_listed_counted_and_resolved_by_a_person() {
    let server = Server::open("3", "60s", &[]).await;
    for buyer in &server.sale.buyers {
        let sold = sold(&server, buyer, "pm_card_visa").await;
        server.refund_at_stripe(&sold.intent, Some(1_000)).await;
        sold.until_alarm("REFUNDED_AT_STRIPE").await;
    }
    let all = admin_get(&server, "/admin/v1/alarms").await.expect(200);
    let all = all.body["items"].as_array().unwrap().clone();
    assert_eq!(all.len(), 3);
    paged(&server, &all).await;
    refused(&server, &all).await;
    shown(&server, 3).await;

    let first = all[0]["id"].as_str().unwrap();
    let closed = resolved(&server, first).await.expect(200).body;
    assert_eq!(closed["reason"], "dealt with");
    assert!(closed["resolvedAt"].is_string() && closed["resolvedBy"].is_string());
    resolved(&server, first)
        .await
        .problem(409, "ALARM_RESOLVED");
    let open = admin_get(&server, "/admin/v1/alarms").await.expect(200);
    assert_eq!(open.body["items"].as_array().unwrap().len(), 2);
    let done = admin_get(&server, "/admin/v1/alarms?state=RESOLVED").await;
    assert_eq!(done.expect(200).body["items"], json!([closed]));
    shown(&server, 2).await;
}

/// Page by page, newest first, none twice and none left out.
async fn paged(server: &Server, all: &[Value]) {
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/admin/v1/alarms?limit=1{cursor}");
        let page = admin_get(server, &path).await.expect(200).body;
        assert_eq!(page["missing"], json!([]));
        seen.extend(page["items"].as_array().unwrap().clone());
        let Some(next) = page["nextCursor"].as_str() else {
            break;
        };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, all);
    let raised: Vec<&str> = (seen.iter())
        .map(|alarm| alarm["raisedAt"].as_str().unwrap())
        .collect();
    assert!(raised.is_sorted_by(|newer, older| newer >= older));
}

async fn refused(server: &Server, all: &[Value]) {
    let id = all[0]["id"].as_str().unwrap();
    for reason in ["", "   ", &"x".repeat(501)] {
        let body = json!({"reason": reason});
        resolve(server, id, body)
            .await
            .problem(422, "VALIDATION_FAILED");
    }
    resolve(server, id, json!({}))
        .await
        .problem(422, "VALIDATION_FAILED");
    let nobody = "01890000-0000-7000-8000-000000000000";
    resolved(server, nobody)
        .await
        .problem(404, "ALARM_NOT_FOUND");
    resolved(server, "x").await.problem(404, "NOT_FOUND");
    let path = "/admin/v1/alarms";
    for bad in ["?limit=0", "?limit=101", "?cursor=x", "?state=x"] {
        admin_get(server, &format!("{path}{bad}"))
            .await
            .problem(422, "VALIDATION_FAILED");
    }
    let buyer = server.sale.buyers[0].auth();
    let headers = [("authorization", &*buyer)];
    let api = &server.sale.api;
    api.get(path, &headers).await.problem(403, "FORBIDDEN");
    let to_resolve = format!("{path}/{id}/resolve");
    let reason = json!({"reason": "mine"});
    api.post(&to_resolve, &headers, reason)
        .await
        .problem(403, "FORBIDDEN");
    api.get(path, &[]).await.problem(401, "UNAUTHENTICATED");
    api.get("/internal/v1/alarms", &headers)
        .await
        .problem(404, "NOT_FOUND");
}

/// In the metrics, in the overview, and in what `top` prints.
async fn shown(server: &Server, open: u64) {
    let gauge =
        format!("ticketping_alarms_open{{role=\"payments\",kind=\"REFUNDED_AT_STRIPE\"}} {open}");
    (server.ops)
        .until("/metrics", &[], |reply| reply.text.contains(&gauge))
        .await;
    let overview = admin_get(server, "/admin/v1/overview")
        .await
        .expect(200)
        .body;
    assert_eq!(overview["openAlarms"], open, "{overview}");
    let notices = overview["alarms"].as_array().unwrap();
    assert!(
        notices
            .iter()
            .any(|one| one["code"] == "REFUNDED_AT_STRIPE")
    );
    let data_dir = server.dir.to_str().unwrap();
    let (code, out, err) =
        crate::harness::process::run(&["top", "--data-dir", data_dir, "--once"], &[]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(&format!("alarms {open} open")), "{out}");
}
