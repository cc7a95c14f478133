//! The report as one page: no network, nothing to install, charts drawn by a few
//! lines of script from the figures inside it.

use anyhow::Context;

use super::report::Report;

const PAGE: &str = include_str!("report.html");
const DATA: &str = "\"__REPORT__\"";

/// The page for a report.
pub fn page(report: &Report) -> anyhow::Result<String> {
    // Histograms and records are for merging; the page does not need them.
    let mut slim = report.clone();
    slim.audit.admission_records.clear();
    slim.audit.sold_seats.clear();
    let json = serde_json::to_string(&slim).context("cannot write the report")?;
    // Inside a script element, `</script>` and `<!--` would end it: JSON may write `<` as an escape instead.
    let json = json
        .replace('<', "\\u003c")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029");
    let (head, tail) = PAGE
        .split_once(DATA)
        .context("the page has no place for its figures")?;
    Ok([head, &json, tail].concat())
}
