//! TLS on the listener: certificates from files, taken anew when the files change.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use http::HeaderValue;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};
use tokio_util::sync::CancellationToken;

use crate::platform::metrics::Metrics;

/// How often the files are compared with what is served.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// The flags of TLS.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "TLS")]
#[group(skip)]
pub struct Config {
    /// Serve --listen by HTTPS (TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1): a PEM file with the
    /// certificate and its chain. A changed file is taken over within seconds [default: plain HTTP]
    #[arg(
        long,
        env = "TICKETPING_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, a PEM file
    #[arg(
        long,
        env = "TICKETPING_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,
    /// With TLS: how long browsers come back by HTTPS only (Strict-Transport-Security); 0s: not said
    #[arg(
        long,
        env = "TICKETPING_HSTS_MAX_AGE",
        value_name = "DURATION",
        default_value = "365d",
        value_parser = humantime::parse_duration
    )]
    pub hsts_max_age: Duration,
}

/// Certificate and key as they are served. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    serving: Arc<ArcSwap<ServerConfig>>,
    cert: PathBuf,
    key: PathBuf,
    hsts: Option<HeaderValue>,
    read: Files,
    taken: Counter,
    stale: Gauge,
}

/// What the files hold.
#[derive(Clone, PartialEq, Eq)]
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Tls {
    /// TLS as configured; `None`: plain HTTP.
    ///
    /// # Errors
    /// Names the flag and what is wrong with its file.
    pub fn load(config: &Config) -> Result<Option<Self>, String> {
        let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) else {
            return Ok(None);
        };
        let read = Files::read(cert, key)?;
        let serving = read.server(cert, key)?;
        let hsts = match config.hsts_max_age.as_secs() {
            0 => None,
            seconds => HeaderValue::from_str(&format!("max-age={seconds}")).ok(),
        };
        Ok(Some(Self {
            serving: Arc::new(ArcSwap::from_pointee(serving)),
            cert: cert.clone(),
            key: key.clone(),
            hsts,
            read,
            taken: Counter::default(),
            stale: Gauge::default(),
        }))
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.serving.load_full())
    }

    pub(super) fn hsts(&self) -> Option<HeaderValue> {
        self.hsts.clone()
    }

    /// Shows among `metrics` whether the files are what is served.
    pub fn register(&self, metrics: &Metrics) {
        metrics.register(|registry| {
            registry.register(
                "tls_certificate_reloads",
                "Changed TLS certificates taken over",
                self.taken.clone(),
            );
            registry.register(
                "tls_certificate_stale",
                "1 while the TLS files hold something else than what is served, because it is unusable",
                self.stale.clone(),
            );
        });
    }

    /// Takes over changed files until `stop`. A pair that cannot be served is logged and counted,
    /// and the one before goes on.
    pub async fn follow(self, stop: CancellationToken) {
        let (mut serving, mut refused) = (self.read.clone(), None);
        while !stop_within(&stop, COMPARE_EVERY).await {
            let (cert, key) = (self.cert.clone(), self.key.clone());
            let read = tokio::task::spawn_blocking(move || Files::read(&cert, &key)).await;
            let read = read.unwrap_or_else(|error| Err(error.to_string()));
            if read.as_ref() == Ok(&serving) {
                self.stale.set(0);
                refused = None;
                continue;
            }
            // A refused pair is said once, not every second.
            if refused.as_ref() == Some(&read) {
                continue;
            }
            let server = read
                .clone()
                .and_then(|files| files.server(&self.cert, &self.key));
            match server {
                Ok(server) => {
                    self.serving.store(Arc::new(server));
                    tracing::info!(tls.cert = %self.cert.display(), "serving the changed TLS certificate");
                    serving = read.unwrap_or(serving);
                    self.taken.inc();
                    self.stale.set(0);
                    refused = None;
                }
                Err(error) => {
                    tracing::error!(%error, "cannot use the changed TLS certificate; still serving the one before");
                    self.stale.set(1);
                    refused = Some(read);
                }
            }
        }
    }
}

async fn stop_within(stop: &CancellationToken, time: Duration) -> bool {
    tokio::time::timeout(time, stop.cancelled()).await.is_ok()
}

impl Files {
    fn read(cert: &Path, key: &Path) -> Result<Self, String> {
        let read = |flag: &str, file: &Path| {
            std::fs::read(file).map_err(|e| format!("{flag} {}: {e}", file.display()))
        };
        Ok(Self {
            cert: read("--tls-cert", cert)?,
            key: read("--tls-key", key)?,
        })
    }

    fn server(&self, cert: &Path, key: &Path) -> Result<ServerConfig, String> {
        let (cert, key) = (cert.display(), key.display());
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&self.cert)
            .collect::<Result<_, _>>()
            .map_err(|e| format!("--tls-cert {cert}: {e}"))?;
        if chain.is_empty() {
            return Err(format!("--tls-cert {cert}: no PEM certificate in it"));
        }
        let private = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|e| format!("--tls-key {key}: no PEM private key in it: {e}"))?;
        let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(|e| format!("--tls-cert {cert}, --tls-key {key}: {e}"))?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(server)
    }
}
