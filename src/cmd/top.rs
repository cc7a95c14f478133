//! `ticketping top`: the operator's dashboard, its one-shot forms for scripts,
//! and the capture for the README.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::platform::secret::Secret;
use crate::tui::conn::{Reader, Source};
use crate::tui::theme::Theme;
use crate::tui::{capture, once, run};

/// Watch a sale live, and act on it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Keys: ? lists every key of every screen. NO_COLOR turns colours off.")]
pub struct Args {
    /// The server; without it, the one whose data directory --data-dir names
    #[arg(long, env = "TICKETPING_URL", value_name = "URL")]
    pub url: Option<String>,
    /// An ADMIN access token; without it, <data-dir>/ops-token
    #[arg(
        long,
        env = "TICKETPING_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub token: Option<Secret>,
    /// Where a server on this machine left runtime.json and ops-token
    #[arg(
        long,
        env = "TICKETPING_DATA_DIR",
        value_name = "DIR",
        default_value = "./.ticketping"
    )]
    pub data_dir: PathBuf,
    /// Print a table and end; with --json, one line and end
    #[arg(long, env = "TICKETPING_TOP_ONCE")]
    pub once: bool,
    /// Print one line of JSON an interval
    #[arg(long, env = "TICKETPING_TOP_JSON")]
    pub json: bool,
    /// Time between readings, such as 1s or 500ms
    #[arg(long, env = "TICKETPING_TOP_INTERVAL", value_name = "DURATION", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
    /// Offer no controls
    #[arg(long, env = "TICKETPING_TOP_READ_ONLY")]
    pub read_only: bool,
    /// Draw with ASCII characters alone
    #[arg(long, env = "TICKETPING_TOP_ASCII")]
    pub ascii: bool,
    /// Watch for a while, draw one frame into this file (.svg, else text) and end
    #[arg(long, env = "TICKETPING_TOP_CAPTURE", value_name = "FILE", conflicts_with_all = ["once", "json"])]
    pub capture: Option<PathBuf>,
    /// How long --capture watches first, for the charts
    #[arg(long, env = "TICKETPING_TOP_CAPTURE_FOR", value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub capture_for: Duration,
    /// The frame of --capture, in columns and lines
    #[arg(long, env = "TICKETPING_TOP_CAPTURE_SIZE", value_name = "WxH", default_value = "120x36", value_parser = size)]
    pub capture_size: (u16, u16),
    /// Capture the detail screen of the first queue with these words
    #[arg(long, env = "TICKETPING_TOP_CAPTURE_QUEUE", value_name = "WORDS")]
    pub capture_queue: Option<String>,
}

/// Faster readings would show nothing more and cost the server.
fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if interval < Duration::from_millis(100) {
        Err("at least 100ms".into())
    } else {
        Ok(interval)
    }
}

fn size(text: &str) -> Result<(u16, u16), String> {
    let parsed = text
        .split_once('x')
        .and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    match parsed {
        Some((width @ 1..=1000, height @ 1..=1000)) => Ok((width, height)),
        _ => Err("like 120x36".into()),
    }
}

/// Answers the exit code.
pub async fn run(args: Args) -> anyhow::Result<u8> {
    let source = match args.url {
        Some(url) => Source::Named {
            url,
            token: args.token,
            data_dir: args.data_dir,
        },
        None => Source::Found {
            data_dir: args.data_dir,
            token: args.token,
        },
    };
    let reader = Reader::new(source)?;
    let url = reader.url().to_owned();
    if let Some(file) = args.capture {
        let frame = once::capture(
            reader,
            args.interval,
            args.capture_for,
            args.capture_queue,
            args.capture_size,
        )
        .await
        .with_context(|| format!("reading {url}"))?;
        let svg = file.extension().is_some_and(|extension| extension == "svg");
        let text = if svg {
            capture::svg(&frame)
        } else {
            capture::text(&frame)
        };
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    } else if args.json {
        once::json(reader, args.interval, args.once)
            .await
            .with_context(|| format!("reading {url}"))?;
    } else if args.once {
        once::table(reader)
            .await
            .with_context(|| format!("reading {url}"))?;
    } else {
        use std::io::IsTerminal as _;
        if !std::io::stdout().is_terminal() {
            bail!(
                "top draws on a terminal, and stdout is none: --once prints a table, --json lines of JSON"
            );
        }
        if std::env::var("TERM").is_ok_and(|term| term == "dumb") {
            bail!(
                "top draws anywhere on a terminal, and TERM=dumb is one that only prints: --once prints a table, --json lines of JSON"
            );
        }
        run::run(
            reader,
            args.interval,
            args.read_only,
            Theme::from_env(args.ascii),
        )
        .await?;
    }
    Ok(0)
}
