//! The delivery gate, before the outbox of a connection: live pushes against catch-up.
//!
//! Messages are numbers. One is unread from when it is committed, which comes before it is pushed.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use loom::sync::atomic::AtomicU8;
use loom::sync::atomic::Ordering::{AcqRel, Relaxed};
use loom::thread::{self, JoinHandle};

use super::check;
use super::close::CloseReason;
use super::connection::{Batch, Connection};
use super::fake_socket::{self, FakeSocket};
use super::frame::Frame;
use super::gate::{DeliveryGate, Finish};
use super::handshake::{Accepted, Identity};
use super::outbox::Outbox;
use super::protocol::{Push, PushKind};
use crate::ids::{ConnectionId, UserId};
use crate::sync::stand_ins::{Thread, Waiting};

#[derive(Clone)]
struct Scene {
    connection: Arc<Connection>,
    socket: Arc<FakeSocket>,
    store: Arc<Store>,
    rounds: Arc<Rounds>,
}

/// The Message Service: all up to a number is committed.
struct Store {
    newest: AtomicU8,
}

/// Reading and committing are in one order, as in a database: loom loads what was stored last only
/// where it exchanges it.
impl Store {
    fn newest(&self) -> u8 {
        self.newest.fetch_max(0, AcqRel)
    }

    /// All up to this message are there.
    fn commit(&self, newest: u8) {
        self.newest.fetch_max(newest, AcqRel);
    }
}

/// How often the writer thread has had nothing more to do. No part of the model to loom.
#[derive(Default)]
struct Rounds {
    ended: AtomicUsize,
    waiting: Waiting,
}

/// As `catch_up.rs` has them.
enum Stage {
    Running,
    Finishing,
    Settling,
}

impl Rounds {
    fn ended(&self) -> usize {
        self.ended.load(Relaxed)
    }

    fn end_one(&self) {
        self.ended.fetch_add(1, Relaxed);
        self.waiting.wake();
    }

    fn wait_for_more_than(&self, ended: usize) {
        while self.ended() == ended {
            self.waiting.wait();
        }
    }
}

fn push(number: u8, kind: PushKind) -> Push {
    Push {
        frame: fake_socket::frame(number),
        kind,
        message_id: Some(number.to_string().into()),
    }
}

impl Scene {
    /// The route is bound, the first catch-up is requested, and `newest` messages are committed. Queue
    /// and hold take `max_frames` each, the socket `takes`.
    fn new(newest: u8, max_frames: usize, takes: &[usize]) -> Self {
        let socket = FakeSocket::new(&[&[1], takes].concat());
        let outbox = Outbox::new(socket.clone(), Frame::raw(&[0]), max_frames, 1 << 10);
        outbox.write_behind([]);
        let identity = Identity {
            user: UserId::new("bob").expect("an id"),
            expires_at: 0,
        };
        let accepted = Accepted {
            identity,
            token: String::new(),
        };
        let gate = DeliveryGate::new(max_frames, 1 << 10);
        let (id, peer) = (ConnectionId::random(), Ipv4Addr::LOCALHOST.into());
        let connection = Connection::new(id, &accepted, peer, outbox, gate);
        connection.routed();
        let store = Store {
            newest: AtomicU8::new(newest),
        };
        Self {
            connection: Arc::new(connection),
            socket,
            store: Arc::new(store),
            rounds: Arc::default(),
        }
    }

    /// As above, and a catch-up that found nothing is through: the connection is live.
    fn live(max_frames: usize, takes: &[usize]) -> Self {
        let scene = Self::new(0, max_frames, takes);
        scene.catch_up(&mut Stage::Settling);
        assert!(scene.connection.gate.is_live());
        scene
    }

