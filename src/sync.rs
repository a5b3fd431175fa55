//! What the outbox and the delivery gate are made of, where no lock orders all that threads do: the
//! types of std, crossbeam and parking_lot. Under `cfg(loom)` they are stand-ins on loom's types,
//! which `tests/loom/` brings along: there the same two files run in every interleaving.

#[cfg(loom)]
pub use crate::stand_ins::*;
#[cfg(not(loom))]
pub use shipped::*;

#[cfg(not(loom))]
mod shipped {
    pub use std::sync::OnceLock;
    pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
    pub use std::thread::Thread;

    pub use crossbeam::queue::SegQueue;
    pub use parking_lot::{Mutex, MutexGuard};
}
