//! The whole system as one process: the real binary, with its sandbox misbehaving on request.

use std::path::PathBuf;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use http::Method;
use serde_json::{Value, json};
use sha2::Sha256;
use ticketping::platform::embedded::runtime::RuntimeFile;
use ticketping::serve::secrets::Kept;

use crate::harness;
use crate::harness::client::{Http, Reply};
use crate::harness::process::{self, Process, runtime_file};
use crate::harness::steps::{self, Buyer, Sale};

/// The embedded default (`serve all`) in a data directory of its own.
pub struct Server {
    pub dir: PathBuf,
    pub process: Option<Process>,
    /// Its gateway and its sandbox, with the members that were seeded.
    pub sale: Sale,
    pub ops: Http,
    key: String,
}

impl Server {
    /// A server with `users` members and 400 free seats, its environment as given.
    pub async fn open(users: &str, hold_ttl: &str, envs: &[(&str, &str)]) -> Self {
        let mut server = Self::start(harness::data_dir(), &[], envs).await;
        let args = [
            ["--performances", "1"],
            ["--schedules", "1"],
            ["--seats", "400"],
            ["--users", users],
            ["--max-working", "50"],
            ["--hold-ttl", hold_ttl],
        ];
        server.seed(&args.concat()).await;
        server
    }

    /// Starts `serve all` on `dir` with more arguments and environment, and waits until it serves.
    pub async fn start(dir: PathBuf, args: &[&str], envs: &[(&str, &str)]) -> Self {
        std::fs::create_dir_all(&dir).unwrap();
        let log = dir.with_extension("log");
        let data_dir = dir.to_str().unwrap().to_owned();
        let any = "127.0.0.1:0";
        let mut all = vec!["serve", "all", "--data-dir", &data_dir, "--listen", any];
        all.extend(["--ops-listen", any, "--stripe-sandbox-listen", any]);
        all.extend(args);
        let envs: Vec<(&str, String)> = envs.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
        let process = Process::start(&all, &envs, &log);
        let runtime = runtime_file(&dir, &log).await;
        let http = |key: &str| Http::new(runtime[key].as_str().unwrap());
        let sale = Sale {
            api: http("url"),
            stripe: http("stripeUrl"),
            buyers: Vec::new(),
        };
        let ops = http("opsUrl");
        let key = Kept::load(&dir).unwrap().stripe_secret_key;
        Self {
            dir,
            process: Some(process),
            sale,
            ops,
            key,
        }
    }

