//! The closed loop: each client sends a message, waits for `message_sent`, and sends the next; so
//! many of them at once, the others after them.

use serde_json::{Value, json};

use super::Count;
use super::connection::Connection;
use crate::clock::{self, percentile};

const SIZE: usize = 200;
/// Clients that send at the same time. (Five thousand at once would measure the peak of calls that
/// are under way, and not what a connection keeps.)
const AT_ONCE: usize = 200;
/// When neither an answer nor a push came for this long, what is missing is lost.
pub const PATIENCE_NS: u64 = 20_000_000_000;

pub struct Exchange {
    clients: usize,
    started: u64,
    /// No request is sent after it.
    end: u64,
    /// What each client sends at most.
    limit: u64,
    /// Clients that have begun.
    begun: usize,
    waiting: usize,
    sent: u64,
    errors: u64,
    /// The close codes of connections that ended; 0: none.
    closed: Vec<u16>,
    /// When the last answer came.
    answered_at: u64,
    latencies: Vec<u32>,
}

impl Exchange {
    pub fn new(clients: usize, seconds: u64, limit: u64) -> Self {
        let now = clock::now();
        Self {
            clients,
            started: now,
            end: now + seconds * 1_000_000_000,
            limit,
            begun: 0,
            waiting: 0,
            sent: 0,
            errors: 0,
            closed: Vec::new(),
            answered_at: now,
            latencies: Vec::new(),
        }
    }

    fn send(&mut self, number: usize, connection: &mut Connection) {
        let now = clock::now();
        connection.asked_at = Some(now);
        connection.left -= 1;
        connection.send(message(number, self.clients, "1").as_bytes());
    }

    pub fn answered(&mut self, number: usize, connection: &mut Connection, failed: bool) {
        let now = clock::now();
        let Some(asked_at) = connection.asked_at.take() else {
            return;
        };
        self.errors += u64::from(failed);
        self.sent += u64::from(!failed);
        self.answered_at = now;
        let micros = (now - asked_at) / 1_000;
        self.latencies
            .push(u32::try_from(micros).unwrap_or(u32::MAX));
        if now < self.end && connection.left > 0 {
            self.send(number, connection);
        } else {
            self.waiting -= 1;
        }
    }

    /// A connection ended, and nobody answers it any more.
    pub fn closed(&mut self, connection: &Connection) {
        self.closed.push(connection.close_code.unwrap_or(0));
        self.waiting -= usize::from(connection.asked_at.is_some());
    }

    /// Has more clients begin where there is room for them.
    pub fn proceed(&mut self, connections: &mut [Connection]) {
        while self.waiting < AT_ONCE && self.begun < self.clients && clock::now() < self.end {
            let connection = &mut connections[self.begun];
            connection.left = self.limit;
            self.waiting += 1;
            self.send(self.begun, connection);
            self.begun += 1;
        }
    }

    /// The answer, once each message has come to its sender and its recipient.
    pub fn check(&mut self, count: &Count, now: u64) -> Option<Value> {
        let expected = 2 * self.sent;
        let drained = self.waiting == 0 && count.pushes >= expected;
        if !drained && now < self.answered_at.max(count.last) + PATIENCE_NS {
            return None;
        }
        self.latencies.sort_unstable();
        let seconds = (self.answered_at - self.started).max(1) as f64 / 1e9;
        Some(json!({
            "sent": self.sent,
            "errors": self.errors,
            "unanswered": self.waiting,
            "closed": self.closed,
            "seconds": seconds,
            "lost": expected.saturating_sub(count.pushes),
            "p50_us": percentile(&self.latencies, 0.5),
            "p99_us": percentile(&self.latencies, 0.99),
            "pushed_s": count.last.saturating_sub(self.started) as f64 / 1e9,
        }))
    }
}

/// A request of the client with this number, to the next one.
pub fn message(number: usize, clients: usize, request_id: &str) -> String {
    let data = json!({
        "to_user_id": format!("u{}", (number + 1) % clients),
        "content": clock::content(clock::now(), SIZE),
        "message_type": "text",
    });
    json!({"type": "send_message", "request_id": request_id, "data": data}).to_string()
}
