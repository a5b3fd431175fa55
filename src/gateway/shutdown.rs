//! The way out of a gateway, step by step, each logged with how long it took.

use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};

use super::Gateway;
use crate::client::close::CloseReason;

/// How often connections are closed, and is looked how far it has come.
const TICK: Duration = Duration::from_millis(20);
/// How many, or more where half of the drain needs it: 1,000 a second.
const CLOSES_PER_TICK: usize = 20;

impl Gateway {
    /// Ends within `shutdown.drain`. From now on the gateway is not ready, and is deregistered; for
    /// `shutdown.settle` newcomers are still let in. Then clients are told to go (1012) while what
    /// comes for them is still delivered; users go offline, deliveries end, and the threads are
    /// joined.
    pub fn stop(self) {
        let shutdown = self.context.config.shutdown.clone();
        let start = Instant::now();
        let mut last = start;
        let mut done = |step: &str| {
            let took = last.elapsed();
            last += took;
            info!("Shutdown step: {step}, seconds={:.3}", took.as_secs_f64());
        };
        let deadline = start + shutdown.drain;
        // What is left is cut when three quarters of the time are over, so that the rest finds its end.
        let cut_at = start + shutdown.drain * 3 / 4;
        let count = self.registry.connections().len();
        info!("Shutting down: connections={count}");
        self.context.drain.shut_down(cut_at);
        self.edges.deregister(deadline);
        done("deregistered");
        thread::sleep((start + shutdown.settle).saturating_duration_since(Instant::now()));
        self.context.drain.refuse();
        done("settled");
        let cut = self.close_connections(cut_at, shutdown.reconnect_spread);
        done(&format!("connections closed, cut={cut}"));
        // A Presence Service that does not answer leaves the others half of the time.
        let now = Instant::now();
        let half = now + deadline.saturating_duration_since(now) / 2;
        self.presence.stop(half);
        done("users offline");
        self.source.stop(deadline);
        done("deliveries ended");
        self.probe.stop(deadline);
        let left = self.listener.stop(deadline);
        if left > 0 {
            warn!("Threads left behind: threads={left}");
        }
        done("threads joined");
        self.edges.stop(deadline);
        info!("Shut down: seconds={:.1}", start.elapsed().as_secs_f64());
    }

    /// Closes connections at an even pace, and cuts those that are left at `cut_at`. Those closed at
    /// the same time are told to come back spread over `spread`. Answers how many were cut.
    fn close_connections(&self, cut_at: Instant, spread: Duration) -> usize {
        let count = self.registry.connections().len();
        // Half of the drain, where nothing of it was used to settle.
        let pace_over = cut_at.saturating_duration_since(Instant::now()) * 2 / 3;
        let ticks = (pace_over.as_millis() / TICK.as_millis()).max(1);
        let batch = count.div_ceil(ticks as usize).max(CLOSES_PER_TICK);
        let mut closed = 0;
        loop {
            let mut connections = self.registry.connections();
            if connections.is_empty() {
                return 0;
            }
            if Instant::now() > cut_at {
                let cut = connections.len();
                warn!("Connections cut: connections={cut}");
                for connection in connections {
                    connection.close(CloseReason::Shutdown(Duration::ZERO));
                    connection.outbox.abort();
                }
                return cut;
            }
            connections.retain(|connection| !connection.is_closing());
            for connection in connections.into_iter().take(batch) {
                // Whoever came while it drained comes after the others.
                let share = (closed as f64 / count.max(1) as f64).min(1.0);
                connection.close(CloseReason::Shutdown(spread.mul_f64(share)));
                closed += 1;
            }
            thread::sleep(TICK);
        }
    }
}
