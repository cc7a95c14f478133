//! The loop: events in, state on, effects out, a frame.

use std::time::Duration;

use anyhow::Context as _;
use chrono::Utc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::conn::{self, Reader};
use super::state::{Effect, Event, State};
use super::terminal::Screen;
use super::theme::Theme;

/// Keys and answers that may queue up while a frame is drawn.
const EVENTS: usize = 64;

/// Runs until the operator leaves. The terminal is as before afterwards.
pub async fn run(
    reader: Reader,
    interval: Duration,
    read_only: bool,
    theme: Theme,
) -> anyhow::Result<()> {
    let mut state = State::new(reader.url().to_owned(), read_only, Utc::now());
    let mut screen = Screen::take().context("this is no terminal (--once and --json need none)")?;
    let (send, mut events) = mpsc::channel(EVENTS);
    let (order, orders) = mpsc::channel(EVENTS);
    listen_to_keys(send.clone());
    let reading = tokio::spawn(conn::keep_reading(reader, interval, send, orders));
    let outcome = turn(&mut state, &mut screen, theme, &mut events, &order).await;
    reading.abort();
    drop(screen);
    outcome
}

async fn turn(
    state: &mut State,
    screen: &mut Screen,
    theme: Theme,
    events: &mut mpsc::Receiver<Event>,
    order: &mpsc::Sender<Effect>,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    screen.draw(state, theme)?;
    loop {
        // Live, the readings are the clock; lost, the seconds count on the screen.
        let tick = tokio::time::sleep(Duration::from_secs(1));
        let event = tokio::select! {
            event = events.recv() => match event {
                Some(event) => event,
                None => return Ok(()),
            },
            () = tick => Event::Tick,
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
        };
        for effect in state.apply(Utc::now(), event) {
            match effect {
                Effect::Quit => return Ok(()),
                Effect::Suspend => screen.suspend()?,
                Effect::Redraw => screen.forget()?,
                Effect::Read { .. } | Effect::ReadAudit | Effect::Change { .. } => {
                    // Full only when the network hangs: a refresh may be lost, a change may not.
                    if let Effect::Change { .. } = effect {
                        order.send(effect).await?;
                    } else {
                        let _ = order.try_send(effect);
                    }
                }
            }
        }
        // A burst of keys is one frame.
        if events.is_empty() {
            screen.draw(state, theme)?;
        }
    }
}

/// Reading keys blocks, so it has a thread of its own, which ends with the process.
fn listen_to_keys(events: mpsc::Sender<Event>) {
    std::thread::spawn(move || {
        while let Ok(event) = crossterm::event::read() {
            let event = match event {
                crossterm::event::Event::Key(key) => Event::Key(key),
                crossterm::event::Event::Resize(..) => Event::Resize,
                _ => continue,
            };
            if events.blocking_send(event).is_err() {
                break;
            }
        }
    });
}
