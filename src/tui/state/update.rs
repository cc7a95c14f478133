//! Events into state.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::control::{Control, Dialog, Stage};
use super::table::Table;
use super::{Connection, Effect, Event, Screen, State};
use crate::platform::overview::Overview;
use crate::tui::keys::{self, Action};

/// Long enough to be read.
const FLASH: TimeDelta = TimeDelta::seconds(4);
const PAGE: isize = 10;
pub(in crate::tui) const HELP_LINES_MAX: isize = 126;

impl State {
    /// Takes an event; answers what is to be done outside.
    pub fn apply(&mut self, now: DateTime<Utc>, event: Event) -> Vec<Effect> {
        self.now = now;
        if self
            .flash
            .as_ref()
            .is_some_and(|(at, _)| now - *at >= FLASH)
        {
            self.flash = None;
        }
        match event {
            Event::Tick | Event::Resize => {
                if let Connection::Lost { .. } = self.connection {
                    self.refresh_alarms(None);
                }
                Vec::new()
            }
            Event::Key(event) => self.key(&event),
            Event::Overview { overview, latency } => {
                self.take_overview(*overview, latency);
                Vec::new()
            }
            Event::Lost { error, retry_at } => {
                let since = match &self.connection {
                    Connection::Lost { since, .. } => *since,
                    Connection::Live { .. } | Connection::Connecting => now,
                };
                self.connection = Connection::Lost {
                    since,
                    error,
                    retry_at,
                };
                self.refresh_alarms(None);
                Vec::new()
            }
            Event::Moved(url) => {
                self.source = url;
                Vec::new()
            }
            Event::Audit(lines) => {
                self.recent.set_audit(lines);
                Vec::new()
            }
            Event::Changed(outcome) => self.changed(outcome),
        }
    }

    fn take_overview(&mut self, overview: Overview, latency: std::time::Duration) {
        if let Some(before) = &self.overview {
            self.recent.compare(self.now, before, &overview);
        }
        self.histories.push(self.now, &overview);
        self.connection = Connection::Live { latency };
        self.read_at = self.now;
        self.refresh_alarms(Some(&overview));
        self.overview = Some(overview);
        if self
            .table
            .selected
            .is_none_or(|id| self.queue(id).is_none())
        {
            // None yet, or gone: the cursor stands on whatever comes first.
            self.table.selected = None;
        }
        // A queue that is gone is marked no more.
        let Self {
            overview, table, ..
        } = self;
        let queues = overview
            .as_ref()
            .map_or(&[][..], |overview| &overview.queues);
        (table.marked).retain(|id| queues.iter().any(|row| row.performance_id == *id));
    }

    /// While the server is lost, only that is known; what stood then may have ended.
    fn refresh_alarms(&mut self, overview: Option<&Overview>) {
        let mut found = overview
            .map(|overview| self.watch.observe(self.now, overview))
            .unwrap_or_default();
        if let Connection::Lost { since, error, .. } = &self.connection {
            found.push(super::watch::lost_server(
                self.now - *since,
                error,
                &self.source,
            ));
        }
        self.alarms.update(self.now, found);
    }

    fn changed(&mut self, outcome: Result<String, String>) -> Vec<Effect> {
        let words = match &outcome {
            Ok(words) => words.clone(),
            Err(error) => format!("not changed: {error}"),
        };
        match &mut self.dialog {
            Some(dialog) if dialog.stage == Stage::Sending => dialog.stage = Stage::Done(outcome),
            _ => self.flash = Some((self.now, words)),
        }
        vec![
            Effect::Read {
                detail: self.detail(),
            },
            Effect::ReadAudit,
        ]
    }

    fn key(&mut self, event: &crossterm::event::KeyEvent) -> Vec<Effect> {
        let context = self.context();
        if let Some(action) = keys::action(context, event) {
            return self.act(action);
        }
        if let Some(c) = keys::text(context, event) {
            match &mut self.dialog {
                Some(dialog) => dialog.type_char(c),
                None => self.table.filter.push(c),
            }
        }
        Vec::new()
    }

    fn act(&mut self, action: Action) -> Vec<Effect> {
        match action {
            Action::Quit => return vec![Effect::Quit],
            Action::Suspend => return vec![Effect::Suspend],
            Action::Redraw => return vec![Effect::Redraw],
            Action::Refresh => {
                return vec![
                    Effect::Read {
                        detail: self.detail(),
                    },
                    Effect::ReadAudit,
                ];
            }
            Action::Help => self.help = !self.help,
            Action::Back => return self.back(),
            Action::Accept => return self.accept(),
            Action::Open => return self.open(),
            Action::Alarms => {
                self.came_from = self.screen;
                self.alarm_cursor = 0;
                self.screen = Screen::Alarms;
            }
            Action::Filter => self.filtering = true,
            Action::SortNext => self.table.sort_next(true),
            Action::SortPrevious => self.table.sort_next(false),
            Action::SortReverse => self.table.descending = !self.table.descending,
            Action::Mark | Action::MarkAll => {
                let queues = (self.overview.as_ref()).map_or(&[][..], |overview| &overview.queues);
                match action {
                    Action::Mark => self.table.mark(queues),
                    _ => self.table.mark_all(queues),
                }
            }
            Action::Up => self.step(-1),
            Action::Down => self.step(1),
            Action::PageUp => self.step(-PAGE),
            Action::PageDown => self.step(PAGE),
            Action::First => self.step(isize::MIN / 2),
            Action::Last => self.step(isize::MAX / 2),
            Action::NextQueue => return self.other_queue(1),
            Action::PreviousQueue => return self.other_queue(-1),
            Action::Control(control) => self.control(control),
            Action::NextField => self.in_dialog(Dialog::next_field),
            Action::Erase if self.dialog.is_some() => self.in_dialog(Dialog::erase),
            Action::EraseAll if self.dialog.is_some() => self.in_dialog(Dialog::erase_all),
            Action::Erase => {
                self.table.filter.pop();
            }
            Action::EraseAll => self.table.filter.clear(),
        }
        Vec::new()
    }