    fn spawn<T: 'static>(&self, act: impl FnOnce(&Self) -> T + 'static) -> JoinHandle<T> {
        let scene = self.clone();
        thread::spawn(move || act(&scene))
    }

    /// As a consumer does it with a delivery.
    fn deliver(&self, number: u8, kind: PushKind) {
        self.connection.push(&push(number, kind));
        self.connection.outbox.flush();
    }

    /// As a publisher and a consumer do it with a new message.
    fn publish(&self, number: u8) {
        self.store.commit(number);
        self.deliver(number, PushKind::Unread);
    }

    /// As a consumer does it with several group messages, which are unread.
    fn deliver_batch(&self, numbers: impl IntoIterator<Item = u8>) {
        let sender = || UserId::new("alice").expect("an id");
        let messages = (numbers.into_iter()).map(|n| (sender(), push(n, PushKind::Unread)));
        let (batch, Self { connection, .. }) = (Batch::of(messages.collect()), self);
        connection.push_batch(&batch, Outbox::push_and_flush);
        connection.outbox.flush();
    }

    /// As the writer thread does it in `CatchUp::advance`, with all that is unread on one page.
    fn catch_up(&self, stage: &mut Stage) {
        let (gate, outbox) = (&self.connection.gate, &self.connection.outbox);
        if gate.take_request() {
            *stage = Stage::Running;
        }
        while !outbox.is_handed_over() {
            match stage {
                Stage::Running => {
                    let unread = 1..=self.store.newest();
                    let unsent = unread.filter(|number| gate.claim(&number.to_string()));
                    let frames: Vec<_> = unsent.map(fake_socket::frame).collect();
                    outbox.write_behind(frames);
                    *stage = Stage::Finishing;
                }
                Stage::Finishing => match gate.finish(true) {
                    Finish::Again => *stage = Stage::Running,
                    Finish::Pushes(pushes) => self.write(pushes),
                    Finish::Settled => *stage = Stage::Settling,
                },
                Stage::Settling => break,
            }
        }
    }

    fn write(&self, pushes: Vec<Push>) {
        let frames = pushes.into_iter().map(|push| push.frame);
        self.connection.outbox.write_behind(frames);
    }

    /// As the writer thread does it, until the connection ends.
    fn writer(&self) -> JoinHandle<()> {
        self.spawn(|scene| {
            let Self { connection, .. } = scene;
            let (thread, mut stage) = (Thread::default(), Stage::Settling);
            connection.outbox.set_writer(thread.clone());
            while !connection.is_closing() {
                if connection.outbox.is_handed_over() {
                    connection.outbox.flush_blocking();
                    continue;
                }
                scene.catch_up(&mut stage);
                if !connection.outbox.is_handed_over() {
                    scene.rounds.end_one();
                    thread.park();
                }
            }
            connection
                .outbox
                .finish_close(None, Duration::from_secs(10));
            scene.rounds.end_one();
        })
    }

    /// Waits until nothing is left to the writer thread, or it has ended the connection. One that was
    /// not woken is a deadlock to loom.
    fn wait_for_writer(&self) {
        let Connection { gate, outbox, .. } = &*self.connection;
        loop {
            let rounds = self.rounds.ended();
            // The gate's lock first: whatever the writer thread did before the end of a round is seen.
            if gate.is_open() && !outbox.is_handed_over() && outbox.queued().0 == 0 {
                return;
            }
            if self.connection.is_closing() {
                return;
            }
            self.rounds.wait_for_more_than(rounds);
        }
    }

    /// What the client got.
    fn read(&self) -> Vec<u8> {
        fake_socket::numbers(&self.socket.taken())
    }
}

/// One that was committed before is pushed late, another one is new, while catch-up runs: each comes
/// once, in order.
pub fn what_comes_while_catch_up_runs_comes_once_and_in_order() {
    check(4, || {
        let scene = Scene::new(1, 8, &[]);
        let consumer = scene.spawn(|scene| {
            scene.deliver(1, PushKind::Unread);
            scene.publish(2);
        });
        scene.catch_up(&mut Stage::Settling);
        consumer.join().unwrap();
        assert_eq!(scene.read(), [1, 2]);
    });
}

