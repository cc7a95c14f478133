//! One run from start to verdict: look, load, audit, report.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwap;
use chrono::Utc;
use tokio::sync::watch;

use super::args::{Args, OutputArgs, Scenario};
use super::engine::{Control, Finished, Setup};
use super::live::Live;
use super::plan::{Load, Stores};
use super::report::{Audit, Report, Sample};
use super::requests::{Endpoint, Requests};
use super::sampler::{Sampler, Samples};
use super::target::Found;
use super::tokens::Tokens;
use super::view::{Screen, Shown};
use super::{audit, build, engine, html, merge, progress, table, target, usage};

/// Plain progress: often enough to follow, seldom enough for a log.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// The figures change once a second; twice that looks alive and costs nothing.
const DRAW_EVERY: Duration = Duration::from_millis(500);

pub async fn load(args: Args, load: Load) -> anyhow::Result<u8> {
    let found = target::find(&args.target).await?;
    let requests = Arc::new(requests(&args, &load, &found)?);
    if !args.output.quiet {
        eprintln!(
            "{}: {} buyers for “{}” at {} ({} waiting, {}/{} working)",
            load.scenario.name(),
            table::thousands(load.arrivals.len()),
            found.target.title,
            found.target.url,
            table::thousands(found.queue.waiting),
            found.queue.working,
            found.queue.max_working,
        );
    }
    wait_for_start(&load, args.output.quiet).await;
    let report = perform(&args, load, found, requests).await?;
    write(&args.output, &report)?;
    Ok(report.exit_code)
}

fn requests(args: &Args, load: &Load, found: &Found) -> anyhow::Result<Requests> {
    let target = &found.target;
    let path = args
        .target
        .tokens
        .clone()
        .unwrap_or_else(|| args.target.data_dir.join("tokens.jsonl"));
    let need = load.members();
    let tokens = Tokens::open(&path, need)?;
    if tokens.len() < need {
        bail!(
            "{need} buyers need as many members, and {} has {}: run `ticketping seed --users {need}`",
            path.display(),
            tokens.len()
        );
    }
    let pays = matches!(load.scenario, Scenario::Surge | Scenario::Checkout);
    if pays && target.stripe_url.is_none() {
        bail!(
            "buyers pay at the Stripe sandbox, and it is not known here: name it by --stripe-url"
        );
    }
    let books = !matches!(load.scenario, Scenario::Enter | Scenario::Poll);
    if books && target.schedules.is_empty() {
        bail!(
            "“{}” has no schedule that can be booked now; --performance names another",
            target.title
        );
    }
    let api = Endpoint::new(&target.url, load.http2)?;
    let stripe = target
        .stripe_url
        .as_ref()
        .map(|url| Endpoint::new(url, load.http2))
        .transpose()?;
    Ok(Requests::new(
        api,
        stripe,
        tokens,
        target.performance,
        load.scenario,
    ))
}

async fn wait_for_start(load: &Load, quiet: bool) {
    let Some(at) = load.start_at else { return };
    let Ok(wait) = (at - Utc::now()).to_std() else {
        return;
    };
    if !quiet {
        eprintln!("waiting {:.1} s for {at}", wait.as_secs_f64());
    }
    tokio::time::sleep(wait).await;
}

/// The load and everything beside it.
async fn perform(
    args: &Args,
    load: Load,
    found: Found,
    requests: Arc<Requests>,
) -> anyhow::Result<Report> {
    let (load, target) = (Arc::new(load), Arc::new(found.target));
    let live = Arc::new(ArcSwap::from_pointee(Live::default()));
    let (control, controlled) = watch::channel(Control::Run);
    let (stop, stopped) = watch::channel(false);
    let (latest, sample) = watch::channel(None);
    let started_at = Utc::now();
    let cpu_before = usage::cpu_seconds();
    let sampler = Sampler {
        target: target.clone(),
        fetch: found.fetch.clone(),
        start: Instant::now(),
        with_seats: load.scenario != Scenario::Enter && load.scenario != Scenario::Poll,
        max_working: found.queue.max_working,
        latest,
    };
    let sampling = tokio::spawn(sampler.run(stopped.clone()));
    let interrupts = tokio::spawn(interrupts(control));
    let shown = show(&args.output, live.clone(), sample, stopped);
    let setup = Setup {
        load: load.clone(),
        target: target.clone(),
        requests: requests.clone(),
        live,
        control: controlled,
        clock_offset_ms: found.clock_offset_ms,
    };
    let finished = generate(setup).await;
    let cpu_seconds = usage::cpu_seconds() - cpu_before;
    stop.send_replace(true);
    let samples = sampling.await.unwrap_or_default();
    if let Some(shown) = shown {
        // The view restores the terminal as it ends.
        let _ = shown.await;
    }
    let finished = finished?;
    let max_working = samples
        .queue
        .iter()
        .map(|s| s.max_working)
        .max()
        .unwrap_or(found.queue.max_working);
    let audited = audited(
        args,
        &finished,
        &samples,
        &requests,
        &found.fetch,
        target.stores.as_ref(),
        max_working,
    )
    .await?;
    interrupts.abort();
    let context = build::Context {
        command: command(),
        load: &load,
        target: &target,
        started_at,
        cpu_seconds,
        peak_memory_bytes: usage::peak_memory_bytes(),
    };
    build::report(&context, &finished, samples, audited)
}

