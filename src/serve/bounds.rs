//! What clients may take of a process, and what is held back for the rest of it.

use std::{sync::Arc, time::Duration};

use super::args::{Args, Role};
use crate::platform::{
    descriptors::{self, Spare},
    edge::{Limits, Options, tls::Tls},
    failure::Failure,
    metrics::Metrics,
};

/// Probes and scrapers are few, and quick.
const OPS_LIMITS: Limits = Limits {
    connections_max: 64,
    head: Duration::from_secs(5),
    idle: Duration::from_secs(30),
    ..Limits::DEFAULT
};
/// The sandbox of this process has its own connections; payments is its main client.
const SANDBOX_CONNECTIONS: usize = 512;
/// Descriptors for what is not a connection of a client: the operations listener, Kafka, Redis,
/// files, and the runtime itself.
const FILES_OF_PROCESS: usize = 256;

/// Where nobody has asked for a number, fewer than this are worth a warning: a small sale has more.
const FEW_CONNECTIONS: usize = 5_000;

/// Limits and options of the listeners of a process.
pub(super) struct Bounds {
    pub(super) http: (Limits, Options),
    pub(super) ops: (Limits, Options),
    /// Of the sandbox, and of this machine's own listener beside one with TLS.
    pub(super) local: (Limits, Options),
}

impl Bounds {
    /// Raises the limit on open files, and shares it out.
    ///
    /// # Errors
    /// When the TLS files cannot be served.
    pub(super) fn new(args: &Args) -> Result<Self, Failure> {
        let files_max = descriptors::raise();
        // Taken first: they have low numbers, which stay valid when the limit is lowered.
        let spare = Arc::new(Spare::hold());
        let mut limits = args.http.limits();
        let local = Limits {
            connections_max: limits.connections_max.min(SANDBOX_CONNECTIONS),
            ..limits
        };
        // A gateway with its roles elsewhere may need a second connection for each of its clients'.
        let (roles, each) = match args.role {
            Role::All => (5, 1),
            Role::Gateway => (0, 2),
            Role::Users
            | Role::Performances
            | Role::Queue
            | Role::Reservations
            | Role::Payments
            | Role::StripeSandbox => (1, 1),
        };
        let mut reserve = FILES_OF_PROCESS;
        reserve += roles * usize::try_from(args.stores.database_connections).unwrap_or(0);
        if args.role == Role::All {
            // Both ends are in this process.
            reserve += 2 * local.connections_max;
        }
        limits.connections_max =
            descriptors::clamp(limits.connections_max, files_max, reserve, each);
        let worth_saying = args.http.max_connections.unwrap_or(FEW_CONNECTIONS);
        if limits.connections_max < worth_saying {
            descriptors::say_few(worth_saying, limits.connections_max, files_max, reserve);
        }
        let http = Options {
            tls: Tls::load(&args.tls).map_err(Failure::Usage)?,
            trusted_proxies: args.users.trusted_proxies.clone(),
            ..Options::default()
        };
        let ops = Options {
            spare: Some(spare),
            own_thread: true,
            ..Options::default()
        };
        Ok(Self {
            http: (limits, http),
            ops: (OPS_LIMITS, ops),
            local: (local, Options::default()),
        })
    }

    /// Shows among `metrics` what is used of it.
    pub(super) fn register(&self, metrics: &Metrics) {
        let (_, options) = &self.http;
        options.counters.register(metrics);
        if let Some(tls) = &options.tls {
            tls.register(metrics);
        }
    }
}
