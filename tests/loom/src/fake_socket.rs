//! A socket that takes what it is told to take, and remembers what it took.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use loom::cell::UnsafeCell;

use super::frame::Frame;
use super::transport::Transport;
use crate::sync::stand_ins::Waiting;

/// Loom sees to it that two threads are never in it at once, nor one after the other with nothing
/// that orders them: the write side is one holder's.
pub struct FakeSocket {
    state: UnsafeCell<State>,
    /// How many bytes it has taken, for who waits for so many.
    count: AtomicUsize,
    waiting: Waiting,
}

struct State {
    /// How many bytes each of the next calls takes at most, none being a socket that is full; then
    /// each takes all.
    takes: VecDeque<usize>,
    taken: Vec<u8>,
    is_shut: bool,
}

// SAFETY: loom checks that one thread at a time is in it.
unsafe impl Send for FakeSocket {}
// SAFETY: as above.
unsafe impl Sync for FakeSocket {}

/// A transport has a descriptor. Nobody uses this one.
static DESCRIPTOR: LazyLock<File> =
    LazyLock::new(|| File::open("/dev/null").expect("/dev/null is there"));

impl FakeSocket {
    pub fn new(takes: &[usize]) -> Arc<Self> {
        let state = State {
            takes: takes.iter().copied().collect(),
            taken: Vec::new(),
            is_shut: false,
        };
        Arc::new(Self {
            state: UnsafeCell::new(state),
            count: AtomicUsize::new(0),
            waiting: Waiting::default(),
        })
    }

    fn state<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        // SAFETY: loom checks that one thread at a time is in it.
        self.state.with_mut(|state| look(unsafe { &mut *state }))
    }

    /// Waits until it has taken so many bytes. If it never does, loom calls that a deadlock.
    pub fn wait_for(&self, bytes: usize) {
        while self.count.load(Relaxed) < bytes {
            self.waiting.wait();
        }
    }

    /// All that it took, once nobody sends any more.
    pub fn taken(&self) -> Vec<u8> {
        self.state(|state| state.taken.clone())
    }

    pub fn is_shut(&self) -> bool {
        self.state(|state| state.is_shut)
    }
}

impl AsFd for FakeSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        DESCRIPTOR.as_fd()
    }
}

impl Transport for FakeSocket {
    fn read(&self, _: &mut [u8], _: bool) -> io::Result<usize> {
        unreachable!("an outbox only writes")
    }

    /// A call that may block and takes nothing has waited for as long as the write timeout lets it.
    fn send(&self, bytes: &[u8], _: bool) -> io::Result<usize> {
        self.state(|state| {
            if state.is_shut {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let takes = state.takes.pop_front().unwrap_or(usize::MAX);
            let sent = takes.min(bytes.len());
            state.taken.extend(&bytes[..sent]);
            self.count.fetch_add(sent, Relaxed);
            self.waiting.wake();
            if sent == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(sent)
        })
    }

    fn set_write_timeout(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn shutdown(&self, how: Shutdown) {
        if how == Shutdown::Write {
            self.state(|state| state.is_shut = true);
        }
    }

    fn in_flight(&self) -> u64 {
        0
    }

    fn has_bytes(&self) -> bool {
        false
    }
}

/// A frame of two bytes, so that it can be half written.
pub fn frame(number: u8) -> Frame {
    Frame::raw(&[number, !number])
}

/// The numbers of the frames in what a client got behind an opening of one byte, each of them whole.
pub fn numbers(taken: &[u8]) -> Vec<u8> {
    let (opening, frames) = taken.split_first().expect("the opening");
    assert_eq!(*opening, 0);
    let (frames, rest) = frames.as_chunks();
    assert!(rest.is_empty(), "half a frame: {taken:?}");
    let number = |&[number, check]: &[u8; 2]| {
        assert_eq!(check, !number, "torn: {taken:?}");
        number
    };
    frames.iter().map(number).collect()
}
