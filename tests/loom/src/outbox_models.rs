//! The outbox's handshake: who queues a frame, who frees the write side, who is handed it, who ends it.

use std::sync::Arc;
use std::time::Duration;

use loom::thread::{self, JoinHandle};

use super::check;
use super::close::CloseReason;
use super::fake_socket::{FakeSocket, frame, numbers};
use super::frame::Frame;
use super::outbox::Outbox;
use crate::sync::stand_ins::Thread;

/// An outbox in front of a socket that takes so many bytes with each of its first calls.
#[derive(Clone)]
struct Scene {
    outbox: Arc<Outbox>,
    socket: Arc<FakeSocket>,
}

/// As deliverers write: into the queue, and from there.
const QUEUED: Way = |outbox, frame| {
    let queued = outbox.push(frame);
    outbox.flush();
    queued
};
/// As a group's message is written: past the queue, if it is empty.
const PAST: Way = Outbox::push_and_flush;
/// As the connection's own threads answer.
const OWN: Way = |outbox, frame| {
    outbox.send(frame);
    true
};
type Way = fn(&Outbox, &Frame) -> bool;

impl Scene {
    /// The opening, one byte, is written.
    fn new(max_frames: usize, takes: &[usize]) -> Self {
        let socket = FakeSocket::new(&[&[1], takes].concat());
        let outbox = Outbox::new(socket.clone(), Frame::raw(&[0]), max_frames, 1 << 10);
        let outbox = Arc::new(outbox);
        outbox.write_behind([]);
        Self { outbox, socket }
    }

    fn spawn<T: 'static>(&self, act: impl FnOnce(&Self) -> T + 'static) -> JoinHandle<T> {
        let scene = self.clone();
        thread::spawn(move || act(&scene))
    }

    fn write(&self, way: Way, number: u8) -> bool {
        way(&self.outbox, &frame(number))
    }

    fn writer(&self) -> JoinHandle<()> {
        self.spawn(Self::writer_loop)
    }

    /// As the writer thread does it, until the connection ends.
    fn writer_loop(&self) {
        let thread = Thread::default();
        self.outbox.set_writer(thread.clone());
        while self.outbox.closing().is_none() {
            if self.outbox.is_handed_over() {
                self.outbox.flush_blocking();
            } else {
                thread.park();
            }
        }
    }

    /// Waits until the client got so many frames.
    fn wait_for(&self, frames: usize) {
        self.socket.wait_for(1 + 2 * frames);
    }

    /// What the client got.
    fn read(&self) -> Vec<u8> {
        numbers(&self.socket.taken())
    }

    /// That each of them came once, and those in order of which one thread wrote both.
    #[track_caller]
    fn expect(&self, frames: &[u8], in_order: &[[u8; 2]]) {
        let read = self.read();
        let mut sorted = read.clone();
        sorted.sort();
        assert_eq!(
            sorted, frames,
            "a frame is stranded, or came twice: {read:?}"
        );
        let place = |number: u8| read.iter().position(|&other| other == number);
        for &[first, second] in in_order {
            assert!(place(first) < place(second), "{read:?}");
        }
    }
}

/// Two threads write, and nobody is there to help: whatever one leaves behind, the other writes.
fn two_write(one: Way, other: Way) {
    check(4, move || {
        let scene = Scene::new(8, &[]);
        let first = scene.spawn(move |scene| assert!(scene.write(one, 1)));
        assert!(scene.write(other, 2));
        first.join().unwrap();
        scene.expect(&[1, 2], &[]);
    });
}

pub fn two_push_and_flush() {
    two_write(QUEUED, QUEUED);
}

pub fn two_go_past_the_queue() {
    two_write(PAST, PAST);
}

pub fn one_pushes_and_one_goes_past() {
    two_write(QUEUED, PAST);
}

pub fn one_pushes_and_one_answers() {
    two_write(QUEUED, OWN);
}

pub fn two_push_two_each() {
    check(2, || {
        let scene = Scene::new(8, &[]);
        let both = |scene: &Scene, one, other| {
            assert!(scene.write(QUEUED, one) && scene.write(PAST, other));
        };
        let first = scene.spawn(move |scene| both(scene, 1, 2));
        both(&scene, 3, 4);
        first.join().unwrap();
        scene.expect(&[1, 2, 3, 4], &[[1, 2], [3, 4]]);
    });
}

pub fn three_push_and_flush() {
    check(2, || {
        let scene = Scene::new(8, &[]);
        let others = [1, 2].map(|number| {
            let way = [QUEUED, PAST][usize::from(number) - 1];
            scene.spawn(move |scene| assert!(scene.write(way, number)))
        });
        assert!(scene.write(QUEUED, 3));
        others.into_iter().for_each(|other| other.join().unwrap());
        scene.expect(&[1, 2, 3], &[]);
    });
}

/// One pushes, and the connection's own thread holds the write side for something else.
fn one_pushes_and_one(frames: &'static [u8], act: fn(&Outbox)) {
    check(4, move || {
        let scene = Scene::new(8, &[]);
        let pusher = scene.spawn(|scene| assert!(scene.write(QUEUED, 1)));
        act(&scene.outbox);
        pusher.join().unwrap();
        scene.expect(frames, &[]);
    });
}

pub fn one_pushes_and_one_looks_at_the_progress() {
    one_pushes_and_one(&[1], |outbox| {
        outbox.progress();
    });
}

