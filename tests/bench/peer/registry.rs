//! Who is connected, and how a delivery gets into their channels.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio_tungstenite::tungstenite::Message;

/// How many frames may wait for one connection.
const QUEUE: usize = 256;

/// How a delivery gets into a channel. Neither way drops it.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Sending {
    /// Each `send` is awaited.
    Await,
    /// `try_send`; only a channel that is full is awaited.
    Try,
}

pub struct Registry {
    sending: Sending,
    users: RwLock<HashMap<Arc<str>, Vec<Sender<Message>>>>,
}

impl Registry {
    pub fn new(sending: Sending) -> Self {
        Self {
            sending,
            users: RwLock::default(),
        }
    }

    /// A channel for a new connection of `user`.
    pub fn add(&self, user: &Arc<str>) -> (Sender<Message>, Receiver<Message>) {
        let (outbox, queue) = mpsc::channel(QUEUE);
        let mut users = self.users.write();
        users
            .entry(Arc::clone(user))
            .or_default()
            .push(outbox.clone());
        (outbox, queue)
    }

    /// Whether it was the user's last connection.
    pub fn remove(&self, user: &str, outbox: &Sender<Message>) -> bool {
        let mut users = self.users.write();
        let Some(connections) = users.get_mut(user) else {
            return false;
        };
        connections.retain(|other| !other.same_channel(outbox));
        let last = connections.is_empty();
        if last {
            users.remove(user);
        }
        last
    }

    pub fn holds(&self, user: &str) -> bool {
        self.users.read().contains_key(user)
    }

    pub fn users(&self) -> Vec<Arc<str>> {
        self.users.read().keys().cloned().collect()
    }

    /// Returns once `message` is in the channels of all connections of `users`.
    pub async fn push<U: AsRef<str>>(&self, users: &[U], message: Message) {
        match self.sending {
            Sending::Await => {
                for outbox in self.outboxes(users) {
                    // An error is a connection that has ended.
                    let _ = outbox.send(message.clone()).await;
                }
            }
            Sending::Try => {
                for outbox in self.try_push(users, &message) {
                    let _ = outbox.send(message.clone()).await;
                }
            }
        }
    }

    fn outboxes<U: AsRef<str>>(&self, users: &[U]) -> Vec<Sender<Message>> {
        let connected = self.users.read();
        let connections = users.iter().filter_map(|user| connected.get(user.as_ref()));
        connections.flatten().cloned().collect()
    }

    /// Sends to all channels that have room; answers those that have none.
    fn try_push<U: AsRef<str>>(&self, users: &[U], message: &Message) -> Vec<Sender<Message>> {
        let connected = self.users.read();
        let connections = users.iter().filter_map(|user| connected.get(user.as_ref()));
        let is_full = |outbox: &&Sender<Message>| {
            matches!(outbox.try_send(message.clone()), Err(TrySendError::Full(_)))
        };
        connections.flatten().filter(is_full).cloned().collect()
    }
}
