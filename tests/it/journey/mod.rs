//! A whole sale over HTTP, as an outside client sees it: first in one process,
//! then with every role apart; and what a crash leaves.

use std::time::Duration;

use serde_json::json;

use crate::harness::{
    self,
    apart::Apart,
    process,
    server::Server,
    steps::{self, Sale, bad_input, whole_sale},
};

#[tokio::test(flavor = "multi_thread")]
async fn one_process_sells_a_whole_house() {
    let mut server = Server::start(harness::data_dir(), &[], &[]).await;
    let seed = [
        "--performances",
        "1",
        "--schedules",
        "1",
        "--seats",
        "40",
        "--users",
        "6",
    ];
    let times = ["--max-working", "2", "--hold-ttl", "3s"];
    server.seed(&[&seed[..], &times[..]].concat()).await;
    whole_sale(&server.sale).await;
    bad_input(&server.sale).await;
    let metrics = server.ops.get("/metrics", &[]).await.expect(200).text;
    for name in [
        "http_requests_total",
        "queue",
        "working",
        "holds",
        "orders",
        "payments",
    ] {
        assert!(metrics.contains(name), "no {name} in the metrics");
    }
    server.ops.get("/livez", &[]).await.expect(200);
    server.ops.get("/readyz", &[]).await.expect(200);
    assert_eq!(server.interrupt().await, Some(0));
    assert!(!server.dir.join("runtime.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_confirmed_survives_kill_9() {
    let dir = harness::data_dir();
    let mut server = Server::start(dir.clone(), &[], &[]).await;
    let seed = [
        "--performances",
        "1",
        "--schedules",
        "1",
        "--seats",
        "40",
        "--users",
        "2",
    ];
    server.seed(&seed).await;
    let buyers = server.sale.buyers.clone();
    let order = steps::buy(&server.sale, &buyers[0], 2).await;
    let waiting = steps::enter(&server.sale, &buyers[1], &order.performance).await;
    server.kill().await;

    let mut server = Server::start(dir, &[], &[]).await;
    let sale = &server.sale;
    let auth = buyers[0].auth();
    let path = format!("/api/v1/orders/{}", order.id);
    let after = sale
        .api
        .get(&path, &[("authorization", &auth)])
        .await
        .expect(200);
    assert_eq!(after.body["status"], "CONFIRMED");
    let seats = sale
        .api
        .get(&format!("/api/v1/schedules/{}/seats", order.schedule), &[])
        .await;
    let sold = seats.body["seats"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|s| s["status"] == "SOLD");
    assert_eq!(sold.count(), 2);
    let path = format!("/api/v1/queues/{}/tokens/me", order.performance);
    let place = sale
        .api
        .get(&path, &[("queue-token", &waiting.str("queueToken"))])
        .await;
    assert_eq!(place.expect(200).body["number"], waiting.body["number"]);
    assert_eq!(server.interrupt().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_apart_sells_the_same_house() {
    let dir = harness::data_dir();
    std::fs::create_dir_all(&dir).unwrap();
    let mut apart = Apart::start(&dir).await;
    let seed = [
        "--performances",
        "1",
        "--schedules",
        "1",
        "--seats",
        "40",
        "--users",
        "6",
    ];
    let times = ["--max-working", "2", "--hold-ttl", "3s"];
    let buyers = apart.seed(&[&seed[..], &times[..]].concat()).await;
    let sale = Sale {
        api: apart.api.clone(),
        stripe: apart.stripe.clone(),
        buyers,
    };
    whole_sale(&sale).await;
    bad_input(&sale).await;
    for role in &mut apart.roles {
        let process = role.process.take().unwrap();
        assert_eq!(process.interrupt().await, Some(0), "{}", role.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_start_ends_at_once_and_says_why() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let dir = harness::data_dir();
    let dir = dir.to_str().unwrap();
    let free = format!("127.0.0.1:{}", harness::free_port());
    let cases: &[(&[&str], i32, &str)] = &[
        (&["serve", "everything"], 2, "everything"),
        (&["serve", "queue", "--listen", &free], 2, "--"),
        (
            &[
                "serve",
                "all",
                "--redis-url",
                "nonsense",
                "--data-dir",
                dir,
                "--listen",
                &free,
            ],
            2,
            "redis",
        ),
        (
            &[
                "serve",
                "users",
                "--database-url",
                "http://x",
                "--listen",
                &free,
            ],
            2,
            "-",
        ),
        (
            &["serve", "all", "--data-dir", dir, "--listen", &taken],
            1,
            &taken,
        ),
        (
            &[
                "serve",
                "all",
                "--data-dir",
                "/proc/nowhere",
                "--listen",
                &free,
            ],
            1,
            "/proc/nowhere",
        ),
        (&["token", "--data-dir", "/nonexistent"], 1, "/nonexistent"),
    ];
    for (args, code, names) in cases {
        let mut args = args.to_vec();
        if args[0] == "serve" {
            args.extend(["--ops-listen", "127.0.0.1:0"]);
        }
        let ran = tokio::time::timeout(Duration::from_secs(60), process::run(&args, &[])).await;
        let (got, _, err) = ran.unwrap_or_else(|_| panic!("{args:?} did not end"));
        assert_eq!(got, *code, "{args:?}: {err}");
        assert!(err.contains(names), "{args:?} does not name {names}: {err}");
        assert!(!err.contains("panicked"), "{err}");
    }
}

/// Two who hold, cancel and hold again, and a third who waits: the third's turn comes.
#[tokio::test(flavor = "multi_thread")]
async fn holding_again_and_again_keeps_nobody_out() {
    let mut server = Server::start(harness::data_dir(), &[], &[]).await;
    let seed = [
        ["--performances", "1"],
        ["--schedules", "1"],
        ["--seats", "40"],
        ["--users", "3"],
        ["--max-working", "2"],
        ["--working-ttl", "4s"],
        ["--hold-ttl", "3s"],
    ];
    server.seed(&seed.concat()).await;
    let sale = &server.sale;
    let (performance, schedule) = steps::the_performance(sale).await;
    let mut places = Vec::new();
    for buyer in &sale.buyers {
        places.push(steps::enter(sale, buyer, &performance).await);
    }
    let begun = std::time::Instant::now();
    let waits = places.remove(2);
    let greedy = async |at: usize| {
        let (auth, token) = (sale.buyers[at].auth(), places[at].str("queueToken"));
        let headers = [("authorization", &*auth), ("queue-token", &*token)];
        let wish = json!({"scheduleId": schedule, "bestAvailable": {"count": 4}});
        let mut held = 0;
        loop {
            let order = sale
                .api
                .post("/api/v1/orders", &headers, wish.clone())
                .await;
            if order.status != 201 {
                return (held, order);
            }
            held += 1;
            // Kept a while, and the last one until it expires.
            tokio::time::sleep(Duration::from_millis(700)).await;
            if begun.elapsed() < Duration::from_millis(3_000) {
                let path = format!("/api/v1/orders/{}", order.str("id"));
                sale.api.delete(&path, &headers[..1]).await.expect(200);
            } else {
                let over = Duration::from_millis(4_100).saturating_sub(begun.elapsed());
                tokio::time::sleep(over).await;
            }
        }
    };
    let third = async {
        let place = steps::turn(sale, &performance, waits).await;
        (begun.elapsed(), place)
    };
    let ((held, refused), (also, _), (waited, place)) = tokio::join!(greedy(0), greedy(1), third);
    refused.problem(410, "QUEUE_TOKEN_EXPIRED");
    assert!(
        held >= 2 && also >= 2,
        "they held again and again: {held}, {also}"
    );
    assert_eq!(place.body["status"], "WORKING", "{}", place.text);
    // Check-in + working time + two hold times is the bound; orders that are not paid end after one.
    // Without it the two would go on for as long as they like.
    assert!(waited < Duration::from_secs(20), "waited for {waited:?}");
}

/// The end of sales takes effect by the clock, in every role: one schedule's, and then the last one's.
#[tokio::test(flavor = "multi_thread")]
async fn sales_end_by_the_clock() {
    let mut server = Server::start(harness::data_dir(), &[], &[]).await;
    let seed = [
        ["--performances", "1"],
        ["--schedules", "2"],
        ["--seats", "20"],
        ["--users", "2"],
    ];
    server.seed(&seed.concat()).await;
    let sale = &server.sale;
    let (performance, _) = steps::the_performance(sale).await;
    let list = format!("/api/v1/performances/{performance}/schedules");
    let schedules = sale.api.get(&list, &[]).await.expect(200);
    let schedules = schedules.body["items"].as_array().unwrap().clone();
    assert_eq!(
        schedules[0]["salesEndAt"], schedules[0]["startsAt"],
        "where nothing else is said"
    );
    let place = steps::enter(sale, &sale.buyers[0], &performance).await;
    let (auth, token) = (sale.buyers[0].auth(), place.str("queueToken"));
    let headers = [("authorization", &*auth), ("queue-token", &*token)];
    let queue = format!("/api/v1/queues/{performance}");
    sale.api
        .until(&queue, &[], |r| r.body["remainingSeats"] == 40)
        .await;

    let pool = sqlx::PgPool::connect(&server.database_url()).await.unwrap();
    let ends = async |schedule: usize| {
        let id: uuid::Uuid = schedules[schedule]["id"].as_str().unwrap().parse().unwrap();
        let change = "update performances.schedules set sales_end_at = now() + interval '1500 milliseconds' where id = $1";
        sqlx::query(change).bind(id).execute(&pool).await.unwrap();
        std::time::Instant::now()
    };
    let set = ends(0).await;
    let book = async |schedule: usize| {
        let wish = json!({"scheduleId": schedules[schedule]["id"], "bestAvailable": {"count": 1}});
        sale.api.post("/api/v1/orders", &headers, wish).await
    };
    book(0).await.expect(201);
    sale.api
        .until(&queue, &[], |r| r.body["remainingSeats"] == 20)
        .await;
    assert!(
        set.elapsed() < Duration::from_secs(20),
        "{:?}",
        set.elapsed()
    );
    book(0).await.problem(409, "SALES_ENDED");
    let one = format!("/api/v1/schedules/{}", schedules[0]["id"].as_str().unwrap());
    sale.api
        .until(&one, &[], |r| r.body["remainingSeats"] == 0)
        .await;
    book(1).await.expect(201);

    let set = ends(1).await;
    sale.api
        .until(&queue, &[], |r| r.body["phase"] == "CLOSED")
        .await;
    assert!(
        set.elapsed() < Duration::from_secs(20),
        "{:?}",
        set.elapsed()
    );
    sale.api
        .get(&list, &[])
        .await
        .problem(409, "BOOKING_NOT_OPEN");
    let shown = sale
        .api
        .get(&format!("/api/v1/performances/{performance}"), &[])
        .await
        .expect(200);
    assert_eq!(
        (&shown.body["booking"], &shown.body["remainingSeats"]),
        (&json!("CLOSED"), &json!(0))
    );
    steps::enter(sale, &sale.buyers[1], &performance)
        .await
        .problem(409, "BOOKING_NOT_OPEN");
}
