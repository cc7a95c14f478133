//! A buyer who never gives up on an answer that is away, and notes what was promised.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::told::{Ending, Record, Told};
use crate::harness::client::{Http, Reply};
use crate::harness::steps::Buyer;

/// One answer at most; the servers give up sooner.
const ANSWER_MAX: Duration = Duration::from_secs(12);
/// What a buyer's own call to Stripe meets, beside the standing faults of the sandbox.
const CONFIRM_FAULTS: [&str; 11] = [
    "",
    "",
    "webhook_drop",
    "webhook_drop",
    "webhook_delay=2s",
    "webhook_duplicate=3",
    "webhook_reorder",
    "webhook_lose=2",
    "webhook_two_signatures",
    "processing=3s",
    "error_after",
];

/// The header that asks the sandbox for a fault.
const FAULT: &str = "sandbox-fault";

/// What all buyers know.
pub struct Shop {
    pub api: Http,
    pub stripe: Http,
    pub performance: String,
    pub schedule: String,
    pub seats: Vec<String>,
}

enum Stop {
    Ended(Ending),
    /// And what was heard last.
    Impatient(String),
}

type Go<T> = Result<T, Stop>;

pub struct Shopper {
    shop: Arc<Shop>,
    buyer: Buyer,
    rng: ChaCha8Rng,
    until: Instant,
    record: Record,
}

impl Shopper {
    pub fn new(shop: Arc<Shop>, buyer: Buyer, seed: u64, patience: Duration) -> Self {
        Self {
            shop,
            buyer,
            rng: ChaCha8Rng::seed_from_u64(seed),
            until: Instant::now() + patience,
            record: Record::default(),
        }
    }

    /// Walks the whole way.
    pub async fn go(mut self) -> (Ending, Record) {
        let ending = match self.walk().await {
            Ok(ending) | Err(Stop::Ended(ending)) => ending,
            Err(Stop::Impatient(heard)) => {
                self.record.waited_for = Some(heard);
                Ending::GaveUpWaiting
            }
        };
        (ending, self.record)
    }

    async fn walk(&mut self) -> Go<Ending> {
        let place = self.admitted().await?;
        let Some(at) = self.hold(place).await? else {
            return Ok(Ending::SoldOut);
        };
        match self.rng.random_range(0..10) {
            0 => Ok(Ending::WalkedAway),
            1 => self.cancel(at).await,
            _ => self.pay(at).await,
        }
    }

    fn still_patient(&self, heard: impl FnOnce() -> String) -> Go<()> {
        match Instant::now() >= self.until {
            true => Err(Stop::Impatient(heard())),
            false => Ok(()),
        }
    }

    fn breach(&mut self, what: String) {
        self.record.breaches.push(what);
    }

    /// Asks until somebody answers.
    async fn ask(
        &mut self,
        http: &Http,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Go<Reply> {
        let mut headers = headers.to_vec();
        loop {
            let asked = http.try_send(method.clone(), path, &headers, body.to_owned());
            let heard = match tokio::time::timeout(ANSWER_MAX, asked).await {
                Ok(Ok(reply)) if self.is_away(&reply, path) => reply.status.to_string(),
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(_)) => "no connection".to_owned(),
                Err(_) => "no answer".to_owned(),
            };
            self.record.away += 1;
            // A fault that was asked for is met once: Stripe does not fail the same call for ever.
            headers.retain(|(name, _)| *name != FAULT);
            self.still_patient(|| {
                // Without the ids, so that many who wait for the same are counted together.
                let what = path.split('/').filter(|part| part.len() < 30);
                let what: Vec<&str> = what.collect();
                format!("{method} {}: {heard}", what.join("/"))
            })?;
            self.pause(50..300).await;
        }
    }

