//! Why was I cut, and why can I not get in: the last connections that ended, and the last that were
//! refused, with what was said to them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;
use strum::IntoEnumIterator;

use crate::client::address::Peer;
use crate::client::close::CloseReason;
use crate::client::connection::Connection;
use crate::client::{ConnectionObserver, OverUserLimit, Route};
use crate::http::Refusal;
use crate::ids::UserId;
use crate::metrics::Metrics;

/// How many of each are remembered.
const REMEMBERED: usize = 1_000;

/// What is noted and counted of connections that have come to their end.
pub struct History {
    metrics: Arc<Metrics>,
    ended: Mutex<VecDeque<Arc<Ended>>>,
    refused: Mutex<VecDeque<Arc<Refused>>>,
    /// Bytes received and sent by connections that have ended.
    bytes: Mutex<(u64, u64)>,
}

/// A connection that has ended.
#[derive(Debug, Serialize)]
pub struct Ended {
    pub user: String,
    #[serde(flatten)]
    pub peer: Peer,
    connection_id: String,
    /// Of the Close frame; 1006, as the client's end says it, where there was none.
    code: u16,
    reason: String,
    /// In Unix milliseconds.
    at: u64,
    lasted_seconds: f64,
    bytes_received: u64,
    bytes_sent: u64,
    queue_high_water: usize,
}

/// A connection that was not upgraded.
#[derive(Debug, Serialize)]
pub struct Refused {
    /// Where the token said so.
    pub user: Option<String>,
    #[serde(flatten)]
    pub peer: Peer,
    /// HTTP's.
    status: u16,
    reason: &'static str,
    message: String,
    /// In Unix milliseconds.
    at: u64,
}

impl History {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        // So that each is there before it counts for the first time.
        for reason in CloseReason::iter() {
            metrics.disconnects.with_label_values(&[reason.name()]);
        }
        Self {
            metrics,
            ended: Mutex::default(),
            refused: Mutex::default(),
            bytes: Mutex::default(),
        }
    }

    /// The newest first.
    pub fn ended(&self) -> Vec<Arc<Ended>> {
        self.ended.lock().iter().rev().cloned().collect()
    }

    /// The newest first.
    pub fn refused(&self) -> Vec<Arc<Refused>> {
        self.refused.lock().iter().rev().cloned().collect()
    }

    /// What connections that have ended received and sent, in bytes.
    pub fn bytes(&self) -> (u64, u64) {
        *self.bytes.lock()
    }
}

/// Notes in `history`, and tells `observer`.
pub struct Noted {
    pub observer: Arc<dyn ConnectionObserver>,
    pub history: Arc<History>,
}

impl ConnectionObserver for Noted {
    fn connected(&self, connection: &Arc<Connection>) -> Result<Route, OverUserLimit> {
        let route = self.observer.connected(connection)?;
        self.history.metrics.connections.inc();
        Ok(route)
    }

    fn disconnected(&self, connection: &Connection) {
        self.observer.disconnected(connection);
        let received = connection.activity.lock().received;
        let sent = connection.outbox.sent();
        let mut bytes = self.history.bytes.lock();
        *bytes = (bytes.0 + received, bytes.1 + sent);
        drop(bytes);
        let Some(reason) = connection.outbox.closing() else {
            return;
        };
        self.history
            .metrics
            .disconnects
            .with_label_values(&[reason.name()])
            .inc();
        remember(
            &self.history.ended,
            Ended {
                user: connection.user().to_string(),
                peer: connection.peer,
                connection_id: connection.id.to_string(),
                code: reason.code(),
                reason: reason.to_string(),
                at: now(),
                lasted_seconds: connection.since.elapsed().as_secs_f64(),
                bytes_received: received,
                bytes_sent: sent,
                queue_high_water: connection.outbox.high_water(),
            },
        );
    }

    fn refused(&self, peer: Peer, user: Option<&UserId>, refusal: &Refusal) {
        self.observer.refused(peer, user, refusal);
        self.history
            .metrics
            .rejected
            .with_label_values(&[refusal.reason])
            .inc();
        remember(
            &self.history.refused,
            Refused {
                user: user.map(ToString::to_string),
                peer,
                status: refusal.status,
                reason: refusal.reason,
                message: refusal.message.clone(),
                at: now(),
            },
        );
    }
}

fn remember<T>(log: &Mutex<VecDeque<Arc<T>>>, entry: T) {
    let mut log = log.lock();
    log.push_back(Arc::new(entry));
    if log.len() > REMEMBERED {
        log.pop_front();
    }
}

fn now() -> u64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
