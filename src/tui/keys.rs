//! One table of keys. The handler looks an action up in it, the footer and the
//! help screen print it: what is shown is what is done.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::state::control::Control;

/// Where the operator is, as far as keys go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    Overview,
    Detail,
    Alarms,
    Help,
    /// Typing a filter: characters are text.
    Filter,
    /// Typing a new value or a reason: characters are text.
    Form,
    Confirm,
    Outcome,
}

impl Context {
    pub const ALL: [Self; 8] = [
        Self::Overview,
        Self::Detail,
        Self::Alarms,
        Self::Help,
        Self::Filter,
        Self::Form,
        Self::Confirm,
        Self::Outcome,
    ];

    /// Whether a plain character is text rather than a key.
    pub fn takes_text(self) -> bool {
        matches!(self, Self::Filter | Self::Form)
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Overview => "Queues",
            Self::Detail => "One queue",
            Self::Alarms => "Alarms",
            Self::Help => "Help",
            Self::Filter => "Typing a filter",
            Self::Form => "Changing a setting",
            Self::Confirm => "Confirming",
            Self::Outcome => "After a change",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Quit,
    Suspend,
    Help,
    Back,
    Refresh,
    Redraw,
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    Open,
    Alarms,
    Filter,
    SortNext,
    SortPrevious,
    SortReverse,
    Mark,
    MarkAll,
    NextQueue,
    PreviousQueue,
    Control(Control),
    Accept,
    NextField,
    Erase,
    EraseAll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chord {
    pub code: KeyCode,
    pub ctrl: bool,
}

const fn key(code: KeyCode) -> Chord {
    Chord { code, ctrl: false }
}

const fn char(c: char) -> Chord {
    key(KeyCode::Char(c))
}

const fn ctrl(c: char) -> Chord {
    Chord {
        code: KeyCode::Char(c),
        ctrl: true,
    }
}

impl Chord {
    pub fn label(self) -> String {
        match self.code {
            KeyCode::Up => "↑".into(),
            KeyCode::Down => "↓".into(),
            KeyCode::Left => "←".into(),
            KeyCode::Right => "→".into(),
            KeyCode::Enter => "Enter".into(),
            KeyCode::Esc => "Esc".into(),
            KeyCode::Tab => "Tab".into(),
            KeyCode::Backspace => "Bksp".into(),
            KeyCode::PageUp => "PgUp".into(),
            KeyCode::PageDown => "PgDn".into(),
            KeyCode::Home => "Home".into(),
            KeyCode::End => "End".into(),
            KeyCode::Char(' ') => "Space".into(),
            KeyCode::Char(c) if self.ctrl => format!("^{}", c.to_ascii_uppercase()),
            KeyCode::Char(c) => c.to_string(),
            other => format!("{other:?}"),
        }
    }

    fn matches(self, event: &KeyEvent) -> bool {
        let held = event.modifiers - KeyModifiers::SHIFT;
        let wanted = if self.ctrl {
            KeyModifiers::CONTROL
        } else {
            KeyModifiers::NONE
        };
        held == wanted && self.code == event.code
    }
}

/// A row of the table.
#[derive(Debug)]
pub struct Binding {
    pub contexts: &'static [Context],
    pub chords: &'static [Chord],
    pub action: Action,
    /// The word beside the key in the footer; without one it stands in the help alone.
    pub footer: Option<&'static str>,
    pub help: &'static str,
}

impl Binding {
    /// A control changes the sale: not offered read-only.
    pub fn changes_something(&self) -> bool {
        matches!(self.action, Action::Control(_))
    }

    pub fn label(&self) -> String {
        self.chords
            .iter()
            .map(|chord| chord.label())
            .collect::<Vec<_>>()
            .join(" ")
    }
}

use Context::{Alarms, Confirm, Detail, Filter, Form, Help, Outcome, Overview};

const EVERYWHERE: &[Context] = &Context::ALL;
const SCREENS: &[Context] = &[Overview, Detail, Alarms];
const LISTS: &[Context] = &[Overview, Alarms, Help];

macro_rules! bind {
    ($contexts:expr, [$($chord:expr),+], $action:expr, $footer:expr, $help:expr) => {
        Binding { contexts: $contexts, chords: &[$($chord),+], action: $action, footer: $footer, help: $help }
    };
}

/// Footer order is table order: what matters most stands first, since a narrow
/// footer is cut at the right.
#[rustfmt::skip] // A table is read by rows.
pub const BINDINGS: &[Binding] = &[
    bind!(&[Overview], [key(KeyCode::Enter), key(KeyCode::Right)], Action::Open, Some("open"), "Open the chosen queue"),
    bind!(&[Overview], [char('/')], Action::Filter, Some("filter"), "Show only queues with these words; id:0193 looks for an id"),
    bind!(&[Overview], [char('s'), char('>')], Action::SortNext, Some("sort"), "Sort by the next column"),
    bind!(&[Overview], [char('<')], Action::SortPrevious, None, "Sort by the previous column"),
    bind!(&[Overview], [char('R')], Action::SortReverse, None, "Turn the order around"),
    bind!(&[Overview], [char(' ')], Action::Mark, Some("mark"), "Mark a queue, or not: a change is then for all that are marked"),
    bind!(&[Overview], [char('*')], Action::MarkAll, None, "Mark all that are shown (filter first), or none of them"),
    bind!(&[Overview], [char('p')], Action::Control(Control::Pause), None, "Pause or resume the queues that are marked, or the chosen one"),
    bind!(&[Overview], [char('m')], Action::Control(Control::MaxWorking), None, "Change how many may book at once, likewise"),
    bind!(&[Overview], [char('a')], Action::Control(Control::AdmissionsPerMinute), None, "Change the admissions a minute, likewise"),
    bind!(&[Overview], [char('d')], Action::Control(Control::Drain), None, "Drain, or open again, likewise"),
    bind!(&[Detail], [char('p')], Action::Control(Control::Pause), Some("pause"), "Pause, or resume: nobody is admitted while paused"),
    bind!(&[Detail], [char('m')], Action::Control(Control::MaxWorking), Some("limit"), "Change how many may book at once (maxWorking)"),
    bind!(&[Detail], [char('a')], Action::Control(Control::AdmissionsPerMinute), Some("rate"), "Change the admissions a minute"),
    bind!(&[Detail], [char('d')], Action::Control(Control::Drain), Some("drain"), "Drain, or open again: nobody enters while draining, those inside go on"),
    bind!(&[Detail], [char('w')], Action::Control(Control::WorkingTtl), Some("work"), "Change the working time"),
    bind!(&[Detail], [char('c')], Action::Control(Control::ClaimTtl), Some("claim"), "Change the claim window"),
    bind!(&[Detail], [char('t')], Action::Control(Control::HoldTtl), Some("hold"), "Change the hold time"),
    bind!(&[Detail], [char('f')], Action::Control(Control::QueueFactor), Some("factor"), "Change how many may wait for each seat not sold"),
    bind!(&[Detail], [char('o')], Action::Control(Control::PreQueue), None, "Change when the pre-queue opens"),
    bind!(&[Detail], [char('n'), key(KeyCode::Down)], Action::NextQueue, None, "Next queue of the table"),
    bind!(&[Detail], [char('N'), key(KeyCode::Up)], Action::PreviousQueue, None, "Previous queue of the table"),
    bind!(&[Alarms], [key(KeyCode::Enter), key(KeyCode::Right)], Action::Open, Some("open"), "Open the queue of the chosen alarm"),
    bind!(LISTS, [key(KeyCode::Up), char('k')], Action::Up, None, "Up"),
    bind!(LISTS, [key(KeyCode::Down), char('j')], Action::Down, None, "Down"),
    bind!(LISTS, [key(KeyCode::PageUp), ctrl('b')], Action::PageUp, None, "Ten up"),
    bind!(LISTS, [key(KeyCode::PageDown), ctrl('f')], Action::PageDown, None, "Ten down"),
    bind!(LISTS, [key(KeyCode::Home), char('g')], Action::First, None, "First"),
    bind!(LISTS, [key(KeyCode::End), char('G')], Action::Last, None, "Last"),
    bind!(&[Filter], [key(KeyCode::Enter)], Action::Accept, Some("keep"), "Keep the filter"),
    bind!(&[Filter], [key(KeyCode::Esc)], Action::Back, Some("clear"), "Clear the filter"),
    bind!(&[Filter, Form], [key(KeyCode::Backspace), ctrl('h')], Action::Erase, None, "Erase a character"),
    bind!(&[Filter, Form], [ctrl('u')], Action::EraseAll, Some("erase"), "Erase the field"),
    bind!(&[Form], [key(KeyCode::Enter)], Action::Accept, Some("next"), "Next field, then confirm"),
    bind!(&[Form], [key(KeyCode::Tab), key(KeyCode::Down), key(KeyCode::Up)], Action::NextField, Some("field"), "Other field"),
    bind!(&[Form], [key(KeyCode::Esc)], Action::Back, Some("cancel"), "Cancel: nothing is changed"),
    bind!(&[Confirm], [char('y')], Action::Accept, Some("yes, do it"), "Do it"),
    bind!(&[Confirm], [char('n'), key(KeyCode::Esc)], Action::Back, Some("no"), "Back to the form: nothing is changed"),
    bind!(&[Outcome], [key(KeyCode::Enter), key(KeyCode::Esc)], Action::Back, Some("close"), "Close"),
    bind!(&[Overview, Detail], [char('l')], Action::Alarms, Some("alarms"), "The log of alarms, each with what to look at"),
    bind!(SCREENS, [char('r')], Action::Refresh, Some("refresh"), "Read again now; when the server is lost, try again now"),
    bind!(&[Detail, Alarms, Help], [key(KeyCode::Esc), key(KeyCode::Left)], Action::Back, Some("back"), "Back"),
    bind!(&[Overview], [key(KeyCode::Esc)], Action::Back, None, "Clear the filter, then the marks"),
    bind!(&[Overview, Detail, Alarms, Help], [char('?')], Action::Help, Some("help"), "This list"),
    bind!(&[Overview, Detail, Alarms, Help], [char('q')], Action::Quit, Some("quit"), "Quit"),
    bind!(EVERYWHERE, [ctrl('c')], Action::Quit, None, "Quit from anywhere"),
    bind!(EVERYWHERE, [ctrl('z')], Action::Suspend, None, "Suspend; fg returns"),
    bind!(EVERYWHERE, [ctrl('l')], Action::Redraw, None, "Draw the screen anew"),
];

/// What a key means here.
pub fn action(context: Context, event: &KeyEvent) -> Option<Action> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    BINDINGS
        .iter()
        .find(|binding| {
            binding.contexts.contains(&context)
                && binding.chords.iter().any(|chord| chord.matches(event))
        })
        .map(|binding| binding.action)
}

/// The character that a key types, where characters are text.
pub fn text(context: Context, event: &KeyEvent) -> Option<char> {
    let plain = (event.modifiers - KeyModifiers::SHIFT).is_empty();
    match event.code {
        KeyCode::Char(c)
            if context.takes_text() && plain && event.kind != KeyEventKind::Release =>
        {
            Some(c)
        }
        _ => None,
    }
}

/// The rows of one context, in table order.
pub fn of(context: Context) -> impl Iterator<Item = &'static Binding> {
    BINDINGS
        .iter()
        .filter(move |binding| binding.contexts.contains(&context))
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
