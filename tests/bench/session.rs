//! A server with its clients connected, and what they are put through: a burst that waits for a
//! server that was stopped, a paced stream, a closed and an open loop.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::client::Client;
use crate::publisher::{Publisher, To};
use crate::servers::{Kind, Server, Stand};
use crate::window::{Figures, Window};

/// Handshakes at once, where connecting is not what is measured.
pub const HANDSHAKES: usize = 64;
/// When no push came for this long, what is missing is lost.
pub const PATIENCE_S: u64 = 20;
/// For 5 s after a catch-up, and so after each connect, the gateway compares what it pushes with
/// what it has sent. All servers are given that time: what is measured is how they go on.
pub const SETTLED: Duration = Duration::from_secs(6);
/// The group that all clients are in.
pub const GROUP: &str = "all";

pub struct Session {
    pub server: Server,
    pub client: Client,
    pub publisher: Publisher,
    pub connections: usize,
    /// Messages that came while they connected.
    pub unread: u64,
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
        let connected = client.connect(server.addr, connections, HANDSHAKES);
        Self {
            publisher: Publisher::open(stand.url(kind)),
            server,
            client,
            connections,
            unread: connected["unread"].as_u64().expect("a number"),
        }
    }

    /// As [`start`](Self::start), with a server that runs.
    pub fn connect(stand: &Stand, kind: Kind, server: Server, connections: usize) -> Self {
        let mut session = Self::idle(stand, kind, server, connections);
        session.wait_routed();
        session.form_group();
        thread::sleep(SETTLED);
        session
    }

    /// Puts all into [`GROUP`]. Returns once they get what is sent to it.
    pub fn form_group(&mut self) {
        self.server.services.form_group(GROUP, self.connections);
        // The first one has the members fetched.
        self.saturated(2, 200);
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
        self.stream((0..count).map(|_| To::Group(GROUP)), count, rate, size)
    }

    /// Publishes `each` messages for each user, `rate` a second in all.
    pub fn paced_single(&mut self, each: u64, rate: f64, size: usize) -> Figures {
        let connections = self.connections as u64;
        let to = (0..each * connections).map(|number| To::User((number % connections) as usize));
        self.stream(to, each, rate, size)
    }

    fn stream<'a>(
        &mut self,
        to: impl Iterator<Item = To<'a>>,
        each: u64,
        rate: f64,
        size: usize,
    ) -> Figures {
        self.client.expect(each, true);
        let window = Window::open(&self.server.process);
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

    /// All clients send to one another, `rate` a second in all, for `seconds`.
    pub fn schedule(&mut self, seconds: u64, rate: u64) -> Value {
        self.client.schedule(self.connections, seconds, rate)
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
