//! What a connection has been doing, noted by its two threads for whoever looks on. Nobody waits for
//! anybody here.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// One connection's activity.
pub struct Activity {
    since: Instant,
    /// When the last frame came, in milliseconds after `since`.
    last_frame: AtomicU64,
    /// Bytes that came.
    received: AtomicU64,
    /// When the ping was sent that is not answered, in microseconds after `since`; 0: none is.
    pinged_at: AtomicU64,
    /// How long the last ping took, in microseconds; 0: none was answered yet.
    round_trip: AtomicU64,
    /// The call that the reader thread waits for, and since when.
    call: Mutex<Option<(&'static str, Instant)>>,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            last_frame: AtomicU64::new(0),
            received: AtomicU64::new(0),
            pinged_at: AtomicU64::new(0),
            round_trip: AtomicU64::new(0),
            call: Mutex::new(None),
        }
    }

    /// When the connection was upgraded.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// A frame came, and so many bytes until then.
    pub(super) fn heard(&self, received: u64) {
        self.received.store(received, Relaxed);
        // Rounded up: it came after whatever was sent within the same millisecond.
        let elapsed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_frame.store(elapsed.saturating_add(1), Relaxed);
    }

    /// When the last frame came.
    pub fn last_heard(&self) -> Instant {
        self.since + Duration::from_millis(self.last_frame.load(Relaxed))
    }

    /// How many bytes came.
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    pub(super) fn pinged(&self) {
        self.pinged_at.store(self.micros().max(1), Relaxed);
    }

    /// A pong came. Answers how long it took, if a ping asked for it.
    pub(super) fn ponged(&self) -> Option<Duration> {
        let pinged_at = self.pinged_at.swap(0, Relaxed);
        let took = self.micros().saturating_sub(pinged_at).max(1);
        (pinged_at > 0).then(|| {
            self.round_trip.store(took, Relaxed);
            Duration::from_micros(took)
        })
    }

    /// How long the last ping took that was answered.
    pub fn round_trip(&self) -> Option<Duration> {
        let micros = self.round_trip.load(Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Does `work`, a call of a service's `method` by the reader thread.
    pub(super) fn during<T>(&self, method: &'static str, work: impl FnOnce() -> T) -> T {
        *self.call.lock() = Some((method, Instant::now()));
        let done = work();
        *self.call.lock() = None;
        done
    }

    /// The call that the reader thread waits for, and since when; else it reads.
    pub fn call(&self) -> Option<(&'static str, Instant)> {
        *self.call.lock()
    }
}
