//! Progress on stderr: bars on a terminal, nothing elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a bar is drawn at most.
const DRAWS_PER_SECOND: u8 = 10;

/// Where progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// On stderr, if that is a terminal.
    Shown,
    /// Nowhere: a server seeds on its way up.
    Hidden,
}

impl Progress {
    /// A bar for `total` of `what`.
    pub fn bar(&self, what: &'static str, total: u64) -> ProgressBar {
        let target = match self {
            Self::Shown => ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND),
            Self::Hidden => ProgressDrawTarget::hidden(),
        };
        let style = ProgressStyle::with_template(
            "{msg:>8} {bar:40} {human_pos:>11} of {human_len}  {per_sec}  {elapsed}",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::with_draw_target(Some(total), target)
            .with_style(style)
            .with_message(what)
    }
}
