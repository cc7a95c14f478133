//! The outside parts that tests run against are the real ones: they answer, and
//! what they were told outlives their restart.

use std::time::Duration;

use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{kafka, stripe_mock};

#[tokio::test]
async fn a_killed_broker_comes_back_with_what_it_acknowledged() {
    let mut kafka = kafka::Kafka::start().await;
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &kafka.bootstrap)
        .set("acks", "all")
        .create()
        .unwrap();
    let record = FutureRecord::to("orders").key("7").payload("sold");
    producer
        .send(record, Duration::from_secs(30))
        .await
        .unwrap();
    kafka.kill();
    let kafka = kafka.start_again().await;

    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", &kafka.bootstrap)
        .set("group.id", "readers")
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    consumer.subscribe(&["orders"]).unwrap();
    let message = tokio::time::timeout(Duration::from_secs(60), consumer.recv());
    let message = message.await.expect("in time").unwrap();
    assert_eq!(message.payload(), Some(&b"sold"[..]));
    drop(message);
    drop(consumer);
    let mut kafka = kafka;
    kafka.stop().await;
}

#[tokio::test]
async fn stripe_mock_refuses_what_stripe_would_refuse() {
    let address = stripe_mock::stripe_mock().strip_prefix("http://").unwrap();
    for (body, status) in [("amount=100&currency=krw", "200"), ("nonsense=1", "400")] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!(
            "POST /v1/payment_intents HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Authorization: Bearer sk_test_123\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let said = answer.split(' ').nth(1);
        assert_eq!(said, Some(status), "{answer}");
    }
}
