//! Whether the User and the Message Service are in reach: empty calls, for `/readyz`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use log::{info, warn};

use crate::readiness::{LastOutcome, Readiness};
use crate::services::{Result, Services};
use crate::threads::{Fatal, Worker};

/// How often a service is asked, and how often while one is out of reach.
const INTERVAL: Duration = Duration::from_secs(5);
const INTERVAL_WHILE_AWAY: Duration = Duration::from_secs(1);

/// Adds the checks to `readiness` and asks from now on. `fatal` is told if that cannot go on.
pub fn start(
    services: Arc<dyn Services>,
    readiness: &Readiness,
    fatal: &Fatal,
) -> io::Result<Worker> {
    let user = target("user_service", readiness, |services| {
        services.validate_token(Default::default()).map(drop)
    });
    let message = target("message_service", readiness, |services| {
        services.ack_messages(Default::default())
    });
    Worker::start("probe", fatal, move |stop| {
        while !stop.within(user(&*services).min(message(&*services))) {}
    })
}

/// Adds a check of one service. What is answered asks it, for any answer shows that it is in reach,
/// and says when to ask again.
fn target(
    name: &'static str,
    readiness: &Readiness,
    ask: fn(&dyn Services) -> Result<()>,
) -> impl Fn(&dyn Services) -> Duration + use<> {
    let last = LastOutcome::new(Err("not asked yet".into()));
    readiness.show(name, true, last.clone());
    move |services| {
        let outcome = match ask(services) {
            Err(why) if why.is_out_of_reach() => Err(format!("{why}: start it or mend [services]")),
            _ => Ok(()),
        };
        if last.record(&outcome) {
            match &outcome {
                Err(reason) => warn!("Service out of reach: service={name}, error={reason}"),
                Ok(()) => info!("Service in reach: service={name}"),
            }
        }
        outcome.map_or(INTERVAL_WHILE_AWAY, |()| INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Instant;

    use super::*;
    use crate::services::fake::FakeServices;

    /// What it said last might not be true any more, and nobody would know.
    #[test]
    fn a_probe_that_panics_is_fatal() {
        let (services, readiness) = (Arc::new(FakeServices::default()), Readiness::default());
        services.panics.store(true, Ordering::SeqCst);
        let (fatal, died) = crossbeam::channel::unbounded();
        let probe = start(services, &readiness, &fatal).unwrap();
        let reason = died.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(reason.contains("probe"), "{reason}");
        probe.stop(Instant::now() + Duration::from_secs(20));
    }
}
