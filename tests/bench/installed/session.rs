//! One of the servers with its subscribers connected, put through what a gateway is put through.

use std::time::Duration;

use super::publisher::Publisher;
use super::servers::{Kind, Server};
use crate::client::Client;
use crate::session::{HANDSHAKES, PATIENCE_S};
use crate::window::{Figures, Window};

pub struct Session {
    pub kind: Kind,
    pub server: Server,
    pub connections: usize,
    client: Client,
}

impl Session {
    /// Connects so many subscribers. Returns once all get what is published.
    pub fn start(kind: Kind, connections: usize) -> Self {
        let mut session = Self::idle(kind, kind.start(), connections);
        session.wait_subscribed();
        session
    }

    /// Connects so many subscribers, for whom nothing is published.
    pub fn idle(kind: Kind, server: Server, connections: usize) -> Self {
        let mut client = Client::start(None);
        let report = client.connect_with(kind.protocol(), server.addr, connections, HANDSHAKES);
        assert_eq!(report["complete"], connections, "not all come in: {report}");
        Self {
            kind,
            server,
            connections,
            client,
        }
    }

    /// nchan does not say when a subscriber is one.
    fn wait_subscribed(&mut self) {
        const TRIES: usize = 10;
        const TRY_S: u64 = 2;
        let mut publisher = self.publisher();
        let subscribed = (0..TRIES).any(|_| {
            self.client.expect(1, false);
            publisher.burst(1, 0);
            self.client.report(TRY_S)["lost"] == 0
        });
        assert!(subscribed, "{}: not all subscribe", self.kind.name());
    }

    /// Publishes `count` messages as fast as the server takes them.
    pub fn saturated(&mut self, count: u64, size: usize) -> Figures {
        self.window(count, false, |publisher| publisher.burst(count, size))
    }

    /// Publishes `rate` messages a second for so long.
    pub fn paced(&mut self, rate: f64, duration: Duration, size: usize) -> Figures {
        let count = (rate * duration.as_secs_f64()) as u64;
        self.window(count, true, |publisher| publisher.paced(count, rate, size))
    }

    fn window(&mut self, count: u64, timed: bool, publish: impl FnOnce(&mut Publisher)) -> Figures {
        let mut publisher = self.publisher();
        self.client.expect(count, timed);
        let window = Window::open(&self.server.process);
        publish(&mut publisher);
        let report = self.client.report(PATIENCE_S);
        window.close(&self.server.process, &report)
    }

    fn publisher(&self) -> Publisher {
        Publisher::open(self.kind.protocol(), self.server.publishers)
    }
}
