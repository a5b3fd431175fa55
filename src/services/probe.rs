//! Whether the User and the Message Service are in reach: empty calls, for `/readyz`.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::{info, warn};
use parking_lot::Mutex;

use super::proto::{AckMessagesRequest, ValidateTokenRequest};
use super::{Result, Services};
use crate::readiness::Readiness;
use crate::threads::{Fatal, Threads, USUAL_STACK, supervise};

/// How often a service is asked, and how often while one is out of reach.
const INTERVAL: Duration = Duration::from_secs(5);
const INTERVAL_WHILE_AWAY: Duration = Duration::from_secs(1);

/// The thread that asks. It ends when this is stopped or dropped.
pub struct Probe {
    stop: Sender<()>,
    thread: Arc<Threads>,
}

/// One service: its name, how to ask, and what it said last.
struct Target {
    name: &'static str,
    ask: fn(&dyn Services) -> Result<()>,
    state: Arc<Mutex<std::result::Result<(), String>>>,
}

impl Probe {
    /// Adds the checks to `readiness` and asks from now on. `fatal` is told if that cannot go on.
    pub fn start(
        services: Arc<dyn Services>,
        readiness: &Readiness,
        fatal: &Fatal,
    ) -> io::Result<Self> {
        let user = Target::new("user_service", readiness, |services| {
            services
                .validate_token(ValidateTokenRequest::default())
                .map(drop)
        });
        let message = Target::new("message_service", readiness, |services| {
            services.ack_messages(AckMessagesRequest::default())
        });
        let (stop, stopped) = bounded(0);
        let (thread, fatal): (Arc<Threads>, _) = (Arc::default(), fatal.clone());
        thread.spawn("probe".into(), USUAL_STACK, move || {
            let targets = [user, message];
            supervise("probe", &fatal, || run(&*services, &targets, &stopped));
        })?;
        Ok(Self { stop, thread })
    }

    /// Waits for the call that is under way, if one is, until `deadline`.
    pub fn stop(self, deadline: Instant) {
        drop(self.stop);
        if self.thread.join(deadline) > 0 {
            warn!("Services not waited for any longer");
        }
    }
}

fn run(services: &dyn Services, targets: &[Target], stopped: &Receiver<()>) {
    loop {
        let mut interval = INTERVAL;
        for target in targets {
            if !target.ask(services) {
                interval = INTERVAL_WHILE_AWAY;
            }
        }
        if stopped.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

impl Target {
    fn new(
        name: &'static str,
        readiness: &Readiness,
        ask: fn(&dyn Services) -> Result<()>,
    ) -> Self {
        let state = Arc::new(Mutex::new(Err("not asked yet".to_owned())));
        let shown = Arc::clone(&state);
        readiness.add(name, true, move || shown.lock().clone());
        Self { name, ask, state }
    }

    /// Asks; any answer shows that the service is in reach.
    fn ask(&self, services: &dyn Services) -> bool {
        let state = match (self.ask)(services) {
            Err(error) if error.is_out_of_reach() => Err(error.to_string()),
            _ => Ok(()),
        };
        let in_reach = state.is_ok();
        let before = std::mem::replace(&mut *self.state.lock(), state.clone());
        match state {
            Err(reason) if before.as_ref() != Err(&reason) => {
                warn!(
                    "Service out of reach: service={}, error={reason}",
                    self.name
                );
            }
            Ok(()) if before.is_err() => info!("Service in reach: service={}", self.name),
            _ => {}
        }
        in_reach
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::services::fake::FakeServices;

    /// What it said last might not be true any more, and nobody would know.
    #[test]
    fn a_probe_that_panics_is_fatal() {
        let (services, readiness) = (Arc::new(FakeServices::default()), Readiness::default());
        services.panics.store(true, Ordering::SeqCst);
        let (fatal, died) = crossbeam::channel::unbounded();
        let probe = Probe::start(services, &readiness, &fatal).unwrap();
        let reason = died.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(reason.contains("probe"), "{reason}");
        probe.stop(Instant::now() + Duration::from_secs(20));
    }
}
