//! The report as tables, for people at a terminal.

use std::fmt::Write;
use std::io::IsTerminal;

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Table};
use ratatui::text::Span;

use super::report::{Check, Latency, Operation, Report};
use super::stats::Op;

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

/// What a terminal or `COLUMNS` says; a pipe has room for any table, and people read it at this width.
const WIDTH_DEFAULT: u16 = 120;
/// Narrower, tables cannot be told apart from noise.
const WIDTH_MIN: u16 = 60;

/// How wide the report may be.
pub fn width() -> u16 {
    let columns = std::env::var("COLUMNS")
        .ok()
        .and_then(|text| text.parse().ok());
    let width = if std::io::stdout().is_terminal() {
        crossterm::terminal::size().ok().map(|(columns, _)| columns)
    } else {
        columns
    };
    width.unwrap_or(WIDTH_DEFAULT).max(WIDTH_MIN)
}

/// Columns as wide as what is in them, two blanks between.
fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    let cells = header.iter().enumerate().map(|(at, title)| match at {
        0 => Cell::new(title),
        _ => right(title),
    });
    table.set_header(cells.collect::<Vec<_>>());
    table
}

/// The last columns are sentences that wrap between words; the first ones are whole.
fn sentences(header: &[&str], whole: usize, width: u16) -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(width)
        .set_header(header.to_vec());
    for at in 0..whole {
        if let Some(column) = table.column_mut(at) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table
}

/// Nothing trails a line.
fn lines(table: &Table) -> String {
    table
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

fn latencies(latency: &Latency) -> Vec<String> {
    let all = [
        latency.p50,
        latency.p90,
        latency.p99,
        latency.p999,
        latency.max,
    ];
    if latency.count == 0 {
        return vec!["-".to_owned(); all.len()];
    }
    all.into_iter().map(millis).collect()
}

const COUNTS: [&str; 6] = [
    "offered",
    "completed",
    "refused",
    "failed",
    "unfinished",
    "per s",
];
const LATENCIES: [&str; 5] = ["p50 ms", "p90", "p99", "p99.9", "max"];

/// In the order of the journey; side by side where there is room, else counts over latencies.
fn operations(report: &Report, width: u16) -> String {
    let in_order = || {
        let all = Op::ALL.into_iter().map(Op::name);
        all.filter_map(|name| report.operations.get(name).map(|op| (name, op)))
    };
    let counts = |op: &Operation| {
        let counts = [
            op.offered,
            op.completed,
            op.refused,
            op.failed,
            op.unfinished,
        ];
        let mut row: Vec<String> = counts.map(thousands).into();
        row.push(format!("{:.1}", op.per_second));
        row
    };
    let times = |op: &Operation| {
        let mut row = latencies(&op.latency_ms);
        row.push(match op.service_ms.count {
            0 => "-".to_owned(),
            _ => millis(op.service_ms.p99),
        });
        row
    };
    let of = |header: Vec<&str>, cells: &dyn Fn(&Operation) -> Vec<String>| {
        let mut table = plain(&header);
        for (name, op) in in_order() {
            let cells = cells(op).into_iter().map(right);
            table.add_row(
                std::iter::once(Cell::new(name))
                    .chain(cells)
                    .collect::<Vec<_>>(),
            );
        }
        lines(&table)
    };
    let service = ["service p99"];
    let one = of(
        [&["operation"][..], &COUNTS, &LATENCIES, &service].concat(),
        &|op| [counts(op), times(op)].concat(),
    );
    if one
        .lines()
        .all(|line| line.chars().count() <= usize::from(width))
    {
        return one;
    }
    of([&["operation"][..], &COUNTS].concat(), &counts)
        + "\n"
        + &of([&["operation"][..], &LATENCIES, &service].concat(), &times)
}

fn journeys(report: &Report) -> Option<String> {
    let buyers = &report.buyers;
    let stretches = [
        ("to a place", &buyers.to_place_ms),
        ("to admission", &buyers.to_admission_ms),
        ("to a confirmed order", &buyers.to_confirmed_ms),
    ];
    let mut table = plain(&[&["from arrival", "buyers"][..], &LATENCIES].concat());
    for (name, latency) in stretches
        .into_iter()
        .filter(|(_, latency)| latency.count > 0)
    {
        let mut row = vec![Cell::new(name), right(thousands(latency.count))];
        row.extend(latencies(latency).into_iter().map(right));
        table.add_row(row);
    }
    (!table.is_empty()).then(|| lines(&table))
}

/// `held`, in words that need no colour.
pub fn mark(check: &Check) -> &'static str {
    match check.held {
        Some(true) => "held",
        Some(false) => "BREACH",
        None => "not checked",
    }
}

