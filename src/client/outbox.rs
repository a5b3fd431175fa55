//! One connection's send queue and the write side of its socket.
//!
//! Delivering wakes no thread. Whoever has a frame puts it into the queue and, if nobody holds the
//! write side, takes it and empties the queue with one write that never blocks. A socket that takes
//! no more, or has taken a fair share, is handed over to the connection's writer thread, which
//! blocks as ever ([`Outbox::flush_blocking`]).
//!
//! No frame is stranded. It is the store-buffering pattern (Dekker's): either of two threads first
//! stores, and then loads what the other one stores. Without the fences both loads could be done
//! before either store is seen, and the frame would wait in the queue with the write side free.
//!
//! ```text
//!  who queues a frame             who frees the write side
//!  ------------------             ------------------------
//!  queue.push(frame)              write_side.unlock()
//!  fence(SeqCst)                  fence(SeqCst)
//!  write_side.try_lock()?         queue.is_empty()?
//!    no: the other one writes it    no: try_lock, and write it
//! ```
//!
//! One fence comes before the other. If it is the left one, the right thread sees the frame; if it is
//! the right one, the left thread finds the write side free. Both columns from the fence on are
//! [`Outbox::flush`], which therefore follows each push and each time that the write side was held.
//! The same holds with the flag `handed_over` in the lock's place, which its owner clears before it
//! unlocks; and between whoever has something for the writer thread, such as that flag or a close, and
//! wakes it, and the writer thread, which says who it is before it looks for the first time: the
//! fences of [`Outbox::wake_writer`] and [`Outbox::set_writer`].
//!
//! `tests/run loom` tries it all in every interleaving, and finds the one that goes wrong where a
//! fence is left out.
//!
//! Nobody waits here for a client but its own two threads: a push that finds no room is refused, and
//! its connection falls back to its inbox (see [`gate`](super::gate)).
//!
//! This file is longer than others, so that the proof stands beside every line that it is about.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::iter;
use std::net::Shutdown;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use super::close::CloseReason;
use super::frame::Frame;
use super::transport::Socket;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, MutexGuard, OnceLock};
use crate::sync::{SegQueue, Thread, fence};

/// What one system call carries at most, and what one deliverer writes to one connection before it
/// hands over, so that a busy connection does not keep it from the others. In bytes.
const WRITE_QUANTUM: usize = 64 << 10;

/// How long a blocking write waits for a socket that takes nothing before its thread looks up: the
/// connection may have been closed meanwhile, or be due for a ping.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// The queue and the write side of one connection.
///
/// In the order of C, with what each push touches in front: of many connections each cache line is a
/// miss, which is all that a push costs beside its system call.
#[repr(C)]
pub struct Outbox {
    closing: OnceLock<CloseReason>,
    /// The [`load`] of what is in `queue`, and of what is about to be pushed.
    load: AtomicU64,
    /// How many bytes the holder of the write side has had the socket take: whoever looks on waits
    /// for no lock.
    sent: AtomicU64,
    /// The write side belongs to the writer thread until the queue is empty.
    handed_over: AtomicBool,
    socket: Socket,
    write_side: Mutex<WriteSide>,
    /// Made for the first push, since most connections are idle, and grown block by block, within
    /// the bounds that `load` keeps.
    queue: OnceLock<Box<SegQueue<Frame>>>,
    max_frames: usize,
    max_bytes: usize,
    /// The most frames that the holder of the write side has found in the queue.
    high_water: AtomicUsize,
    writer: OnceLock<Thread>,
}

/// What only the holder of the write side touches.
struct WriteSide {
    /// Frames that have left the queue and have not left entirely.
    unsent: VecDeque<Frame>,
    /// How many bytes of the first of them are written.
    written: usize,
    /// How many bytes the socket has taken since the beginning.
    sent: u64,
}

