//! Connecting many users: so many handshakes at once, until all are served or refused.

use std::net::SocketAddr;
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustls::ClientConfig;
use serde_json::{Value, json};

use super::connection::Connection;
use crate::protocol::Protocol;

/// Users who are not served after this long are not going to be.
const PATIENCE_NS: u64 = 120_000_000_000;

pub struct Opening {
    addr: SocketAddr,
    protocol: Protocol,
    tls: Option<Arc<ClientConfig>>,
    /// How many users.
    count: usize,
    /// How many handshakes at once.
    window: usize,
    started: u64,
    opened: usize,
    connected: usize,
    completed: usize,
    closed: usize,
    refused: Vec<u16>,
    connected_at: u64,
    completed_at: u64,
}

impl Opening {
    pub fn new(
        addr: SocketAddr,
        protocol: Protocol,
        tls: Option<Arc<ClientConfig>>,
        count: usize,
        window: usize,
        now: u64,
    ) -> Self {
        Self {
            addr,
            protocol,
            tls,
            count,
            window,
            started: now,
            opened: 0,
            connected: 0,
            completed: 0,
            closed: 0,
            refused: Vec::new(),
            connected_at: now,
            completed_at: now,
        }
    }

    pub fn connected(&mut self, now: u64) {
        self.connected += 1;
        self.connected_at = now;
    }

    pub fn completed(&mut self, now: u64) {
        self.completed += 1;
        self.completed_at = now;
    }

    /// A connection ended before it was served.
    pub fn closed(&mut self, connection: &Connection) {
        self.closed += 1;
        self.refused.push(connection.status);
    }

    /// Begins further handshakes; the answer, once none is left, says that so many pushes came.
    pub fn proceed(
        &mut self,
        connections: &mut Vec<Connection>,
        epoll: &OwnedFd,
        unread: u64,
        now: u64,
    ) -> Option<Value> {
        while connections.len() < self.count
            && self.opened - self.connected.max(self.completed) - self.closed < self.window
        {
            let number = connections.len();
            let connection = Connection::open(self.addr, self.protocol, number, self.tls.as_ref());
            let connection = connection.expect("a socket to connect");
            let data = EventData::new_u64(number as u64);
            epoll::add(
                epoll,
                connection.socket(),
                data,
                EventFlags::IN | EventFlags::OUT,
            )
            .expect("a socket to wait for");
            connections.push(connection);
            self.opened += 1;
        }
        let over = self.completed + self.closed >= self.opened && connections.len() == self.count;
        let late = now > self.started + PATIENCE_NS;
        (over || late).then(|| {
            json!({
                "connected": self.connected,
                "complete": self.completed,
                "unread": unread,
                "refused": self.closed,
                "statuses": self.refused.iter().take(5).collect::<Vec<_>>(),
                "connected_s": (self.connected_at - self.started) as f64 / 1e9,
                "complete_s": (self.completed_at - self.started) as f64 / 1e9,
            })
        })
    }
}
