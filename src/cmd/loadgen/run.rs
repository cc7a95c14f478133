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
use super::audit::Asking;
use super::build::INTERRUPTED;
use super::compare::Baseline;
use super::engine::{Control, Ending, Finished, Setup};
use super::live::Live;
use super::output::{Outputs, say};
use super::plan::Load;
use super::report::{Audit, Report, Sample};
use super::requests::{Endpoint, Requests};
use super::sampler::{Sampler, Samples};
use super::target::Found;
use super::tokens::Tokens;
use super::view::{Screen, Shown};
use super::{audit, build, engine, merge, progress, table, target, usage};

/// Plain progress: often enough to follow, seldom enough for a log.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// The figures change once a second; twice that looks alive and costs nothing.
const DRAW_EVERY: Duration = Duration::from_millis(500);
/// A last look at Redis takes a moment; one that is frozen never answers.
const SAMPLES_WITHIN: Duration = Duration::from_secs(10);

pub async fn load(args: Args, load: Load) -> anyhow::Result<u8> {
    let baseline = Baseline::of(&args.output, load.scenario.name())?;
    let outputs = Outputs::open(&args.output)?;
    let (found, requests) = tokio::select! {
        prepared = prepare(&args, &load) => prepared?,
        () = signalled() => {
            say("ended before it began");
            return Ok(INTERRUPTED);
        }
    };
    let report = perform(&args, load, found, requests).await?;
    conclude(report, baseline, outputs)
}

/// Looks at the target and at the members, and waits for the start.
async fn prepare(args: &Args, load: &Load) -> anyhow::Result<(Found, Arc<Requests>)> {
    let found = target::find(&args.target).await?;
    let requests = Arc::new(requests(args, load, &found)?);
    if !args.output.quiet {
        say(&format!(
            "{}: {} buyers for “{}” at {} ({} waiting, {}/{} working)",
            load.scenario.name(),
            table::thousands(load.arrivals.len()),
            found.target.title,
            found.target.url,
            table::thousands(found.queue.waiting),
            found.queue.working,
            found.queue.max_working,
        ));
    }
    wait_for_start(load, args.output.quiet).await;
    Ok((found, requests))
}

/// Resolves at the first signal; never where none can be heard.
async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Compares, writes, and gives the exit code. The table has said what failed before a file that could not be written.
fn conclude(
    mut report: Report,
    baseline: Option<Baseline>,
    outputs: Outputs,
) -> anyhow::Result<u8> {
    if let Some(baseline) = baseline {
        baseline.judge(&mut report);
    }
    outputs.write(&report)?;
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
        say(&format!("waiting {:.1} s for {at}", wait.as_secs_f64()));
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
    let mut sampling = tokio::spawn(sampler.run(stopped.clone()));
    let interrupts = tokio::spawn(interrupts(control));
    let shown = show(&args.output, live.clone(), sample, stopped);
    let setup = Setup {
        load: load.clone(),
        target: target.clone(),
        requests: requests.clone(),
        live,
        control: controlled.clone(),
        clock_offset_ms: found.clock_offset_ms,
    };
    let finished = generate(setup).await;
    let cpu_seconds = usage::cpu_seconds() - cpu_before;
    stop.send_replace(true);
    // Its last look is bounded; a store that holds it up for longer takes the samples with it, not the report.
    let samples = match tokio::time::timeout(SAMPLES_WITHIN, &mut sampling).await {
        Ok(samples) => samples.unwrap_or_default(),
        Err(_) => Samples::default(),
    };
    if let Some(shown) = shown {
        // The view restores the terminal as it ends.
        let _ = shown.await;
    }
    let mut finished = finished?;
    let max_working = samples
        .queue
        .iter()
        .map(|s| s.max_working)
        .max()
        .unwrap_or(found.queue.max_working);
    let mut audit = Audit::default();
    if !args.output.no_audit {
        audit = audit::by_notes(&finished.notes, &samples, max_working)?;
        let mut asking = Asking {
            requests: &requests,
            fetch: &found.fetch,
            control: controlled,
        };
        let stores = target.stores.as_ref();
        let (checks, ended) = asking.checks(&finished.notes.paid, stores).await;
        audit.checks.extend(checks);
        if ended {
            finished.ending = Ending::Interrupted;
        }
    }
    interrupts.abort();
    let context = build::Context {
        command: command(),
        load: &load,
        target: &target,
        started_at,
        cpu_seconds,
        peak_memory_bytes: usage::peak_memory_bytes(),
    };
    build::report(&context, &finished, samples, audit)
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

/// The first signal ends well, the second at once and with a report, the third without.
async fn interrupts(control: watch::Sender<Control>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        say("cannot listen for signals: Ctrl-C ends without a report");
        return std::future::pending().await;
    };
    for (next, words) in [
        (
            Control::Stop,
            "\nending: buyers leave; Ctrl-C again to end at once",
        ),
        (Control::Abort, "\nending at once: the report follows"),
    ] {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        control.send_replace(next);
        say(words);
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    std::process::exit(INTERRUPTED.into());
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
                None => say(&progress::line(&live, sample.as_ref())),
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

pub fn merge_reports(args: &Args) -> anyhow::Result<u8> {
    if args.reports.is_empty() {
        say("error: name the reports to merge: `ticketping loadgen report a.json b.json`");
        return Ok(2);
    }
    let report = merge::merge(&args.reports, command(), &args.output.expect)?;
    let baseline = Baseline::of(&args.output, &report.scenario)?;
    conclude(report, baseline, Outputs::open(&args.output)?)
}

/// Whether progress may move the cursor.
fn on_terminal(output: &OutputArgs) -> bool {
    !output.plain && std::io::stderr().is_terminal()
}
