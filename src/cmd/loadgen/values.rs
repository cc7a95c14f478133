//! Values of flags: rates, shares, spans and shards, each with the one sentence
//! that a wrong one is answered with.

use std::time::Duration;

/// Events a second, above zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate(pub f64);

/// A part of the whole, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share(pub f64);

/// A range of durations to draw from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub least: Duration,
    pub most: Duration,
}

/// Part `index` (from 0) of `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub index: u32,
    pub of: u32,
}

fn number(text: &str) -> Option<f64> {
    let (digits, unit) = match text.trim().to_ascii_lowercase() {
        t if t.ends_with('k') => (t[..t.len() - 1].to_owned(), 1e3),
        t if t.ends_with('m') => (t[..t.len() - 1].to_owned(), 1e6),
        t => (t, 1.0),
    };
    let value: f64 = digits.replace('_', "").parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some(value * unit)
}

pub fn rate(text: &str) -> Result<Rate, String> {
    let digits = text.trim().trim_end_matches("/s");
    match number(digits) {
        // One a day to ten million a second: outside it is a slip of the hand.
        Some(value) if (1e-5..=1e7).contains(&value) => Ok(Rate(value)),
        _ => Err(format!(
            "`{text}` is no rate: say a number a second, as 2000, 0.5 or 2.5k"
        )),
    }
}

pub fn count(text: &str) -> Result<u32, String> {
    match number(text) {
        Some(value) if (1.0..=50e6).contains(&value) && value.fract() == 0.0 => Ok(value as u32),
        _ => Err(format!(
            "`{text}` is no number of buyers: say 1 to 50m, as 500, 10k or 1m"
        )),
    }
}

/// How much more than before: `20%`, `150%`, `0.2`.
pub fn percent(text: &str) -> Result<Share, String> {
    let text = text.trim();
    let value = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|value| value / 100.0),
        None => text.parse(),
    };
    match value {
        Ok(value) if (0.0..=100.0).contains(&value) => Ok(Share(value)),
        _ => Err(format!(
            "`{text}` is no bound: say 0% to 10000%, as 20% or 0.2"
        )),
    }
}

pub fn share(text: &str) -> Result<Share, String> {
    let text = text.trim();
    let value = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|v| v / 100.0),
        None => text.parse::<f64>(),
    };
    match value {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(Share(value)),
        _ => Err(format!("`{text}` is no share: say 0 to 1, or 0% to 100%")),
    }
}

pub fn duration(text: &str) -> Result<Duration, String> {
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    let parsed = humantime::parse_duration(text.trim())
        .map_err(|_| format!("`{text}` is no duration: say 500ms, 30s, 15m or 1h30m"))?;
    if parsed > Duration::from_secs(7 * 86_400) {
        return Err(format!("`{text}` is longer than a week"));
    }
    Ok(parsed)
}

pub fn span(text: &str) -> Result<Span, String> {
    let (least, most) = match text.split_once("..") {
        Some((least, most)) => (duration(least)?, duration(most)?),
        None => (duration(text)?, duration(text)?),
    };
    if least > most {
        return Err(format!("`{text}` ends before it begins"));
    }
    Ok(Span { least, most })
}

pub fn seats(text: &str) -> Result<(u8, u8), String> {
    let wrong = || format!("`{text}` is no number of seats: say 1 to 4, or a range as 1..4");
    let (least, most) = text.split_once("..").unwrap_or((text, text));
    let least: u8 = least.trim().parse().map_err(|_| wrong())?;
    let most: u8 = most.trim().parse().map_err(|_| wrong())?;
    if least >= 1 && most <= 4 && least <= most {
        Ok((least, most))
    } else {
        Err(wrong())
    }
}

pub fn shard(text: &str) -> Result<Shard, String> {
    let wrong = || format!("`{text}` is no shard: say 1/4 to 4/4 for four processes");
    let (index, of) = text.split_once('/').ok_or_else(wrong)?;
    let index: u32 = index.trim().parse().map_err(|_| wrong())?;
    let of: u32 = of.trim().parse().map_err(|_| wrong())?;
    if index >= 1 && index <= of && of <= 10_000 {
        Ok(Shard {
            index: index - 1,
            of,
        })
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_read_fractions_and_suffixes() {
        assert_eq!(rate("2000"), Ok(Rate(2000.0)));
        assert_eq!(rate("2.5k"), Ok(Rate(2500.0)));
        assert_eq!(rate("0.5/s"), Ok(Rate(0.5)));
        assert_eq!(rate("1_500"), Ok(Rate(1500.0)));
        for wrong in ["", "0", "-1", "k", "nan", "inf", "1e99", "2000x"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn counts_are_whole() {
        assert_eq!(count("10k"), Ok(10_000));
        assert_eq!(count("1m"), Ok(1_000_000));
        assert_eq!(count("1.5k"), Ok(1_500));
        for wrong in ["0", "1.5", "51m", "many"] {
            assert!(count(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_spans_seats_and_shards() {
        assert_eq!(share("10%"), Ok(Share(0.1)));
        assert_eq!(share("1"), Ok(Share(1.0)));
        assert!(share("1.1").is_err() && share("-1%").is_err() && share("").is_err());
        let drawn = span("500ms..2s").unwrap();
        assert_eq!(
            (drawn.least.as_millis(), drawn.most.as_millis()),
            (500, 2000)
        );
        assert!(span("2s..1s").is_err());
        assert_eq!(seats("1..4"), Ok((1, 4)));
        assert!(seats("0").is_err() && seats("5").is_err() && seats("3..2").is_err());
        assert_eq!(shard("2/4"), Ok(Shard { index: 1, of: 4 }));
        assert!(shard("0/4").is_err() && shard("5/4").is_err() && shard("4").is_err());
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert!(duration("8days").is_err() && duration("soon").is_err());
    }
}
