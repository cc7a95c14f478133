//! Two instances of payments, each its own process: one budget of Stripe's limits, one intent for
//! one order, and neither waits long for one that is frozen.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::harness::apart::{Apart, Stores};
use crate::harness::client::{Http, Reply};
use crate::harness::steps::{self, Buyer, Sale};
use crate::harness::{self, eventually};

const RATE: u64 = 10;
/// What Stripe bears: on a busy machine calls bunch on their way, which is nobody's doing.
const BORNE: &str = "14/14";

async fn begin(api: &Http, buyer: &Buyer, order: &str) -> Reply {
    let auth = buyer.auth();
    let headers = [("authorization", &*auth)];
    api.post("/api/v1/payments", &headers, json!({"orderId": order}))
        .await
}

async fn hold(sale: &Sale, buyer: &Buyer) -> String {
    let (performance, schedule) = steps::the_performance(sale).await;
    let place = steps::enter(sale, buyer, &performance).await;
    let place = steps::turn(sale, &performance, place).await;
    let (auth, token) = (buyer.auth(), place.str("queueToken"));
    let key = uuid::Uuid::now_v7().to_string();
    let headers = [
        ("authorization", &*auth),
        ("queue-token", &*token),
        ("idempotency-key", &*key),
    ];
    let wish = json!({"scheduleId": schedule, "bestAvailable": {"count": 1}});
    sale.api
        .ask(http::Method::POST, "/api/v1/orders", &headers, &wish)
        .await
        .expect(201)
        .str("id")
}

async fn set(apart: &Apart, path: &str, body: &str) -> Reply {
    let key = format!("Bearer {}", apart.stripe_key);
    let headers = [
        ("authorization", &*key),
        ("content-type", "application/x-www-form-urlencoded"),
    ];
    let stripe = &apart.stripe;
    stripe
        .send(http::Method::POST, path, &headers, body.to_owned())
        .await
        .expect(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_share_the_limits_and_the_work() {
    let dir = harness::data_dir();
    std::fs::create_dir_all(&dir).unwrap();
    let stores = Stores::shared().await;
    let rate = format!("{RATE}/{RATE}");
    let envs = [("TICKETPING_STRIPE_RATE", rate.clone())];
    let mut apart = Apart::start_on(&dir, &stores, &envs).await;
    let args = ["--performances", "1", "--schedules", "1", "--seats", "200"];
    let more = ["--users", "47", "--max-working", "50"];
    let sale = Sale {
        buyers: apart.seed(&[&args[..], &more[..]].concat()).await,
        api: Http::new(&apart.api.base),
        stripe: Http::new(&apart.stripe.base),
    };
    let first = Http::new(&format!("http://{}", apart.address("payments")));
    let second = apart.start_another("payments").await;
    let mut books = PgConnection::connect(&stores.database_url).await.unwrap();
    let mut shares = async || -> Vec<f64> {
        sqlx::query_scalar("select share from payments.stripe_shares order by instance")
            .fetch_all(&mut books)
            .await
            .unwrap()
    };
    eventually("both have a share", async || {
        let shares = shares().await;
        assert!(shares.iter().sum::<f64>() <= 1.0 + 1e-9, "{shares:?}");
        shares.len() == 2 && shares.iter().all(|share| *share > 0.05)
    })
    .await;

    // Six clicks on three orders, at both instances, while Stripe takes its time. Whichever of an
    // instance's clicks is first to note the attempt, all have the one answer.
    let orders = join_all(sale.buyers[..3].iter().map(|buyer| hold(&sale, buyer))).await;
    set(&apart, "/_sandbox/faults", "faults=create/delay%3D1s").await;
    let apis = [&first, &second];
    for (buyer, order) in sale.buyers.iter().zip(&orders) {
        let clicks = join_all((0..6).map(|n| begin(apis[n % 2], buyer, order))).await;
        for click in &clicks {
            assert_eq!(click.status, 201, "{}", click.text);
            assert_eq!(click.body, clicks[0].body);
        }
    }
    set(&apart, "/_sandbox/faults", "faults=").await;

    // A rush at both: Stripe's limit of the account is never met.
    let orders = join_all(sale.buyers[3..].iter().map(|buyer| hold(&sale, buyer))).await;
    set(&apart, "/_sandbox/limits", &format!("rate={BORNE}")).await;
    let rush = sale.buyers[3..].iter().zip(&orders).enumerate();
    let rush = rush.map(|(n, (buyer, order))| begin(apis[n % 2], buyer, order));
    let begun = Instant::now();
    let answers = join_all(rush).await;
    let made = answers.iter().filter(|one| one.status == 201).count();
    println!("{made} of {} made in {:?}", answers.len(), begun.elapsed());
    // How many of them in their patience depends on the machine.
    assert!(made >= 10, "{made}");
    assert!(
        answers
            .iter()
            .all(|one| [201, 503].contains(&one.status.as_u16()))
    );
    no_429(&dir);

    // A frozen instance's share is the other's within ten seconds.
    let frozen = apart.roles.last().unwrap().process.as_ref().unwrap().pid();
    harness::send(frozen.unsigned_abs(), Signal::SIGSTOP);
    let begun = Instant::now();
    eventually("the other has all of it", async || shares().await == [1.0]).await;
    let took = begun.elapsed();
    harness::send(frozen.unsigned_abs(), Signal::SIGCONT);
    // Ten seconds where the machine is not busy.
    assert!(took < Duration::from_secs(20), "{took:?}");
    eventually("both have a share again", async || {
        let shares = shares().await;
        assert!(shares.iter().sum::<f64>() <= 1.0 + 1e-9, "{shares:?}");
        shares.len() == 2 && shares.iter().all(|share| *share > 0.05)
    })
    .await;
}

/// Each 429 is logged by whoever met it.
fn no_429(dir: &std::path::Path) {
    let log = std::fs::read_to_string(dir.join("payments.log")).unwrap();
    assert!(
        !log.contains("Stripe answered 429"),
        "a limit was met:\n{log}"
    );
}
