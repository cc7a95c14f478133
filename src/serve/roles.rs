//! Builds each role with what it needs.

use std::{io::Write, sync::Arc};

use axum::Router;
use utoipa::openapi::OpenApi;

use super::{
    Listeners, Served,
    args::{Args, Role},
    build::{Build, bare_overview, check, split},
    gateway::{self, Fast, RoleName, Upstreams},
    jwks, openapi, payments, performances, queue, reservations, stripe_sandbox, url_of, users,
};
use crate::{
    cmd::seed::ensure_demo,
    platform::{
        auth::{Jwks, Signer, Verifier},
        edge::{FastPath, stats::HttpStats},
        events::{Bus, KafkaConfig},
        failure::Failure,
        metrics::Metrics,
        place::PlaceKeys,
        readiness::{Readiness, Unready},
        tasks::Tasks,
    },
};

/// Builds the process that `args` ask for.
pub(super) async fn build(
    args: Args,
    tasks: &Tasks,
    listeners: &Listeners,
    metrics: Metrics,
    readiness: Readiness,
) -> Result<Served, Failure> {
    let mut build = Build::new(args, tasks.clone(), metrics, readiness)?;
    let verifier = verifier(&mut build)?;
    seed_demo(&build).await?;
    if let Some(listener) = &listeners.sandbox {
        build.stripe_url = url_of(listener)?;
        let here = listeners.local.as_ref().unwrap_or(&listeners.http);
        let webhook = format!("{}/api/v1/payments/webhook", url_of(here)?);
        add_sandbox(&mut build, Some(webhook)).await?;
    } else if build.args.role == Role::StripeSandbox {
        add_sandbox(&mut build, None).await?;
    }
    if build.has(RoleName::Users) {
        add_users(&mut build, &verifier).await?;
    }
    if build.has(RoleName::Performances) {
        add_performances(&mut build).await?;
    }
    if build.has(RoleName::Reservations) {
        add_reservations(&mut build, &verifier).await?;
    }
    if build.has(RoleName::Payments) {
        add_payments(&mut build, &verifier).await?;
    }
    let fast: Option<Arc<dyn FastPath>> = if build.has(RoleName::Queue) {
        Some(Arc::new(add_queue(&mut build, &verifier).await?))
    } else {
        None
    };
    start_events(&mut build)?;
    let stats = Arc::new(HttpStats::default());
    let (router, fast) = match build.args.role {
        Role::All | Role::Gateway => gateway(&mut build, verifier, stats.clone(), fast)?,
        Role::StripeSandbox => (build.sandbox.take().unwrap_or_default(), None),
        _ => (build.only().unwrap_or_default(), None),
    };
    Ok(Served {
        router,
        fast,
        stats,
        build,
    })
}

/// With `--demo`: the demo sale, unless it is there already.
async fn seed_demo(build: &Build) -> Result<(), Failure> {
    if !build.args.demo {
        return Ok(());
    }
    let Some(signer) = build
        .signer
        .clone()
        .filter(|_| build.args.role == Role::All)
    else {
        return Err(Failure::Usage(
            "--demo goes with `serve all`: it seeds what every role owns".into(),
        ));
    };
    let database = build.args.stores.database()?;
    let summary = ensure_demo(database, &build.args.process.data_dir, signer).await?;
    // A closed stdout is no reason to end.
    let _ = std::io::stdout().write_all(summary.text().as_bytes());
    Ok(())
}

/// The keys that verify access tokens: those of this process's users role, or
/// read from the one elsewhere.
fn verifier(build: &mut Build) -> Result<Verifier, Failure> {
    if build.has(RoleName::Users) {
        let (signer, previous) = build.args.secrets.signers()?;
        let jwks = jwks_of(&signer, previous.as_ref());
        build.signer = Some(signer);
        return Verifier::new(&jwks).map_err(Failure::Failed);
    }
    if matches!(build.args.role, Role::Performances | Role::StripeSandbox) {
        return Verifier::new(&Jwks::default()).map_err(Failure::Failed);
    }
    let verifier = jwks::follow(build.upstream(RoleName::Users)?, &build.tasks)?;
    build.checks.push((
        "access-token-keys",
        check(&verifier, |v| async move {
            let cause = "not read from the users role yet";
            match v.has_keys() {
                true => Ok(()),
                false => Err(Unready::Process(cause.to_owned())),
            }
        }),
    ));
    Ok(verifier)
}

fn jwks_of(signer: &Signer, previous: Option<&Signer>) -> Jwks {
    let keys = std::iter::once(signer)
        .chain(previous)
        .map(|s| s.jwk().clone())
        .collect();
    Jwks { keys }
}

