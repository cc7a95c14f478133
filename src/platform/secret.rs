//! A string that must never be seen.

use std::{convert::Infallible, fmt, str::FromStr};

/// A key, password or token: usable, but invisible in logs, errors and `--help`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `value`; the caller forgets the bare string.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The bare value, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Ok(Self(s.to_owned()))
    }
}
