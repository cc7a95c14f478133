use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use http::Method;

use super::*;
use crate::harness::{
    apart::{Apart, Stores},
    client::Http,
    steps::{Buyer, Sale},
};

/// What a balancer in front of two gateways does: a connection that is refused goes to the other.
struct Balancer {
    gateways: Vec<Http>,
    next: AtomicUsize,
}

impl Balancer {
    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> u16 {
        let turn = self.next.fetch_add(1, SeqCst);
        let mut failure = String::new();
        for i in 0..self.gateways.len() {
            let gateway = &self.gateways[(turn + i) % self.gateways.len()];
            // A connection of its own for each request: none is stale.
            let fresh = Http::new(&gateway.base);
            let sent = fresh.try_send(method.clone(), path, headers, body.to_owned());
            match sent.await {
                Ok(reply) => return reply.status.as_u16(),
                Err(error) if format!("{error:#}").contains("Connect") => {
                    failure = error.to_string()
                }
                Err(error) => panic!("{method} {path}: {error:#}"),
            }
        }
        panic!("no gateway: {failure}")
    }
}

/// What buyers do all the while; every answer is one that a buyer can go on with.
async fn browse(
    balancer: &Balancer,
    buyer: &Buyer,
    performance: &str,
    stop: &AtomicBool,
    bad: &Mutex<Vec<String>>,
) -> usize {
    let auth = buyer.auth();
    let enter = format!("/api/v1/queues/{performance}/tokens");
    let schedules = format!("/api/v1/performances/{performance}/schedules");
    let login = r#"{"email":"nobody@example.com","password":"correct horse battery"}"#;
    let json = ("content-type", "application/json");
    let mut asked = 0;
    while !stop.load(SeqCst) {
        for (method, path, headers, body) in [
            (Method::GET, "/api/v1/performances", &[][..], ""),
            (Method::GET, &*schedules, &[], ""),
            (Method::POST, &*enter, &[("authorization", &*auth)], ""),
            (
                Method::GET,
                "/api/v1/orders",
                &[("authorization", &*auth)],
                "",
            ),
            (Method::POST, "/api/v1/auth/login", &[json], login),
        ] {
            let status = balancer.ask(method.clone(), path, headers, body).await;
            if status >= 500 {
                bad.lock()
                    .unwrap()
                    .push(format!("{method} {path}: {status}"));
            }
            asked += 1;
        }
    }
    asked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_every_role_fails_nothing() {
    let dir = harness::data_dir();
    std::fs::create_dir_all(&dir).unwrap();
    let more = [("TICKETPING_SHUTDOWN_DELAY", "1s".to_owned())];
    let mut roles = Apart::start_many(&dir, &Stores::shared().await, &more, 2).await;
    let seeds = ["--performances", "1", "--schedules", "1", "--seats", "20"];
    let buyers = roles.seed(&[&seeds[..], &["--users", "2"]].concat()).await;
    let sale = Sale {
        api: roles.api.clone(),
        stripe: roles.stripe.clone(),
        buyers,
    };
    let (performance, _) = steps::the_performance(&sale).await;
    let gateways = roles.roles.iter().filter(|role| role.name == "gateway");
    let gateways = gateways.map(|role| Http::new(&format!("http://{}", role.address().unwrap())));
    let balancer = Arc::new(Balancer {
        gateways: gateways.collect(),
        next: AtomicUsize::new(0),
    });
    assert_eq!(balancer.gateways.len(), 2);
    let (stop, bad) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(Mutex::new(Vec::new())),
    );
    let walks: Vec<_> = (sale.buyers.iter().cloned())
        .map(|buyer| {
            let (balancer, stop, bad) = (balancer.clone(), stop.clone(), bad.clone());
            let performance = performance.clone();
            tokio::spawn(async move { browse(&balancer, &buyer, &performance, &stop, &bad).await })
        })
        .collect();
    // The first instance of every role; the others serve meanwhile.
    for at in 1..=roles.roles.len() / 2 {
        let process = roles.roles[at].process.take().unwrap();
        let pid = u32::try_from(process.pid()).unwrap();
        harness::send(pid, Signal::SIGTERM);
        let mut process = process;
        assert_eq!(process.child.wait().await.unwrap().code(), Some(0));
        roles.start_role(at);
        roles.served(at, 2).await;
    }
    stop.store(true, SeqCst);
    let mut asked = 0;
    for walk in walks {
        asked += walk.await.unwrap();
    }
    let bad = bad.lock().unwrap();
    assert!(bad.is_empty(), "{} of {asked} failed: {bad:?}", bad.len());
    assert!(asked > 100, "{asked}");
}
