//! One connection's send queue and the write side of its socket.
//!
//! Delivering wakes no thread. Whoever has a frame puts it into the queue and, if nobody holds the
//! write side, takes it and empties the queue with one write that never blocks. A socket that takes
//! no more, or has taken a fair share, is handed over to the connection's writer thread, which
//! blocks as ever ([`Outbox::drain`]).
//!
//! No frame is stranded. Whoever queues a frame looks for a free write side afterwards (or knows of
//! another one who will); whoever frees the write side looks at the queue once more afterwards. A
//! fence between the two steps of either makes sure that at least one of them sees the other.
//!
//! Nobody waits here for a client but its own two threads: a push that finds no room is
//! [`Queued::Full`], and its connection falls back to its inbox (see [`hold`](super::hold)).

use std::borrow::Cow;
use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst, fence};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::queue::SegQueue;
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::close::CloseReason;
use super::frame::Frame;
use super::kernel;

/// What one system call carries at most, and what one deliverer writes to one connection before it
/// hands over, so that a busy connection does not keep it from the others. In bytes.
const WRITE_SHARE: usize = 64 << 10;

/// How long a blocking write waits for a socket that takes nothing before its thread looks up: the
/// connection may have been closed meanwhile, or be due for a ping.
const LOOK: Duration = Duration::from_millis(250);

/// The queue and the write side of one connection.
pub struct Outbox {
    socket: Arc<TcpStream>,
    /// Made for the first push, since most connections are idle, and grown block by block, within
    /// the bounds that `load` keeps.
    queue: OnceLock<Box<SegQueue<Frame>>>,
    max_frames: usize,
    max_bytes: usize,
    /// The [`load`] of what is in `queue`, and of what is about to be pushed.
    load: AtomicU64,
    write_side: Mutex<WriteSide>,
    /// Somebody has queued a frame and will flush: whoever queues one behind it need not.
    flush_owed: AtomicBool,
    /// The write side belongs to the writer thread until the queue is empty.
    handed_over: AtomicBool,
    writer: OnceLock<thread::Thread>,
    closing: OnceLock<CloseReason>,
}

/// What only the holder of the write side touches.
struct WriteSide {
    /// Frames that have left the queue and have not left entirely.
    unsent: VecDeque<Frame>,
    /// How many bytes of the first of them are written.
    written: usize,
    /// The length of all that is unsent, what is written of the first included.
    unsent_bytes: usize,
    /// How many bytes the socket has taken since the beginning.
    sent: u64,
    /// The first frame of all, the answer to the upgrade request, is written.
    opened: bool,
}

/// Frames and bytes in one number, so that one atomic step counts both: 24 bits of the one, 40 of
/// the other.
fn load(frame: &Frame) -> u64 {
    (frame.count() as u64) << 40 | frame.len() as u64
}

fn frames_of(load: u64) -> usize {
    (load >> 40) as usize
}

fn bytes_of(load: u64) -> usize {
    (load & ((1 << 40) - 1)) as usize
}

/// What became of a frame that was to be queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Queued {
    /// It is the first since the last flush: the caller owes an [`Outbox::flush`], which writes
    /// whatever is in the queue by that time.
    First,
    /// It is written, or is behind others, and whoever flushes those writes it too.
    Behind,
    /// It is not queued: there is no room, and the socket takes no more now.
    Full,
}

/// How far a write came.
enum Written {
    Everything,
    /// The socket takes no more now, or has taken its share.
    NotAll,
    /// The client's end of the connection is gone.
    Gone,
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
    /// `opening` is written before anything else, whatever happens. Queues at most `max_frames`
    /// frames and `max_bytes` bytes; an empty queue takes any one frame or train.
    pub fn new(
        socket: Arc<TcpStream>,
        opening: Frame,
        max_frames: usize,
        max_bytes: usize,
    ) -> Self {
        // It is not zero, so setting it cannot fail on a socket of ours.
        let _ = socket.set_write_timeout(Some(LOOK));
        Self {
            socket,
            queue: OnceLock::new(),
            max_frames,
            max_bytes,
            load: AtomicU64::new(0),
            write_side: Mutex::new(WriteSide {
                unsent_bytes: opening.len(),
                unsent: [opening].into(),
                written: 0,
                sent: 0,
                opened: false,
            }),
            flush_owed: AtomicBool::new(false),
            handed_over: AtomicBool::new(false),
            writer: OnceLock::new(),
            closing: OnceLock::new(),
        }
    }

