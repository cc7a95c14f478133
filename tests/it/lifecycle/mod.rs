//! A process starts, serves and stops in good order, whatever its stores and its rows do.

mod keyspace;
mod logs;
mod migrate;
mod pgbouncer;
mod rolling;
mod settings;
mod start;
mod stop;
mod store;
mod upstream;

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use sqlx::Connection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{self, eventually, server::Server, steps};

#[tokio::test]
async fn an_order_that_cannot_be_read_holds_up_nobody_else() {
    let mut server = Server::open("2", "2s", &[]).await;
    let buyers = server.sale.buyers.clone();
    let bad = server.hold(&buyers[0]).await.str("id");
    let mut database = sqlx::PgConnection::connect(&server.database_url())
        .await
        .unwrap();
    for statement in [
        "alter table reservations.orders drop constraint orders_closing_check".to_owned(),
        format!(
            "update reservations.orders set state = 'PAYING', closing = 'LATER', closing_at = now() - interval '1 day',
             expires_at = now() - interval '1 hour' where id = '{bad}'"
        ),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(&mut database)
            .await
            .unwrap();
    }
    let good = server.hold(&buyers[1]).await.str("id");
    server.until_order(&buyers[1], &good, "EXPIRED").await;
    server
        .order(&buyers[0], &bad)
        .await
        .problem(500, "INTERNAL");
    let log = server.log();
    assert!(log.contains(&bad), "the log names the order: {log}");
    assert!(
        !log.contains("panicked"),
        "it is an error, not a panic: {log}"
    );
    assert_eq!(server.interrupt().await, Some(0));
}

/// A connection that asked for `path` and shows what comes, byte for byte.
async fn ask(base: &str, path: &str) -> tokio::net::TcpStream {
    let address = base.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}
