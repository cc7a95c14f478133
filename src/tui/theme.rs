//! Colours and glyphs. Default foreground and ANSI-16 accents, so that the
//! terminal's own palette decides, light or dark; meaning never hangs on colour
//! alone, so that `NO_COLOR` loses none of it.

use ratatui::style::{Color, Modifier, Style};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Theme {
    pub color: bool,
    /// For terminals without UTF-8.
    pub ascii: bool,
}

impl Theme {
    /// As the environment asks: <https://no-color.org>, and the locale's character set.
    pub fn from_env(ascii: bool) -> Self {
        let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        // Nothing set says nothing (containers, ssh without forwarding): today's
        // terminals read UTF-8. Only a locale that names another set is believed.
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        let not_utf8 = locale.is_some_and(|locale| {
            let locale = locale.to_uppercase();
            !locale.contains("UTF-8") && !locale.contains("UTF8")
        });
        Self {
            color,
            ascii: ascii || not_utf8,
        }
    }

    fn accent(self, color: Color) -> Style {
        if self.color {
            Style::new().fg(color)
        } else {
            Style::new()
        }
    }

    pub fn good(self) -> Style {
        self.accent(Color::Green)
    }

    pub fn warn(self) -> Style {
        // Magenta: ANSI yellow is unreadable on a light background.
        self.accent(Color::Magenta).add_modifier(Modifier::BOLD)
    }

    pub fn bad(self) -> Style {
        self.accent(Color::Red).add_modifier(Modifier::BOLD)
    }

    pub fn mark(self) -> Style {
        self.accent(Color::Cyan)
    }

    pub fn chart(self) -> Style {
        self.accent(Color::Blue)
    }

    pub fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub fn head(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
    }

    /// Nothing to eight eighths.
    pub fn eighths(self) -> [char; 9] {
        if self.ascii {
            [' ', '.', '.', ':', ':', '=', '=', '#', '#']
        } else {
            [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
        }
    }

    fn either(self, rich: &'static str, plain: &'static str) -> &'static str {
        if self.ascii { plain } else { rich }
    }

    pub fn bar_full(self) -> &'static str {
        self.either("█", "#")
    }

    pub fn bar_empty(self) -> &'static str {
        self.either("░", ".")
    }

    pub fn limit(self) -> &'static str {
        self.either("┄", "-")
    }

    pub fn rule(self) -> &'static str {
        self.either("─", "-")
    }

    pub fn cursor(self) -> &'static str {
        self.either("▶", ">")
    }

    pub fn down(self) -> &'static str {
        self.either("▼", "v")
    }

    pub fn up(self) -> &'static str {
        self.either("▲", "^")
    }

    pub fn dot(self) -> &'static str {
        self.either("·", "|")
    }

    pub fn ellipsis(self) -> &'static str {
        self.either("…", "~")
    }

    pub fn none(self) -> &'static str {
        self.either("–", "-")
    }

    pub fn arrow(self) -> &'static str {
        self.either("→", "->")
    }

    pub fn ok(self) -> &'static str {
        self.either("●", "ok")
    }

    pub fn degraded(self) -> &'static str {
        self.either("◐", "!")
    }

    pub fn fail(self) -> &'static str {
        self.either("✖", "X")
    }

    /// Takes a text to what the terminal can show.
    pub fn text(self, text: &str) -> String {
        if !self.ascii {
            return text.to_owned();
        }
        text.chars()
            .map(|c| match c {
                '→' => "->".to_owned(),
                '·' => "|".to_owned(),
                '…' => "~".to_owned(),
                '–' => "-".to_owned(),
                '↑' => "Up".to_owned(),
                '↓' => "Down".to_owned(),
                '←' => "Left".to_owned(),
                c if c.is_ascii() => c.to_string(),
                _ => "?".to_owned(),
            })
            .collect()
    }
}

impl Default for Theme {
    fn default() -> Self {
        Self {
            color: true,
            ascii: false,
        }
    }
}