    /// Names the thread that [`Outbox::drain`]s after a hand-over.
    pub fn set_writer(&self, writer: thread::Thread) {
        // A second name would be a bug of the one caller; the first one stands.
        let _ = self.writer.set(writer);
    }

    /// Queues `frame` (a frame or a train) and writes nothing, save to make room for it. Never
    /// blocks.
    pub fn push(&self, frame: &Frame) -> Queued {
        match self.queue_up(frame) {
            Queued::Full if self.make_room() => self.queue_up(frame),
            queued => queued,
        }
    }

    /// Writes a share of a full queue, if nobody else is at it.
    fn make_room(&self) -> bool {
        let Some(side) = self.write_side.try_lock() else {
            return false;
        };
        if self.write_now(side) {
            self.look_again();
        }
        true
    }

    /// As [`Outbox::push`] and [`Outbox::flush`] in one: past the queue, if there is nothing before
    /// it and nobody else at the write side. Never blocks.
    pub fn push_and_flush(&self, frame: &Frame) -> Queued {
        if self.write_past_queue(frame) {
            return Queued::Behind;
        }
        let queued = self.push(frame);
        if queued == Queued::First {
            self.flush();
        }
        queued
    }

    /// Writes or queues `frame` on behalf of the connection's own reader or writer thread, which
    /// waits while the queue is full: that slows down only the client that does not read.
    pub fn send(&self, frame: &Frame) {
        if self.write_past_queue(frame) {
            return;
        }
        while self.closing.get().is_none() {
            if self.queue_up(frame) != Queued::Full {
                return self.flush();
            }
            self.drain();
        }
    }

