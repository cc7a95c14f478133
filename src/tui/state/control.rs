//! What an operator can change, and the dialog that asks for a value, a reason
//! and a yes before anything is sent.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::platform::overview::{QueueRow, Settings};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    Pause,
    Drain,
    MaxWorking,
    AdmissionsPerMinute,
    WorkingTtl,
    ClaimTtl,
    HoldTtl,
    QueueFactor,
    PreQueue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Toggle,
    Count,
    /// A count, or "none".
    Limit,
    Seconds,
    Factor,
    Time,
}

impl Control {
    pub const ALL: [Self; 9] = [
        Self::Pause,
        Self::Drain,
        Self::MaxWorking,
        Self::AdmissionsPerMinute,
        Self::WorkingTtl,
        Self::ClaimTtl,
        Self::HoldTtl,
        Self::QueueFactor,
        Self::PreQueue,
    ];

    /// The field of `PATCH /admin/v1/queues/{performanceId}`.
    pub fn field(self) -> &'static str {
        match self {
            Self::Pause => "paused",
            Self::Drain => "draining",
            Self::MaxWorking => "maxWorking",
            Self::AdmissionsPerMinute => "admissionsPerMinute",
            Self::WorkingTtl => "workingTtlSeconds",
            Self::ClaimTtl => "claimTtlSeconds",
            Self::HoldTtl => "holdTtlSeconds",
            Self::QueueFactor => "queueFactor",
            Self::PreQueue => "preQueueOpensAt",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Pause => "Paused",
            Self::Drain => "Draining",
            Self::MaxWorking => "Max working",
            Self::AdmissionsPerMinute => "Admissions/min",
            Self::WorkingTtl => "Working time",
            Self::ClaimTtl => "Claim window",
            Self::HoldTtl => "Hold time",
            Self::QueueFactor => "Queue factor",
            Self::PreQueue => "Pre-queue opens",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Pause | Self::Drain => Kind::Toggle,
            Self::MaxWorking => Kind::Count,
            Self::AdmissionsPerMinute => Kind::Limit,
            Self::WorkingTtl | Self::ClaimTtl | Self::HoldTtl => Kind::Seconds,
            Self::QueueFactor => Kind::Factor,
            Self::PreQueue => Kind::Time,
        }
    }

    pub fn has_value(self) -> bool {
        self.kind() != Kind::Toggle
    }

    /// What may be typed.
    pub fn hint(self) -> &'static str {
        match self.kind() {
            Kind::Toggle => "",
            Kind::Count => "a whole number, 1 or more",
            Kind::Limit => "a whole number, or none: as fast as places come free",
            Kind::Seconds => "a time such as 90s or 7m",
            Kind::Factor => "waiting people a seat, such as 2; 0: no limit",
            Kind::Time => "as 2026-12-24T18:00:00Z, or none",
        }
    }

    /// What the change does, for the confirmation.
    pub fn effect(self, settings: &Settings) -> &'static str {
        match self {
            Self::Pause if settings.paused => "Admissions go on from the front of the queue.",
            Self::Pause => "Nobody more is admitted until you resume. Those working go on.",
            Self::Drain if settings.draining => "New people may enter again.",
            Self::Drain => "Nobody new may enter. Those waiting and working go on.",
            Self::MaxWorking => "Raising admits at once; lowering waits for people to finish.",
            Self::AdmissionsPerMinute => "Limits how fast people are let in, from now.",
            Self::WorkingTtl => "Holds for people admitted from now.",
            Self::ClaimTtl => "How long an admitted person may take to show up.",
            Self::HoldTtl => "Holds for seats taken from now.",
            Self::QueueFactor => "Refuses newcomers above this many waiting a seat.",
            Self::PreQueue => "Registrations before the opening are drawn by lot.",
        }
    }

    /// How the setting reads now.
    pub fn current(self, settings: &Settings) -> String {
        match self {
            Self::Pause => yes_no(settings.paused),
            Self::Drain => yes_no(settings.draining),
            Self::MaxWorking => settings.max_working.to_string(),
            Self::AdmissionsPerMinute => settings
                .admissions_per_minute
                .map_or("no limit".into(), |rate| rate.to_string()),
            Self::WorkingTtl => seconds(settings.working_ttl_seconds),
            Self::ClaimTtl => seconds(settings.claim_ttl_seconds),
            Self::HoldTtl => seconds(settings.hold_ttl_seconds),
            Self::QueueFactor if settings.queue_factor == 0.0 => "no limit".into(),
            Self::QueueFactor => settings.queue_factor.to_string(),
            Self::PreQueue => settings.pre_queue_opens_at.map_or("none".into(), |at| {
                at.format("%Y-%m-%dT%H:%M:%SZ").to_string()
            }),
        }
    }

    /// Reads what was typed into what is sent.
    pub fn parse(self, typed: &str, settings: &Settings) -> Result<Value, String> {
        let typed = typed.trim();
        if typed == "none" && matches!(self.kind(), Kind::Limit | Kind::Time) {
            return Ok(Value::Null);
        }
        match self.kind() {
            Kind::Toggle => Ok(json!(!match self {
                Self::Drain => settings.draining,
                _ => settings.paused,
            })),
            Kind::Count => match typed.parse::<u32>() {
                Ok(count) if count > 0 => Ok(json!(count)),
                _ => Err(format!("{} is {}", self.name(), self.hint())),
            },
            Kind::Limit => typed
                .parse::<u32>()
                .map(|count| json!(count))
                .map_err(|_| format!("{} is {}", self.name(), self.hint())),
            Kind::Seconds => {
                let time = typed
                    .parse::<u64>()
                    .map(std::time::Duration::from_secs)
                    .ok()
                    .or_else(|| humantime::parse_duration(typed).ok());
                match time {
                    Some(time) if time.as_secs() > 0 => Ok(json!(time.as_secs())),
                    _ => Err(format!("{} is {}", self.name(), self.hint())),
                }
            }
            Kind::Factor => match typed.parse::<f64>() {
                Ok(factor) if factor.is_finite() && factor >= 0.0 => Ok(json!(factor)),
                _ => Err(format!("{} is {}", self.name(), self.hint())),
            },
            Kind::Time => DateTime::parse_from_rfc3339(typed)
                .map(|at| json!(at.with_timezone(&Utc)))
                .map_err(|_| format!("{} is {}", self.name(), self.hint())),
        }
    }
}

