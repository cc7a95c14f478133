//! What happened, in the first line of every report.

use super::report::{Comparison, Report};
use super::table::thousands;

/// A breach, then who finished, then whatever else must not be overlooked.
pub fn of(report: &Report) -> String {
    let buyers = &report.buyers;
    let open = buyers.offered.saturating_sub(buyers.completed);
    let mut words: Vec<String> = breaches(report).into_iter().collect();
    words.push(match (buyers.offered, open) {
        (0, _) => "No buyer arrived.".to_owned(),
        (1, 0) => "The buyer finished.".to_owned(),
        (all, 0) => format!("All {} buyers finished.", thousands(all)),
        (1, _) => "The buyer did not finish.".to_owned(),
        (all, open) => format!(
            "{} of {} buyers did not finish.",
            thousands(open),
            thousands(all)
        ),
    });
    let failed = report.total.failed;
    if failed > 0 {
        let most = report
            .errors
            .iter()
            .find(|error| error.operation != "leave");
        let most = most.map_or(String::new(), |error| {
            format!(", most of them {} {}", error.operation, error.code)
        });
        words.push(format!(
            "{} of {} requests failed{most}.",
            thousands(failed),
            thousands(report.total.offered)
        ));
    }
    match report.ending.as_str() {
        "interrupted" => {
            words.push("The run was interrupted: this is what was done until then.".into())
        }
        "gaveUp" => words.push("The target answered nothing any more, and the run gave up.".into()),
        _ => {}
    }
    words.extend(objectives(report));
    words.extend(report.comparison.as_ref().map(worse));
    words.join(" ")
}

fn breaches(report: &Report) -> Option<String> {
    let checks = report.audit.checks.iter();
    match checks.filter(|check| check.held == Some(false)).count() {
        0 => None,
        1 => Some("The audit found a breach.".to_owned()),
        n => Some(format!("The audit found {n} breaches.")),
    }
}

fn objectives(report: &Report) -> Vec<String> {
    let all = report.objectives.len();
    let of = |held: Option<bool>, what: &str| {
        let count = report.objectives.iter().filter(|one| one.held == held);
        match count.count() {
            0 => None,
            n => Some(format!("{n} of {all} objectives {what}.")),
        }
    };
    [of(Some(false), "missed"), of(None, "not measured")]
        .into_iter()
        .flatten()
        .collect()
}

fn worse(comparison: &Comparison) -> String {
    let bound = comparison.worse_by_percent;
    let figures = comparison.figures.iter().filter(|figure| figure.worse);
    match figures.count() {
        0 => format!("No figure got worse by more than {bound} %."),
        1 => format!("One figure got worse by more than {bound} %."),
        n => format!("{n} figures got worse by more than {bound} %."),
    }
}
