//! What a sale bears while it runs: every table changed under it, PostgreSQL killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use ticketping::cmd::audit;
use ticketping::platform::embedded::runtime::RuntimeFile;
use ticketping::platform::secret::Secret;
use ticketping::serve::secrets::Kept;

use crate::harness::client::{Http, Reply};
use crate::harness::server::Server;
use crate::harness::steps::{self, Buyer, Sale};

/// A buyer's whole patience for one answer.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a buyer met on the way.
#[derive(Debug, Default)]
pub struct Met {
    /// Answers of 5xx by path, and of connections that broke.
    errors: BTreeMap<String, u32>,
    /// The longest that one key was answered IDEMPOTENCY_IN_PROGRESS.
    in_progress: Duration,
    gave_up: Option<String>,
    pub status: String,
}

pub struct Shopper {
    api: Http,
    stripe: Http,
    buyer: Buyer,
    met: Met,
}

type Go<T> = Result<T, String>;

impl Shopper {
    pub fn new(sale: &Sale, nth: usize) -> Self {
        Self {
            api: sale.api.clone(),
            stripe: sale.stripe.clone(),
            buyer: sale.buyers[nth].clone(),
            met: Met::default(),
        }
    }

    /// Asks until there is an answer, as a client does that follows `Retry-After`.
    async fn ask(
        &mut self,
        http: &Http,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Go<Reply> {
        let begun = Instant::now();
        let mut in_progress: Option<Instant> = None;
        loop {
            let asked = http.try_send(method.clone(), path, headers, body.clone());
            let reply = tokio::time::timeout(Duration::from_secs(10), asked).await;
            let (again, what) = match reply {
                Ok(Ok(reply)) => {
                    let running = reply.body["code"] == "IDEMPOTENCY_IN_PROGRESS";
                    if running {
                        let since = in_progress.get_or_insert_with(Instant::now);
                        self.met.in_progress = self.met.in_progress.max(since.elapsed());
                    }
                    let status = reply.status.as_u16();
                    if status < 500 && status != 429 && !running {
                        return Ok(reply);
                    }
                    let after = reply.headers.get("retry-after");
                    let after = after
                        .and_then(|s| s.to_str().ok()?.parse().ok())
                        .unwrap_or(1);
                    (after, format!("{status} {}", reply.text))
                }
                Ok(Err(error)) => (1, error.to_string()),
                Err(_) => (1, "no answer in 10 s".to_owned()),
            };
            let short: Vec<&str> = path.split('/').filter(|part| part.len() < 30).collect();
            let short = format!(
                "{method} {}: {}",
                short.join("/"),
                what.get(..60).unwrap_or(&what)
            );
            if begun.elapsed() > PATIENCE {
                return Err(short);
            }
            *self.met.errors.entry(short).or_default() += 1;
            tokio::time::sleep(Duration::from_secs(again.min(2))).await;
        }
    }

    async fn api(
        &mut self,
        method: Method,
        path: &str,
        more: &[(&str, &str)],
        body: Value,
    ) -> Go<Reply> {
        let (http, auth) = (self.api.clone(), self.buyer.auth());
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
        self.ask(&http, method, path, &headers, body).await
    }

    /// From the queue to the order's end.
    pub async fn go(mut self, performance: String, schedule: String, key: String) -> Met {
        match self.walk(&performance, &schedule, &key).await {
            Ok(status) => self.met.status = status,
            Err(why) => self.met.gave_up = Some(why),
        }
        self.met
    }

    async fn walk(&mut self, performance: &str, schedule: &str, key: &str) -> Go<String> {
        let path = format!("/api/v1/queues/{performance}/tokens");
        let place = self.api(Method::POST, &path, &[], Value::Null).await?;
        let token = place.body["queueToken"]
            .as_str()
            .ok_or(place.text.clone())?
            .to_owned();
        let wish = json!({ "scheduleId": schedule, "bestAvailable": { "count": 1 } });
        let headers = [("queue-token", &*token), ("idempotency-key", key)];
        let order = self
            .api(Method::POST, "/api/v1/orders", &headers, wish)
            .await?;
        let id = order.body["id"]
            .as_str()
            .ok_or(order.text.clone())?
            .to_owned();
        let body = json!({ "orderId": id });
        let payment = self
            .api(Method::POST, "/api/v1/payments", &[], body)
            .await?;
        let secret = payment.body["clientSecret"]
            .as_str()
            .ok_or(payment.text.clone())?
            .to_owned();
        let intent = secret.split("_secret").next().unwrap();
        let auth = format!("Bearer {}", payment.str("publishableKey"));
        let form = [
            ("authorization", &*auth),
            ("content-type", "application/x-www-form-urlencoded"),
        ];
        let card = format!("payment_method=pm_card_visa&client_secret={secret}");
        let (stripe, path) = (
            self.stripe.clone(),
            format!("/v1/payment_intents/{intent}/confirm"),
        );
        self.ask(&stripe, Method::POST, &path, &form, card).await?;
        let begun = Instant::now();
        loop {
            let path = format!("/api/v1/orders/{id}");
            let order = self.api(Method::GET, &path, &[], Value::Null).await?;
            let status = order.body["status"].as_str().ok_or(order.text.clone())?;
            if status != "PENDING_PAYMENT" {
                return Ok(status.to_owned());
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{id} never ended"));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

async fn open(users: usize) -> Server {
    let mut server = Server::start(crate::harness::data_dir(), &[], &[]).await;
    let users = users.to_string();
    let args = [
        ["--performances", "1"],
        ["--schedules", "1"],
        ["--seats", "400"],
        ["--users", &users],
        ["--max-working", &users],
    ];
    server.seed(&args.concat()).await;
    server
}

/// All buyers walk at once, each after its `delay`.
async fn walk_all(server: &Server, delay: impl Fn(usize) -> Duration) -> Vec<Met> {
    let (performance, schedule) = steps::the_performance(&server.sale).await;
    let walks: Vec<_> = (0..server.sale.buyers.len())
        .map(|nth| {
            let shopper = Shopper::new(&server.sale, nth);
            let (after, key) = (delay(nth), format!("key-{nth}"));
            let (performance, schedule) = (performance.clone(), schedule.clone());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                shopper.go(performance, schedule, key).await
            })
        })
        .collect();
    let mut met = Vec::new();
    for walk in walks {
        met.push(walk.await.unwrap());
    }
    met
}

async fn audited(server: &Server) {
    let runtime = RuntimeFile::read(&server.dir).unwrap().unwrap();
    let key = Kept::load(&server.dir).unwrap().stripe_secret_key;
    let config = audit::Config {
        database_url: runtime.database_url,
        redis_url: Some(runtime.redis_url),
        redis_prefix: "tp".to_owned(),
        redis_ca: None,
        stripe: Some((server.sale.stripe.base.clone(), Secret::new(&*key))),
        wait: Duration::from_secs(15),
        young: Duration::ZERO,
        since: None,
        statement_timeout: Duration::from_secs(30),
        progress: false,
    };
    let report = audit::run_checks(&config).await.unwrap();
    assert!(report.ok(), "{}\n{}", report.text(), server.log());
}

const TABLES: &str = "
    select format('%I.%I', table_schema, table_name) from information_schema.tables
    where table_type = 'BASE TABLE' and table_name <> '_sqlx_migrations'
      and table_schema in ('users', 'performances', 'queue', 'reservations', 'payments', 'stripe_sandbox')
    order by 1";

/// One change for each table: every rewrite of a table is written to the disk at its commit.
const INTEGERS: &str = "
    select format('alter table %I.%I ', table_schema, table_name)
        || string_agg(format('alter column %I type bigint', column_name), ', ')
    from information_schema.columns join information_schema.tables using (table_schema, table_name)
    where table_type = 'BASE TABLE' and table_name <> '_sqlx_migrations' and is_identity = 'NO'
      and data_type in ('integer', 'smallint')
      and table_schema in ('users', 'performances', 'queue', 'reservations', 'payments')
    group by table_schema, table_name order by 1";

/// Columns whose type can change without a new version of ours: no statement foresees it, so each
/// connection meets the change once.
const TEXTS: [(&str, &str); 4] = [
    ("payments.payments", "description"),
    ("payments.payments", "client_secret"),
    ("reservations.orders", "performance_title"),
    ("reservations.order_seats", "section"),
];

/// Adds a column to every table, widens every integer, and drops the new columns again.
async fn change_everything(url: &str, running: &AtomicBool) -> u32 {
    let mut conn = PgConnection::connect(url).await.unwrap();
    let tables: Vec<String> = sqlx::query_scalar(TABLES)
        .fetch_all(&mut conn)
        .await
        .unwrap();
    let integers: Vec<String> = sqlx::query_scalar(INTEGERS)
        .fetch_all(&mut conn)
        .await
        .unwrap();
    let mut changes: Vec<String> = Vec::new();
    changes.extend(
        tables
            .iter()
            .map(|t| format!("alter table {t} add column added_later text default 'x'")),
    );
    changes.extend(integers);
    changes.extend(
        TEXTS
            .iter()
            .map(|(t, c)| format!("alter table {t} alter column {c} type varchar")),
    );
    changes.extend(
        tables
            .iter()
            .map(|t| format!("alter table {t} drop column added_later")),
    );
    let mut made = 0;
    for change in changes {
        assert!(
            running.load(Ordering::SeqCst),
            "the sale was over before every table was changed"
        );
        // As a careful operator does: it does not make a sale wait for its lock.
        for _ in 0..100 {
            let sql = format!("set lock_timeout = '150ms'; {change}");
            match sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await {
                Ok(_) => {
                    made += 1;
                    break;
                }
                Err(sqlx::Error::Database(e))
                    if matches!(e.code().as_deref(), Some("55P03" | "40P01")) =>
                {
                    // A change that waits makes everybody wait behind it: it gives way in between.
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                Err(error) => panic!("{change}: {error}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn every_table_changes_while_a_sale_runs() {
    let server = open(60).await;
    let running = Arc::new(AtomicBool::new(true));
    let changing = {
        let (url, running) = (server.database_url(), running.clone());
        tokio::spawn(async move { change_everything(&url, &running).await })
    };
    let met = walk_all(&server, |nth| Duration::from_millis(250 * nth as u64)).await;
    running.store(false, Ordering::SeqCst);
    let made = changing.await.unwrap();
    assert!(made > 50, "{made} changes");
    for one in &met {
        // Where the machine is too busy for the locks that the changes take, a buyer may wait in
        // vain for a connection, or for an answer; a statement that does not fit its table is never seen.
        let waits = |what: &String| what.contains(": 503") || what.ends_with("no answer in 10 s");
        let busy = one.errors.keys().all(waits);
        assert!(busy && one.gave_up.is_none(), "{one:?}\n{}", server.log());
        assert_eq!(one.status, "CONFIRMED", "{one:?}");
    }
    let log = server.log();
    assert!(
        log.contains("a table was changed under a prepared statement"),
        "{log}"
    );
    assert!(!log.contains("internal error"), "{log}");
    audited(&server).await;
}

fn postgres_pid(dir: &Path) -> Option<u32> {
    let record = std::fs::read(dir.join("postgres.json")).ok()?;
    let record: Value = serde_json::from_slice(&record).ok()?;
    u32::try_from(record["pid"].as_u64()?).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_killed_makes_nobody_give_up() {
    let server = open(80).await;
    let dir = server.dir.clone();
    let outage = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        // Its supervisor starts it again; recovery takes seconds on a busy machine.
        let pid = postgres_pid(&dir).expect("it runs");
        crate::harness::send(pid, Signal::SIGKILL);
    });
    let met = walk_all(&server, |nth| Duration::from_millis(60 * nth as u64)).await;
    outage.await.unwrap();
    // Whoever waits for a connection meanwhile may not meet the outage at all.
    assert!(
        server.log().contains("store ended by itself"),
        "{}",
        server.log()
    );
    for one in &met {
        assert!(
            one.gave_up.is_none() && one.status == "CONFIRMED",
            "{one:?}\n{}",
            server.log()
        );
        // The takeover counts from the last heartbeat of the request that died; one that waits for
        // a connection on a busy machine is alive. Without heartbeats a key is kept for 30 s.
        assert!(one.in_progress < Duration::from_secs(20), "{one:?}");
        let wrong = one
            .errors
            .keys()
            .find(|what| what.contains("/api/") && what.contains(": 500"));
        assert!(wrong.is_none(), "{one:?}");
    }
    audited(&server).await;
}