    /// Writes `frame` if nothing is before it and nobody else at the write side; else it answers
    /// false and has done nothing. (So a connection that is only asked and answered has no queue,
    /// and a group message costs a tenth less for each of 1,000 recipients.)
    fn write_past_queue(&self, frame: &Frame) -> bool {
        if self.closing.get().is_some() || self.is_handed_over() {
            return false;
        }
        let Some(mut side) = self.write_side.try_lock() else {
            return false;
        };
        if !side.unsent.is_empty() || !self.is_empty() {
            return false;
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // What an error means is seen where the rest is written.
        let sent = send(&self.socket, frame.bytes(), flags).unwrap_or(0);
        side.sent += sent as u64;
        if sent == frame.len() {
            drop(side);
            self.look_again();
        } else {
            side.push(frame.clone());
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
        while let Some(frame) = self.pop() {
            side.push(frame);
        }
        frames.into_iter().for_each(|frame| side.push(frame));
        if self.write_now(side) {
            self.look_again();
        }
    }

    /// Sends a ping that overtakes all but a frame that is half written. Answers how many bytes the
    /// client has been sent once it is.
    pub(super) fn ping(&self) -> u64 {
        let mut side = self.write_side.lock();
        let begun = side.written > 0 || !side.opened;
        let ping = Frame::ping();
        let ahead = match side.unsent.front() {
            Some(first) if begun => first.len() - side.written,
            _ => 0,
        };
        let position = side.sent + (ahead + ping.len()) as u64;
        side.unsent_bytes += ping.len();
        side.unsent.insert(usize::from(begun), ping);
        if self.write_now(side) {
            self.look_again();
        }
        position
    }

    /// How far the client is.
    pub(super) fn progress(&self) -> Progress {
        let side = self.write_side.lock();
        let sent = side.sent;
        let in_flight = kernel::in_flight(&self.socket).min(sent);
        drop(side);
        self.look_again();
        Progress {
            taken: sent - in_flight,
            in_flight,
        }
    }

    /// Whether the client has sent something that nobody has read yet, or is gone.
    pub(super) fn has_input(&self) -> bool {
        kernel::has_input(&self.socket)
    }

    fn queue_up(&self, frame: &Frame) -> Queued {
        if self.closing.get().is_some() {
            return Queued::Behind;
        }
        let load = load(frame);
        let before = self.load.fetch_add(load, SeqCst);
        let fits = before == 0
            || (frames_of(before) + frame.count() <= self.max_frames
                && bytes_of(before) + frame.len() <= self.max_bytes);
        if !fits {
            self.load.fetch_sub(load, SeqCst);
            return Queued::Full;
        }
        let queue = self.queue.get_or_init(Box::default);
        queue.push(frame.clone());
        if self.flush_owed.swap(true, SeqCst) {
            Queued::Behind
        } else {
            Queued::First
        }
    }

    /// Whether the queue holds at least half of what it may.
    pub fn is_half_full(&self) -> bool {
        let load = self.load.load(SeqCst);
        frames_of(load) * 2 >= self.max_frames || bytes_of(load) * 2 >= self.max_bytes
    }

    /// Whether nothing is queued. The load tells without a look at the queue, which is seldom in the
    /// processor's cache.
    fn is_empty(&self) -> bool {
        self.load.load(SeqCst) == 0 || self.queue.get().is_none_or(|queue| queue.is_empty())
    }

    /// Writes what is queued, unless somebody else is at it. Never blocks.
    pub fn flush(&self) {
        loop {
            // Reads what the last pusher wrote, so that its frame is seen below.
            self.flush_owed.swap(false, SeqCst);
            fence(SeqCst);
            if self.handed_over.load(SeqCst) {
                return;
            }
            let Some(side) = self.write_side.try_lock() else {
                return;
            };
            if !self.write_now(side) {
                return;
            }
            fence(SeqCst);
            if self.is_empty() {
                return;
            }
        }
    }

    /// Writes what is queued as far as the socket takes it, hands over if there is more, and frees
    /// the write side. Answers whether all is written.
    fn write_now(&self, mut side: MutexGuard<'_, WriteSide>) -> bool {
        match self.write_queue(&mut side, SendFlags::DONTWAIT) {
            Written::Everything => return true,
            Written::NotAll => self.hand_over(side),
            Written::Gone => self.close(CloseReason::Vanished),
        }
        false
    }

    /// Leaves what is unsent to the writer thread.
    fn hand_over(&self, side: MutexGuard<'_, WriteSide>) {
        self.handed_over.store(true, SeqCst);
        drop(side);
        self.wake_writer();
    }

    /// Writes a share of what is queued, and blocks while the socket takes nothing, though not for
    /// longer than a [`LOOK`]: call it as long as it [is handed over](Outbox::is_handed_over).
    pub fn drain(&self) {
        let mut side = self.write_side.lock();
        match self.write_queue(&mut side, SendFlags::empty()) {
            Written::Everything => {}
            Written::NotAll => return,
            Written::Gone => self.close(CloseReason::Vanished),
        }
        self.handed_over.store(false, SeqCst);
        drop(side);
        self.look_again();
    }

    /// Writes what was queued while the write side, free by now, was held.
    fn look_again(&self) {
        fence(SeqCst);
        if !self.is_empty() && self.closing.get().is_none() {
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

    /// Whether the writer thread is to [`Outbox::drain`].
    pub fn is_handed_over(&self) -> bool {
        self.handed_over.load(SeqCst)
    }

    /// Moves up to a share from the queue to the socket. A frame leaves the queue only when its turn
    /// is near, so that the queue's bounds hold.
    fn write_queue(&self, side: &mut WriteSide, flags: SendFlags) -> Written {
        let end = side.sent + WRITE_SHARE as u64;
        loop {
            while side.unsent_bytes < WRITE_SHARE
                && let Some(frame) = self.pop()
            {
                side.push(frame);
            }
            match self.write(side, flags) {
                Written::Everything if self.is_empty() => return Written::Everything,
                Written::Everything if side.sent < end => {}
                Written::Everything => return Written::NotAll,
                other => return other,
            }
        }
    }

    /// Writes what is unsent, several frames with one call, until the socket takes no more. A
    /// blocking write looks up after each call, however large a page of catch-up is under way: the
    /// connection may be to end, or be due for a ping.
    fn write(&self, side: &mut WriteSide, flags: SendFlags) -> Written {
        let may_block = !flags.contains(SendFlags::DONTWAIT);
        while let Some(first) = side.unsent.front() {
            let bytes = match side.unsent.len() {
                1 => Cow::Borrowed(&first.bytes()[side.written..]),
                _ => Cow::Owned(side.gather()),
            };
            let asked = bytes.len();
            match send(&self.socket, &bytes, flags | SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    drop(bytes);
                    side.advance(sent);
                    if (may_block || sent < asked) && !side.unsent.is_empty() {
                        return Written::NotAll;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Written::NotAll,
                Err(_) => return Written::Gone,
            }
        }
        Written::Everything
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
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    /// The last act of the write side, within `patience`: what is queued is dropped, a frame that
    /// is half written is finished, `close` follows. Afterwards nothing more can be written.
    pub fn say_goodbye(&self, close: Option<Frame>, patience: Duration) {
        let mut side = self.write_side.lock();
        while self.pop().is_some() {}
        // Without the answer to its upgrade request a client understands no Close frame.
        let begun = side.written > 0 || !side.opened;
        side.unsent.truncate(usize::from(begun));
        side.unsent_bytes = side.unsent.iter().map(Frame::len).sum();
        if let Some(close) = close {
            side.push(close);
            let deadline = Instant::now() + patience;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                // The timeout is never zero, so setting it cannot fail on a socket of ours.
                let _ = self
                    .socket
                    .set_write_timeout(Some(left.max(Duration::from_millis(1))));
                match self.write(&mut side, SendFlags::empty()) {
                    Written::NotAll if !left.is_zero() => {}
                    // A failure says that nobody is there to be told.
                    Written::NotAll | Written::Everything | Written::Gone => break,
                }
            }
        }
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Cuts the connection: whoever blocks on the socket returns at once.
    pub fn cut(&self) {
        // It fails when the connection is gone already, which is what is wanted.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl WriteSide {
    fn push(&mut self, frame: Frame) {
        self.unsent_bytes += frame.len();
        self.unsent.push_back(frame);
    }

    /// A share of the unsent bytes, side by side: one plain write of them is cheaper than a
    /// vectored one of many small frames.
    fn gather(&self) -> Vec<u8> {
        let mut frames = 0;
        let mut total = 0;
        for frame in &self.unsent {
            if total >= WRITE_SHARE {
                break;
            }
            frames += 1;
            total += frame.len();
        }
        let mut bytes = Vec::with_capacity(total - self.written);
        let mut skip = self.written;
        for frame in self.unsent.iter().take(frames) {
            bytes.extend(&frame.bytes()[skip..]);
            skip = 0;
        }
        bytes
    }

    /// Drops what the socket has taken.
    fn advance(&mut self, sent: usize) {
        self.sent += sent as u64;
        self.written += sent;
        while let Some(first) = self.unsent.front()
            && self.written >= first.len()
        {
            self.written -= first.len();
            self.unsent_bytes -= first.len();
            self.unsent.pop_front();
            self.opened = true;
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
    use std::net::TcpListener;

    /// An outbox whose opening is `[0]`, and the client's end of its socket.
    fn outbox(max_frames: usize, max_bytes: usize) -> (Arc<Outbox>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let (socket, _) = listener.accept().unwrap();
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

    /// A pusher's part: push, then flush if the queue was empty. Answers whether there was room.
    fn deliver(outbox: &Outbox, frame: &Frame) -> bool {
        let queued = outbox.push(frame);
        if queued == Queued::First {
            outbox.flush();
        }
        queued != Queued::Full
    }

    #[test]
    fn the_opening_comes_first_and_only_the_first_push_owes_a_flush() {
        let (outbox, mut client) = outbox(8, 1024);
        assert_eq!(outbox.push(&number(1)), Queued::First);
        assert_eq!(outbox.push(&number(2)), Queued::Behind);
        outbox.flush();
        assert_eq!(read(&mut client, 9), [0, 0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(outbox.push(&number(3)), Queued::First, "it is empty again");
    }

    #[test]
    fn a_push_that_is_caught_up_with_by_a_flush_strands_nobody() {
        let (outbox, mut client) = outbox(8, 1024);
        assert_eq!(outbox.push(&number(1)), Queued::First);
        // Another pusher has made room for its frame, and is held up before it queues it.
        outbox.load.fetch_add(load(&number(2)), SeqCst);
        outbox.flush();
        assert_eq!(
            outbox.push(&number(2)),
            Queued::First,
            "nobody else will flush"
        );
        outbox.flush();
        assert_eq!(read(&mut client, 9), [0, 0, 0, 0, 1, 0, 0, 0, 2]);
    }

    #[test]
    fn catch_up_comes_behind_what_is_queued() {
        let (outbox, mut client) = outbox(8, 1024);
        assert_eq!(outbox.push(&number(1)), Queued::First);
        outbox.write_behind([number(2)]);
        assert_eq!(read(&mut client, 9), [0, 0, 0, 0, 1, 0, 0, 0, 2]);
    }

    #[test]
    fn a_full_queue_is_emptied_to_a_socket_that_takes_more() {
        let (outbox, mut client) = outbox(4, 1024);
        assert!((0..100).all(|n| outbox.push(&number(n)) != Queued::Full));
        outbox.flush();
        assert_eq!(outbox.closing(), None);
        let bytes = read(&mut client, 1 + 400);
        let expected: Vec<u8> = (0..100).flat_map(u32::to_be_bytes).collect();
        assert_eq!(bytes[1..], expected);
    }

    #[test]
    fn a_train_counts_for_its_frames() {
        let (outbox, _client) = outbox(4, 1024);
        let three = [number(1), number(2), number(3)];
        assert_eq!(outbox.queue_up(&Frame::train(three.iter())), Queued::First);
        assert!(outbox.is_half_full());
        assert_eq!(
            outbox.queue_up(&Frame::train(three[..2].iter())),
            Queued::Full
        );
        assert_eq!(outbox.queue_up(&number(4)), Queued::Behind);
        assert_eq!(outbox.queue_up(&number(5)), Queued::Full);
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
            assert_eq!(outbox.push(&frame), Queued::Full);
        }
        assert!(start.elapsed() < Duration::from_secs(5), "nobody waits");
        assert_eq!(outbox.closing(), None);
        let reader = thread::spawn(move || read(&mut client, 1 + taken * 60_000).len());
        while outbox.is_handed_over() {
            outbox.drain();
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
        outbox.drain();
        assert!(outbox.write_side.lock().unsent_bytes < WRITE_SHARE + frame.len());
    }

    #[test]
    fn a_blocking_write_that_takes_nothing_looks_up() {
        let (outbox, _client) = outbox(4, 1 << 20);
        assert!(deliver(&outbox, &Frame::raw(&vec![7; 32 << 20])));
        let before = outbox.progress();
        outbox.drain();
        assert!(outbox.is_handed_over());
        assert!(before.in_flight > 0 && outbox.progress().in_flight > 0);
    }

    #[test]
    fn progress_is_what_the_clients_host_has_acknowledged() {
        let (outbox, mut client) = outbox(4, 1 << 20);
        outbox.flush();
        read(&mut client, 1);
        assert!(deliver(&outbox, &Frame::raw(&vec![7; 32 << 20])));
        let before = outbox.progress();
        assert!(before.in_flight > 0, "{before:?}");
        let deadline = Instant::now() + Duration::from_secs(10);
        while outbox.progress().taken < before.taken + (1 << 20) {
            read(&mut client, 1 << 16);
            outbox.drain();
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
            outbox.drain();
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
            outbox.drain();
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
        outbox.close(CloseReason::ShuttingDown);
        outbox.say_goodbye(Some(Frame::close(1012, "")), Duration::from_secs(10));
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
        outbox.drain();
        outbox.drain();
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
        outbox.close(CloseReason::ShuttingDown);
        let start = Instant::now();
        outbox.say_goodbye(Some(Frame::close(1012, "")), Duration::from_millis(500));
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn goodbye_comes_after_the_opening_even_if_nothing_was_written() {
        let (outbox, mut client) = outbox(8, 1024);
        assert_eq!(outbox.push(&number(1)), Queued::First);
        outbox.close(CloseReason::Replaced);
        outbox.say_goodbye(Some(Frame::close(4004, "")), Duration::from_secs(1));
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [&[0], Frame::close(4004, "").bytes()].concat());
    }

    /// Whoever looks how far the client is holds the write side for a moment.
    #[test]
    fn a_look_at_the_progress_strands_nobody() {
        let (outbox, mut client) = outbox(64, 1 << 20);
        outbox.flush();
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
        outbox.close(CloseReason::Internal);
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
                        outbox.drain();
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
        outbox.close(CloseReason::Internal);
        writer.join().unwrap();
    }
}
