//! The service roles, one folder each, and what puts them together.
//!
//! Roles never name each other's paths: they talk by events, or by HTTP through
//! [`crate::platform::upstream::Upstream`], which is a plain call when both
//! roles live in one process.

pub mod args;
mod bounds;
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
mod stop;
pub mod stripe_sandbox;
pub mod users;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::args::{Args, Role};
use self::{
    bounds::Bounds,
    build::Build,
    embedded::Embedded,
    ops::Ops,
    stop::{Stop, TASKS_STOP_MAX},
};
use crate::platform::{
    edge::{self, Edge, FastPath, Handler, Limits, Options, stats::HttpStats},
    failure::Failure,
    metrics::Metrics,
    readiness::Readiness,
    tasks::{self, Tasks},
    telemetry::{self, traces::Trust},
};

/// How long a process that a balancer knows goes on serving after the signal: two probes of the
/// usual interval, and what is under way from there.
const SHUTDOWN_DELAY: Duration = Duration::from_secs(5);

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
    sandbox: Option<TcpListener>,
    /// Plain HTTP for this machine alone, where `http` speaks TLS: for the sandbox and for the
    /// other subcommands, which do not know the certificate's name or authority.
    local: Option<TcpListener>,
}

/// Runs a role until SIGINT or SIGTERM.
///
/// # Errors
/// Whatever keeps it from starting, in one sentence.
pub async fn run(args: Args) -> Result<(), Failure> {
    let process = &args.process;
    let otlp = process.otlp_endpoint.as_ref();
    let telemetry = telemetry::start(process.log_format, &process.log, args.role.as_str(), otlp)
        .map_err(Failure::Usage)?;
    let outcome = run_logged(args).await;
    telemetry.stop().await;
    outcome
}

async fn run_logged(mut args: Args) -> Result<(), Failure> {
    args.stores.check()?;
    let bounds = Bounds::new(&args)?;
    let (listeners, ops) = listen(&args).await?;
    let embedded = Embedded::start(&mut args).await?;
    let outcome = tokio::select! {
        outcome = serve(args, bounds, (listeners, ops), embedded.as_ref()) => outcome,
        () = second_signal() => Err(Failure::Failed("stopped at once, on a second signal".into())),
    };
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
    outcome
}

/// The listeners of the API, and the one of operations.
async fn listen(args: &Args) -> Result<(Listeners, TcpListener), Failure> {
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
    let local = if args.role == Role::All && args.tls.tls_cert.is_some() {
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        Some(edge::bind("--listen", any).await?)
    } else {
        None
    };
    let listeners = Listeners {
        http,
        sandbox,
        local,
    };
    Ok((listeners, ops))
}

async fn serve(
    args: Args,
    bounds: Bounds,
    (listeners, ops): (Listeners, TcpListener),
    embedded: Option<&Embedded>,
) -> Result<(), Failure> {
    let tasks = Tasks::new();
    let role = args.role;
    let delay = match embedded {
        Some(_) => Duration::ZERO,
        None => SHUTDOWN_DELAY,
    };
    let metrics = Metrics::default();
    tasks::register(&metrics);
    telemetry::register(&metrics);
    bounds.register(&metrics);
    let readiness = Readiness::new(&metrics);
    let ops_url = url_of(&ops)?;
    let stop = Stop {
        readiness: readiness.clone(),
        leaving: CancellationToken::new(),
        delay: args.process.shutdown_delay.unwrap_or(delay),
        api: tasks.api(),
        tasks: tasks.clone(),
        ops: Tasks::new(),
    };
    // Probes are answered while the start still waits for its stores.
    let router = ops::router(Ops::new(metrics.clone(), readiness.clone()));
    let quiet = Metrics::default();
    let ops_edge = Edge::new(router, None, &quiet, Arc::default());
    spawn_listener("ops", ops, ops_edge, bounds.ops.clone(), &stop.ops)?;
    let built = tokio::select! {
        built = roles::build(args, &tasks, &listeners, metrics, readiness.clone()) => built,
        () = signal() => {
            tasks.stop(TASKS_STOP_MAX).await;
            return Ok(());
        }
    };
    let mut served = match built {
        Ok(served) => served,
        Err(failure) => {
            tasks.stop(TASKS_STOP_MAX).await;
            return Err(failure);
        }
    };
    let mut url = url_of(&listeners.http)?;
    if bounds.http.1.tls.is_some() {
        url = url.replacen("http", "https", 1);
    }
    let local_url = listeners.local.as_ref().map(url_of).transpose()?;
    let (limits, _) = bounds.http;
    let checks = std::mem::take(&mut served.build.checks);
    readiness.follow(checks, &tasks).await;
    let leaving = stop.leaving.clone();
    tasks_of_servers(&mut served, listeners, bounds, role, leaving, &stop.api)?;
    if let Some(embedded) = embedded {
        embedded
            .announce(&served.build, (&url, local_url), &ops_url, &tasks)
            .await?;
    }
    readiness.serving();
    tracing::info!(%url, ops.url = %ops_url, "serving");
    signal().await;
    stop.run(limits).await;
    Ok(())
}