/// Frames and bytes in one number, so that one atomic step counts both: 24 bits of the one, 40 of
/// the other.
fn load(frame: &Frame) -> u64 {
    (frame.count() as u64) << 40 | frame.len() as u64
}

fn frames_and_bytes(load: u64) -> (usize, usize) {
    ((load >> 40) as usize, (load & ((1 << 40) - 1)) as usize)
}

/// How far the client is with what it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes that the client's host has acknowledged since the beginning.
    pub taken: u64,
    /// Bytes that it has not acknowledged and that have left the queue for the socket.
    pub in_flight: u64,
}

impl Outbox {
    /// `opening`, the answer to the upgrade request, is written before anything else, whatever
    /// happens. Queues at most `max_frames` frames and `max_bytes` bytes; an empty queue takes any one
    /// frame or batch.
    pub fn new(socket: Socket, opening: Frame, max_frames: usize, max_bytes: usize) -> Self {
        // It is not zero, so setting it cannot fail on a socket of ours.
        let _ = socket.set_write_timeout(Some(POLL_INTERVAL));
        Self {
            socket,
            queue: OnceLock::new(),
            max_frames,
            max_bytes,
            load: AtomicU64::new(0),
            write_side: Mutex::new(WriteSide {
                unsent: [opening].into(),
                written: 0,
                sent: 0,
            }),
            high_water: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            handed_over: AtomicBool::new(false),
            writer: OnceLock::new(),
            closing: OnceLock::new(),
        }
    }

    /// Names the thread that [`Outbox::flush_blocking`]s after a hand-over, before it looks whether
    /// one has been.
    pub fn set_writer(&self, writer: Thread) {
        // A second name would be a bug of the one caller; the first one stands.
        let _ = self.writer.set(writer);
        fence(SeqCst);
    }

    /// Queues `frame` (a frame or a batch) and writes nothing, save to make room for it: an
    /// [`Outbox::flush`] is to follow. Answers whether there was room. Never blocks.
    #[must_use]
    pub fn push(&self, frame: &Frame) -> bool {
        self.try_enqueue(frame) || (self.make_room() && self.try_enqueue(frame))
    }

    /// Writes a share of a full queue, if nobody else is at it.
    fn make_room(&self) -> bool {
        let side = self.write_side.try_lock();
        side.map(|side| self.write_and_free(side)).is_some()
    }

    /// As [`Outbox::push`] and [`Outbox::flush`] in one: past the queue, if there is nothing before
    /// it and nobody else at the write side.
    #[must_use]
    pub fn push_and_flush(&self, frame: &Frame) -> bool {
        self.try_write_direct(frame) || {
            let queued = self.push(frame);
            self.flush();
            queued
        }
    }

    /// Writes or queues `frame` on behalf of the connection's own reader or writer thread, which
    /// waits while the queue is full: that slows down only the client that does not read.
    pub fn send(&self, frame: &Frame) {
        if !self.try_write_direct(frame) {
            while !self.try_enqueue(frame) {
                self.flush_blocking();
            }
            self.flush();
        }
    }

    /// Writes `frame` if nothing is before it and nobody else at the write side; else it answers
    /// false, and another way has to be gone, a flush at its end. (So a connection that is only asked
    /// and answered has no queue, and a group message costs a tenth less for each of 1,000 recipients.)
    fn try_write_direct(&self, frame: &Frame) -> bool {
        let is_next = |side: &MutexGuard<'_, WriteSide>| side.unsent.is_empty() && self.is_empty();
        let Some(mut side) = self.try_write_side().filter(is_next) else {
            return false;
        };
        // An error is nothing sent: the writer thread gets it again, and closes the connection.
        let sent = self.socket.send(frame.bytes(), false).unwrap_or(0);
        side.sent += sent as u64;
        self.sent.store(side.sent, Relaxed);
        if sent == frame.len() {
            drop(side);
            self.flush();
        } else {
            side.unsent.push_back(frame.clone());
            side.written = sent;
            self.hand_over(side);
        }
        true
    }