    fn in_dialog(&mut self, act: impl Fn(&mut Dialog)) {
        if let Some(dialog) = &mut self.dialog {
            act(dialog);
        }
    }

    fn step(&mut self, by: isize) {
        if self.help {
            // The view stops at the end of the list; this only bounds what must be undone.
            let line = isize::try_from(self.help_scroll)
                .unwrap_or(0)
                .saturating_add(by);
            self.help_scroll = u16::try_from(line.clamp(0, HELP_LINES_MAX)).unwrap_or(0);
            return;
        }
        if self.screen == Screen::Alarms {
            let last = self.alarms.groups().len().saturating_sub(1);
            self.alarm_cursor = self.alarm_cursor.saturating_add_signed(by).min(last);
            return;
        }
        let queues = self
            .overview
            .as_ref()
            .map_or(&[][..], |overview| &overview.queues);
        self.table.step(queues, by);
    }

    fn back(&mut self) -> Vec<Effect> {
        if let Some(dialog) = &mut self.dialog {
            match dialog.stage {
                Stage::Confirm => dialog.stage = Stage::Form,
                // Sent is sent: closing does not take it back, the outcome comes as a line.
                Stage::Form | Stage::Sending | Stage::Done(_) => self.dialog = None,
            }
        } else if self.help {
            self.help = false;
        } else if self.filtering || self.screen == Screen::Overview {
            if self.table.filter.is_empty() && !self.filtering {
                self.table.marked.clear();
            }
            self.filtering = false;
            self.table.filter.clear();
        } else if self.screen == Screen::Alarms {
            self.screen = self.came_from;
        } else {
            self.screen = Screen::Overview;
            return vec![Effect::Read { detail: None }];
        }
        Vec::new()
    }

    fn accept(&mut self) -> Vec<Effect> {
        self.filtering = false;
        let Some(dialog) = &mut self.dialog else {
            return Vec::new();
        };
        match dialog.stage {
            Stage::Form => dialog.accept_form(),
            Stage::Confirm => match dialog.body() {
                Ok(body) => {
                    dialog.stage = Stage::Sending;
                    return vec![Effect::Change {
                        queues: dialog.queues.clone(),
                        body,
                    }];
                }
                Err(error) => {
                    dialog.stage = Stage::Form;
                    dialog.error = Some(error);
                }
            },
            Stage::Sending | Stage::Done(_) => {}
        }
        Vec::new()
    }

    fn open(&mut self) -> Vec<Effect> {
        let target = match self.screen {
            Screen::Alarms => self
                .alarms
                .groups()
                .get(self.alarm_cursor)
                .and_then(|group| group.newest().performance),
            Screen::Overview | Screen::Detail(_) => self.cursor_queue(&self.table),
        };
        match target {
            Some(id) => self.show(id),
            None => Vec::new(),
        }
    }

    fn cursor_queue(&self, table: &Table) -> Option<Uuid> {
        let rows = table.rows(self.queues());
        table
            .cursor(&rows)
            .map(|cursor| rows[cursor].performance_id)
    }

    fn other_queue(&mut self, by: isize) -> Vec<Effect> {
        self.step(by);
        match self.table.selected {
            Some(id) => self.show(id),
            None => Vec::new(),
        }
    }

    fn show(&mut self, id: Uuid) -> Vec<Effect> {
        self.table.selected = Some(id);
        self.screen = Screen::Detail(id);
        vec![Effect::Read { detail: Some(id) }, Effect::ReadAudit]
    }

    fn control(&mut self, control: Control) {
        if self.read_only {
            self.flash = Some((
                self.now,
                "read-only: started with --read-only, nothing is changed".into(),
            ));
        } else if !self.is_live() {
            self.flash = Some((
                self.now,
                "the server is lost: nothing can be changed".into(),
            ));
        } else {
            let rows = match self.screen {
                Screen::Detail(id) => self.queue(id).into_iter().collect(),
                Screen::Overview => self.table.targets(self.queues()),
                Screen::Alarms => Vec::new(),
            };
            self.dialog = Dialog::open(control, &rows);
        }
    }
}