/// Whose traces the API of `role` goes on with.
fn trust_of(role: Role) -> Option<Trust> {
    match role {
        Role::All | Role::Gateway => Some(Trust::Nobody),
        Role::StripeSandbox => None,
        Role::Users | Role::Performances | Role::Queue | Role::Reservations | Role::Payments => {
            Some(Trust::Roles)
        }
    }
}

/// Starts the loops of the API's listeners on `api`.
fn tasks_of_servers(
    served: &mut Served,
    listeners: Listeners,
    bounds: Bounds,
    role: Role,
    leaving: CancellationToken,
    api: &Tasks,
) -> Result<(), Failure> {
    let edge = Edge::new(
        served.router.clone(),
        served.fast.take(),
        &served.build.metrics,
        served.stats.clone(),
    )
    .traced(trust_of(role))
    .leaving(leaving);
    if let Some(tls) = bounds.http.1.tls.clone() {
        let stop = api.token();
        api.spawn("tls", move || tls.clone().follow(stop.clone()));
    }
    if let Some(listener) = listeners.local {
        spawn_listener(
            "http-local",
            listener,
            edge.clone(),
            bounds.local.clone(),
            api,
        )?;
    }
    spawn_listener("http", listeners.http, edge, bounds.http, api)?;
    if let (Some(listener), Some(sandbox)) = (listeners.sandbox, served.build.sandbox.take()) {
        let edge = Edge::new(sandbox, None, &Metrics::default(), Arc::default());
        spawn_listener("stripe-sandbox", listener, edge, bounds.local, api)?;
    }
    Ok(())
}

/// Serves `listener` until the stop of `tasks`, again after a panic: the socket stays open
/// meanwhile.
fn spawn_listener<H: Handler>(
    name: &'static str,
    listener: TcpListener,
    edge: Edge<H>,
    (limits, options): (Limits, Options),
    tasks: &Tasks,
) -> Result<(), Failure> {
    let socket = listener
        .into_std()
        .map_err(|e| Failure::Failed(format!("cannot serve {name}: {e}")))?;
    let socket = Arc::new(Mutex::new(Some(socket)));
    let token = tasks.token();
    tasks.spawn(name, move || {
        let (socket, edge, stop) = (socket.clone(), edge.clone(), token.clone());
        let options = options.clone();
        async move {
            let again = |socket: &Mutex<Option<std::net::TcpListener>>| {
                let socket = socket.lock().unwrap_or_else(PoisonError::into_inner);
                let clone = socket.as_ref().map(std::net::TcpListener::try_clone);
                clone.map(|socket| socket.and_then(TcpListener::from_std))
            };
            match again(&socket) {
                Some(Ok(listener)) => {
                    let close = async {
                        stop.cancelled().await;
                        // The copy would keep the port open while connections drain.
                        drop(socket.lock().unwrap_or_else(PoisonError::into_inner).take());
                    };
                    let served = edge::serve_with(listener, edge, limits, options, stop.clone());
                    tokio::join!(served, close);
                }
                Some(Err(error)) => tracing::error!(%error, "cannot serve {name} again now"),
                None => {}
            }
        }
    });
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
