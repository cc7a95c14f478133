//! What the dashboard knows. Pure: events come in, effects go out; no clock, no
//! terminal, no network, so that every state can be made in a test.

pub mod alarms;
pub mod control;
pub mod history;
pub mod recent;
pub mod table;
mod turns;
pub(super) mod update;
mod watch;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use self::alarms::AlarmLog;
use self::control::{Dialog, Stage};
use self::history::Histories;
use self::recent::{AuditLine, Recent};
use self::table::Table;
use self::watch::Watch;
use super::keys::Context;
use crate::platform::overview::{Overview, QueueRow};

/// Something that happened outside.
#[derive(Debug)]
pub enum Event {
    /// The clock; at least once a second while something on the screen counts.
    Tick,
    Key(crossterm::event::KeyEvent),
    Resize,
    Overview {
        overview: Box<Overview>,
        latency: Duration,
    },
    /// The read failed; the next try is at `retry_at`.
    Lost {
        error: String,
        retry_at: DateTime<Utc>,
    },
    /// The server is looked for at this URL from now on.
    Moved(String),
    Audit(Vec<AuditLine>),
    /// The outcome of a change.
    Changed(Result<String, String>),
}

/// Something to do outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Quit,
    Suspend,
    Redraw,
    /// Read now, with the details of this queue from now on.
    Read {
        detail: Option<Uuid>,
    },
    ReadAudit,
    /// Change these queues, by title, one after the other.
    Change {
        queues: Vec<(Uuid, String)>,
        body: Value,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Screen {
    Overview,
    Detail(Uuid),
    Alarms,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Connection {
    /// Nothing has been read yet.
    Connecting,
    Live {
        latency: Duration,
    },
    Lost {
        since: DateTime<Utc>,
        error: String,
        retry_at: DateTime<Utc>,
    },
}

#[derive(Debug)]
pub struct State {
    /// The server, as shown.
    pub source: String,
    pub read_only: bool,
    pub now: DateTime<Utc>,
    pub connection: Connection,
    pub overview: Option<Overview>,
    /// When `overview` came.
    pub read_at: DateTime<Utc>,
    pub histories: Histories,
    pub alarms: AlarmLog,
    pub recent: Recent,
    pub screen: Screen,
    /// Where `Back` goes from the alarms.
    came_from: Screen,
    pub help: bool,
    pub help_scroll: u16,
    pub filtering: bool,
    pub table: Table,
    pub alarm_cursor: usize,
    pub dialog: Option<Dialog>,
    /// A short word that goes by itself.
    pub flash: Option<(DateTime<Utc>, String)>,
    watch: Watch,
}

impl State {
    pub fn new(source: String, read_only: bool, now: DateTime<Utc>) -> Self {
        Self {
            source,
            read_only,
            now,
            connection: Connection::Connecting,
            overview: None,
            read_at: now,
            histories: Histories::default(),
            alarms: AlarmLog::default(),
            recent: Recent::default(),
            screen: Screen::Overview,
            came_from: Screen::Overview,
            help: false,
            help_scroll: 0,
            filtering: false,
            table: Table::default(),
            alarm_cursor: 0,
            dialog: None,
            flash: None,
            watch: Watch::default(),
        }
    }

    /// Where keys go.
    pub fn context(&self) -> Context {
        if let Some(dialog) = &self.dialog {
            return match dialog.stage {
                Stage::Form => Context::Form,
                Stage::Confirm => Context::Confirm,
                Stage::Sending | Stage::Done(_) => Context::Outcome,
            };
        }
        if self.help {
            return Context::Help;
        }
        if self.filtering {
            return Context::Filter;
        }
        match self.screen {
            Screen::Overview => Context::Overview,
            Screen::Detail(_) => Context::Detail,
            Screen::Alarms => Context::Alarms,
        }
    }

    pub fn queues(&self) -> &[QueueRow] {
        self.overview
            .as_ref()
            .map_or(&[], |overview| &overview.queues)
    }

    pub fn queue(&self, performance: Uuid) -> Option<&QueueRow> {
        self.queues()
            .iter()
            .find(|row| row.performance_id == performance)
    }

    pub fn is_live(&self) -> bool {
        matches!(self.connection, Connection::Live { .. })
    }

    /// The queue whose details the server should fill.
    pub fn detail(&self) -> Option<Uuid> {
        match (self.screen, self.came_from) {
            (Screen::Detail(id), _) | (Screen::Alarms, Screen::Detail(id)) => Some(id),
            _ => None,
        }
    }
}

#[cfg(test)]
pub mod fixtures;
#[cfg(test)]
#[path = "update_tests.rs"]
mod tests;
