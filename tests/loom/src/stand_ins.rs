//! What `src/sync.rs` names, on loom's types. Each stand-in does the same atomic steps as what it
//! stands for, with the same orderings: were one stronger, such as a queue under a lock, it would
//! order what the outbox's own fences have to order, and no model would miss them.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release, SeqCst};

use loom::cell::{MutPtr, UnsafeCell};
pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

thread_local! {
    /// A model runs on one thread of the system: this one.
    static LEFT_OUT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The lines of `src/client/outbox.rs` that are a fence, counted from 1.
pub fn fences() -> Vec<u32> {
    let lines = include_str!("../../../src/client/outbox.rs").lines();
    let fences = (1..)
        .zip(lines)
        .filter(|(_, line)| line.trim() == "fence(SeqCst);");
    fences.map(|(number, _)| number).collect()
}

/// Runs `model` without the outbox's fence of this index.
pub fn without_fence(index: usize, model: impl FnOnce()) {
    LEFT_OUT.set(Some(index));
    model();
}

/// A fence of the outbox, unless the model is one without it.
#[track_caller]
pub fn fence(order: Ordering) {
    let left_out = LEFT_OUT.get().map(|index| fences()[index]);
    if left_out != Some(Location::caller().line()) {
        loom::sync::atomic::fence(order);
    }
}

/// Threads that wait until something is so. Looking whether it is and waiting is one step to loom, as
/// is making it so and waking: it switches threads at its own types alone. A thread may come back too
/// early, and looks again.
#[derive(Default)]
pub(crate) struct Waiting(std::sync::Mutex<Vec<loom::thread::Thread>>);

impl Waiting {
    pub(crate) fn wait(&self) {
        let thread = loom::thread::current();
        self.0.lock().expect("nothing panics here").push(thread);
        loom::thread::park();
    }

    pub(crate) fn wake(&self) {
        let threads = std::mem::take(&mut *self.0.lock().expect("nothing panics here"));
        threads.iter().for_each(loom::thread::Thread::unpark);
    }
}

/// As std's, whose parker on Linux takes these steps. (loom's own forgets an `unpark` of a thread that
/// yields.)
#[derive(Clone, Default)]
pub struct Thread(Arc<Parker>);

struct Parker {
    is_let_go: AtomicBool,
    waiting: Waiting,
}

impl Default for Parker {
    fn default() -> Self {
        Self {
            is_let_go: AtomicBool::new(false),
            waiting: Waiting::default(),
        }
    }
}

impl Thread {
    pub fn unpark(&self) {
        self.0.is_let_go.swap(true, Release);
        self.0.waiting.wake();
    }

    /// Parks the one thread that this is.
    pub fn park(&self) {
        while !self.0.is_let_go.swap(false, Acquire) {
            self.0.waiting.wait();
        }
    }
}

/// As parking_lot's: `RawMutex` of 0.12, without its queue of sleepers, which only orders more.
pub struct Mutex<T> {
    locked: AtomicBool,
    waiting: Waiting,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by one guard at a time, which loom checks.
unsafe impl<T: Send> Send for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Mutex<T> {}

pub struct MutexGuard<'m, T> {
    mutex: &'m Mutex<T>,
    /// To loom, it is written to as long as this is there.
    value: Option<MutPtr<T>>,
}

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self {
            locked: AtomicBool::new(false),
            waiting: Waiting::default(),
            value: UnsafeCell::new(value),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        while !self.is_taken() {
            self.waiting.wait();
        }
        self.guard()
    }

    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let is_free = !self.locked.load(Relaxed);
        (is_free && self.is_taken()).then(|| self.guard())
    }

    fn is_taken(&self) -> bool {
        let taken = self.locked.compare_exchange(false, true, Acquire, Relaxed);
        taken.is_ok()
    }

    fn guard(&self) -> MutexGuard<'_, T> {
        MutexGuard {
            mutex: self,
            value: Some(self.value.get_mut()),
        }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        let value = self.value.as_ref().expect("it is held");
        // SAFETY: the guard is the only one, and outlived by the mutex.
        unsafe { value.deref() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        let value = self.value.as_ref().expect("it is held");
        // SAFETY: the guard is the only one, and outlived by the mutex.
        unsafe { value.deref() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        // The model has failed, and loom is gone.
        if std::thread::panicking() {
            return;
        }
        let freed = (self.mutex.locked).compare_exchange(true, false, Release, Relaxed);
        assert!(freed.is_ok(), "it was held");
        self.mutex.waiting.wake();
    }
}

