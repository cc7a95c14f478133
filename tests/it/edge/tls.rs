//! HTTPS by flags, with certificates that change while it runs.

use std::{path::Path, sync::Arc, time::Duration};

use axum::body::Body;
use http::Request;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::process::Command;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
        version,
    },
};

use super::{connect, metric, of_url};
use crate::harness::{self, server::Server};

/// A self-signed certificate of `localhost`, and its key.
async fn certificate(dir: &Path, name: &str) {
    let (cert, key) = (
        dir.join(format!("{name}.pem")),
        dir.join(format!("{name}.key")),
    );
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args(["-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext"])
        .args([
            "subjectAltName=DNS:localhost",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ])
        .arg("-out")
        .arg(cert)
        .arg("-keyout")
        .arg(key)
        .output()
        .await
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
}

/// A connection that trusts `name`'s certificate alone.
async fn handshake(
    server: &Server,
    dir: &Path,
    name: &str,
    alpn: &str,
    old: bool,
) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
    let mut roots = RootCertStore::empty();
    let pem = dir.join(format!("{name}.pem"));
    roots
        .add(CertificateDer::from_pem_file(pem).unwrap())
        .unwrap();
    let versions = if old {
        &[&version::TLS12][..]
    } else {
        &[&version::TLS13][..]
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let stream = connect(of_url(&server.sale.api.base)).await;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

fn copy(dir: &Path, from: &str) {
    for kind in ["pem", "key"] {
        std::fs::copy(
            dir.join(format!("{from}.{kind}")),
            dir.join(format!("live.{kind}")),
        )
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn https_follows_its_certificate_files() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    certificate(dir, "one").await;
    certificate(dir, "two").await;
    copy(dir, "one");
    let (cert, key) = (dir.join("live.pem"), dir.join("live.key"));
    let args = [
        "--tls-cert",
        cert.to_str().unwrap(),
        "--tls-key",
        key.to_str().unwrap(),
    ];
    let server = Server::start(harness::data_dir(), &args, &[]).await;
    assert!(server.sale.api.base.starts_with("https://"));

    let io = handshake(&server, dir, "one", "h2", false).await.unwrap();
    assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://localhost/api/v1/performances")
        .body(Body::empty())
        .unwrap();
    let answer = send.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(
        answer.headers()["strict-transport-security"],
        "max-age=31536000"
    );
    assert_eq!(answer.headers()["x-content-type-options"], "nosniff");

    let io = handshake(&server, dir, "one", "http/1.1", true)
        .await
        .unwrap();
    let (mut send, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/nothing")
        .header("host", "localhost")
        .body(Body::empty())
        .unwrap();
    let answer = send.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 404);
    assert_eq!(
        answer.headers()["strict-transport-security"],
        "max-age=31536000"
    );

    // A pair that does not belong together: the one before goes on, and an alarm says so.
    std::fs::copy(dir.join("two.pem"), &cert).unwrap();
    harness::eventually("the pair is refused", async || {
        metric(&server, "ticketping_tls_certificate_stale").await > 0.0
    })
    .await;
    handshake(&server, dir, "one", "h2", false).await.unwrap();
    copy(dir, "two");
    harness::eventually("the new certificate is served", async || {
        handshake(&server, dir, "two", "h2", false).await.is_ok()
    })
    .await;
    assert!(handshake(&server, dir, "one", "h2", false).await.is_err());
    assert!(metric(&server, "ticketping_tls_certificate_stale").await == 0.0);
    // Plain HTTP on the TLS port is not answered as if it were right.
    let plain = tokio::time::timeout(
        Duration::from_secs(5),
        super::answers(
            of_url(&server.sale.api.base),
            b"GET / HTTP/1.1\r\nhost: h\r\n\r\n",
        ),
    );
    assert!(!plain.await.unwrap().starts_with("HTTP/1.1 200"));
}