    /// "Later", in whatever words. Our own servers say it with 503 and nothing else.
    fn is_away(&mut self, reply: &Reply, path: &str) -> bool {
        let ours = path.starts_with("/api");
        match reply.status.as_u16() {
            429 | 503 => true,
            409 if reply.body["code"] == "IDEMPOTENCY_IN_PROGRESS" => true,
            409 if !ours => true,
            500.. if !ours => true,
            401 | 500.. => {
                self.breach(format!("{path} answered {}: {}", reply.status, reply.text));
                true
            }
            _ => false,
        }
    }

    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(ms))).await;
    }

    async fn api(
        &mut self,
        method: Method,
        path: &str,
        more: &[(&str, &str)],
        body: Value,
    ) -> Go<Reply> {
        let (http, auth) = (self.shop.api.clone(), self.buyer.auth());
        let mut headers = vec![
            ("authorization", &*auth),
            ("content-type", "application/json"),
        ];
        headers.extend(more);
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.ask(&http, method, path, &headers, &body).await
    }

    /// Enters and waits for the turn; the working place's token.
    async fn admitted(&mut self) -> Go<String> {
        let path = format!("/api/v1/queues/{}/tokens", self.shop.performance);
        for _ in 0..4 {
            let place = self.api(Method::POST, &path, &[], Value::Null).await?;
            if place.status == StatusCode::CONFLICT {
                return Err(Stop::Ended(Ending::SoldOut));
            }
            if let Some(token) = self.turn(place).await? {
                return Ok(token);
            }
        }
        Err(Stop::Ended(Ending::TurnLost))
    }

    /// `None`: the turn has ended.
    async fn turn(&mut self, entered: Reply) -> Go<Option<String>> {
        let path = format!("/api/v1/queues/{}/tokens/me", self.shop.performance);
        let number = entered.body["number"].clone();
        let mut place = entered;
        loop {
            match place.status.as_u16() {
                200 | 201 => {}
                410 => return Ok(None),
                409 => return Err(Stop::Ended(Ending::SoldOut)),
                _ => {
                    self.breach(format!("{path} answered {}: {}", place.status, place.text));
                    return Err(Stop::Ended(Ending::TurnLost));
                }
            }
            if place.body["number"] != number || number.is_null() {
                self.breach(format!("the place {number} became {}", place.text));
            }
            let token = place.str("queueToken");
            if place.body["status"] == "WORKING" {
                return Ok(Some(token));
            }
            self.still_patient(|| format!("a turn: {}", place.str("status")))?;
            self.pause(150..400).await;
            let http = self.shop.api.clone();
            place = self
                .ask(&http, Method::GET, &path, &[("queue-token", &token)], "")
                .await?;
        }
    }

    /// Holds one or two seats; the order's place in the record. `None`: others were faster.
    async fn hold(&mut self, place: String) -> Go<Option<usize>> {
        let mut place = place;
        for _ in 0..8 {
            let wish = self.wish();
            let key = format!("{:032x}", self.rng.random::<u128>());
            let headers = [("queue-token", &*place), ("idempotency-key", &*key)];
            let reply = self
                .api(Method::POST, "/api/v1/orders", &headers, wish.clone())
                .await?;
            match (
                reply.status.as_u16(),
                reply.body["code"].as_str().unwrap_or_default(),
            ) {
                (201, _) => {
                    let at = self.note_order(&reply);
                    if self.rng.random_bool(0.3) {
                        self.ask_again(&headers, wish, &reply).await?;
                    }
                    return Ok(Some(at));
                }
                (409, "SEATS_TAKEN") => {}
                // An attempt that died may have left seats of ours behind, for a while.
                (409, "SEAT_LIMIT_EXCEEDED") => self.pause(500..1_000).await,
                (403 | 410, _) => place = self.admitted().await?,
                _ => {
                    self.breach(format!(
                        "POST /orders answered {}: {}",
                        reply.status, reply.text
                    ));
                    return Err(Stop::Ended(Ending::TurnLost));
                }
            }
        }
        Ok(None)
    }

    /// Half of them want what everybody wants.
    fn wish(&mut self) -> Value {
        let seats = &self.shop.seats;
        let count = self.rng.random_range(1..=2);
        if self.rng.random_bool(0.3) {
            return json!({ "scheduleId": self.shop.schedule, "bestAvailable": { "count": count } });
        }
        let wanted = if self.rng.random_bool(0.5) {
            &seats[..seats.len() / 4]
        } else {
            seats
        };
        let ids: Vec<&String> = wanted.sample(&mut self.rng, count).collect();
        json!({ "scheduleId": self.shop.schedule, "seatIds": ids })
    }

    fn note_order(&mut self, reply: &Reply) -> usize {
        let seats = reply.body["seats"].as_array().cloned().unwrap_or_default();
        self.record.orders.push(Told {
            order: reply.str("id"),
            seats: (seats.iter())
                .filter_map(|seat| seat["id"].as_str())
                .map(str::to_owned)
                .collect(),
            status: reply.str("status"),
            payment: None,
            captured: false,
            gave_up: false,
        });
        self.record.orders.len() - 1
    }

    /// The same key once more: the same order.
    async fn ask_again(&mut self, headers: &[(&str, &str)], wish: Value, first: &Reply) -> Go<()> {
        let again = self
            .api(Method::POST, "/api/v1/orders", headers, wish)
            .await?;
        if again.status != StatusCode::CREATED || again.body["id"] != first.body["id"] {
            self.breach(format!(
                "the key of {} gave {} {}",
                first.text, again.status, again.text
            ));
        }
        Ok(())
    }

    fn order(&self, at: usize) -> String {
        format!("/api/v1/orders/{}", self.record.orders[at].order)
    }

    /// Holds a status that was told against what was told before.
    fn note_status(&mut self, at: usize, reply: &Reply) -> String {
        let status = reply.body["status"].as_str().unwrap_or_default().to_owned();
        if reply.status != StatusCode::OK || !self.record.orders[at].allows(&status) {
            let told = self.record.orders[at].clone();
            self.breach(format!("{told:?} became {} {}", reply.status, reply.text));
        }
        self.record.orders[at].status.clone_from(&status);
        status
    }

    async fn look(&mut self, at: usize) -> Go<String> {
        let path = self.order(at);
        let reply = self.api(Method::GET, &path, &[], Value::Null).await?;
        Ok(self.note_status(at, &reply))
    }

    /// Gives the order up, paid or not.
    async fn cancel(&mut self, at: usize) -> Go<Ending> {
        let path = self.order(at);
        self.record.orders[at].gave_up = true;
        loop {
            let reply = self.api(Method::DELETE, &path, &[], Value::Null).await?;
            if reply.status == StatusCode::OK {
                let status = self.note_status(at, &reply);
                return Ok(match status.as_str() {
                    "CANCELLED" => Ending::Cancelled,
                    "REFUNDED" => Ending::Refunded,
                    _ => Ending::Expired,
                });
            }
            if reply.body["code"] != "PAYMENT_IN_PROGRESS" {
                self.breach(format!(
                    "DELETE {path} answered {}: {}",
                    reply.status, reply.text
                ));
                return Ok(Ending::WalkedAway);
            }
            self.still_patient(|| "the end of a payment under way, to cancel".to_owned())?;
            self.pause(200..500).await;
        }
    }

    async fn pay(&mut self, at: usize) -> Go<Ending> {
        let body = json!({ "orderId": self.record.orders[at].order });
        let payment = self
            .api(Method::POST, "/api/v1/payments", &[], body.clone())
            .await?;
        match (
            payment.status.as_u16(),
            payment.body["code"].as_str().unwrap_or_default(),
        ) {
            (201, _) => self.record.orders[at].payment = Some(payment.str("id")),
            (409, "HOLD_EXPIRED" | "ORDER_NOT_PAYABLE") => {
                self.look(at).await?;
                return Ok(Ending::Expired);
            }
            _ => {
                self.breach(format!(
                    "POST /payments answered {}: {}",
                    payment.status, payment.text
                ));
                return Ok(Ending::WalkedAway);
            }
        }
        if self.rng.random_bool(0.2) {
            let again = self
                .api(Method::POST, "/api/v1/payments", &[], body)
                .await?;
            if again.status.is_success() && again.body["id"] != payment.body["id"] {
                self.breach(format!("{} was asked again: {}", payment.text, again.text));
            }
        }
        if payment.body["clientSecret"].is_string() {
            self.charge(at, &payment).await?;
        }
        match self.rng.random_range(0..10) {
            0 => Ok(Ending::WalkedAway),
            1 => self.cancel(at).await,
            _ => self.await_end(at).await,
        }
    }

    /// The card, as Stripe.js sends it, declined first now and then.
    async fn charge(&mut self, at: usize, payment: &Reply) -> Go<()> {
        let fault = CONFIRM_FAULTS
            .choose(&mut self.rng)
            .copied()
            .unwrap_or_default();
        if !fault.is_empty() {
            let kind = fault.split('=').next().unwrap_or_default();
            *self.record.faults.entry(kind).or_default() += 1;
        }
        if self.rng.random_bool(0.2) {
            self.confirm(payment, "pm_card_chargeDeclined", "").await?;
        }
        let status = self.confirm(payment, "pm_card_visa", fault).await?;
        self.record.orders[at].captured = status == "succeeded";
        Ok(())
    }

    /// What Stripe says that the intent is afterwards.
    async fn confirm(&mut self, payment: &Reply, card: &str, fault: &str) -> Go<String> {
        let secret = payment.str("clientSecret");
        let intent = secret.split("_secret").next().unwrap_or_default();
        let key = format!("Bearer {}", payment.str("publishableKey"));
        let headers = [
            ("authorization", &*key),
            ("content-type", "application/x-www-form-urlencoded"),
            (FAULT, fault),
        ];
        let http = self.shop.stripe.clone();
        let path = format!("/v1/payment_intents/{intent}/confirm");
        let body = format!("payment_method={card}&client_secret={secret}");
        let reply = self
            .ask(&http, Method::POST, &path, &headers, &body)
            .await?;
        if reply.status == StatusCode::OK {
            return Ok(reply.str("status"));
        }
        // Declined, or another try of ours was heard, or it is cancelled.
        let path = format!("/v1/payment_intents/{intent}?client_secret={secret}");
        let reply = self
            .ask(&http, Method::GET, &path, &headers[..1], "")
            .await?;
        Ok(reply.str("status"))
    }

    /// Some ask for the payment too, which heals a lost webhook; the others must be healed without.
    async fn await_end(&mut self, at: usize) -> Go<Ending> {
        let asks = self.rng.random_bool(0.5);
        loop {
            match self.look(at).await?.as_str() {
                "PENDING_PAYMENT" => {}
                "CONFIRMED" => return self.enjoy(at).await,
                "REFUNDED" => return Ok(Ending::Refunded),
                "CANCELLED" => return Ok(Ending::Cancelled),
                _ => return Ok(Ending::Expired),
            }
            self.still_patient(|| "the end of an order that was paid".to_owned())?;
            if let (true, Some(payment)) = (asks, self.record.orders[at].payment.clone()) {
                let path = format!("/api/v1/payments/{payment}");
                let seen = self.api(Method::GET, &path, &[], Value::Null).await?;
                if seen.status != StatusCode::OK {
                    self.breach(format!("{path} answered {}: {}", seen.status, seen.text));
                }
            }
            self.pause(150..400).await;
        }
    }

    /// A ticket in hand; some give it back.
    async fn enjoy(&mut self, at: usize) -> Go<Ending> {
        let path = format!("{}/ticket", self.order(at));
        let ticket = self.api(Method::GET, &path, &[], Value::Null).await?;
        if ticket.status != StatusCode::OK {
            self.breach(format!(
                "{path} answered {}: {}",
                ticket.status, ticket.text
            ));
        }
        if self.rng.random_bool(0.2) {
            return self.cancel(at).await;
        }
        Ok(Ending::Confirmed)
    }
}
