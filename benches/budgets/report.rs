//! The table and the JSON file.

use std::path::{Path, PathBuf};

use anyhow::Result;
use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;

use super::{machine::Machine, row::Row};

/// Everything that a run found; docs/performance.md describes it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report<'a> {
    schema: &'static str,
    started_at: String,
    ended_at: String,
    command: String,
    quick: bool,
    full: bool,
    machine: &'a Machine,
    rows: Vec<Row>,
}

impl<'a> Report<'a> {
    pub fn new(
        machine: &'a Machine,
        begun: DateTime<Utc>,
        quick: bool,
        full: bool,
        rows: Vec<Row>,
    ) -> Self {
        let time = |t: DateTime<Utc>| t.to_rfc3339_opts(SecondsFormat::Secs, true);
        Self {
            schema: "ticketping.bench/1",
            started_at: time(begun),
            ended_at: time(Utc::now()),
            command: std::env::args().collect::<Vec<_>>().join(" "),
            quick,
            full,
            machine,
            rows,
        }
    }

    pub fn missed(&self) -> bool {
        self.rows.iter().any(|row| row.held == Some(false))
    }

    pub fn table(&self) -> String {
        let mut table = Table::new();
        table
            .load_style(UTF8_FULL_CONDENSED)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_header(["what", "ours", "reference", "ratio", "goal", ""]);
        if !table.is_tty() {
            table.set_width(150);
        }
        for row in &self.rows {
            table.add_row(row.cells());
        }
        let m = self.machine;
        let dirty = if m.dirty { ", changed" } else { "" };
        let quick = if self.quick { "; a quick run" } else { "" };
        format!(
            "\n{table}\n{} cores of {}, {:.0} GB, {}; {}; {}; commit {}{dirty}; load {} before{quick}\n",
            m.cores,
            m.cpu,
            m.memory_bytes as f64 / 1e9,
            m.kernel,
            m.redis.split(" sha").next().unwrap_or_default(),
            m.postgres,
            m.commit,
            m.load_before,
        )
    }

    /// Writes `<home>/<time>.json`.
    pub fn write(&self, home: &Path) -> Result<PathBuf> {
        let file = home.join(format!("{}.json", self.started_at.replace(':', "")));
        std::fs::write(&file, serde_json::to_vec_pretty(self)?)?;
        Ok(file)
    }
}
