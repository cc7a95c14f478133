//! Owns the screen, and gives it back: on leaving, on an error, on a panic.

use std::io::{self, Write as _, stdout};
use std::sync::Once;

use crossterm::cursor::{Hide, Show};
use crossterm::execute;
use crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
    disable_raw_mode, enable_raw_mode,
};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;

use super::state::State;
use super::theme::Theme;
use super::view;

/// The terminal while it is ours; dropped, it is as before.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<io::Stdout>>,
}

impl Screen {
    pub(super) fn take() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                // First the screen, so that the message is seen.
                give_back();
                before(panic);
            }));
        });
        let terminal = Terminal::new(CrosstermBackend::new(stdout()))?;
        let screen = Self { terminal };
        enter()?;
        Ok(screen)
    }

    pub(super) fn draw(&mut self, state: &State, theme: Theme) -> io::Result<()> {
        // One update at once where the terminal knows how: no tearing, no flicker.
        execute!(stdout(), BeginSynchronizedUpdate)?;
        self.terminal
            .draw(|frame| view::draw(frame, state, theme))?;
        execute!(stdout(), EndSynchronizedUpdate)
    }

    /// Everything anew at the next draw. `Terminal::clear` would ask the terminal where its cursor
    /// is, and the thread that reads keys takes the answer.
    pub(super) fn forget(&mut self) -> io::Result<()> {
        let size = self.terminal.size()?;
        self.terminal.resize(size.into())
    }

    /// Ctrl-Z: the shell gets its terminal, `fg` brings us back.
    pub(super) fn suspend(&mut self) -> io::Result<()> {
        give_back();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTSTP).map_err(io::Error::from)?;
        enter()?;
        self.forget()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn enter() -> io::Result<()> {
    enable_raw_mode()?;
    execute!(stdout(), EnterAlternateScreen, Hide)
}

/// Says nothing when it fails: there is nobody left to tell.
fn give_back() {
    let _ = disable_raw_mode();
    let _ = execute!(stdout(), EndSynchronizedUpdate, LeaveAlternateScreen, Show);
    let _ = stdout().flush();
}