    /// Writes what is queued and then `frames`, as far as the socket takes them, and leaves the rest
    /// to the writer thread. For the opening, and for catch-up, which must not fill the queue, nor
    /// overtake what is in it.
    pub fn write_behind(&self, frames: impl IntoIterator<Item = Frame>) {
        let mut side = self.write_side.lock();
        side.unsent.extend(iter::from_fn(|| self.pop()));
        side.unsent.extend(frames);
        self.write_and_free(side);
    }

    /// Sends a ping that overtakes all but a frame that is half written. Answers how many bytes the
    /// client has been sent once it is.
    pub(super) fn ping(&self) -> u64 {
        let mut side = self.write_side.lock();
        let begun = side.begun(self.socket.begun());
        side.unsent.insert(begun, Frame::ping());
        // Nothing is half written where nothing is begun.
        let end: usize = side.unsent.range(..=begun).map(Frame::len).sum();
        let position = side.sent + (end - side.written) as u64;
        self.write_and_free(side);
        position
    }

    /// How far the client is.
    pub(super) fn progress(&self) -> Progress {
        let side = self.write_side.lock();
        let sent = side.sent;
        let in_flight = self.socket.in_flight().min(sent);
        drop(side);
        self.flush();
        let taken = sent - in_flight;
        Progress { taken, in_flight }
    }

    /// How many bytes the socket has taken since the beginning.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// How many frames and bytes are queued.
    pub fn queued(&self) -> (usize, usize) {
        frames_and_bytes(self.load.load(SeqCst))
    }

    /// The most frames that have been queued, as far as anybody has looked.
    pub fn high_water(&self) -> usize {
        self.high_water.load(Relaxed).max(self.queued().0)
    }

    /// Whether the client has sent something that nobody has read yet, or is gone.
    pub(super) fn has_input(&self) -> bool {
        self.socket.has_bytes()
    }

    /// Queues `frame`, or drops it if the connection is closing; false if there is no room.
    fn try_enqueue(&self, frame: &Frame) -> bool {
        if self.closing.get().is_some() {
            return true;
        }
        let load = load(frame);
        let before = self.load.fetch_add(load, SeqCst);
        let (frames, bytes) = frames_and_bytes(before + load);
        let fits = before == 0 || (frames <= self.max_frames && bytes <= self.max_bytes);
        if fits {
            self.queue.get_or_init(Box::default).push(frame.clone());
        } else {
            self.load.fetch_sub(load, SeqCst);
        }
        fits
    }

    /// Whether the queue holds at least half of what it may.
    pub fn is_half_full(&self) -> bool {
        let (frames, bytes) = self.queued();
        frames * 2 >= self.max_frames || bytes * 2 >= self.max_bytes
    }

    /// Whether a frame of several messages is within the bounds of the queue.
    pub fn may_hold(&self, frame: &Frame) -> bool {
        frame.len() <= self.max_bytes
    }

    /// Whether nothing is queued. The load tells without a look at the queue, which is seldom in the
    /// processor's cache.
    fn is_empty(&self) -> bool {
        self.load.load(SeqCst) == 0 || self.queue.get().is_none_or(|queue| queue.is_empty())
    }

    /// Writes what is queued, unless somebody else is at it, who then does. Never blocks.
    pub fn flush(&self) {
        fence(SeqCst);
        while !self.is_empty()
            && let Some(side) = self.try_write_side()
        {
            self.write_a_share(side);
            fence(SeqCst);
        }
    }

