//! A signal to stop that is given once and heard by every thread that waits.

use std::convert::Infallible;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, never};

/// Gives the signal when it is dropped, and so also when its owner panics.
#[derive(Debug)]
pub struct Quitter {
    _signal: Sender<Infallible>,
}

/// Hears the signal. Nothing is ever sent: the channel's end is the signal.
#[derive(Debug, Clone)]
pub struct Quit(Receiver<Infallible>);

impl Quit {
    pub fn pair() -> (Quitter, Self) {
        let (signal, heard) = bounded(0);
        (Quitter { _signal: signal }, Self(heard))
    }

    /// A signal that nobody gives.
    pub fn never() -> Self {
        Self(never())
    }

    /// Waits, and answers early with `true` once the signal is given.
    pub fn within(&self, wait: Duration) -> bool {
        matches!(
            self.0.recv_timeout(wait),
            Err(RecvTimeoutError::Disconnected)
        )
    }

    pub fn is_given(&self) -> bool {
        self.within(Duration::ZERO)
    }

    /// For `select!`: becomes ready, with an error, once the signal is given.
    pub fn signal(&self) -> &Receiver<Infallible> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_the_quitter_is_the_signal() {
        let (quitter, quit) = Quit::pair();
        let other = quit.clone();
        assert!(!quit.is_given() && !other.within(Duration::from_millis(1)));
        drop(quitter);
        assert!(quit.is_given() && other.within(Duration::from_secs(60)));
        assert!(!Quit::never().is_given());
    }
}
