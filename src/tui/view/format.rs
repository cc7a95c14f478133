//! Figures as short text.

use ratatui::text::Span;

/// `1234567` → `1,234,567`
pub fn commas(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// As exact as the width allows: with commas, without, or rounded.
pub fn count(n: u64, width: usize) -> String {
    let with = commas(n);
    if with.len() <= width {
        return with;
    }
    let plain = n.to_string();
    if plain.len() <= width {
        return plain;
    }
    #[allow(clippy::cast_precision_loss, reason = "rounded anyway")]
    let value = n as f64;
    for (unit, name) in [(1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")] {
        if value < unit * 1000.0 {
            let precise = format!("{:.1}{name}", value / unit);
            return if precise.len() <= width {
                precise
            } else {
                format!("{:.0}{name}", value / unit)
            };
        }
    }
    plain
}

/// A rate: whole from ten up, with a decimal below.
pub fn rate(value: f64) -> String {
    if !value.is_finite() || value <= 0.0 {
        return "0".into();
    }
    if value < 9.95 {
        return format!("{value:.1}");
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: positive and finite"
    )]
    let whole = value.round() as u64;
    commas(whole)
}

pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent == 0.0 {
        "0%".into()
    } else if percent < 10.0 {
        format!("{percent:.2}%")
    } else {
        format!("{percent:.0}%")
    }
}

pub fn millis(ms: f64) -> String {
    if ms < 10.0 {
        format!("{ms:.1}")
    } else {
        format!("{ms:.0}")
    }
}

/// `3d02h`, `3h12m`, `4m05s`, `38s`
pub fn duration(seconds: u64) -> String {
    let (days, hours, minutes, rest) = (
        seconds / 86_400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    if days > 0 {
        format!("{days}d{hours:02}h")
    } else if hours > 0 {
        format!("{hours}h{minutes:02}m")
    } else if minutes > 0 {
        format!("{minutes}m{rest:02}s")
    } else {
        format!("{rest}s")
    }
}

/// Seconds of a span of time, never below 0.
pub fn age(span: chrono::TimeDelta) -> String {
    duration(u64::try_from(span.num_seconds()).unwrap_or(0))
}

/// Cells that a text takes: Korean letters take two.
pub fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// What somebody else wrote, for a terminal that gets it raw: control characters, and those that turn
/// the direction of writing, are escaped.
pub fn printable(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() || turns(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

/// Cut to `max` cells with an ellipsis.
pub fn fit(text: &str, max: usize, ellipsis: &str) -> String {
    if width(text) <= max {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let cells = width(c.encode_utf8(&mut [0; 4]));
        if used + cells + width(ellipsis) > max {
            break;
        }
        used += cells;
        out.push(c);
    }
    if max > 0 {
        out.push_str(ellipsis);
    }
    out
}

/// As [`fit`], but what is cut stands in the middle: titles differ at their ends as often as at
/// their beginnings (`Hamlet … Matinee`, `Hamlet … Evening`).
pub fn fit_ends(text: &str, max: usize, ellipsis: &str) -> String {
    if width(text) <= max || max < 10 {
        return fit(text, max, ellipsis);
    }
    let room = max - width(ellipsis);
    let mut tail = Vec::new();
    let mut used = 0;
    for c in text.chars().rev() {
        let cells = width(c.encode_utf8(&mut [0; 4]));
        if used + cells > room * 2 / 5 {
            break;
        }
        used += cells;
        tail.push(c);
    }
    let tail: String = tail.into_iter().rev().collect();
    fit(text, max - used, ellipsis) + &tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_title_stay() {
        assert_eq!(fit_ends("Hamlet", 12, "…"), "Hamlet");
        assert_eq!(fit_ends("Hamlet, the Matinee", 12, "…"), "Hamlet,…inee");
        assert_eq!(fit_ends("Hamlet, the Evening", 12, "…"), "Hamlet,…ning");
        assert_eq!(fit_ends("Hamlet, the Evening", 6, "…"), "Hamle…");
        for max in 0..40 {
            for text in [
                "Hamlet, the Evening performance",
                "캐치! 티켓핑 새콤달콤 콘서트",
                "e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}",
            ] {
                assert!(width(&fit_ends(text, max, "…")) <= max, "{text} in {max}");
            }
        }
    }

    #[test]
    fn counts_stay_exact_while_they_fit() {
        assert_eq!(count(1_234_567, 9), "1,234,567");
        assert_eq!(count(1_234_567, 8), "1234567");
        assert_eq!(count(1_234_567, 5), "1.2M");
        assert_eq!(count(999_999_999, 5), "1000M");
        assert_eq!(count(0, 3), "0");
        assert_eq!(commas(1000), "1,000");
    }

    #[test]
    fn durations_have_two_units_at_most() {
        assert_eq!(
            [38, 245, 11_520, 266_400].map(duration),
            ["38s", "4m05s", "3h12m", "3d02h"]
        );
    }

    #[test]
    fn wide_letters_take_two_cells() {
        assert_eq!(width("캐치"), 4);
        assert_eq!(fit("캐치 티켓핑", 6, "…"), "캐치 …");
        assert_eq!(fit("abcdef", 4, "…"), "abc…");
        assert_eq!(fit("abcd", 4, "…"), "abcd");
    }

    #[test]
    fn what_would_command_a_terminal_is_escaped() {
        let odd = "Aida\u{1b}]0;mine\u{7}\n\u{9b}2J\u{202e}x";
        assert_eq!(
            printable(odd),
            "Aida\\u{1b}]0;mine\\u{7}\\n\\u{9b}2J\\u{202e}x"
        );
        assert_eq!(
            printable("캐치! 티켓핑 – “Ängste”"),
            "캐치! 티켓핑 – “Ängste”"
        );
    }

    #[test]
    fn small_shares_are_not_hidden() {
        assert_eq!(
            [0.0, 0.0004, 0.012, 0.5].map(percent),
            ["0%", "0.04%", "1.20%", "50%"]
        );
        assert_eq!([0.0, 2.25, 612.4].map(rate), ["0", "2.2", "612"]);
    }
}
