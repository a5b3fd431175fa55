//! The outbox's handshake: who queues a frame, who frees the write side, who is handed it, who ends it.

use std::sync::Arc;
use std::time::Duration;

use loom::thread::{self, JoinHandle};

use super::close::CloseReason;
use super::fake_socket::FakeSocket;
use super::frame::Frame;
use super::outbox::Outbox;

/// Runs `model` in every interleaving in which threads are interrupted so often at most, apart from
/// where they wait.
pub(super) fn check(interruptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.max_branches = 10_000;
    builder.check(model);
}

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

    /// Two bytes, so that it can be half written.
    fn frame(number: u8) -> Frame {
        Frame::raw(&[number, !number])
    }

    fn write(&self, way: Way, number: u8) -> bool {
        way(&self.outbox, &Self::frame(number))
    }

    /// As the writer thread does it once it is woken.
    fn write_what_is_handed_over(&self) {
        while self.outbox.is_handed_over() {
            self.outbox.flush_blocking();
        }
    }

    /// As the writer thread does it: until the connection ends.
    fn writer(&self) {
        self.outbox.set_writer(thread::current());
        while self.outbox.closing().is_none() {
            if self.outbox.is_handed_over() {
                self.outbox.flush_blocking();
            } else {
                thread::park();
            }
        }
    }

    /// The frames that the client got, each of them whole.
    fn read(&self) -> Vec<u8> {
        let taken = self.socket.taken();
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

    /// That each of them came once, and those in order of which one thread wrote both.
    #[track_caller]
    fn expect(&self, frames: &[u8], in_order: &[[u8; 2]]) {
        let read = self.read();
        let mut sorted = read.clone();
        sorted.sort();
        assert_eq!(sorted, frames, "{read:?}");
        let place = |number: u8| read.iter().position(|&other| other == number);
        for &[first, second] in in_order {
            assert!(place(first) < place(second), "{read:?}");
        }
    }
}

/// Two threads write, and nobody is there to help: whatever one leaves behind, the other writes.
fn two_write(interruptions: usize, one: Way, other: Way, takes: &'static [usize]) {
    check(interruptions, move || {
        let scene = Scene::new(8, takes);
        let first = scene.spawn(move |scene| assert!(scene.write(one, 1)));
        assert!(scene.write(other, 2));
        first.join().unwrap();
        scene.write_what_is_handed_over();
        scene.expect(&[1, 2], &[]);
    });
}

pub fn two_push_and_flush() {
    two_write(3, QUEUED, QUEUED, &[]);
}

pub fn two_go_past_the_queue() {
    two_write(3, PAST, PAST, &[]);
}

pub fn one_pushes_and_one_goes_past() {
    two_write(3, QUEUED, PAST, &[]);
}
