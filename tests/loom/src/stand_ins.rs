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
use loom::thread::yield_now;

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

/// As std's, whose parker on Linux takes these steps. (loom's own forgets an `unpark` of a thread that
/// waits for a lock.) Whoever waits comes back when nobody else can go on; that is any time after it
/// was let go, since until then its step changes nothing, and so could as well have come later. One
/// that is never let go makes the execution too long for loom.
#[derive(Clone)]
pub struct Thread {
    is_let_go: Arc<AtomicBool>,
}

impl Thread {
    pub fn new() -> Self {
        let is_let_go = Arc::new(AtomicBool::new(false));
        Self { is_let_go }
    }

    pub fn unpark(&self) {
        self.is_let_go.swap(true, Release);
    }

    /// Parks the one thread that is this.
    pub fn park(&self) {
        while !self.is_let_go.swap(false, Acquire) {
            yield_now();
        }
    }
}

/// As parking_lot's: `RawMutex` of 0.12, without its queue of sleepers, which only orders more.
pub struct Mutex<T> {
    locked: AtomicBool,
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
            value: UnsafeCell::new(value),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        while !self.is_taken() {
            yield_now();
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
        let freed = (self.mutex.locked).compare_exchange(true, false, Release, Relaxed);
        assert!(freed.is_ok(), "it was held");
    }
}

/// As std's, whose `Once` on Linux takes these steps.
pub struct OnceLock<T> {
    state: AtomicUsize,
    value: std::sync::OnceLock<T>,
}

const EMPTY: usize = 0;
const RUNNING: usize = 1;
const COMPLETE: usize = 2;

impl<T> OnceLock<T> {
    pub fn new() -> Self {
        Self {
            state: AtomicUsize::new(EMPTY),
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
                }
                (_, left) => {
                    init = left;
                    yield_now();
                }
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
        while !slot.is_written.load(Acquire) {
            yield_now();
        }
        // SAFETY: the head was moved past it by this thread, and it is written.
        slot.value.with_mut(|place| unsafe { (*place).take() })
    }

    pub fn is_empty(&self) -> bool {
        self.head.load(SeqCst) == self.tail.load(SeqCst)
    }
}
