//! The stacks of connection threads, which are most of what a connection costs in memory.
//!
//! The system keeps every page of a stack that was ever touched. What only the beginning of a
//! connection needs, head and token and log lines, is given back before the long wait for frames:
//! half of the reader's pages, 8 of the 16 KiB that its thread takes; and of the writer's what its
//! first calls to the services took.

use std::ffi::c_void;

use rustix::mm::{Advice, madvise};
use rustix::param::page_size;

/// The stack of a connection thread, in bytes. Only what is touched of it costs memory.
pub(super) const STACK: usize = 256 << 10;

/// How far below the caller pages are given back: deeper than a handshake goes, and so little that
/// it stays within [`STACK`], since no caller is half that deep itself.
const DEPTH: usize = STACK / 4;

/// What the call itself may use below its own frame, in bytes.
const OWN: usize = 1024;

/// Gives the pages below the caller's frame back to the system. For threads with a stack of
/// [`STACK`] bytes alone.
#[inline(never)]
pub(super) fn trim() {
    let marker = 0_u8;
    let here = &raw const marker as usize;
    let page = page_size();
    let end = (here - OWN) / page * page;
    let start = (end - DEPTH) as *mut c_void;
    // SAFETY: the pages belong to this thread's stack, which is `STACK` bytes long and grows down,
    // and lie below everything that is in use of it. Their contents are lost, and nobody reads
    // what is below the end of a stack before it has written it.
    let trimmed = unsafe { madvise(start, DEPTH, Advice::LinuxDontNeed) };
    debug_assert_eq!(trimmed, Ok(()));
}