/// The hold takes one.
pub fn what_is_let_go_while_catch_up_runs_is_brought_by_it() {
    check(3, || {
        let scene = Scene::new(0, 1, &[]);
        let consumer = scene.spawn(|scene| (1..=3).for_each(|number| scene.publish(number)));
        scene.catch_up(&mut Stage::Settling);
        consumer.join().unwrap();
        assert_eq!(scene.read(), [1, 2, 3]);
    });
}

/// Two consumers push, and the same message comes twice.
pub fn two_push_while_catch_up_runs() {
    check(2, || {
        let scene = Scene::new(1, 8, &[]);
        let consumers = [1, 2].map(|number| scene.spawn(move |scene| scene.publish(number)));
        scene.catch_up(&mut Stage::Settling);
        consumers
            .into_iter()
            .for_each(|consumer| consumer.join().unwrap());
        assert_eq!(scene.read(), [1, 2]);
    });
}

/// Of a batch the first was committed before, and comes late.
pub fn a_batch_that_comes_while_catch_up_runs_comes_once_and_in_order() {
    check(4, || {
        let scene = Scene::new(1, 8, &[]);
        let consumer = scene.spawn(|scene| {
            scene.store.commit(3);
            scene.deliver_batch(1..=2);
            scene.deliver_batch([3]);
        });
        scene.catch_up(&mut Stage::Settling);
        consumer.join().unwrap();
        assert_eq!(scene.read(), [1, 2, 3]);
    });
}

/// What was sent is forgotten while a batch comes that has it, and one that is new.
pub fn a_batch_that_comes_while_ids_are_forgotten_comes_once() {
    check(4, || {
        let scene = Scene::new(1, 8, &[]);
        scene.catch_up(&mut Stage::Settling);
        let consumer = scene.spawn(|scene| {
            scene.store.commit(3);
            scene.deliver_batch(1..=2);
            scene.deliver_batch([3]);
        });
        scene.connection.gate.settle();
        consumer.join().unwrap();
        let read = scene.read();
        assert!(read == [1, 2, 3] || read == [1, 1, 2, 3], "{read:?}");
    });
}

/// Another catch-up is requested while a batch is pushed to a connection that settles: nothing is lost,
/// what was sent by the first one comes once, what is new twice at most.
pub fn a_batch_that_goes_past_a_catch_up_that_begins_is_not_lost() {
    check(3, || {
        let scene = Scene::new(1, 8, &[]);
        scene.catch_up(&mut Stage::Settling);
        let consumer = scene.spawn(|scene| {
            scene.store.commit(3);
            scene.deliver_batch(2..=3);
            scene.deliver_batch([1]);
        });
        scene.connection.request_catch_up();
        scene.catch_up(&mut Stage::Settling);
        consumer.join().unwrap();
        let read = scene.read();
        let count = |number| read.iter().filter(|&&one| one == number).count();
        let counts = [1, 2, 3].map(count);
        assert!(
            counts[0] == 1 && counts[1..].iter().all(|count| (1..=2).contains(count)),
            "{read:?}"
        );
    });
}

/// The queue takes two at most: a batch of more that finds it taken is pushed one by one, and what
/// finds no room comes from the inbox, none of it lost.
pub fn a_batch_that_finds_no_room_comes_from_the_inbox() {
    check(2, || {
        let scene = Scene::live(2, &[0]);
        let writer = scene.writer();
        scene.store.commit(4);
        let consumer = scene.spawn(|scene| scene.deliver_batch(1..=3));
        scene.deliver_batch([4]);
        consumer.join().unwrap();
        scene.wait_for_writer();
        assert!(!scene.connection.is_closing());
        scene.connection.close(CloseReason::Replaced);
        writer.join().unwrap();
        let read = scene.read();
        assert!((1..=4).all(|number| read.contains(&number)), "{read:?}");
    });
}

/// What was sent is forgotten: then what is new comes once still.
pub fn what_comes_while_ids_are_forgotten_comes_once() {
    check(4, || {
        let scene = Scene::new(1, 8, &[]);
        scene.catch_up(&mut Stage::Settling);
        let consumer = scene.spawn(|scene| {
            scene.deliver(1, PushKind::Unread);
            scene.publish(2);
        });
        scene.connection.gate.settle();
        consumer.join().unwrap();
        let read = scene.read();
        assert!(read == [1, 2] || read == [1, 1, 2], "{read:?}");
    });
}

