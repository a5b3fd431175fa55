//! What the outbox and the delivery gate are made of, where no lock orders all that threads do: the
//! types of std, crossbeam and parking_lot. Under `cfg(loom)` they are stand-ins on loom's types: the
//! crate in `tests/loom/` is built so, and runs the same two files in every interleaving. (The gateway
//! itself is not: tokio has no sockets then.)

#[cfg(not(loom))]
pub use shipped::*;
#[cfg(loom)]
pub use stand_ins::*;

#[cfg(loom)]
#[path = "../tests/loom/src/stand_ins.rs"]
pub mod stand_ins;

#[cfg(not(loom))]
mod shipped {
    pub use std::sync::OnceLock;
    pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
    pub use std::thread::Thread;

    pub use crossbeam::queue::SegQueue;
    pub use parking_lot::{Mutex, MutexGuard};
}
