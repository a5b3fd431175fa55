//! A server with its clients connected, and what they are put through: a burst that waits for a
//! server that was stopped, a paced stream, a closed loop.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::client::Client;
use crate::publisher::{Publisher, To};
use crate::servers::{Kind, Server, Stand};
use crate::window::{Figures, Window};

/// Handshakes at once, where connecting is not what is measured.
const HANDSHAKES: usize = 64;
/// When no push came for this long, what is missing is lost.
pub const PATIENCE_S: u64 = 20;
/// For 5 s after a catch-up that sent something the gateway compares what it pushes with that. All
/// servers are given that time: what is measured is how they go on. ([`Session::with_unread`] gives
/// them none.)
pub const SETTLED: Duration = Duration::from_secs(6);
/// The group that all clients are in.
pub const GROUP: &str = "all";

pub struct Session {
    pub server: Server,
    pub client: Client,
    pub publisher: Publisher,
    pub connections: usize,
}

impl Session {
    /// Starts `kind` and connects so many users, who are all in [`GROUP`] afterwards.
    pub fn start(stand: &Stand, kind: Kind, connections: usize) -> Self {
        let server = Server::start(stand, kind, connections);
        Self::connect(stand, kind, server, connections)
    }

    /// Connects so many users, who are served nothing and are in no group.
    pub fn idle(stand: &Stand, kind: Kind, server: Server, connections: usize) -> Self {
        let mut client = Client::start(server.ca.as_deref());
        client.connect(server.addr, connections, HANDSHAKES);
        Self {
            publisher: Publisher::open(stand.url(kind)),
            server,
            client,
            connections,
        }
    }

    /// As [`start`](Self::start), with a few messages unread for each user when they connect, and
    /// not a moment of the time afterwards let pass.
    pub fn with_unread(stand: &Stand, kind: Kind, connections: usize) -> Self {
        const EACH: u64 = 10;
        let server = Server::start(stand, kind, connections);
        let mut session = Self::idle(stand, kind, server, connections);
        session.exchange(PATIENCE_S, EACH);
        // Nobody has acknowledged any of it.
        session.client = Client::start(session.server.ca.as_deref());
        (session.client).connect(session.server.addr, connections, HANDSHAKES);
        session.server.services.form_group(GROUP, connections);
        session.saturated(2, 200);
        session
    }

    /// As [`start`](Self::start), with a server that runs.
    pub fn connect(stand: &Stand, kind: Kind, server: Server, connections: usize) -> Self {
        let mut session = Self::idle(stand, kind, server, connections);
        session.server.services.form_group(GROUP, connections);
        session.wait_routed();
        // The first one has the members fetched.
        session.saturated(2, 200);
        thread::sleep(SETTLED);
        session
    }

    /// Stops the server, publishes `count` messages to the group, and lets it go.
    pub fn saturated(&mut self, count: u64, size: usize) -> Figures {
        let to = (0..count).map(|_| To::Group(GROUP));
        self.burst(to, count, size)
    }

    /// Stops the server, publishes `each` messages for each user, and lets it go.
    pub fn saturated_single(&mut self, each: u64, size: usize) -> Figures {
        let connections = self.connections as u64;
        let to = (0..each * connections).map(|number| To::User((number % connections) as usize));
        self.burst(to, each, size)
    }

    /// While it is stopped the broker hands it no more than its prefetch, and publishing takes no
    /// processor time from it later.
    fn burst<'a>(&mut self, to: impl Iterator<Item = To<'a>>, each: u64, size: usize) -> Figures {
        self.server.pause();
        self.client.expect(each, false);
        for to in to {
            self.publisher.publish(to, size);
        }
        self.publisher.settle();
        let window = Window::open(&self.server.process);
        self.server.resume();
        let report = self.client.report(PATIENCE_S);
        window.close(&self.server.process, &report)
    }

    /// Publishes `rate` messages a second to the group for so long.
    pub fn paced(&mut self, rate: f64, duration: Duration, size: usize) -> Figures {
        let count = (rate * duration.as_secs_f64()).ceil().max(1.0) as u64;
        self.client.expect(count, true);
        let window = Window::open(&self.server.process);
        let to = (0..count).map(|_| To::Group(GROUP));
        self.publisher.paced(to, rate, size);
        let report = self.client.report(PATIENCE_S);
        window.close(&self.server.process, &report)
    }

    /// What the server has used so far.
    pub fn processor_time(&self) -> Duration {
        self.server.process.processor_time()
    }

    /// All clients send to one another, for `seconds` and `limit` messages each at most.
    pub fn exchange(&mut self, seconds: u64, limit: u64) -> Value {
        self.client.exchange(self.connections, seconds, limit)
    }

    /// Waits until each user's messages come: a route may be later than `offline_complete`, and a
    /// sender's own copies do not wait for it.
    pub fn wait_routed(&mut self) {
        const TRIES: usize = 30;
        const TRY_S: u64 = 3;
        let routed = (0..TRIES).any(|_| {
            self.client.expect(1, false);
            (0..self.connections).for_each(|user| self.publisher.publish(To::User(user), 200));
            self.publisher.settle();
            self.client.report(TRY_S)["lost"] == 0
        });
        assert!(routed, "not all users are routed");
    }

    /// Ends it, and leaves nothing behind on the broker.
    pub fn end(self) {
        let Self {
            server,
            client,
            publisher,
            ..
        } = self;
        let id = server.kill();
        drop(client);
        publisher.delete_queues(&id);
    }
}