async fn add_users(build: &mut Build, verifier: &Verifier) -> Result<(), Failure> {
    let (signer, previous) = build.args.secrets.signers()?;
    let jwks = jwks_of(&signer, previous.as_ref());
    let pool = build.pool(users::SCHEMA, &users::MIGRATOR).await?;
    let config = build.args.users.clone();
    let state = users::Users::new(config, pool, signer, jwks, verifier.clone(), &build.metrics);
    users::tasks(&state, &build.tasks);
    let (router, _) = split(users::router(state.clone()));
    let router = router.merge(bare_overview("users", build.internal.clone()));
    build.add(
        RoleName::Users,
        router,
        check(&state, |s| async move { users::ready(&s).await }),
    );
    Ok(())
}

async fn add_performances(build: &mut Build) -> Result<(), Failure> {
    let pool = build
        .pool(performances::SCHEMA, &performances::MIGRATOR)
        .await?;
    let state = performances::Performances::new(pool, build.internal.clone());
    build
        .subscriptions
        .extend(performances::subscriptions(&state));
    build.watches.push(state.events().clone());
    performances::tasks(&state, &build.tasks);
    let (router, _) = split(performances::router(state.clone()));
    let router = router.merge(build.alarms(state.alarms()));
    let ready = check(&state, |s| async move { performances::ready(&s).await });
    build.add(RoleName::Performances, router, ready);
    Ok(())
}

async fn add_payments(build: &mut Build, verifier: &Verifier) -> Result<(), Failure> {
    let mut config = build.args.payments.clone();
    if !build.stripe_url.is_empty() {
        config
            .stripe_url
            .get_or_insert_with(|| build.stripe_url.clone());
    }
    let settings = config.settings().map_err(Failure::Usage)?;
    let pool = build.pool(payments::SCHEMA, &payments::MIGRATOR).await?;
    let state = payments::Payments::new(
        settings,
        pool,
        build.upstream(RoleName::Reservations)?,
        verifier.clone(),
        build.internal.clone(),
        &build.metrics,
    )
    .map_err(Failure::Usage)?;
    payments::tasks(&state, &build.tasks);
    build.outboxes.push(payments::outbox(&state));
    build.subscriptions.extend(payments::subscriptions(&state));
    build.watches.push(state.events().clone());
    let (router, _) = split(payments::router(state.clone()));
    let router = router.merge(build.alarms(&state.alarms()));
    let ready = check(&state, |s| async move { payments::ready(&s).await });
    build.add(RoleName::Payments, router, ready);
    Ok(())
}

async fn add_reservations(build: &mut Build, verifier: &Verifier) -> Result<(), Failure> {
    let redis = build.redis().await?;
    let places = PlaceKeys::parse(build.args.secrets.places()?.expose())
        .map_err(|e| Failure::Usage(format!("--place-keys: {e}")))?;
    let tickets = reservations::TicketKey::from_hex(build.args.secrets.ticket()?.expose())
        .map_err(|e| Failure::Usage(format!("--ticket-key: {e}")))?;
    let deps = reservations::Deps {
        pool: build
            .pool(reservations::SCHEMA, &reservations::MIGRATOR)
            .await?,
        redis,
        redis_prefix: build.args.stores.redis_prefix.clone(),
        verifier: verifier.clone(),
        places,
        tickets,
        secret: build.internal.clone(),
        performances: build.upstream(RoleName::Performances)?,
        payments: build.upstream(RoleName::Payments)?,
        queue: build.upstream(RoleName::Queue)?,
        metrics: build.metrics.clone(),
    };
    let state = reservations::Reservations::new(build.args.reservations.clone(), deps);
    reservations::tasks(&state, &build.tasks);
    build.outboxes.push(state.outbox());
    build
        .subscriptions
        .extend(reservations::subscriptions(&state));
    build.watches.push(state.events().clone());
    let (router, _) = split(reservations::router(state.clone()));
    let router = router.merge(build.alarms(state.alarms()));
    let ready = check(&state, |s| async move { reservations::ready(&s).await });
    build.add(RoleName::Reservations, router, ready);
    Ok(())
}

/// The sandbox takes the keys of the payments role where it has none of its own:
/// both then agree without saying them twice.
async fn add_sandbox(build: &mut Build, webhook: Option<String>) -> Result<(), Failure> {
    let mut config = build.args.stripe_sandbox.clone();
    let payments = &build.args.payments;
    if config.stripe_sandbox_secret_key.is_none() {
        config.stripe_sandbox_secret_key = payments.stripe_secret_key.clone();
    }
    if config.stripe_sandbox_publishable_key.is_none() {
        config.stripe_sandbox_publishable_key = payments.stripe_publishable_key.clone();
    }
    if config.stripe_sandbox_webhook_secret.is_empty() {
        config
            .stripe_sandbox_webhook_secret
            .extend(payments.stripe_webhook_secret.clone());
    }
    if config.stripe_sandbox_webhook_url.is_empty() {
        config.stripe_sandbox_webhook_url.extend(webhook);
    }
    let pool = build
        .pool(stripe_sandbox::SCHEMA, &stripe_sandbox::MIGRATIONS)
        .await?;
    let state = stripe_sandbox::State::new(pool, &config).map_err(Failure::Usage)?;
    stripe_sandbox::tasks(&state, &build.tasks);
    build.sandbox = Some(stripe_sandbox::router(state.clone()));
    let ready = check(&state, |s| async move { stripe_sandbox::ready(&s).await });
    build.checks.push(("stripe-sandbox", ready));
    Ok(())
}

