//! `ticketping loadgen`: simulates the surge of a sale and tells the truth about it.
//!
//! Owns: the schedule of arrivals, the virtual buyers, what was measured, the report and the audit of it.
//! Never: waits for an answer before the next request is due, or counts latency from when it was sent.

pub mod args;
pub mod audit;
pub mod build;
pub mod buyer;
pub mod client;
pub mod compare;
pub mod engine;
pub mod expect;
pub mod fetch;
pub mod headline;
pub mod html;
pub mod journey;
pub mod live;
pub mod merge;
pub mod notes;
pub mod output;
pub mod plan;
pub mod progress;
pub mod report;
pub mod requests;
mod run;
pub mod sampler;
pub mod schedule;
pub mod seatmap;
pub mod stats;
pub mod table;
pub mod target;
pub mod tau;
pub mod tokens;
pub mod usage;
pub mod values;
pub mod view;
pub mod wire;

pub use args::Args;
use args::Scenario;

/// Exit codes: 0 fine, 1 the run failed or an audit found a breach, 2 usage, 3 an objective was missed or a figure got
/// worse than --compare allows, 130 interrupted.
pub async fn run(args: Args) -> anyhow::Result<u8> {
    if args.scenario == Some(Scenario::Report) {
        return run::merge_reports(&args);
    }
    if !args.reports.is_empty() {
        eprintln!(
            "error: only `report` takes files ({})",
            args.reports[0].display()
        );
        return Ok(2);
    }
    match plan::Load::from_args(&args) {
        Ok(load) => run::load(args, load).await,
        Err(usage) => {
            eprintln!("error: {usage}");
            Ok(2)
        }
    }
}