/// As std's, whose `Once` on Linux takes these steps.
pub struct OnceLock<T> {
    state: AtomicUsize,
    waiting: Waiting,
    value: std::sync::OnceLock<T>,
}

const EMPTY: usize = 0;
const RUNNING: usize = 1;
const COMPLETE: usize = 2;

impl<T> OnceLock<T> {
    pub fn new() -> Self {
        Self {
            state: AtomicUsize::new(EMPTY),
            waiting: Waiting::default(),
            value: std::sync::OnceLock::new(),
        }
    }

    pub fn get(&self) -> Option<&T> {
        let is_complete = self.state.load(Acquire) == COMPLETE;
        is_complete.then(|| self.value.get()).flatten()
    }

    pub fn set(&self, value: T) -> Result<(), T> {
        let mut value = Some(value);
        self.get_or_init(|| value.take().expect("it is called once"));
        value.map_or(Ok(()), Err)
    }

    pub fn get_or_init(&self, init: impl FnOnce() -> T) -> &T {
        let mut init = Some(init);
        loop {
            if let Some(value) = self.get() {
                return value;
            }
            let begun = self
                .state
                .compare_exchange(EMPTY, RUNNING, Acquire, Acquire);
            match (begun, init.take()) {
                (Ok(_), Some(init)) => {
                    let _ = self.value.set(init());
                    self.state.swap(COMPLETE, AcqRel);
                    self.waiting.wake();
                }
                (Err(RUNNING), left) => {
                    init = left;
                    self.waiting.wait();
                }
                (_, left) => init = left,
            }
        }
    }
}

/// As crossbeam's, with room for as many as a model pushes.
pub struct SegQueue<T> {
    head: AtomicUsize,
    tail: AtomicUsize,
    slots: [Slot<T>; SLOTS],
}

struct Slot<T> {
    is_written: AtomicBool,
    waiting: Waiting,
    value: UnsafeCell<Option<T>>,
}

const SLOTS: usize = 6;

// SAFETY: a slot belongs to who moved the tail past it until `is_written`, and then to who moved the
// head past it; loom checks it.
unsafe impl<T: Send> Send for SegQueue<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SegQueue<T> {}

impl<T> Default for SegQueue<T> {
    fn default() -> Self {
        let slot = || Slot {
            is_written: AtomicBool::new(false),
            waiting: Waiting::default(),
            value: UnsafeCell::new(None),
        };
        Self {
            head: AtomicUsize::new(0),
            tail: AtomicUsize::new(0),
            slots: std::array::from_fn(|_| slot()),
        }
    }
}

impl<T> SegQueue<T> {
    pub fn push(&self, value: T) {
        let mut tail = self.tail.load(Acquire);
        while let Err(newer) = self.tail.compare_exchange(tail, tail + 1, SeqCst, Acquire) {
            tail = newer;
        }
        let slot = &self.slots[tail];
        // SAFETY: the tail was moved past it by this thread, so that it is nobody else's.
        slot.value.with_mut(|place| unsafe { *place = Some(value) });
        slot.is_written.store(true, Release);
        slot.waiting.wake();
    }

    pub fn pop(&self) -> Option<T> {
        let mut head = self.head.load(Acquire);
        loop {
            loom::sync::atomic::fence(SeqCst);
            if head == self.tail.load(Relaxed) {
                return None;
            }
            match self.head.compare_exchange(head, head + 1, SeqCst, Acquire) {
                Ok(_) => break,
                Err(newer) => head = newer,
            }
        }
        let slot = &self.slots[head];
        // crossbeam loads it until it is. What has been written last is read by an exchange alone.
        let is_written = || {
            slot.is_written
                .compare_exchange(true, true, Acquire, Acquire)
        };
        while is_written().is_err() {
            slot.waiting.wait();
        }
        // SAFETY: the head was moved past it by this thread, and it is written.
        slot.value.with_mut(|place| unsafe { (*place).take() })
    }

    pub fn is_empty(&self) -> bool {
        self.head.load(SeqCst) == self.tail.load(SeqCst)
    }
}