async fn add_queue(build: &mut Build, verifier: &Verifier) -> Result<queue::State, Failure> {
    let redis = build.redis().await?;
    let keys = PlaceKeys::parse(build.args.secrets.places()?.expose())
        .map_err(|e| Failure::Usage(format!("--place-keys: {e}")))?;
    let state = queue::State::new(queue::Deps {
        pool: build.pool(queue::SCHEMA, &queue::MIGRATOR).await?,
        redis,
        prefix: build.args.stores.redis_prefix.clone(),
        keys,
        verifier: verifier.clone(),
        secret: build.internal.clone(),
        performances: build.upstream(RoleName::Performances)?,
        reservations: build.upstream(RoleName::Reservations)?,
        metrics: build.metrics.clone(),
        config: queue::Config {
            hold_ttl: build.args.reservations.hold_ttl,
            ..build.args.queue.clone()
        },
    });
    queue::tasks(&state, &build.tasks);
    build.subscriptions.extend(queue::subscriptions(&state));
    build.watches.push(state.events().clone());
    let (router, _) = split(queue::router(state.clone()));
    let router = router.merge(build.alarms(state.alarms()));
    let ready = check(&state, |s| async move { queue::ready(&s).await });
    build.add(RoleName::Queue, router, ready);
    Ok(state)
}

/// Starts the relays and consumers of this process's roles.
fn start_events(build: &mut Build) -> Result<(), Failure> {
    let outboxes = std::mem::take(&mut build.outboxes);
    let subscriptions = std::mem::take(&mut build.subscriptions);
    if outboxes.is_empty() && subscriptions.is_empty() {
        return Ok(());
    }
    let bus = match &build.args.stores.kafka_brokers {
        Some(brokers) => Bus::Kafka(KafkaConfig {
            prefix: build.args.stores.kafka_prefix.clone(),
            replication: build.args.stores.kafka_replication,
            security: (build.args.stores.kafka_security.clone())
                .complete()
                .map_err(Failure::Usage)?,
            ..KafkaConfig::new(brokers)
        }),
        None if build.args.role == Role::All => Bus::Local,
        None => {
            return Err(Failure::Usage(
                "--kafka-brokers is missing: a role on its own hears the others by Kafka; give it, or set TICKETPING_KAFKA_BROKERS".into(),
            ));
        }
    };
    let figures = bus
        .start(outboxes, subscriptions, &build.tasks, &build.metrics)
        .map_err(Failure::Failed)?;
    for watch in build.watches.drain(..) {
        watch.start(&figures);
    }
    Ok(())
}

type GatewayParts = (Router, Option<Arc<dyn FastPath>>);

fn gateway(
    build: &mut Build,
    verifier: Verifier,
    stats: Arc<HttpStats>,
    fast: Option<Arc<dyn FastPath>>,
) -> Result<GatewayParts, Failure> {
    let upstreams = Upstreams {
        users: build.upstream(RoleName::Users)?,
        performances: build.upstream(RoleName::Performances)?,
        queue: build.upstream(RoleName::Queue)?,
        reservations: build.upstream(RoleName::Reservations)?,
        payments: build.upstream(RoleName::Payments)?,
    };
    let places = build.args.secrets.place_keys.as_ref();
    let places = places
        .map(|keys| PlaceKeys::parse(keys.expose()))
        .transpose()
        .map_err(|e| Failure::Usage(format!("--place-keys: {e}")))?;
    let config = build.args.gateway.clone();
    let document = openapi::document(descriptions());
    let state = gateway::State::new(
        upstreams,
        verifier,
        places,
        stats,
        &document,
        build.tasks.draining(),
    )?;
    let router = gateway::router(state, &config).map_err(Failure::Usage)?;
    let cors = !config.cors_origins.is_empty();
    let fast = fast.map(|inner| Arc::new(Fast::new(inner, cors)) as Arc<dyn FastPath>);
    Ok((finish_gateway(router), fast))
}

/// Bodies are bounded by the roles, each path by its own limit; the gateway's
/// outer bound only has to let the largest of them through.
fn finish_gateway(router: Router) -> Router {
    router.layer(axum::extract::DefaultBodyLimit::max(256 * 1024))
}

/// What the public paths of each role are, whether it runs here or not.
fn descriptions() -> Vec<OpenApi> {
    vec![
        users::routes().into_openapi(),
        performances::routes().into_openapi(),
        queue::routes().into_openapi(),
        reservations::routes().into_openapi(),
        payments::routes().into_openapi(),
    ]
}