fn yes_no(value: bool) -> String {
    if value { "yes".into() } else { "no".into() }
}

fn seconds(seconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Value,
    Reason,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    Form,
    Confirm,
    Sending,
    Done(Result<String, String>),
}

/// The longest reason that is worth reading in the audit.
pub const REASON_MAX: usize = 200;

#[derive(Debug, Clone, PartialEq)]
pub struct Dialog {
    pub control: Control,
    /// The queues that are changed, by title. Never empty.
    pub queues: Vec<(Uuid, String)>,
    /// How they are set: what one of them says, where they differ.
    pub settings: Settings,
    /// Not all are set alike.
    pub mixed: bool,
    pub value: String,
    pub reason: String,
    pub field: Field,
    pub stage: Stage,
    pub error: Option<String>,
}

impl Dialog {
    /// About one queue, or all that are marked. `None` without any.
    pub fn open(control: Control, rows: &[&QueueRow]) -> Option<Self> {
        // Of queues that differ, those are meant that are not paused, or not draining, yet.
        let set = |row: &&&QueueRow| match control {
            Control::Pause => !row.settings.paused,
            Control::Drain => !row.settings.draining,
            _ => true,
        };
        let settings = &rows.iter().find(set).or(rows.first())?.settings;
        let current = control.current(settings);
        Some(Self {
            control,
            queues: (rows.iter())
                .map(|row| (row.performance_id, row.title.clone()))
                .collect(),
            settings: settings.clone(),
            mixed: (rows.iter()).any(|row| control.current(&row.settings) != current),
            value: String::new(),
            reason: String::new(),
            field: if control.has_value() {
                Field::Value
            } else {
                Field::Reason
            },
            stage: Stage::Form,
            error: None,
        })
    }

    /// Whose setting is changed: a title, or how many and which.
    pub fn subject(&self) -> String {
        let titles: Vec<&str> = self
            .queues
            .iter()
            .map(|(_, title)| title.as_str())
            .collect();
        match titles[..] {
            [title] => title.to_owned(),
            _ => format!("{} queues: {}", titles.len(), titles.join(", ")),
        }
    }

    /// How it reads now.
    pub fn current(&self) -> String {
        match self.mixed {
            true => "various".to_owned(),
            false => self.control.current(&self.settings),
        }
    }

    pub fn heading(&self) -> String {
        match self.control {
            Control::Pause if self.settings.paused => "Resume".into(),
            Control::Pause => "Pause".into(),
            Control::Drain if self.settings.draining => "Stop draining".into(),
            Control::Drain => "Drain".into(),
            other => format!("Change {}", other.name().to_lowercase()),
        }
    }

    fn text(&mut self) -> &mut String {
        match self.field {
            Field::Value => &mut self.value,
            Field::Reason => &mut self.reason,
        }
    }

    pub fn type_char(&mut self, c: char) {
        self.error = None;
        if self.text().chars().count() < REASON_MAX {
            self.text().push(c);
        }
    }

    pub fn erase(&mut self) {
        self.text().pop();
    }

    pub fn erase_all(&mut self) {
        self.text().clear();
    }

    pub fn next_field(&mut self) {
        if self.control.has_value() {
            self.field = match self.field {
                Field::Value => Field::Reason,
                Field::Reason => Field::Value,
            };
        }
    }

    /// Enter in the form: the next field, or on to the confirmation once both are sound.
    pub fn accept_form(&mut self) {
        if let Err(error) = self.control.parse(&self.value, &self.settings) {
            self.field = Field::Value;
            self.error = Some(error);
        } else if self.field == Field::Value {
            self.field = Field::Reason;
            self.error = None;
        } else if self.reason.trim().is_empty() {
            self.error = Some("a reason is needed: it is kept with the change".into());
        } else {
            self.error = None;
            self.stage = Stage::Confirm;
        }
    }

    /// The request body, once confirmed.
    pub fn body(&self) -> Result<Value, String> {
        let value = self.control.parse(&self.value, &self.settings)?;
        Ok(json!({ self.control.field(): value, "reason": self.reason.trim() }))
    }

    /// `100 → 200`
    pub fn change(&self) -> String {
        let after = match self.control.parse(&self.value, &self.settings) {
            Ok(Value::Bool(value)) => yes_no(value),
            Ok(Value::Number(number)) if self.control.kind() == Kind::Seconds => {
                seconds(number.as_u64().unwrap_or_default())
            }
            Ok(Value::Number(number))
                if self.control == Control::QueueFactor && number.as_f64() == Some(0.0) =>
            {
                "no limit".into()
            }
            Ok(Value::Null) => "none".into(),
            Ok(Value::String(text)) => text,
            Ok(other) => other.to_string(),
            Err(_) => "?".into(),
        };
        format!("{} → {after}", self.current())
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
