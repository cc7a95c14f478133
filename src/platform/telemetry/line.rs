//! How one log line looks.

use std::fmt::Write as _;

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value};
use tracing::{
    Level,
    field::{Field, Visit},
};

use super::LogFormat;

/// No line is longer; what is above is cut off.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// Fields of an event or a span, in the order of their writing.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields(pub(super) Vec<(&'static str, Value)>);

impl Fields {
    /// The newest value of `name`, as text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().rev().find(|(key, _)| *key == name);
        found.and_then(|(_, value)| value.as_str())
    }

    fn put(&mut self, field: &Field, value: Value) {
        let name = field.name();
        match self.0.iter_mut().find(|(key, _)| *key == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

/// Writes events as lines, each with the process's role and instance.
#[derive(Clone, Debug)]
pub(super) struct Renderer {
    format: LogFormat,
    ansi: bool,
    role: &'static str,
    instance: String,
}

impl Renderer {
    pub(super) fn new(format: LogFormat, ansi: bool, role: &'static str, instance: String) -> Self {
        Self {
            format,
            ansi,
            role,
            instance,
        }
    }

    /// One line, its end included. `spans` are the fields of the spans around, outermost first.
    pub(super) fn line(
        &self,
        level: Level,
        target: &str,
        fields: &Fields,
        spans: &[(&'static str, Value)],
    ) -> String {
        let line = match self.format {
            LogFormat::Text => self.text(level, fields, spans),
            LogFormat::Json => self.json(level, target, fields, spans),
        };
        line + "\n"
    }

    /// Why the process ends.
    pub(super) fn fatal(&self, message: &str) -> String {
        match self.format {
            LogFormat::Text => format!("ticketping: {message}\n"),
            LogFormat::Json => {
                let fields = Fields(vec![("message", message.into())]);
                self.line(Level::ERROR, "ticketping", &fields, &[])
            }
        }
    }

    fn text(&self, level: Level, fields: &Fields, spans: &[(&'static str, Value)]) -> String {
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
        let (dim, color, reset) = match (self.ansi, level) {
            (false, _) => ("", "", ""),
            (true, Level::ERROR) => ("\x1b[2m", "\x1b[31m", "\x1b[0m"),
            (true, Level::WARN) => ("\x1b[2m", "\x1b[33m", "\x1b[0m"),
            (true, Level::INFO) => ("\x1b[2m", "\x1b[32m", "\x1b[0m"),
            (true, _) => ("\x1b[2m", "\x1b[34m", "\x1b[0m"),
        };
        let mut line = format!("{dim}{now}{reset} {color}{level:>5}{reset} ");
        escape_into(&mut line, fields.text("message").unwrap_or_default());
        let own = |key: &str| fields.0.iter().any(|(name, _)| *name == key);
        let rest = fields.0.iter().filter(|(key, _)| *key != "message");
        for (key, value) in rest.chain(spans.iter().filter(|(key, _)| !own(key))) {
            let _ = write!(line, " {dim}{key}={reset}");
            match value {
                Value::String(text) if is_plain(text) => line.push_str(text),
                Value::String(text) => drop(write!(line, "{text:?}")),
                value => drop(write!(line, "{value}")),
            }
        }
        let Self { role, instance, .. } = self;
        let _ = write!(line, " {dim}role={role} instance={instance}{reset}");
        cut(line)
    }

    fn json(
        &self,
        level: Level,
        target: &str,
        fields: &Fields,
        spans: &[(&'static str, Value)],
    ) -> String {
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
        let mut rest = Map::new();
        rest.insert("role".to_owned(), self.role.into());
        rest.insert("instance".to_owned(), self.instance.as_str().into());
        rest.insert("target".to_owned(), target.into());
        let named = spans.iter().chain(&fields.0);
        for (key, value) in named.filter(|(key, _)| *key != "message") {
            let value = match value {
                Value::String(text) => cut(text.clone()).into(),
                value => value.clone(),
            };
            rest.insert((*key).to_owned(), value);
        }
        let message = cut(fields.text("message").unwrap_or_default().to_owned());
        let message = Value::String(message);
        let rest = Value::Object(rest).to_string();
        format!(
            "{{\"timestamp\":\"{now}\",\"level\":\"{level}\",\"message\":{message},{}",
            &rest[1..]
        )
    }
}

fn is_plain(text: &str) -> bool {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '=');
    !text.is_empty() && text.chars().all(plain)
}

/// What others have sent must neither end a line nor speak to a terminal.
fn escape_into(line: &mut String, text: &str) {
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
}

fn cut(mut text: String) -> String {
    if text.len() > LINE_BYTES_MAX {
        text.truncate(text.floor_char_boundary(LINE_BYTES_MAX));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(format: LogFormat) -> String {
        let renderer = Renderer::new(format, false, "queue", "host-1".to_owned());
        let fields = Fields(vec![
            ("message", "answered\n\x1b[31m".into()),
            ("error", "no \"Redis\"\n there".into()),
            ("duration_ms", 1.5.into()),
        ]);
        let spans = [("request.id", "r-1".into()), ("error", "outer".into())];
        renderer.line(Level::WARN, "ticketping::edge", &fields, &spans)
    }

    #[test]
    fn a_line_is_one_line_and_says_where_and_for_whom() {
        let text = sample(LogFormat::Text);
        assert!(
            text.contains("WARN answered\\n\\u{1b}[31m error="),
            "{text}"
        );
        assert!(
            text.contains("error=\"no \\\"Redis\\\"\\n there\" duration_ms=1.5 request.id=r-1")
        );
        assert!(text.ends_with(" role=queue instance=host-1\n"), "{text}");
        assert_eq!(text.lines().count(), 1);

        let json = sample(LogFormat::Json);
        assert!(json.starts_with("{\"timestamp\":\""), "{json}");
        let line: Value = serde_json::from_str(&json).unwrap();
        for (key, value) in [
            ("level", "WARN"),
            ("role", "queue"),
            ("instance", "host-1"),
            ("request.id", "r-1"),
            ("error", "no \"Redis\"\n there"),
            ("target", "ticketping::edge"),
        ] {
            assert_eq!(line[key], value);
        }
    }

    #[test]
    fn a_line_has_an_end() {
        let renderer = Renderer::new(LogFormat::Json, false, "all", "h".to_owned());
        let fields = Fields(vec![("message", "ü".repeat(100_000).into())]);
        let line = renderer.line(Level::INFO, "t", &fields, &[]);
        assert!(line.len() < LINE_BYTES_MAX + 200);
        assert!(serde_json::from_str::<Value>(&line).is_ok());
    }
}
