//! Whether this gateway is on its way out: told so by an operator, who may take it back, or because it
//! shuts down.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// One gateway's way out. First it is not ready, so that balancers send nobody new; then it refuses
/// whoever comes all the same.
#[derive(Debug, Default)]
pub struct Drain {
    by_hand: AtomicBool,
    /// When what is left is cut, once the gateway shuts down.
    cut_at: OnceLock<Instant>,
    refuses: AtomicBool,
}

impl Drain {
    /// Not ready from now on, or ready again. Nobody is closed or refused.
    pub fn set_by_hand(&self, drains: bool) {
        self.by_hand.store(drains, SeqCst);
    }

    /// The gateway shuts down, and cuts what is left at `cut_at`: not ready for good. Only the first
    /// call counts.
    pub fn shut_down(&self, cut_at: Instant) {
        let _ = self.cut_at.set(cut_at);
    }

    /// Newcomers are refused from now on.
    pub fn refuse(&self) {
        self.refuses.store(true, SeqCst);
    }

    /// Whether newcomers are refused.
    pub fn refuses(&self) -> bool {
        self.refuses.load(SeqCst)
    }

    /// How long until what is left is cut; zero while nothing is to be.
    pub fn left(&self) -> Duration {
        let left = |cut_at: &Instant| cut_at.saturating_duration_since(Instant::now());
        self.cut_at.get().map_or(Duration::ZERO, left)
    }

    /// For `/readyz`: an error says why the gateway is not ready.
    pub fn check(&self) -> Result<(), String> {
        if self.cut_at.get().is_some() {
            return Err("the gateway is shutting down".into());
        }
        if self.by_hand.load(SeqCst) {
            return Err("told to drain: POST /undrain takes it back".into());
        }
        Ok(())
    }
}