/// `noSeats` as `no seats`.
pub fn spaced(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            out.push(' ');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// The whole report, no line longer than `width` but for names that cannot be broken.
pub fn render(report: &Report, width: u16) -> String {
    let wide = usize::from(width);
    let mut out = String::from("\n");
    paragraph(&mut out, &report.headline, wide);
    let buyers = &report.buyers;
    let shards = match report.shards.as_slice() {
        [] => String::new(),
        [one] if one == "1/1" => String::new(),
        shards => format!(" · shards {}", shards.join(", ")),
    };
    let what = format!(
        "{} · {} · {} · {:.1} s · seed {}{shards}",
        report.scenario,
        report.target.url,
        report.target.title,
        report.measured_seconds,
        report.seed,
    );
    paragraph(&mut out, &what, wide);
    let outcomes: Vec<String> = buyers
        .outcomes
        .iter()
        .map(|(name, count)| format!("{} {}", thousands(*count), spaced(name)))
        .collect();
    let who = format!(
        "buyers: {} offered, {} started, {} failed, {} unfinished{}{}",
        thousands(buyers.offered),
        thousands(buyers.started),
        thousands(buyers.failed),
        thousands(buyers.unfinished),
        if outcomes.is_empty() { "" } else { "; ended: " },
        outcomes.join(", "),
    );
    paragraph(&mut out, &who, wide);
    let _ = write!(out, "\n{}", operations(report, width));
    if let Some(journeys) = journeys(report) {
        let _ = write!(out, "\n{journeys}");
    }
    out.push('\n');
    errors(report, &mut out, width);
    let generator = &report.generator;
    let itself = format!(
        "generator: {:.1} s CPU, {} MB, {} connections opened, {} again; send lag p99 {} ms, max {} ms",
        generator.cpu_seconds,
        generator.peak_memory_bytes >> 20,
        thousands(generator.connects),
        generator.reconnects,
        millis(generator.send_lag_ms.p99),
        millis(generator.send_lag_ms.max),
    );
    paragraph(&mut out, &itself, wide);
    if let Some(warning) = &generator.warning {
        paragraph(&mut out, &format!("WARNING: {warning}"), wide);
    }
    verdict(report, &mut out, width);
    out
}

/// Wraps between words.
fn paragraph(out: &mut String, text: &str, width: usize) {
    let mut used = 0;
    for word in text.split(' ') {
        let length = Span::raw(word).width();
        if used > 0 && used + 1 + length > width {
            out.push('\n');
            used = 0;
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += length;
    }
    out.push('\n');
}

fn errors(report: &Report, out: &mut String, width: u16) {
    if !report.errors.is_empty() {
        let mut table = sentences(&["error in", "code", "count", "first said"], 3, width);
        for error in report.errors.iter().take(12) {
            let example: String = error.example.chars().take(200).collect();
            table.add_row(vec![
                Cell::new(&error.operation),
                Cell::new(&error.code),
                right(thousands(error.count)),
                Cell::new(example),
            ]);
        }
        let _ = writeln!(out, "{}", lines(&table));
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
        let words = format!("refused, as the contract says: {}", refusals.join(" · "));
        paragraph(out, &words, width.into());
    }
}

fn verdict(report: &Report, out: &mut String, width: u16) {
    if !report.audit.checks.is_empty() {
        let mut table = sentences(&["audit", "what must hold", "found"], 1, width);
        // What needs a look comes first.
        let mut checks: Vec<&Check> = report.audit.checks.iter().collect();
        checks.sort_by_key(|check| check.held.map_or(1, |held| if held { 2 } else { 0 }));
        for check in checks {
            let claim = if check.claim.is_empty() {
                check.name.as_str()
            } else {
                check.claim.as_str()
            };
            table.add_row(vec![mark(check), claim, check.found.as_str()]);
        }
        let _ = writeln!(out, "\n{}", lines(&table));
    }
    if let Some(tau) = report.audit.kendall_tau {
        let order = format!(
            "order of admission, as told by polls: Kendall's tau {tau:.4}, {} inversions among {} admitted",
            thousands(report.audit.inversions),
            thousands(report.audit.admissions),
        );
        paragraph(out, &order, width.into());
    }
    for objective in &report.objectives {
        let word = match objective.held {
            Some(true) => "held",
            Some(false) => "MISSED",
            None => "NOT MEASURED",
        };
        let _ = writeln!(
            out,
            "objective {}: {word} ({})",
            objective.objective, objective.found
        );
    }
    if let Some(comparison) = &report.comparison {
        let since = format!(
            "compared with the run of {}:",
            comparison.started_at.format("%Y-%m-%d %H:%M:%S UTC")
        );
        paragraph(out, &since, width.into());
        for figure in comparison.figures.iter().filter(|figure| figure.worse) {
            let _ = writeln!(out, "  worse: {}", figure.text());
        }
        if !comparison.figures.iter().any(|figure| figure.worse) {
            let _ = writeln!(
                out,
                "  no figure got worse by more than {} %",
                comparison.worse_by_percent
            );
        }
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
