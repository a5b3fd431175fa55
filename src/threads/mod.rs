//! Threads, each with a name, all joined in the end, by a deadline. A [`Worker`] serves everybody
//! until it is told to stop; [`Threads`] come and go with the connections that they serve; [`fan_out`]
//! does one thing on several, and a [`semaphore`] says how many may do something.

pub(crate) mod failpoint;
pub mod fan_out;
pub mod semaphore;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, never};
use log::{error, warn};
use parking_lot::{Condvar, Mutex};

/// What std gives a thread that asks for nothing else.
pub const USUAL_STACK: usize = 2 << 20;

/// A thread that panics so often within [`PANICS_WITHIN`] will not be mended by running again.
const MAX_PANICS: usize = 3;
const PANICS_WITHIN: Duration = Duration::from_secs(60);

/// Told the reason when the process is to end with an error, since a part of it has failed that the
/// rest cannot do without.
pub type Fatal = Sender<String>;

/// Gives the signal to stop when it is dropped, and so also when its owner panics.
#[derive(Debug)]
pub struct StopGuard {
    _signal: Sender<Infallible>,
}

/// The signal to stop, given once and heard by every thread that waits for it. Nothing is ever
/// sent: the channel's end is the signal.
#[derive(Debug, Clone)]
pub struct StopSignal(Receiver<Infallible>);

impl StopSignal {
    pub fn pair() -> (StopGuard, Self) {
        let (signal, heard) = bounded(0);
        (StopGuard { _signal: signal }, Self(heard))
    }

    /// A signal that nobody gives.
    pub fn never() -> Self {
        Self(never())
    }

    /// Waits, and answers early with `true` once the signal is given.
    pub fn within(&self, wait: Duration) -> bool {
        self.by(Instant::now() + wait)
    }

    /// As [`Self::within`], until `deadline`.
    pub fn by(&self, deadline: Instant) -> bool {
        let heard = self.0.recv_deadline(deadline);
        matches!(heard, Err(RecvTimeoutError::Disconnected))
    }

    pub fn is_given(&self) -> bool {
        matches!(self.0.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// For `select!`: becomes ready, with an error, once the signal is given.
    pub fn receiver(&self) -> &Receiver<Infallible> {
        &self.0
    }
}

/// A call on a thread of its own, whose end can be waited for until a deadline. std joins without one
/// only, so the thread holds the guard of a signal of its own.
pub struct Call<T> {
    /// Given when it has ended.
    pub ended: StopSignal,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Call<T> {
    /// An error means that the system has no more threads to give.
    pub fn start(name: &str, call: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let (at_end, ended) = StopSignal::pair();
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            let _at_end = at_end;
            call()
        })?;
        Ok(Self { ended, thread })
    }

    /// Waits for its end. `None`: it panicked.
    pub fn join(self) -> Option<T> {
        self.thread.join().ok()
    }
}

/// A thread that serves everybody until it is told to stop.
pub struct Worker {
    name: String,
    /// `None`: told to stop.
    stop: Option<StopGuard>,
    call: Call<()>,
}

impl Worker {
    /// A panic has `run` called again ([`supervise`]); `fatal` is told if that is of no use. It
    /// should return soon after the signal is given.
    pub fn start(
        name: &str,
        fatal: &Fatal,
        mut run: impl FnMut(&StopSignal) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = StopSignal::pair();
        let (own_name, fatal) = (name.to_owned(), fatal.clone());
        let supervised = move || supervise(&own_name, &fatal, || run(&stopped));
        Ok(Self {
            name: name.to_owned(),
            stop: Some(stop),
            call: Call::start(name, supervised)?,
        })
    }

    /// Gives the signal, and does not wait.
    pub fn tell_to_stop(&mut self) {
        self.stop = None;
    }

    /// Whether it ends by `deadline`; waits for it.
    pub fn ends_by(&self, deadline: Instant) -> bool {
        self.call.ended.by(deadline)
    }

