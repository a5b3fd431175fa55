//! Threads that come and go, each with a name, all joined in the end, by a deadline.
//!
//! A thread cannot join itself. So each one that ends leaves its handle behind and joins the one
//! that ended before it: at any time at most one ended thread waits to be joined.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// What std gives a thread that asks for nothing else.
pub const USUAL_STACK: usize = 2 << 20;

/// A set of running threads.
#[derive(Default)]
pub struct Threads {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    next: u64,
    running: HashMap<u64, JoinHandle<()>>,
    last_ended: Option<JoinHandle<()>>,
}

/// Signs a thread off, also when it panics.
struct SignOff {
    threads: Arc<Threads>,
    key: u64,
}

impl Threads {
    /// Starts a thread with a stack of `stack` bytes. An error means that the system has no more
    /// to give; nothing was started.
    pub fn spawn(
        self: &Arc<Self>,
        name: String,
        stack: usize,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let threads = Arc::clone(self);
        // Held until the handle is in its place, so that the thread finds it there.
        let mut state = self.state.lock();
        let key = state.next;
        let thread = Builder::new().name(name).stack_size(stack).spawn(move || {
            let _sign_off = SignOff { threads, key };
            run();
        })?;
        state.next += 1;
        state.running.insert(key, thread);
        Ok(())
    }

    /// How many threads run.
    pub fn running(&self) -> usize {
        self.state.lock().running.len()
    }

    /// Waits until all have ended, and joins the last. Answers how many are left at `deadline`.
    pub fn join(&self, deadline: Instant) -> usize {
        let mut state = self.state.lock();
        self.ended
            .wait_while_until(&mut state, |state| !state.running.is_empty(), deadline);
        let last = state.last_ended.take();
        let left = state.running.len();
        drop(state);
        join(last);
        left
    }
}

impl Drop for SignOff {
    fn drop(&mut self) {
        let mut state = self.threads.state.lock();
        let own = state.running.remove(&self.key);
        let previous = std::mem::replace(&mut state.last_ended, own);
        self.threads.ended.notify_all();
        drop(state);
        join(previous);
    }
}

fn join(thread: Option<JoinHandle<()>>) {
    // A panic was reported by the panic hook when it happened.
    let _ = thread.map(JoinHandle::join);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn all_are_joined_those_that_panic_included() {
        let threads = Arc::new(Threads::default());
        for number in 0..100 {
            let spawned = threads.spawn(format!("t-{number}"), 64 << 10, move || {
                assert!(number % 10 != 0, "one in ten panics");
            });
            assert!(spawned.is_ok());
        }
        assert_eq!(threads.join(Instant::now() + Duration::from_secs(10)), 0);
        assert_eq!(threads.running(), 0);
    }

    #[test]
    fn join_gives_up_at_its_deadline() {
        let threads = Arc::new(Threads::default());
        let (release, wait) = crossbeam::channel::bounded::<()>(0);
        let spawned = threads.spawn("t".into(), 64 << 10, move || {
            let _ = wait.recv();
        });
        assert!(spawned.is_ok());
        assert_eq!(threads.join(Instant::now()), 1);
        drop(release);
        assert_eq!(threads.join(Instant::now() + Duration::from_secs(10)), 0);
    }
}
