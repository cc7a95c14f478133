//! Progress as plain lines, for logs and pipes.

use std::time::Duration;

use super::live::Live;
use super::report::Sample;
use super::table::{millis, thousands};

/// One line about this moment.
pub fn line(live: &Live, sample: Option<&Sample>) -> String {
    let per_second = live.rates.last().copied().unwrap_or(0);
    let p99 = live.p99_us.last().copied().unwrap_or(0) as f64 / 1e3;
    let mut line = format!(
        "{} {} of {} came, {} under way · {}/s, p99 {} ms · {} in flight, {} due · {} failed",
        clock(live.elapsed),
        thousands(live.arrived),
        thousands(live.to_arrive),
        thousands(live.under_way),
        thousands(per_second),
        millis(p99),
        live.in_flight,
        live.queued,
        thousands(live.failed),
    );
    if let Some(sample) = sample {
        line.push_str(&format!(
            " · queue {}: {} waiting, {}/{} working",
            sample.phase,
            thousands(sample.waiting),
            sample.working,
            sample.max_working
        ));
    }
    if live.draining {
        line.push_str(" · leaving");
    }
    line
}

/// 01:23
pub fn clock(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    match seconds / 3600 {
        0 => format!("{:02}:{:02}", seconds / 60, seconds % 60),
        hours => format!("{hours}:{:02}:{:02}", seconds / 60 % 60, seconds % 60),
    }
}