pub fn one_pushes_and_one_catches_up() {
    one_pushes_and_one(&[1, 2], |outbox| outbox.write_behind([frame(2)]));
}

pub fn one_pushes_and_one_pings() {
    check(4, || {
        let scene = Scene::new(8, &[]);
        let pusher = scene.spawn(|scene| assert!(scene.write(QUEUED, 1)));
        let end = scene.outbox.ping();
        pusher.join().unwrap();
        let (ping, pushed) = (Frame::ping(), frame(1));
        let (ping, pushed) = (ping.bytes(), pushed.bytes());
        let before = [&[0], ping, pushed].concat();
        let taken = scene.socket.taken();
        assert!(taken == before || taken == [&[0], pushed, ping].concat());
        let position = taken.windows(2).position(|bytes| bytes == ping);
        assert_eq!(position, Some(end as usize - 2), "where it said");
    });
}

/// The socket is full in the middle of a frame: the rest is the writer thread's, which may still be
/// about to say who it is.
pub fn a_full_socket_is_handed_over() {
    check(4, || {
        let scene = Scene::new(8, &[1, 0]);
        let writer = scene.writer();
        assert!(scene.write(QUEUED, 1));
        assert!(scene.write(QUEUED, 2));
        scene.wait_for(2);
        scene.outbox.close(CloseReason::Replaced);
        writer.join().unwrap();
        scene.expect(&[1, 2], &[[1, 2]]);
    });
}

/// Two push while the writer thread frees the write side, and takes the flag back.
fn two_write_to_a_full_socket(one: Way, other: Way) {
    check(2, move || {
        let scene = Scene::new(8, &[1]);
        let writer = scene.writer();
        let first = scene.spawn(move |scene| assert!(scene.write(one, 1)));
        assert!(scene.write(other, 2));
        scene.wait_for(2);
        first.join().unwrap();
        scene.outbox.close(CloseReason::Replaced);
        writer.join().unwrap();
        scene.expect(&[1, 2], &[]);
    });
}

pub fn two_push_to_a_full_socket() {
    two_write_to_a_full_socket(QUEUED, QUEUED);
}

pub fn two_go_past_the_queue_to_a_full_socket() {
    two_write_to_a_full_socket(PAST, PAST);
}

/// The queue takes one frame, the socket none at first: what is refused is not written, and what is
/// not is.
pub fn two_push_to_a_full_queue() {
    check(3, || {
        let scene = Scene::new(1, &[0]);
        let first = scene.spawn(|scene| [1, 2].map(|number| scene.write(QUEUED, number)));
        let third = scene.write(QUEUED, 3);
        let [one, two] = first.join().unwrap();
        while scene.outbox.is_handed_over() {
            scene.outbox.flush_blocking();
        }
        let queued = [(one, 1), (two, 2), (third, 3)].into_iter();
        let queued: Vec<u8> = queued
            .filter_map(|(is, number)| is.then_some(number))
            .collect();
        scene.expect(&queued, &[]);
    });
}

/// The same while the writer thread writes, and gives the write side back.
pub fn one_pushes_to_a_full_queue_and_the_writer_writes() {
    check(3, || {
        let scene = Scene::new(1, &[0, 2, 0]);
        let writer = scene.writer();
        let queued: Vec<u8> = (1..=3)
            .filter(|&number| scene.write(QUEUED, number))
            .collect();
        scene.wait_for(queued.len());
        scene.outbox.close(CloseReason::Replaced);
        writer.join().unwrap();
        assert_eq!(scene.read(), queued);
    });
}

/// The connection's own thread waits while the queue is full.
pub fn one_answers_behind_a_full_queue() {
    check(3, || {
        let scene = Scene::new(1, &[0, 0]);
        let writer = scene.writer();
        assert!([1, 2, 3].iter().all(|&number| scene.write(OWN, number)));
        scene.wait_for(3);
        scene.outbox.close(CloseReason::Replaced);
        writer.join().unwrap();
        assert_eq!(scene.read(), [1, 2, 3]);
    });
}

const CLOSE: u8 = 9;

/// One pushes, one closes, the writer thread says goodbye: it is woken, and its Close comes last,
/// behind whole frames.
fn one_writes_and_one_closes(way: Way, takes: &'static [usize]) {
    check(3, move || {
        let scene = Scene::new(8, takes);
        let writer = scene.spawn(|scene| {
            scene.writer_loop();
            let close = Some(frame(CLOSE));
            scene.outbox.finish_close(close, Duration::from_secs(10));
        });
        let pusher = scene.spawn(move |scene| scene.write(way, 1));
        scene.outbox.close(CloseReason::Replaced);
        scene.outbox.close(CloseReason::Idle);
        assert!(pusher.join().unwrap(), "who is closed has room");
        writer.join().unwrap();
        assert_eq!(scene.outbox.closing(), Some(&CloseReason::Replaced));
        assert!(scene.socket.is_shut());
        let read = scene.read();
        assert!(read == [1, CLOSE] || read == [CLOSE], "{read:?}");
    });
}

pub fn one_pushes_and_one_closes() {
    one_writes_and_one_closes(QUEUED, &[]);
}

pub fn one_goes_past_the_queue_and_one_closes() {
    one_writes_and_one_closes(PAST, &[]);
}

pub fn one_is_half_way_through_a_frame_and_one_closes() {
    one_writes_and_one_closes(QUEUED, &[1, 0]);
}