/// The generator has a thread of its own.
async fn generate(setup: Setup) -> anyhow::Result<Finished> {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("loadgen".to_owned())
        .spawn(move || {
            // Nobody listens any more only when the whole command is being dropped.
            let _ = done.send(engine::run(setup));
        })
        .context("cannot start the generator's thread")?;
    result
        .await
        .map_err(|_| anyhow!("the generator broke down"))?
}

async fn audited(
    args: &Args,
    finished: &Finished,
    samples: &Samples,
    requests: &Requests,
    fetch: &super::fetch::Fetch,
    stores: Option<&Stores>,
    max_working: u64,
) -> anyhow::Result<Audit> {
    if args.output.no_audit {
        return Ok(Audit::default());
    }
    let mut audit = audit::by_notes(&finished.notes, samples, max_working)?;
    audit
        .checks
        .push(audit::payments(&finished.notes.paid, requests, fetch).await);
    if let Some(stores) = stores {
        audit.checks.extend(audit::books(stores).await);
    }
    Ok(audit)
}

/// Ctrl-C ends well, Ctrl-C again ends now. SIGTERM is as the first.
async fn interrupts(control: watch::Sender<Control>) {
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    let terminated = async {
        match terminate {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
    control.send_replace(Control::Stop);
    eprintln!("\nending: buyers leave; Ctrl-C again to end at once");
    if tokio::signal::ctrl_c().await.is_ok() {
        control.send_replace(Control::Abort);
    }
}

/// Progress while the load runs.
fn show(
    output: &OutputArgs,
    live: Arc<ArcSwap<Live>>,
    sample: watch::Receiver<Option<Sample>>,
    mut stopped: watch::Receiver<bool>,
) -> Option<tokio::task::JoinHandle<()>> {
    if output.quiet {
        return None;
    }
    let mut screen = if on_terminal(output) {
        Screen::open().ok()
    } else {
        None
    };
    Some(tokio::spawn(async move {
        let every = if screen.is_some() {
            DRAW_EVERY
        } else {
            PROGRESS_EVERY
        };
        let mut ticks = tokio::time::interval(every);
        ticks.tick().await;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = stopped.wait_for(|stopped| *stopped) => break,
            }
            let (live, sample) = (live.load(), sample.borrow().clone());
            match &mut screen {
                Some(screen) => {
                    // A terminal that went away takes the view with it, not the run.
                    let _ = screen.show(&Shown {
                        live: &live,
                        sample: sample.as_ref(),
                    });
                }
                None => eprintln!("{}", progress::line(&live, sample.as_ref())),
            }
        }
        if let Some(screen) = screen {
            screen.close();
        }
    }))
}

/// The exact command, without its environment.
fn command() -> String {
    let quote = |word: String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,%@".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    let mut words = std::env::args();
    let program = words.next().map(|path| {
        Path::new(&path)
            .file_name()
            .map_or(path.clone(), |name| name.to_string_lossy().into_owned())
    });
    program
        .into_iter()
        .chain(words.map(quote))
        .collect::<Vec<_>>()
        .join(" ")
}

/// The table, then the files.
fn write(output: &OutputArgs, report: &Report) -> anyhow::Result<()> {
    let to_stdout = output.json.as_deref() == Some(Path::new("-"));
    if to_stdout {
        eprint!("{}", table::render(report));
        println!("{}", serde_json::to_string(report)?);
    } else {
        print!("{}", table::render(report));
    }
    if let Some(path) = output.json.as_deref().filter(|_| !to_stdout) {
        let json = serde_json::to_vec(report)?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &output.html {
        std::fs::write(path, html::page(report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

pub fn merge_reports(args: &Args) -> anyhow::Result<u8> {
    if args.reports.is_empty() {
        eprintln!("error: name the reports to merge: `ticketping loadgen report a.json b.json`");
        return Ok(2);
    }
    let report = merge::merge(&args.reports, command(), &args.output.expect)?;
    write(&args.output, &report)?;
    Ok(report.exit_code)
}

/// Whether progress may move the cursor.
fn on_terminal(output: &OutputArgs) -> bool {
    !output.plain && std::io::stderr().is_terminal()
}