    /// Gives the signal and joins the thread; at `deadline` it is left behind, and logged. Answers
    /// whether it has ended.
    pub fn stop(mut self, deadline: Instant) -> bool {
        self.tell_to_stop();
        let has_ended = self.ends_by(deadline);
        if !has_ended {
            warn!("Thread left behind: thread={}", self.name);
        } else if self.call.join().is_none() {
            // Nothing that runs beside `run` panics.
            error!("Thread panicked: thread={}", self.name);
        }
        has_ended
    }
}

/// A set of running threads that come and go. A thread cannot join itself. So each one that ends
/// leaves its handle behind and joins the one that ended before it: at any time at most one ended
/// thread waits to be joined.
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

/// Runs the work of a thread that serves everybody, until it returns. A panic has it run again, from
/// what outlives it; too many of them are fatal. Either way nothing stands still unnoticed.
pub fn supervise(name: &str, fatal: &Fatal, mut run: impl FnMut()) {
    let mut panics: Vec<Instant> = Vec::new();
    while catch_unwind(AssertUnwindSafe(&mut run)).is_err() {
        // The panic hook has said what happened.
        panics.retain(|at| at.elapsed() < PANICS_WITHIN);
        panics.push(Instant::now());
        if panics.len() >= MAX_PANICS {
            // Nobody listens when the process is ending anyway.
            let _ = fatal.send(format!(
                "thread {name}: {MAX_PANICS} panics within a minute"
            ));
            return;
        }
        warn!("Thread runs again after a panic: thread={name}");
    }
}

/// Does something for one connection on a thread that serves many: a panic is that one's alone.
/// `None`: it panicked, and the panic hook has said so.
pub fn contain<T>(run: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(run)).ok()
}

fn join(thread: Option<JoinHandle<()>>) {
    // A panic was reported by the panic hook when it happened.
    let _ = thread.map(JoinHandle::join);
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::unbounded;

    use super::*;

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

    #[test]
    fn a_thread_that_panics_runs_again_and_too_many_panics_are_fatal() {
        for panics in 0..2 * MAX_PANICS {
            let (fatal, died) = unbounded();
            let mut runs = 0;
            supervise("t", &fatal, || {
                runs += 1;
                assert!(runs > panics, "as it is meant to");
            });
            assert_eq!(runs, (panics + 1).min(MAX_PANICS));
            let reason = died.try_recv().ok();
            assert_eq!(reason.is_some(), panics >= MAX_PANICS, "{reason:?}");
            assert!(reason.is_none_or(|reason| reason.contains("thread t")));
        }
    }

    #[test]
    fn dropping_the_guard_is_the_signal() {
        let (guard, signal) = StopSignal::pair();
        let other = signal.clone();
        assert!(!signal.is_given() && !other.within(Duration::from_millis(1)));
        drop(guard);
        assert!(signal.is_given() && other.within(Duration::from_secs(60)));
        assert!(!StopSignal::never().is_given());
    }

    #[test]
    fn a_worker_is_joined_or_left_behind_at_the_deadline() {
        let (fatal, _died) = unbounded();
        let far = Instant::now() + Duration::from_secs(60);
        let heeds = Worker::start("heeds", &fatal, move |stop| assert!(stop.by(far))).unwrap();
        assert!(heeds.stop(far));

        let (release, wait) = bounded::<()>(0);
        let mut hangs = Worker::start("hangs", &fatal, move |_| {
            let _ = wait.recv();
        })
        .unwrap();
        hangs.tell_to_stop();
        assert!(!hangs.ends_by(Instant::now()));
        drop(release);
        assert!(hangs.stop(far));
        let hangs = Worker::start("hangs", &fatal, |_| std::thread::park()).unwrap();
        assert!(!hangs.stop(Instant::now()));
    }

    #[test]
    fn a_contained_panic_goes_no_further() {
        assert_eq!(contain(|| 1), Some(1));
        assert_eq!(contain(|| panic!("as it is meant to")), None::<()>);
    }
}
