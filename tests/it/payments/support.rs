//! Steps that the tests of money share.

#![allow(
    dead_code,
    reason = "a support function serves whichever test needs it"
)]

use serde_json::{Value, json};

use crate::harness::client::Reply;
use crate::harness::server::Server;
use crate::harness::steps::{Buyer, pay};

/// A confirmed order, with its payment and its intent.
pub struct Sold<'a> {
    pub server: &'a Server,
    pub buyer: &'a Buyer,
    pub order: String,
    pub payment: String,
    pub intent: String,
    pub amount: i64,
}

/// This buyer's order, paid with `card` and confirmed.
pub async fn sold<'a>(server: &'a Server, buyer: &'a Buyer, card: &str) -> Sold<'a> {
    let order = server.hold(buyer).await.str("id");
    let payment = server.begin(buyer, &order).await.expect(201);
    pay(&server.sale, &payment, card).await.expect(200);
    server.until_order(buyer, &order, "CONFIRMED").await;
    Sold {
        server,
        buyer,
        order,
        payment: payment.str("id"),
        intent: payment.str("paymentIntentId"),
        amount: payment.body["amount"].as_i64().expect("an amount"),
    }
}

impl Sold<'_> {
    /// The order, once `done` holds of it.
    pub async fn until_order(&self, done: impl Fn(&Value) -> bool) -> Value {
        let (auth, path) = (self.buyer.auth(), format!("/api/v1/orders/{}", self.order));
        let headers = [("authorization", &*auth)];
        let api = &self.server.sale.api;
        api.until(&path, &headers, |reply| done(&reply.body))
            .await
            .body
    }

    /// The payment, once `done` holds of it.
    pub async fn until_payment(&self, done: impl Fn(&Value) -> bool) -> Value {
        let auth = self.buyer.auth();
        let path = format!("/api/v1/payments/{}", self.payment);
        let headers = [("authorization", &*auth)];
        let api = &self.server.sale.api;
        api.until(&path, &headers, |reply| done(&reply.body))
            .await
            .body
    }

    /// Whether the buyer may give the order up, and what is said.
    pub async fn cancel(&self) -> Reply {
        self.server.cancel(self.buyer, &self.order).await
    }

    /// The dispute of the charge, once there is one.
    pub async fn dispute(&self) -> String {
        let path = format!("/v1/disputes?payment_intent={}", self.intent);
        let begun = std::time::Instant::now();
        loop {
            let list = self.server.stripe_get(&path).await.expect(200);
            if let Some(id) = list.body["data"][0]["id"].as_str() {
                return id.to_owned();
            }
            assert!(begun.elapsed().as_secs() < 60, "no dispute");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// What the bank says of a dispute.
    pub async fn decide(&self, dispute: &str, status: &str) {
        let path = format!("/_sandbox/disputes/{dispute}");
        let form = format!("status={status}");
        self.server.stripe_post(&path, &form).await.expect(200);
    }

    /// What the door says to the order's ticket, read before.
    pub async fn door(&self, code: &str) -> String {
        let admin = self.server.admin();
        let body = json!({ "code": code });
        let api = &self.server.sale.api;
        let path = "/admin/v1/tickets/check";
        let checked = api.post(path, &[("authorization", &admin)], body).await;
        checked.expect(200).str("result")
    }

    /// The code of the order's ticket.
    pub async fn ticket(&self) -> String {
        let auth = self.buyer.auth();
        let path = format!("/api/v1/orders/{}/ticket", self.order);
        let api = &self.server.sale.api;
        let ticket = api.get(&path, &[("authorization", &auth)]).await;
        ticket.expect(200).str("code")
    }

    /// The seats of the order that the seat map shows in this status.
    pub async fn seats_shown(&self, status: &str) -> usize {
        let order = self.server.order(self.buyer, &self.order).await.expect(200);
        let path = format!("/api/v1/schedules/{}/seats", order.str("scheduleId"));
        let map = self.server.sale.api.get(&path, &[]).await.expect(200);
        let ours: Vec<&Value> = (order.body["seats"].as_array().into_iter().flatten())
            .map(|seat| &seat["id"])
            .collect();
        (map.body["seats"].as_array().into_iter().flatten())
            .filter(|seat| ours.contains(&&seat["id"]) && seat["status"] == status)
            .count()
    }

    /// The open alarm of this kind about the order, once there is one.
    pub async fn until_alarm(&self, kind: &str) -> Value {
        let this = |list: &Value| find(list, kind, &self.order);
        let list = until_alarms(self.server, |list| this(list).is_some()).await;
        this(&list).expect("just found")
    }

    /// Waits until no alarm of this kind about the order is open.
    pub async fn until_no_alarm(&self, kind: &str) {
        until_alarms(self.server, |list| find(list, kind, &self.order).is_none()).await;
    }
}

fn find(list: &Value, kind: &str, order: &str) -> Option<Value> {
    let items = list["items"].as_array()?;
    let found = |alarm: &&Value| alarm["kind"] == kind && alarm["orderId"] == order;
    items.iter().find(found).cloned()
}

async fn until_alarms(server: &Server, done: impl Fn(&Value) -> bool) -> Value {
    let admin = server.admin();
    let headers = [("authorization", &*admin)];
    let path = "/admin/v1/alarms?limit=100";
    let api = &server.sale.api;
    api.until(path, &headers, |reply| {
        reply.status.is_success() && done(&reply.body)
    })
    .await
    .body
}

/// `GET` as an ADMIN.
pub async fn admin_get(server: &Server, path: &str) -> Reply {
    let admin = server.admin();
    server
        .sale
        .api
        .get(path, &[("authorization", &admin)])
        .await
}

/// Resolves an alarm as an ADMIN.
pub async fn resolve(server: &Server, id: &str, body: Value) -> Reply {
    let (admin, path) = (server.admin(), format!("/admin/v1/alarms/{id}/resolve"));
    server
        .sale
        .api
        .post(&path, &[("authorization", &admin)], body)
        .await
}

/// Resolves an alarm with a reason that is one.
pub async fn resolved(server: &Server, id: &str) -> Reply {
    resolve(server, id, json!({"reason": "dealt with"})).await
}

/// Waits until Stripe has so many refunds of an intent.
pub async fn until_refunds(server: &Server, intent: &str, count: usize) {
    let begun = std::time::Instant::now();
    while server.refunds(intent).await.len() < count {
        assert!(begun.elapsed().as_secs() < 60, "no {count} refunds");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// The books balance, with the sandbox's ledger and with PostgreSQL alone.
pub async fn until_green(server: &Server) {
    for sandbox in [true, false] {
        let (code, said) = server.audit(sandbox).await;
        assert_eq!(code, 0, "{said}");
    }
}

/// The open alarms of a kind.
pub async fn open_alarms(server: &Server, kind: &str) -> Vec<Value> {
    let list = admin_get(server, "/admin/v1/alarms?limit=100").await;
    let items = list.expect(200).body["items"].as_array().cloned();
    let mut items = items.expect("a list");
    items.retain(|alarm| alarm["kind"] == kind);
    items
}

/// The open alarm of this kind, once there is one.
pub async fn open_alarm(server: &Server, kind: &str) -> Value {
    let is = |alarm: &&Value| alarm["kind"] == kind;
    let find = |list: &Value| list["items"].as_array()?.iter().find(is).cloned();
    let list = until_alarms(server, |list| find(list).is_some()).await;
    find(&list).expect("just found")
}
