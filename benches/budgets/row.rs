//! What a budget found: figures, what they are held against, and whether they hold.

use serde::Serialize;
use serde_json::Value;

/// A quantity, measured once or several times.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    pub median: f64,
    pub runs: Vec<f64>,
    pub unit: &'static str,
}

impl Figure {
    pub fn new(unit: &'static str, runs: Vec<f64>) -> Self {
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        Self { median, runs, unit }
    }

    pub fn once(unit: &'static str, value: f64) -> Self {
        Self::new(unit, vec![value])
    }

    /// Half of the distance between the least and the greatest run, in percent of the median.
    fn spread_percent(&self) -> f64 {
        let least = self.runs.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.runs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (most - least) / 2.0 / self.median * 100.0
    }

    pub fn text(&self) -> String {
        let value = format!("{} {}", number(self.median), self.unit);
        if self.runs.len() < 2 || self.median == 0.0 {
            return value;
        }
        format!("{value} ±{:.0}%", self.spread_percent())
    }
}

/// As many digits as mean something.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 4,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
    let mut out = String::new();
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 && c.is_ascii_digit() && !out.ends_with('-') {
            out.push(',');
        }
        out.push(c);
    }
    if rest.is_empty() {
        out
    } else {
        format!("{out}.{rest}")
    }
}

/// What a budget asks.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind", content = "value")]
pub enum Goal {
    /// Of ours divided by the reference.
    RatioAtLeast(f64),
    /// Of ours, in its unit.
    AtMost(f64),
}

/// What ours is held against, in the same run.
#[derive(Clone, Debug, Serialize)]
pub struct Reference {
    pub what: &'static str,
    pub figure: Figure,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The word that ONLY takes.
    pub budget: &'static str,
    pub what: String,
    pub ours: Option<Figure>,
    pub reference: Option<Reference>,
    pub ratio: Option<f64>,
    pub goal: Option<Goal>,
    /// None: not measured.
    pub held: Option<bool>,
    pub note: String,
    /// More of what was seen, to look into a miss.
    pub detail: Value,
}

impl Row {
    fn new(budget: &'static str, what: impl Into<String>) -> Self {
        Self {
            budget,
            what: what.into(),
            ours: None,
            reference: None,
            ratio: None,
            goal: None,
            held: None,
            note: String::new(),
            detail: Value::Null,
        }
    }

    /// `ours` must be at least `at_least` times `figure`.
    pub fn ratio(
        budget: &'static str,
        what: impl Into<String>,
        ours: Figure,
        (reference, figure): (&'static str, Figure),
        at_least: f64,
    ) -> Self {
        let ratio = ours.median / figure.median;
        Self {
            held: Some(ratio >= at_least),
            ratio: Some(ratio),
            ours: Some(ours),
            reference: Some(Reference {
                what: reference,
                figure,
            }),
            goal: Some(Goal::RatioAtLeast(at_least)),
            ..Self::new(budget, what)
        }
    }

    /// `ours` must be at most `at_most`.
    pub fn bound(
        budget: &'static str,
        what: impl Into<String>,
        ours: Figure,
        at_most: f64,
    ) -> Self {
        Self {
            held: Some(ours.median <= at_most),
            ours: Some(ours),
            goal: Some(Goal::AtMost(at_most)),
            ..Self::new(budget, what)
        }
    }

    /// Could not be measured, and why.
    pub fn unmeasured(
        budget: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self {
            note: format!("not measured: {}", why.into()),
            ..Self::new(budget, what)
        }
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    pub fn detail(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }

    /// Missed whatever the figure says: what was measured went wrong.
    pub fn missed_if(mut self, wrong: Option<String>) -> Self {
        if let Some(wrong) = wrong {
            self.held = Some(false);
            self.note = wrong;
        }
        self
    }

    fn goal_text(&self) -> String {
        match (&self.goal, &self.ours) {
            (Some(Goal::RatioAtLeast(least)), _) => format!("≥ {least:.2}"),
            (Some(Goal::AtMost(most)), Some(ours)) => format!("≤ {} {}", number(*most), ours.unit),
            _ => String::new(),
        }
    }

    /// In one line, as soon as it is known.
    pub fn line(&self) -> String {
        let [what, ours, _, ratio, goal, held] = self.cells();
        let what = what.lines().next().unwrap_or_default().to_owned();
        format!("{what}: {ours} {ratio} (goal {goal}): {held}")
    }

    /// The cells of the table.
    pub fn cells(&self) -> [String; 6] {
        let reference = self.reference.as_ref();
        [
            if self.note.is_empty() {
                self.what.clone()
            } else {
                format!("{}\n  {}", self.what, self.note)
            },
            self.ours.as_ref().map(Figure::text).unwrap_or_default(),
            reference.map_or_else(String::new, |r| format!("{}\n{}", r.figure.text(), r.what)),
            self.ratio.map(|r| format!("{r:.2}")).unwrap_or_default(),
            self.goal_text(),
            match self.held {
                Some(true) => "held",
                Some(false) => "MISSED",
                None => "–",
            }
            .to_owned(),
        ]
    }
}
