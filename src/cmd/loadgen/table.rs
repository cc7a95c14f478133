//! The report as tables, for people at a terminal.

use std::fmt::Write;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};

use super::report::{Check, Latency, Report};

/// 12,345,678
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Milliseconds with three telling digits: 0.42, 12.3, 1,234.
pub fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.2}"),
        ms if ms < 1_000.0 => format!("{ms:.1}"),
        ms => thousands(ms.round() as u64),
    }
}

fn right(text: impl ToString) -> Cell {
    Cell::new(text.to_string()).set_alignment(CellAlignment::Right)
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header.to_vec());
    table
}

fn latencies(latency: &Latency) -> Vec<Cell> {
    [
        latency.p50,
        latency.p90,
        latency.p99,
        latency.p999,
        latency.max,
    ]
    .into_iter()
    .map(|ms| right(millis(ms)))
    .collect()
}

fn operations(report: &Report) -> Table {
    let mut table = table(&[
        "operation",
        "offered",
        "completed",
        "refused",
        "failed",
        "unfinished",
        "per s",
        "p50 ms",
        "p90",
        "p99",
        "p99.9",
        "max",
        "service p99",
    ]);
    for (name, op) in &report.operations {
        let counts = [
            op.offered,
            op.completed,
            op.refused,
            op.failed,
            op.unfinished,
        ];
        let mut row = vec![Cell::new(name)];
        row.extend(counts.map(|n| right(thousands(n))));
        row.push(right(format!("{:.1}", op.per_second)));
        row.extend(latencies(&op.latency_ms));
        row.push(right(millis(op.service_ms.p99)));
        table.add_row(row);
    }
    table
}

fn journeys(report: &Report) -> Option<Table> {
    let buyers = &report.buyers;
    let stretches = [
        ("to a place", &buyers.to_place_ms),
        ("to admission", &buyers.to_admission_ms),
        ("to a confirmed order", &buyers.to_confirmed_ms),
    ];
    let mut table = table(&[
        "from arrival",
        "buyers",
        "p50 ms",
        "p90",
        "p99",
        "p99.9",
        "max",
    ]);
    for (name, latency) in stretches
        .into_iter()
        .filter(|(_, latency)| latency.count > 0)
    {
        let mut row = vec![Cell::new(name), right(thousands(latency.count))];
        row.extend(latencies(latency));
        table.add_row(row);
    }
    (!table.is_empty()).then_some(table)
}

/// `held`, in words that need no colour.
pub fn mark(check: &Check) -> &'static str {
    match check.held {
        Some(true) => "held",
        Some(false) => "BREACH",
        None => "not checked",
    }
}

/// The whole report.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    let buyers = &report.buyers;
    let _ = writeln!(
        out,
        "\n{} · {} · {} · {:.1} s · seed {}\nbuyers: {} offered, {} started, {} completed, {} failed, {} unfinished",
        report.scenario,
        report.target.url,
        report.target.title,
        report.measured_seconds,
        report.seed,
        thousands(buyers.offered),
        thousands(buyers.started),
        thousands(buyers.completed),
        thousands(buyers.failed),
        thousands(buyers.unfinished),
    );
    let outcomes: Vec<String> = buyers
        .outcomes
        .iter()
        .map(|(name, count)| format!("{} {name}", thousands(*count)))
        .collect();
    if !outcomes.is_empty() {
        let _ = writeln!(out, "outcomes: {}", outcomes.join(", "));
    }
    let _ = writeln!(out, "{}", operations(report));
    if let Some(journeys) = journeys(report) {
        let _ = writeln!(out, "{journeys}");
    }
    errors(report, &mut out);
    let generator = &report.generator;
    let _ = writeln!(
        out,
        "generator: {:.1} s CPU, {} MB, {} connections opened, {} again; send lag p99 {} ms, max {} ms",
        generator.cpu_seconds,
        generator.peak_memory_bytes >> 20,
        thousands(generator.connects),
        generator.reconnects,
        millis(generator.send_lag_ms.p99),
        millis(generator.send_lag_ms.max),
    );
    if let Some(warning) = &generator.warning {
        let _ = writeln!(out, "WARNING: {warning}");
    }
    verdict(report, &mut out);
    out
}

fn errors(report: &Report, out: &mut String) {
    if !report.errors.is_empty() {
        let mut table = table(&["error in", "code", "count", "first said"]);
        for error in report.errors.iter().take(12) {
            let example: String = error.example.chars().take(90).collect();
            table.add_row(vec![
                Cell::new(&error.operation),
                Cell::new(&error.code),
                right(thousands(error.count)),
                Cell::new(example),
            ]);
        }
        let _ = writeln!(out, "{table}");
    }
    let refusals: Vec<String> = report
        .refusals
        .iter()
        .map(|refusal| {
            format!(
                "{} {} {}",
                refusal.operation,
                refusal.code,
                thousands(refusal.count)
            )
        })
        .collect();
    if !refusals.is_empty() {
        let _ = writeln!(
            out,
            "refused, as the contract says: {}",
            refusals.join(" · ")
        );
    }
}

fn verdict(report: &Report, out: &mut String) {
    if !report.audit.checks.is_empty() {
        let mut table = table(&["audit", "", "found"]);
        for check in &report.audit.checks {
            table.add_row(vec![check.name.as_str(), mark(check), check.found.as_str()]);
        }
        let _ = writeln!(out, "{table}");
    }
    if let Some(tau) = report.audit.kendall_tau {
        let _ = writeln!(
            out,
            "order of admission, as told by polls: Kendall's tau {tau:.4}, {} inversions among {} admitted",
            thousands(report.audit.inversions),
            thousands(report.audit.admissions),
        );
    }
    for objective in &report.objectives {
        let word = if objective.held { "held" } else { "MISSED" };
        let _ = writeln!(
            out,
            "objective {}: {word} ({:.4})",
            objective.objective, objective.actual
        );
    }
    match report.ending.as_str() {
        "interrupted" => out.push_str("interrupted: this is what was done until then\n"),
        "gaveUp" => out.push_str("gave up: the target answered nothing any more\n"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(
            (millis(0.421), millis(12.34), millis(1_234.5)),
            ("0.42".into(), "12.3".into(), "1,235".into())
        );
    }
}
