//! `make bench`: the budgets of this project, measured on this machine, each against what it
//! is held to, in the same run. docs/performance.md says what each row means.
//!
//! The server is always the release binary as a process of its own, on real embedded stores;
//! what it is held against runs the same way. Ratios are of medians of interleaved runs.

mod bare;
mod block;
mod client;
mod confirm;
mod crowd;
mod entry;
mod footprint;
mod machine;
mod memory;
mod orders;
mod overview;
mod people;
mod poll;
mod process;
mod redis_figures;
mod report;
mod restart;
mod row;
mod seats;
mod seed;
mod server;
mod streams;
mod wrk;

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use self::{crowd::Crowd, row::Row};

/// Measures the budgets of design and prints whether they hold.
#[derive(Debug, Parser)]
#[command(name = "budgets")]
struct Args {
    /// These budgets alone, by the words that --list shows
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Fewer and shorter runs: a first look
    #[arg(long)]
    quick: bool,
    /// Also what takes long: a million people, 15 minutes of polls, the cold build
    #[arg(long)]
    full: bool,
    /// The words that --only takes
    #[arg(long)]
    list: bool,
    /// Cargo says so; it changes nothing
    #[arg(long, hide = true)]
    bench: bool,
    /// Used by itself: be a server with one answer
    #[arg(long, hide = true, num_args = 3, value_names = ["KIND", "PATH", "FILE"])]
    constant: Vec<String>,
}

/// What every budget is given.
pub struct Bench {
    /// For the data of servers and the files of loads; removed at the end.
    pub dir: PathBuf,
    pub quick: bool,
    pub full: bool,
    /// How long one run lasts; whole seconds.
    pub run: Duration,
    /// How often runs alternate.
    pub rounds: usize,
    crowd: Option<Crowd>,
}

impl Bench {
    fn new(args: &Args, dir: PathBuf) -> Self {
        let (run, rounds) = if args.quick { (2, 3) } else { (5, 5) };
        Self {
            dir,
            quick: args.quick,
            full: args.full,
            run: Duration::from_secs(run),
            rounds,
            crowd: None,
        }
    }

    /// Tells on stderr what is going on.
    pub fn say(&self, what: &str) {
        eprintln!("  {what}");
    }

    /// Gathers the crowd that several budgets share, unless it is there.
    pub async fn crowd(&mut self) -> Result<()> {
        if self.crowd.is_none() {
            self.crowd = Some(Crowd::gather(self).await?);
        }
        Ok(())
    }

    /// That crowd.
    pub fn gathered(&self) -> Result<&Crowd> {
        self.crowd.as_ref().context("the crowd was gathered")
    }
}

type Rows<'a> = Pin<Box<dyn Future<Output = Result<Vec<Row>>> + 'a>>;

struct Budget {
    word: &'static str,
    /// Uses the crowd of [`Bench::crowd`].
    crowd: bool,
    run: for<'a> fn(&'a mut Bench) -> Rows<'a>,
}

macro_rules! budget {
    ($word:literal, $run:path) => {
        budget!($word, $run, false)
    };
    ($word:literal, $run:path, $crowd:literal) => {
        Budget {
            word: $word,
            crowd: $crowd,
            run: |bench| Box::pin($run(bench)),
        }
    };
}

/// In this order; those of the crowd first, and the one that disperses it last among them.
const BUDGETS: &[Budget] = &[
    budget!("poll", poll::ratios, true),
    budget!("commands", poll::redis_commands, true),
    budget!("memory", memory::run, true),
    budget!("block", block::run, true),
    budget!("entry", entry::run),
    budget!("seats", seats::run),
    budget!("orders", orders::run),
    budget!("confirm", confirm::run),
    budget!("instant", people::instant),
    budget!("streams", streams::run),
    budget!("seed", seed::run),
    budget!("reference", people::reference),
    budget!("restart", restart::run),
    budget!("overview", overview::run),
    budget!("footprint", footprint::run),
    budget!("million", people::million),
    budget!("build", footprint::build),
];

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let outcome = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(start(args)));
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("budgets: {error:#}");
            ExitCode::from(1)
        }
    }
}

async fn start(args: Args) -> Result<u8> {
    if let [kind, path, file] = args.constant.as_slice() {
        bare::serve(kind, path, file).await?;
        return Ok(0);
    }
    if args.list {
        for budget in BUDGETS {
            println!("{}", budget.word);
        }
        return Ok(0);
    }
    for word in &args.only {
        ensure!(
            BUDGETS.iter().any(|b| b.word == word),
            "there is no budget {word}; --list shows them"
        );
    }
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    let dir = home.join(format!("run-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let mut bench = Bench::new(&args, dir.clone());
    let machine = machine::look();
    machine::warn_if_busy();
    let begun = chrono::Utc::now();
    let outcome = tokio::select! {
        rows = measure(&mut bench, &args.only) => Ok(rows),
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    drop(bench);
    server::clean(&dir);
    let (rows, broken) = outcome?;
    let report = report::Report::new(&machine, begun, args.quick, args.full, rows);
    print!("{}", report.table());
    let file = report.write(&home)?;
    println!("{}", file.display());
    Ok(match (broken, report.missed()) {
        (true, _) => 1,
        (false, true) => 3,
        (false, false) => 0,
    })
}

/// The rows of all budgets wanted, and whether one of them broke.
async fn measure(bench: &mut Bench, only: &[String]) -> (Vec<Row>, bool) {
    let (mut rows, mut broken) = (Vec::new(), false);
    let wanted = BUDGETS
        .iter()
        .filter(|b| only.is_empty() || only.iter().any(|o| o == b.word));
    for budget in wanted {
        eprintln!("{}", budget.word);
        if !budget.crowd {
            bench.crowd = None;
        }
        match (budget.run)(bench).await {
            Ok(measured) => {
                for row in &measured {
                    bench.say(&row.line());
                }
                rows.extend(measured);
            }
            Err(error) => {
                broken = true;
                bench.say(&format!("not measured: {error:#}"));
                rows.push(Row::unmeasured(
                    budget.word,
                    budget.word,
                    format!("{error:#}"),
                ));
            }
        }
    }
    (rows, broken)
}
