//! Signals, as messages to the main thread; and what the service manager (systemd) is told, when it
//! has started the process and asks for it (sd_notify(3)).

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;

use crossbeam::channel::{Receiver, never, select, tick, unbounded};
use log::{error, info, warn};
use sd_notify::{NotifyState, watchdog_enabled};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::{flag, low_level};
use ws_gateway::threads::Fatal;

use super::EXIT_FAILURE;

/// Whether the process ends: SIGTERM or SIGINT have it end at once from now on.
static ENDING: AtomicBool = AtomicBool::new(false);

/// What the main thread waits for.
pub struct MainLoop {
    signals: Signals,
    /// Told why the process cannot go on.
    died: Receiver<String>,
}

impl MainLoop {
    /// From now on signals, and what [`Fatal`] is told, wait until the loop runs.
    pub fn new() -> Result<(Self, Fatal), String> {
        let signals = listen().map_err(|error| format!("cannot listen to signals: {error}"))?;
        let (fatal, died) = unbounded();
        Ok((Self { signals, died }, fatal))
    }

    /// Serves SIGHUP until SIGTERM or SIGINT, or until something is fatal: the error is the reason. The
    /// process is ready from now on.
    pub fn run(mut self, on_hangup: impl Fn()) -> Result<(), String> {
        let handle = self.signals.handle();
        let (sender, received) = unbounded();
        let thread = Builder::new().name("signals".into()).spawn(move || {
            // An error says that nobody listens any more.
            let mut signals = self.signals.forever();
            let _ = signals.try_for_each(|signal| sender.send(signal));
        });
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        notify(&[NotifyState::Ready]);
        // Twice as often as it asks for, as sd_watchdog_enabled(3) has it.
        let heartbeat = watchdog_enabled().map_or_else(never, |period| tick(period / 2));
        let outcome = loop {
            select! {
                recv(heartbeat) -> _ => notify(&[NotifyState::Watchdog]),
                recv(received) -> signal => match signal {
                    Ok(SIGHUP) => on_hangup(),
                    Ok(signal) => {
                        let name = low_level::signal_name(signal).unwrap_or_default();
                        info!("Told to end: signal={name}");
                        break Ok(());
                    }
                    Err(_) => break Err("the signal thread has ended".into()),
                },
                recv(self.died) -> reason => {
                    ENDING.store(true, Ordering::SeqCst);
                    let reason = reason.unwrap_or_else(|_| "no thread is left".into());
                    error!("Ends, since it cannot go on: reason={reason}");
                    break Err(reason);
                }
            }
        };
        notify(&[NotifyState::Stopping]);
        handle.close();
        // A panic was reported when it happened.
        let _ = thread.join();
        outcome
    }
}

fn listen() -> io::Result<Signals> {
    for signal in [SIGTERM, SIGINT] {
        // In this order, so that the first one arms what the second one meets.
        flag::register_conditional_shutdown(signal, EXIT_FAILURE, &ENDING)?;
        flag::register(signal, &ENDING)?;
    }
    Signals::new([SIGTERM, SIGINT, SIGHUP])
}

fn notify(state: &[NotifyState<'_>]) {
    // Does nothing where NOTIFY_SOCKET is not set.
    if let Err(error) = sd_notify::notify(state) {
        warn!("Service manager not told: error={error}");
    }
}
