//! Who is connected here: user ► connections. It does no I/O; its lock is held for look-ups only.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use smallvec::SmallVec;

use crate::client::OverUserLimit;
use crate::client::close::CloseReason;
use crate::client::connection::Connection;
use crate::config::{Limits, OverLimit};
use crate::ids::UserId;

/// The authenticated connections of this gateway, by user.
#[derive(Default)]
pub struct Registry {
    /// Most users have one, which is found without a further look elsewhere in memory.
    users: RwLock<HashMap<UserId, SmallVec<[Arc<Connection>; 1]>>>,
}

impl Registry {
    /// Admits and registers in one step under one lock. Connections that are about to end do not
    /// count. Over the limit the newcomer is refused, or takes the place of the oldest, which is
    /// closed (4004).
    pub fn admit(&self, newcomer: &Arc<Connection>, limits: &Limits) -> Result<(), OverUserLimit> {
        let mut users = self.users.write();
        let connections = users.entry(newcomer.user().clone()).or_default();
        let staying = || connections.iter().filter(|other| !other.is_closing());
        let surplus = (staying().count() + 1).saturating_sub(limits.max_connections_per_user);
        if surplus > 0 && limits.over_limit == OverLimit::Reject {
            return Err(OverUserLimit);
        }
        let replaced = staying().take(surplus);
        // It takes no lock, and leaves the rest to the connection's writer thread.
        replaced.for_each(|oldest| oldest.close(CloseReason::Replaced));
        connections.push(Arc::clone(newcomer));
        Ok(())
    }

    /// Takes the connection out; one that is not in is none of our business.
    pub fn remove(&self, connection: &Connection) {
        let mut users = self.users.write();
        if let Some(connections) = users.get_mut(connection.user()) {
            connections.retain(|other| other.id != connection.id);
            if connections.is_empty() {
                users.remove(connection.user());
            }
        }
    }

    /// Whether the user has a connection here.
    pub fn holds(&self, user: &UserId) -> bool {
        self.users.read().contains_key(user)
    }

    /// The users' connections here, each user's oldest first, all looked up under one lock.
    pub fn connections_of(&self, users: &[UserId]) -> Vec<Arc<Connection>> {
        let map = self.users.read();
        // Found first and then cloned, which is an atomic step that waits for its cache line: so the
        // misses of many look-ups overlap.
        let connected: Vec<_> = users.iter().filter_map(|user| map.get(user)).collect();
        connected.into_iter().flatten().cloned().collect()
    }

    /// Everybody who is connected here.
    pub fn users(&self) -> Vec<UserId> {
        self.users.read().keys().cloned().collect()
    }

    /// Every connection, in no order.
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        self.users.read().values().flatten().cloned().collect()
    }
}