    /// Seeds with numbers (every performance open, every seat free); its members are the buyers.
    pub async fn seed(&mut self, args: &[&str]) {
        let data_dir = self.dir.to_str().unwrap();
        let mut all = vec!["seed", "--data-dir", data_dir, "--yes"];
        all.extend(args);
        let (code, out, err) = process::run(&all, &[]).await;
        assert_eq!(code, 0, "{out}\n{err}");
        self.sale.buyers = steps::buyers(&self.dir.join("tokens.jsonl"));
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.with_extension("log")).unwrap()
    }

    /// The end of that, for whoever looks why a test failed.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Ctrl-C, and the exit code.
    pub async fn interrupt(&mut self) -> Option<i32> {
        self.process.take().unwrap().interrupt().await
    }

    /// kill -9.
    pub async fn kill(&mut self) {
        self.process.take().unwrap().kill().await;
    }

    /// Authorization of an ADMIN.
    pub fn admin(&self) -> String {
        let token = std::fs::read_to_string(self.dir.join("ops-token")).unwrap();
        format!("Bearer {}", token.trim())
    }

    /// The same data, a new process.
    pub async fn again(self, envs: &[(&str, &str)]) -> Self {
        let Self {
            dir, process, sale, ..
        } = self;
        if let Some(process) = process {
            process.kill().await;
        }
        let mut next = Self::start(dir, &[], envs).await;
        next.sale.buyers = sale.buyers;
        next
    }

    /// For somebody who walks on beside the watcher of the process.
    pub fn walker(&self, api: Http, stripe: Http) -> Self {
        Self {
            dir: self.dir.clone(),
            process: None,
            sale: Sale {
                api,
                stripe,
                buyers: self.sale.buyers.clone(),
            },
            ops: self.ops.clone(),
            key: self.key.clone(),
        }
    }

    /// Has the process died of itself?
    pub fn dead(&mut self) -> bool {
        let process = self.process.as_mut().unwrap();
        process.child.try_wait().unwrap().is_some()
    }

    /// Of the running server.
    pub fn database_url(&self) -> String {
        let runtime = RuntimeFile::read(&self.dir).unwrap();
        runtime.expect("a server wrote it").database_url
    }

    /// What the sandbox signs with.
    pub fn webhook_secret(&self) -> String {
        Kept::load(&self.dir).unwrap().stripe_webhook_secret
    }

    /// Tells of an event of somebody else's, signed with `secret`; the status answered.
    pub async fn webhook(&self, id: &str, secret: &str) -> u16 {
        let event = json!({
            "id": id, "object": "event", "type": "payment_intent.created", "livemode": false,
            "data": {"object": {"id": "pi_of_somebody_else"}},
        });
        let (body, now) = (event.to_string(), chrono::Utc::now().timestamp());
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(format!("{now}.{body}").as_bytes());
        let signature = format!("t={now},v1={}", hex::encode(mac.finalize().into_bytes()));
        let headers = [
            ("content-type", "application/json"),
            ("stripe-signature", &*signature),
        ];
        let path = "/api/v1/payments/webhook";
        let reply = self.sale.api.send(Method::POST, path, &headers, body).await;
        reply.status.as_u16()
    }

    /// What the sandbox does wrong from now on; empty is nothing.
    pub async fn faults(&self, faults: &str) {
        let headers = self.stripe_headers();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let body = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("faults", faults)
            .finish();
        self.sale
            .stripe
            .send(Method::POST, "/_sandbox/faults", &headers, body)
            .await
            .expect(200);
    }

    /// Every intent of an order, with what was captured and refunded.
    pub async fn intents(&self, order: &str) -> Vec<Value> {
        let headers = self.stripe_headers();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let list = self
            .sale
            .stripe
            .get("/v1/payment_intents?limit=100", &headers)
            .await
            .expect(200);
        let all = list.body["data"].as_array().unwrap().clone();
        all.into_iter()
            .filter(|one| one["metadata"]["order_id"] == order)
            .collect()
    }

    pub async fn refunds(&self, intent: &str) -> Vec<Value> {
        let headers = self.stripe_headers();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let path = format!("/v1/refunds?payment_intent={intent}");
        let list = self.sale.stripe.get(&path, &headers).await.expect(200);
        list.body["data"].as_array().unwrap().clone()
    }

    /// As in Stripe's dashboard: so much of it, or all that is left.
    pub async fn refund_at_stripe(&self, intent: &str, amount: Option<i64>) {
        let headers = self.stripe_headers();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let amount = amount.map(|amount| format!("&amount={amount}"));
        let body = format!("payment_intent={intent}{}", amount.unwrap_or_default());
        self.sale
            .stripe
            .send(Method::POST, "/v1/refunds", &headers, body)
            .await
            .expect(200);
    }

    /// A form sent to the sandbox with the secret key.
    pub async fn stripe_post(&self, path: &str, form: &str) -> Reply {
        let headers = self.stripe_headers();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let stripe = &self.sale.stripe;
        stripe
            .send(Method::POST, path, &headers, form.to_owned())
            .await
    }

    /// `GET` at the sandbox with the secret key.
    pub async fn stripe_get(&self, path: &str) -> Reply {
        let headers = self.stripe_headers();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        self.sale.stripe.get(path, &headers).await
    }

    /// `ticketping audit` of this server, nothing being young any more: its report once it is
    /// green, or what is red after a while. `sandbox`: with its ledger, or PostgreSQL alone.
    pub async fn audit(&self, sandbox: bool) -> (i32, String) {
        let dir = self.dir.to_str().unwrap();
        let database = self.database_url();
        let mut args = vec!["audit", "--young", "0s", "--wait", "5s"];
        match sandbox {
            true => args.extend(["--data-dir", dir]),
            false => args.extend(["--database-url", &database]),
        }
        let (code, out, err) = process::run(&args, &[]).await;
        (code, format!("{out}{err}"))
    }

    /// A call with the secret key.
    pub async fn at_stripe(&self, path: &str, body: String) -> Reply {
        let headers = self.stripe_headers();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        (self.sale.stripe)
            .send(Method::POST, path, &headers, body)
            .await
    }

    /// What a call to the sandbox carries.
    pub fn stripe_headers(&self) -> [(&'static str, String); 2] {
        [
            ("authorization", format!("Bearer {}", self.key)),
            (
                "content-type",
                "application/x-www-form-urlencoded".to_owned(),
            ),
        ]
    }

    /// A held order of this buyer.
    pub async fn hold(&self, buyer: &Buyer) -> Reply {
        let (performance, schedule) = steps::the_performance(&self.sale).await;
        let place = steps::enter(&self.sale, buyer, &performance).await;
        assert!(place.status.is_success(), "{}", place.text);
        let place = steps::turn(&self.sale, &performance, place).await;
        let (auth, token) = (buyer.auth(), place.str("queueToken"));
        let key = uuid::Uuid::now_v7().to_string();
        let headers = [
            ("authorization", &*auth),
            ("queue-token", &*token),
            ("idempotency-key", &*key),
        ];
        let wish = json!({"scheduleId": schedule, "bestAvailable": {"count": 2}});
        let orders = "/api/v1/orders";
        let order = self.sale.api.ask(Method::POST, orders, &headers, &wish);
        order.await.expect(201)
    }

    /// Begins the payment of an order; a busy server is asked again.
    pub async fn begin(&self, buyer: &Buyer, order: &str) -> Reply {
        let auth = buyer.auth();
        let headers = [("authorization", &*auth)];
        let body = json!({"orderId": order});
        let payments = "/api/v1/payments";
        let api = &self.sale.api;
        api.ask(Method::POST, payments, &headers, &body).await
    }

    /// The same, where the first answer is what the test is about.
    pub async fn begin_once(&self, buyer: &Buyer, order: &str) -> Reply {
        let auth = buyer.auth();
        let body = json!({"orderId": order});
        self.sale
            .api
            .post("/api/v1/payments", &[("authorization", &auth)], body)
            .await
    }

    pub async fn order(&self, buyer: &Buyer, id: &str) -> Reply {
        let auth = buyer.auth();
        self.sale
            .api
            .get(&format!("/api/v1/orders/{id}"), &[("authorization", &auth)])
            .await
    }

    pub async fn payment(&self, buyer: &Buyer, id: &str) -> Reply {
        let auth = buyer.auth();
        self.sale
            .api
            .get(
                &format!("/api/v1/payments/{id}"),
                &[("authorization", &auth)],
            )
            .await
    }

    pub async fn until_order(&self, buyer: &Buyer, id: &str, status: &str) -> Reply {
        let auth = buyer.auth();
        let path = format!("/api/v1/orders/{id}");
        let headers = [("authorization", &*auth)];
        self.sale
            .api
            .until(&path, &headers, |reply| reply.body["status"] == status)
            .await
    }

    pub async fn cancel(&self, buyer: &Buyer, id: &str) -> Reply {
        let auth = buyer.auth();
        let headers = [("authorization", &*auth)];
        let order = format!("/api/v1/orders/{id}");
        let api = &self.sale.api;
        api.ask(Method::DELETE, &order, &headers, &Value::Null)
            .await
    }
}

pub async fn pause(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}
