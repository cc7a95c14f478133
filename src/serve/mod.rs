//! The service roles, one folder each, and what puts them together.
//!
//! Roles never name each other's paths: they talk by events, or by HTTP through
//! [`crate::platform::upstream::Upstream`], which is a plain call when both
//! roles live in one process.

pub mod args;
mod build;
mod embedded;
pub mod gateway;
mod jwks;
pub mod migrate;
mod openapi;
pub mod ops;
pub mod payments;
pub mod performances;
pub mod queue;
pub mod reservations;
mod roles;
pub mod secrets;
pub mod stripe_sandbox;
pub mod users;

use std::{sync::Arc, time::Duration};

use tokio::net::TcpListener;

pub use self::args::Args;
use self::{args::Role, build::Build, embedded::Embedded, ops::Ops};
use crate::platform::{
    edge::{self, Edge, FastPath, Limits, stats::HttpStats},
    failure::Failure,
    tasks::Tasks,
    telemetry,
    traces::{Traces, Trust},
};

/// After the stop: how long background work may take to finish what it began.
/// With the drain of connections before it and the stores after it, a stop stays
/// below ten seconds.
const TASKS_STOP_MAX: Duration = Duration::from_secs(3);

/// What a started process serves.
struct Served {
    router: axum::Router,
    fast: Option<Arc<dyn FastPath>>,
    stats: Arc<HttpStats>,
    build: Build,
}

/// The listeners of a process, bound before anything slow is begun, so that a
/// port in use is told at once.
struct Listeners {
    http: TcpListener,
    ops: TcpListener,
    sandbox: Option<TcpListener>,
}

/// Runs a role until SIGINT or SIGTERM.
///
/// # Errors
/// Whatever keeps it from starting, in one sentence.
pub async fn run(mut args: Args) -> Result<(), Failure> {
    telemetry::start(args.process.log_format, &args.process.log).map_err(Failure::Usage)?;
    args.stores.check()?;
    let traces = match &args.process.otlp_endpoint {
        Some(endpoint) => {
            Some(Traces::start(endpoint, args.role.as_str()).map_err(Failure::Usage)?)
        }
        None => None,
    };
    let listeners = listen(&args).await?;
    let embedded = Embedded::start(&mut args).await?;
    let outcome = tokio::select! {
        outcome = serve(args, listeners, embedded.as_ref()) => outcome,
        () = second_signal() => Err(Failure::Failed("stopped at once, on a second signal".into())),
    };
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
    if let Some(traces) = traces {
        traces.stop().await;
    }
    outcome
}

async fn listen(args: &Args) -> Result<Listeners, Failure> {
    let sandbox_address = args.stripe_sandbox.stripe_sandbox_listen;
    let (flag, address) = if args.role == Role::StripeSandbox {
        ("--stripe-sandbox-listen", sandbox_address)
    } else {
        ("--listen", args.process.listen)
    };
    let http = edge::bind(flag, address).await?;
    let ops = edge::bind("--ops-listen", args.process.ops_listen).await?;
    let sandbox = if args.role == Role::All && args.payments.stripe_secret_key.is_none() {
        Some(edge::bind("--stripe-sandbox-listen", sandbox_address).await?)
    } else {
        None
    };
    Ok(Listeners { http, ops, sandbox })
}

async fn serve(
    args: Args,
    listeners: Listeners,
    embedded: Option<&Embedded>,
) -> Result<(), Failure> {
    let tasks = Tasks::new();
    let role = args.role;
    let limits = Limits {
        connections_max: args.process.max_connections,
        ..Limits::default()
    };
    let outcome = tokio::select! {
        served = roles::build(args, &tasks, &listeners) => served,
        () = signal() => {
            tasks.stop(TASKS_STOP_MAX).await;
            return Ok(());
        }
    };
    let mut served = match outcome {
        Ok(served) => served,
        Err(failure) => {
            tasks.stop(TASKS_STOP_MAX).await;
            return Err(failure);
        }
    };
    let url = url_of(&listeners.http)?;
    let ops_url = url_of(&listeners.ops)?;
    let trust = match role {
        Role::All | Role::Gateway => Some(Trust::Nobody),
        Role::StripeSandbox => None,
        Role::Users | Role::Performances | Role::Queue | Role::Reservations | Role::Payments => {
            Some(Trust::Roles)
        }
    };
    tasks_of_servers(&mut served, listeners, limits, trust, &tasks).await?;
    if let Some(embedded) = embedded {
        embedded
            .announce(&served.build, &url, &ops_url, &tasks)
            .await?;
    }
    tracing::info!(role = role.as_str(), %url, ops.url = %ops_url, "serving");
    signal().await;
    tracing::info!("stopping: open requests are answered, then the rest ends");
    let stopped = tasks.stop(TASKS_STOP_MAX + limits.drain).await;

    if !stopped {
        tracing::warn!("some background work did not end in time; it resumes at the next start");
    }
    Ok(())
}

/// Starts the listeners' loops; they end with the tasks' stop.
async fn tasks_of_servers(
    served: &mut Served,
    listeners: Listeners,
    limits: Limits,
    trust: Option<Trust>,
    tasks: &Tasks,
) -> Result<(), Failure> {
    let metrics = served.build.metrics.clone();
    let checks = std::mem::take(&mut served.build.checks);
    let ops = ops::router(Ops::new(metrics.clone(), checks));
    let quiet = crate::platform::metrics::Metrics::default();
    let ops_edge = Edge::new(ops, None, &quiet, Arc::default());
    tasks.spawn(
        "ops",
        edge::serve(listeners.ops, ops_edge, limits, tasks.token()),
    );
    let edge = Edge::new(
        served.router.clone(),
        served.fast.take(),
        &metrics,
        served.stats.clone(),
    )
    .traced(trust);
    tasks.spawn(
        "http",
        edge::serve(listeners.http, edge, limits, tasks.token()),
    );
    if let (Some(listener), Some(sandbox)) = (listeners.sandbox, served.build.sandbox.take()) {
        let edge = Edge::new(sandbox, None, &quiet, Arc::default());
        tasks.spawn(
            "stripe-sandbox",
            edge::serve(listener, edge, limits, tasks.token()),
        );
    }
    Ok(())
}

/// The URL that reaches `listener` from this machine.
fn url_of(listener: &TcpListener) -> Result<String, Failure> {
    let address = listener
        .local_addr()
        .map_err(|e| Failure::Failed(e.to_string()))?;
    let ip = match address.ip() {
        ip if ip.is_unspecified() && ip.is_ipv4() => std::net::Ipv4Addr::LOCALHOST.into(),
        ip if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(format!(
        "http://{}",
        std::net::SocketAddr::new(ip, address.port())
    ))
}

/// Resolves at SIGINT or SIGTERM.
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        tracing::error!("cannot listen for signals; stop the process by SIGKILL");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Resolves at the second one: whoever asks twice does not want to wait.
async fn second_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return std::future::pending().await;
    };
    for _ in 0..2 {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}
