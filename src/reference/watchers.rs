//! Who is told of a user's presence: whoever shares a group with them or has chatted with them.
//!
//! This is mutual, so the users who watch somebody are also those whom they watch.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message;

use super::directory::{Directories, Directory};
use super::leases::{Change, Leases, PresenceChange};
use super::publisher::Publication;
use super::store::{Store, messages};
use crate::broker::TOPIC_EXCHANGE;
use crate::services::proto::{PresenceEvent, PresenceStatus};

/// Turns changes of presence into publications.
pub(super) struct Announcer {
    pub directories: Directories,
    pub leases: Arc<Mutex<Leases>>,
    pub store: Store,
}

impl Announcer {
    /// What is published for `changes`, in their order. Blocks on the store.
    pub fn publications(&self, changes: Vec<PresenceChange>) -> Vec<Publication> {
        if changes.is_empty() {
            return Vec::new();
        }
        let users: Vec<String> = changes.iter().map(|change| change.user.clone()).collect();
        let partners = self.store.blocking_query(move |connection| {
            users
                .iter()
                .map(|user| messages::partners(connection, user))
                .collect()
        });
        // While the store fails, which it logs, group mates are told all the same.
        let partners: Vec<Vec<String>> =
            partners.unwrap_or_else(|_| vec![Vec::new(); changes.len()]);
        let directory = self.directories.current();
        let mut publications = Vec::new();
        for (change, partners) in changes.iter().zip(partners) {
            let watchers = watchers(&directory, &change.user, partners);
            self.announce(change, watchers, &mut publications);
        }
        publications
    }

    fn announce(
        &self,
        change: &PresenceChange,
        watchers: BTreeSet<String>,
        publications: &mut Vec<Publication>,
    ) {
        let PresenceChange {
            user,
            what,
            timestamp,
            moment,
        } = change;
        if *what != Change::Offline {
            let leases = self.leases.lock();
            // Who came later than this user announces that with a change of their own.
            let online = watchers
                .iter()
                .filter(|watched| leases.was_online(watched, *moment));
            publications.extend(online.map(|watched| {
                event(
                    watched,
                    PresenceStatus::Online,
                    *timestamp,
                    vec![user.clone()],
                )
            }));
        }
        let status = match what {
            Change::Online => PresenceStatus::Online,
            Change::Offline => PresenceStatus::Offline,
            Change::Announced => return,
        };
        if !watchers.is_empty() {
            publications.push(event(
                user,
                status,
                *timestamp,
                watchers.into_iter().collect(),
            ));
        }
    }
}

/// Never the user themselves.
fn watchers(directory: &Directory, user: &str, partners: Vec<String>) -> BTreeSet<String> {
    let mut watchers: BTreeSet<String> = directory.group_mates(user).cloned().collect();
    watchers.extend(partners);
    watchers.remove(user);
    watchers
}

fn event(
    user: &str,
    status: PresenceStatus,
    timestamp: i64,
    watcher_ids: Vec<String>,
) -> Publication {
    let event = PresenceEvent {
        user_id: user.into(),
        status: status.into(),
        timestamp,
        watcher_ids,
    };
    Publication {
        exchange: TOPIC_EXCHANGE.into(),
        routing_key: format!("presence.{user}"),
        // The presence queue holds nothing else, so the contract names no kind.
        kind: String::new(),
        body: event.encode_to_vec(),
    }
}