/// Another catch-up is requested for one that was missed, while a new one is pushed to a connection
/// that is live, and so remembers none that it was sent: the new one may come twice, and not only
/// before the one that was missed.
pub fn what_goes_past_a_catch_up_that_begins_is_not_out_of_order() {
    check(4, || {
        let scene = Scene::live(8, &[]);
        scene.store.commit(1);
        let consumer = scene.spawn(|scene| scene.publish(2));
        scene.connection.request_catch_up();
        scene.catch_up(&mut Stage::Settling);
        consumer.join().unwrap();
        let read = scene.read();
        let possible: [&[u8]; 3] = [&[1, 2], &[2, 1, 2], &[1, 2, 2]];
        assert!(possible.contains(&&*read), "{read:?}");
    });
}

/// The route is lost and bound again while catch-up runs; one was missed meanwhile.
pub fn nothing_new_comes_before_what_was_missed_without_a_route() {
    check(4, || {
        let scene = Scene::new(0, 8, &[]);
        let broker = scene.spawn(|scene| {
            scene.connection.unrouted();
            scene.store.commit(1);
            // It comes another way.
            scene.publish(2);
            scene.connection.routed();
        });
        let mut stage = Stage::Settling;
        scene.catch_up(&mut stage);
        broker.join().unwrap();
        scene.catch_up(&mut stage);
        assert_eq!(scene.read(), [1, 2]);
    });
}

/// The service does not get on, and pushes go past; it does later. The hold takes one.
pub fn what_goes_past_a_catch_up_that_is_not_through_comes_once() {
    check(4, || {
        let scene = Scene::new(0, 1, &[]);
        let consumer = scene.spawn(|scene| [1, 2].into_iter().for_each(|n| scene.publish(n)));
        let gate = &scene.connection.gate;
        assert!(gate.take_request());
        gate.give_up();
        while let Finish::Pushes(pushes) = gate.finish(true) {
            scene.write(pushes);
        }
        consumer.join().unwrap();
        scene.catch_up(&mut Stage::Running);
        let mut read = scene.read();
        read.sort();
        assert_eq!(read, [1, 2]);
    });
}

/// The queue takes one, and the socket none at first: the connection falls back to its inbox, and
/// nothing is lost. What was not acknowledged in time may come twice.
pub fn what_finds_no_room_comes_from_the_inbox() {
    check(2, || {
        let scene = Scene::live(1, &[0]);
        let writer = scene.writer();
        let consumer = scene.spawn(|scene| [1, 2].into_iter().for_each(|n| scene.publish(n)));
        scene.publish(3);
        consumer.join().unwrap();
        scene.wait_for_writer();
        assert!(!scene.connection.is_closing());
        scene.connection.close(CloseReason::Replaced);
        writer.join().unwrap();
        let read = scene.read();
        assert!(
            [1, 2, 3].iter().all(|number| read.contains(number)),
            "{read:?}"
        );
    });
}

/// The user's own copies are in no inbox: each comes once, or the connection is closed as slow.
pub fn own_copies_come_once_or_the_client_is_told() {
    check(2, || {
        let scene = Scene::live(1, &[0]);
        let writer = scene.writer();
        let consumer = scene.spawn(|scene| {
            scene.deliver(1, PushKind::OwnCopy);
            scene.deliver(2, PushKind::OwnCopy);
        });
        scene.deliver(3, PushKind::OwnCopy);
        consumer.join().unwrap();
        scene.wait_for_writer();
        scene.connection.close(CloseReason::Replaced);
        writer.join().unwrap();
        let mut read = scene.read();
        read.sort();
        let (reason, before) = (scene.connection.outbox.closing(), read.len());
        read.dedup();
        assert_eq!(read.len(), before, "twice");
        let is_told = reason == Some(&CloseReason::SlowConsumer);
        assert!(is_told || read == [1, 2, 3], "{read:?}");
    });
}
