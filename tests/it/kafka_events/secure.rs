//! Brokers that speak TLS by a certificate of their own, and ask who is there.

use ticketping::platform::{
    events::kafka::{KafkaSecurity, Mechanism, Protocol},
    secret::Secret,
};

use super::*;
use crate::harness::kafka::{PASSWORD, USER};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_travel_by_tls_and_sasl() {
    let (kafka, ca) = Kafka::start_secure().await;
    let login = |mechanism, password: &str| {
        let security = KafkaSecurity {
            protocol: Protocol::SaslSsl,
            ca: Some(ca.clone()),
            mechanism: Some(mechanism),
            username: Some(USER.to_owned()),
            password: Some(Secret::new(password)),
            password_file: None,
        };
        security.complete().unwrap()
    };
    for mechanism in [
        Mechanism::Plain,
        Mechanism::ScramSha256,
        Mechanism::ScramSha512,
    ] {
        let mut rig = Rig::new(&kafka.bootstrap).await;
        rig.config.security = login(mechanism, PASSWORD);
        rig.produce();
        rig.consume(&rig.tasks, rig.counting("one"));
        rig.say(Uuid::now_v7(), 0).await;
        rig.until_effects(1).await;
    }
    // Who does not know the password, or the authority, gets nothing through.
    let mut unknown_authority = login(Mechanism::Plain, PASSWORD);
    unknown_authority.ca = None;
    for security in [login(Mechanism::ScramSha256, "wrong"), unknown_authority] {
        let mut rig = Rig::new(&kafka.bootstrap).await;
        rig.config.security = security;
        rig.produce();
        let figures = rig.consume(&rig.tasks, rig.counting("one"));
        rig.say(Uuid::now_v7(), 0).await;
        eventually("it is seen to be away", async || {
            let store = figures.kafka();
            store.is_some_and(|store| store.state == Health::Down)
        })
        .await;
        assert_eq!(rig.effects().await.len(), 0);
    }
}
