//! What a connection has been doing, noted by its two threads for whoever looks on.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// One connection's activity.
pub struct Activity {
    since: Instant,
    noted: Mutex<Noted>,
}

/// What is known at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Noted {
    /// When the last frame came.
    pub last_frame: Instant,
    /// Bytes that came.
    pub received: u64,
    /// How long the last ping took that was answered.
    pub round_trip: Option<Duration>,
    /// The method of the service whose answer the reader thread waits for, and since when; else it
    /// reads.
    pub call: Option<(&'static str, Instant)>,
    /// When the ping was sent that is not answered.
    pinged_at: Option<Instant>,
}

impl Activity {
    pub(super) fn new() -> Self {
        let since = Instant::now();
        let noted = Noted {
            last_frame: since,
            received: 0,
            round_trip: None,
            call: None,
            pinged_at: None,
        };
        Self {
            since,
            noted: Mutex::new(noted),
        }
    }

    /// When the connection was upgraded.
    pub fn since(&self) -> Instant {
        self.since
    }

    pub fn noted(&self) -> Noted {
        *self.noted.lock()
    }

    /// A frame came, and so many bytes since the beginning.
    pub(super) fn heard(&self, received: u64) {
        let mut noted = self.noted.lock();
        (noted.last_frame, noted.received) = (Instant::now(), received);
    }

    pub(super) fn pinged(&self) {
        self.noted.lock().pinged_at = Some(Instant::now());
    }

    /// A pong came. Answers how long it took, if a ping asked for it.
    pub(super) fn ponged(&self) -> Option<Duration> {
        let mut noted = self.noted.lock();
        let took = noted.pinged_at.take()?.elapsed();
        noted.round_trip = Some(took);
        Some(took)
    }

    /// Does `work`, a call of a service's `method` by the reader thread.
    pub(super) fn during<T>(&self, method: &'static str, work: impl FnOnce() -> T) -> T {
        self.noted.lock().call = Some((method, Instant::now()));
        let done = work();
        self.noted.lock().call = None;
        done
    }
}