    /// The write side, unless somebody else is at it or nothing is to be written any more.
    fn try_write_side(&self) -> Option<MutexGuard<'_, WriteSide>> {
        if self.is_handed_over() || self.closing.get().is_some() {
            return None;
        }
        self.write_side.try_lock()
    }

    /// Writes what is queued, and then what has been queued meanwhile.
    fn write_and_free(&self, side: MutexGuard<'_, WriteSide>) {
        self.write_a_share(side);
        self.flush();
    }

    /// Writes what is queued as far as the socket takes it, hands over if there is more, and frees
    /// the write side. A [`Outbox::flush`] is to follow.
    fn write_a_share(&self, mut side: MutexGuard<'_, WriteSide>) {
        if !self.write_queue(&mut side, false) {
            self.hand_over(side);
        }
    }

    /// Leaves what is unsent to the writer thread.
    fn hand_over(&self, side: MutexGuard<'_, WriteSide>) {
        self.handed_over.store(true, SeqCst);
        drop(side);
        self.wake_writer();
    }

    /// Writes a share of what is queued, and blocks while the socket takes nothing, though not for
    /// longer than a [`POLL_INTERVAL`]: call it as long as it [is handed over](Outbox::is_handed_over).
    pub fn flush_blocking(&self) {
        let mut side = self.write_side.lock();
        if self.write_queue(&mut side, true) {
            self.handed_over.store(false, SeqCst);
            drop(side);
            self.flush();
        }
    }

    fn pop(&self) -> Option<Frame> {
        if self.load.load(SeqCst) == 0 {
            return None;
        }
        let frame = self.queue.get()?.pop()?;
        self.load.fetch_sub(load(&frame), SeqCst);
        Some(frame)
    }

    /// Whether the writer thread is to [`Outbox::flush_blocking`].
    pub fn is_handed_over(&self) -> bool {
        self.handed_over.load(SeqCst)
    }

    /// Moves up to a share from the queue to the socket. A frame leaves the queue only when its turn
    /// is near, so that the queue's bounds hold. Answers whether nothing is left to be written: all
    /// is, or the client's end is gone.
    fn write_queue(&self, side: &mut WriteSide, may_block: bool) -> bool {
        let end = side.sent + WRITE_QUANTUM as u64;
        self.high_water.fetch_max(self.queued().0, Relaxed);
        loop {
            let mut unsent_bytes = side.unsent_bytes();
            while unsent_bytes < WRITE_QUANTUM
                && let Some(frame) = self.pop()
            {
                unsent_bytes += frame.len();
                side.unsent.push_back(frame);
            }
            match self.write(side, may_block) {
                Ok(true) if self.is_empty() => return true,
                Ok(true) if side.sent < end => {}
                Ok(_) => return false,
                Err(_) => {
                    self.close(CloseReason::Vanished);
                    return true;
                }
            }
        }
    }

    /// Writes what is unsent, several frames with one call, until the socket takes no more. A
    /// blocking write looks up after each call, however large a page of catch-up is under way: the
    /// connection may be to end, or be due for a ping. Answers whether all is written; an error says
    /// that the client's end is gone.
    fn write(&self, side: &mut WriteSide, may_block: bool) -> io::Result<bool> {
        while !side.unsent.is_empty() {
            let bytes = side.next_bytes();
            let (asked, result) = (bytes.len(), self.socket.send(&bytes, may_block));
            drop(bytes);
            match result {
                Ok(sent) => {
                    side.advance(sent);
                    self.sent.store(side.sent, Relaxed);
                    if may_block || sent < asked {
                        return Ok(side.unsent.is_empty());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Ends the connection, from any thread; the first reason wins. The writer thread says goodbye.
    pub fn close(&self, reason: CloseReason) {
        if self.closing.set(reason).is_ok() {
            self.wake_writer();
        }
    }

    /// Why the connection is ending, if it is.
    pub fn closing(&self) -> Option<&CloseReason> {
        self.closing.get()
    }

    pub fn wake_writer(&self) {
        fence(SeqCst);
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    /// The last act of the write side, within `patience`: what is queued is dropped, a frame that
    /// is half written is finished, `close` follows. Afterwards nothing more can be written.
    pub fn finish_close(&self, close: Option<Frame>, patience: Duration) {
        let mut side = self.write_side.lock();
        while self.pop().is_some() {}
        let begun = side.begun(self.socket.begun());
        side.unsent.truncate(begun);
        if let Some(close) = close {
            side.unsent.push_back(close);
            let deadline = Instant::now() + patience;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                // The timeout is never zero, so setting it cannot fail on a socket of ours.
                let timeout = Some(left.max(Duration::from_millis(1)));
                let _ = self.socket.set_write_timeout(timeout);
                // A failure says that nobody is there to be told.
                let is_done = self.write(&mut side, true).unwrap_or(true);
                if is_done || left.is_zero() {
                    break;
                }
            }
        }
        self.socket.shutdown(Shutdown::Write);
    }

    /// Cuts the connection: whoever blocks on the socket returns at once.
    pub fn abort(&self) {
        self.socket.shutdown(Shutdown::Both);
    }
}

impl WriteSide {
    /// The length of all that is unsent, what is written of the first frame included.
    fn unsent_bytes(&self) -> usize {
        self.unsent.iter().map(Frame::len).sum()
    }

    /// How many frames nothing may overtake: one that is half written, those in the bytes that the
    /// transport has `begun` with, and the opening, without which a client understands nothing.
    fn begun(&self, begun: usize) -> usize {
        let end = (self.written + begun).max(usize::from(self.sent == 0));
        let starts = self.unsent.iter().scan(0, |next, frame| {
            let start = *next;
            *next += frame.len();
            Some(start)
        });
        starts.take_while(|&start| start < end).count()
    }

    /// A share of the unsent bytes, side by side: one plain write of them is cheaper than a
    /// vectored one of many small frames. A frame that is alone or long is not copied.
    fn next_bytes(&self) -> Cow<'_, [u8]> {
        let first = &self.unsent[0].bytes()[self.written..];
        if self.unsent.len() == 1 || first.len() >= WRITE_QUANTUM {
            return Cow::Borrowed(first);
        }
        let mut bytes = Vec::with_capacity(self.unsent_bytes().min(2 * WRITE_QUANTUM));
        bytes.extend(first);
        for frame in self.unsent.range(1..) {
            bytes.extend(frame.bytes());
            if bytes.len() >= WRITE_QUANTUM {
                break;
            }
        }
        Cow::Owned(bytes)
    }

    /// Drops what the socket has taken.
    fn advance(&mut self, sent: usize) {
        self.sent += sent as u64;
        self.written += sent;
        while let Some(first) = self.unsent.front()
            && self.written >= first.len()
        {
            self.written -= first.len();
            self.unsent.pop_front();
        }
        if self.unsent.is_empty() && self.unsent.capacity() > 16 {
            self.unsent = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::thread;

    use rustix::net::sockopt;

    /// An outbox whose opening is `[0]`, and the client's end of its socket.
    fn outbox(max_frames: usize, max_bytes: usize) -> (Arc<Outbox>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let (socket, _) = listener.accept().unwrap();
        // Of a fixed size, the kernel enlarges neither: a socket that is full stays full.
        sockopt::set_socket_send_buffer_size(&socket, 256 << 10).unwrap();
        sockopt::set_socket_recv_buffer_size(&client, 256 << 10).unwrap();
        let outbox = Outbox::new(Arc::new(socket), Frame::raw(&[0]), max_frames, max_bytes);
        (Arc::new(outbox), client)
    }

    fn read(client: &mut TcpStream, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        client.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn number(n: u32) -> Frame {
        Frame::raw(&n.to_be_bytes())
    }

    /// A pusher's part. Answers whether there was room.
    fn deliver(outbox: &Outbox, frame: &Frame) -> bool {
        let queued = outbox.push(frame);
        outbox.flush();
        queued
    }

    #[test]
    fn the_opening_comes_first() {
        let (outbox, mut client) = outbox(8, 1024);
        assert!(outbox.push(&number(1)) && outbox.push(&number(2)));
        outbox.flush();
        assert_eq!(read(&mut client, 9), [0, 0, 0, 0, 1, 0, 0, 0, 2]);
    }

    #[test]
    fn a_push_that_is_caught_up_with_by_a_flush_strands_nobody() {
        let (outbox, mut client) = outbox(8, 1024);
        assert!(outbox.push(&number(1)));
        // Another pusher has made room for its frame, and is held up before it queues it.
        outbox.load.fetch_add(load(&number(2)), SeqCst);
        outbox.flush();
        assert!(outbox.push(&number(2)));
        outbox.flush();
        assert_eq!(read(&mut client, 9), [0, 0, 0, 0, 1, 0, 0, 0, 2]);
    }

    #[test]
    fn catch_up_comes_behind_what_is_queued() {
        let (outbox, mut client) = outbox(8, 1024);
        assert!(outbox.push(&number(1)));
        outbox.write_behind([number(2)]);
        assert_eq!(read(&mut client, 9), [0, 0, 0, 0, 1, 0, 0, 0, 2]);
    }

    #[test]
    fn a_full_queue_is_emptied_to_a_socket_that_takes_more() {
        let (outbox, mut client) = outbox(4, 1024);
        assert!((0..100).all(|n| outbox.push(&number(n))));
        outbox.flush();
        assert_eq!(outbox.closing(), None);
        let bytes = read(&mut client, 1 + 400);
        let expected: Vec<u8> = (0..100).flat_map(u32::to_be_bytes).collect();
        assert_eq!(bytes[1..], expected);
    }

    #[test]
    fn a_batch_counts_for_its_frames() {
        let (outbox, _client) = outbox(4, 1024);
        let three = [number(1), number(2), number(3)];
        assert!(outbox.try_enqueue(&Frame::batch(three.iter())));
        assert!(outbox.is_half_full());
        assert!(!outbox.try_enqueue(&Frame::batch(three[..2].iter())));
        assert!(outbox.try_enqueue(&number(4)));
        assert!(!outbox.try_enqueue(&number(5)));
    }

    #[test]
    fn an_empty_queue_takes_a_frame_over_the_byte_bound() {
        let (outbox, mut client) = outbox(4, 16);
        assert!(deliver(&outbox, &Frame::raw(&[7; 1000])));
        assert_eq!(read(&mut client, 1001)[1..], [7; 1000]);
    }

    #[test]
    fn a_full_queue_before_a_full_socket_takes_nothing_more_and_waits_for_nobody() {
        let (outbox, mut client) = outbox(4, 1 << 20);
        let frame = Frame::raw(&[7; 60_000]);
        let mut taken = 0;
        while deliver(&outbox, &frame) {
            taken += 1;
        }
        let start = Instant::now();
        for _ in 0..1_000 {
            assert!(!outbox.push(&frame));
        }
        assert!(start.elapsed() < Duration::from_secs(5), "nobody waits");
        assert_eq!(outbox.closing(), None);
        let reader = thread::spawn(move || read(&mut client, 1 + taken * 60_000).len());
        while outbox.is_handed_over() {
            outbox.flush_blocking();
        }
        assert_eq!(
            reader.join().unwrap(),
            1 + taken * 60_000,
            "and nothing is lost"
        );
        assert!(deliver(&outbox, &frame));
    }

    /// However often a full socket is tried, the queue's bounds hold.
    #[test]
    fn what_waits_for_a_full_socket_stays_in_the_queue() {
        let (outbox, _client) = outbox(1_000, 1 << 30);
        let frame = Frame::raw(&[7; 10_000]);
        while !outbox.is_handed_over() {
            assert!(deliver(&outbox, &frame));
        }
        for _ in 0..100 {
            assert!(deliver(&outbox, &frame));
        }
        for _ in 0..10 {
            assert!(outbox.make_room());
        }
        outbox.flush_blocking();
        assert!(outbox.write_side.lock().unsent_bytes() < WRITE_QUANTUM + frame.len());
    }

    #[test]
    fn a_blocking_write_that_takes_nothing_looks_up() {
        let (outbox, _client) = outbox(4, 1 << 20);
        assert!(deliver(&outbox, &Frame::raw(&vec![7; 32 << 20])));
        let before = outbox.progress();
        outbox.flush_blocking();
        assert!(outbox.is_handed_over());
        assert!(before.in_flight > 0 && outbox.progress().in_flight > 0);
    }

    #[test]
    fn progress_is_what_the_clients_host_has_acknowledged() {
        let (outbox, mut client) = outbox(4, 1 << 20);
        outbox.write_behind([]);
        read(&mut client, 1);
        assert!(deliver(&outbox, &Frame::raw(&vec![7; 32 << 20])));
        let before = outbox.progress();
        assert!(before.in_flight > 0, "{before:?}");
        let deadline = Instant::now() + Duration::from_secs(10);
        while outbox.progress().taken < before.taken + (1 << 20) {
            read(&mut client, 1 << 16);
            outbox.flush_blocking();
            assert!(Instant::now() < deadline, "{:?}", outbox.progress());
        }
    }

    #[test]
    fn a_ping_overtakes_all_but_a_frame_that_is_half_written() {
        let (outbox, mut client) = outbox(8, 1 << 30);
        let ping = Frame::ping();
        assert_eq!(outbox.ping(), 1 + ping.len() as u64, "behind the opening");
        assert_eq!(read(&mut client, 3)[1..], *ping.bytes());

        let long = 32 << 20;
        assert!(deliver(&outbox, &Frame::raw(&vec![7; long])));
        assert!(deliver(&outbox, &number(1)));
        let position = (3 + long + ping.len()) as u64;
        assert_eq!(outbox.ping(), position);
        let reader = thread::spawn(move || read(&mut client, long + 6));
        while outbox.is_handed_over() {
            outbox.flush_blocking();
        }
        let end = reader.join().unwrap().split_off(long);
        assert_eq!(end, [ping.bytes(), &[0, 0, 0, 1]].concat());
    }

    #[test]
    fn a_handed_over_socket_is_left_to_its_writer() {
        let (outbox, mut client) = outbox(1_000, 1 << 30);
        let frame = Frame::raw(&[7; 60_000]);
        let mut sent = 0;
        while !outbox.is_handed_over() {
            assert!(deliver(&outbox, &frame));
            sent += 1;
        }
        // The queue has room, and nobody but the writer tries the full socket.
        assert!(deliver(&outbox, &frame));
        let reader = thread::spawn(move || read(&mut client, 1 + (sent + 1) * 60_000).len());
        while outbox.is_handed_over() {
            outbox.flush_blocking();
        }
        assert_eq!(reader.join().unwrap(), 1 + (sent + 1) * 60_000);
        assert_eq!(outbox.closing(), None);
    }

    #[test]
    fn goodbye_finishes_a_half_written_frame_and_drops_the_queue() {
        let (outbox, mut client) = outbox(8, 1 << 30);
        let frame = Frame::raw(&[7; 60_000]);
        while !outbox.is_handed_over() {
            assert!(deliver(&outbox, &frame));
        }
        assert!(deliver(&outbox, &number(1)));
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).map(|_| bytes).unwrap()
        });
        outbox.close(CloseReason::Shutdown(Duration::ZERO));
        outbox.finish_close(Some(Frame::close(1012, "")), Duration::from_secs(10));
        let bytes = reader.join().unwrap();
        assert!(bytes.ends_with(Frame::close(1012, "").bytes()));
        assert_eq!((bytes.len() - 1 - 4) % 60_000, 0, "only whole frames");
    }

    /// Takes a little now and then, for as long as there is anything.
    fn trickle(mut client: TcpStream) {
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(1..) = client.read(&mut bytes) {
                thread::sleep(Duration::from_millis(20));
            }
        });
    }

    #[test]
    fn a_page_of_any_size_keeps_its_thread_for_no_longer_than_a_look() {
        let (outbox, client) = outbox(8, 1 << 30);
        trickle(client);
        let start = Instant::now();
        outbox.write_behind(std::iter::repeat_n(Frame::raw(&[7; 60_000]), 2_000));
        assert!(outbox.is_handed_over(), "it does not block");
        outbox.flush_blocking();
        outbox.flush_blocking();
        assert!(outbox.is_handed_over());
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
    }

    #[test]
    fn goodbye_keeps_to_its_patience_with_a_client_that_takes_little_by_little() {
        let (outbox, client) = outbox(8, 1 << 30);
        let frame = Frame::raw(&vec![7; 32 << 20]);
        while !outbox.is_handed_over() {
            assert!(deliver(&outbox, &frame));
        }
        trickle(client);
        outbox.close(CloseReason::Shutdown(Duration::ZERO));
        let start = Instant::now();
        outbox.finish_close(Some(Frame::close(1012, "")), Duration::from_millis(500));
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn goodbye_comes_after_the_opening_even_if_nothing_was_written() {
        let (outbox, mut client) = outbox(8, 1024);
        assert!(outbox.push(&number(1)));
        outbox.close(CloseReason::Replaced);
        outbox.finish_close(Some(Frame::close(4004, "")), Duration::from_secs(1));
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [&[0], Frame::close(4004, "").bytes()].concat());
    }

    /// Whoever looks how far the client is holds the write side for a moment.
    #[test]
    fn a_look_at_the_progress_strands_nobody() {
        let (outbox, mut client) = outbox(64, 1 << 20);
        outbox.write_behind([]);
        read(&mut client, 1);
        let looker = thread::spawn({
            let outbox = Arc::clone(&outbox);
            move || {
                while outbox.closing().is_none() {
                    outbox.progress();
                }
            }
        });
        for n in 0..20_000 {
            outbox.send(&number(n));
            assert_eq!(read(&mut client, 4), n.to_be_bytes());
        }
        outbox.close(CloseReason::InternalError);
        looker.join().unwrap();
    }

    /// Several deliverers and a writer thread at once: nothing is stranded, and what one deliverer
    /// sends stays in its order.
    #[test]
    fn no_frame_is_stranded() {
        const DELIVERERS: u32 = 3;
        const EACH: u32 = 30_000;
        let (outbox, mut client) = outbox(64, 1 << 20);
        let writer = thread::spawn({
            let outbox = Arc::clone(&outbox);
            move || {
                outbox.set_writer(thread::current());
                while outbox.closing().is_none() {
                    if outbox.is_handed_over() {
                        outbox.flush_blocking();
                    } else {
                        thread::park_timeout(Duration::from_micros(50));
                        outbox.progress();
                    }
                }
            }
        });
        let deliverers: Vec<_> = (0..DELIVERERS)
            .map(|deliverer| {
                let outbox = Arc::clone(&outbox);
                thread::spawn(move || {
                    for n in 0..EACH {
                        // A reader that is held up is not what this is about.
                        while outbox.is_half_full() {
                            thread::yield_now();
                        }
                        assert!(deliver(&outbox, &number(deliverer << 24 | n)));
                    }
                })
            })
            .collect();
        read(&mut client, 1);
        let mut next = [0; DELIVERERS as usize];
        for _ in 0..DELIVERERS * EACH {
            let bytes = read(&mut client, 4);
            let n = u32::from_be_bytes([0, bytes[1], bytes[2], bytes[3]]);
            let expected = &mut next[usize::from(bytes[0])];
            assert_eq!(n, *expected);
            *expected += 1;
        }
        for deliverer in deliverers {
            deliverer.join().unwrap();
        }
        outbox.close(CloseReason::InternalError);
        writer.join().unwrap();
    }
}
