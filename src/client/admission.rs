//! The limits that a connection meets before anyone knows whose it is: connections in all, per
//! address, and handshakes at a time. What it occupies is given back when it ends, also by a panic.

use std::collections::HashMap;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::address::counted_address;
use super::answer::Answer;
use super::permits::{Permit, Permits};
use crate::config::{Config, Networks};
use crate::ids::ConnectionId;

/// How long a connection waits for others' handshakes before it is refused.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(1);

/// The gateway's limits, and what is occupied of them.
pub(super) struct Limits {
    connections: Arc<Permits>,
    handshakes: Arc<Permits>,
    /// The sockets whose head is being read: nobody else knows them yet.
    handshaking: Arc<Mutex<HashMap<ConnectionId, Arc<TcpStream>>>>,
    addresses: Arc<Addresses>,
    trusted_proxies: Networks,
    /// The wait for a handshake of the next newcomer.
    patience: Mutex<Duration>,
}

impl Limits {
    pub fn new(config: &Config) -> Self {
        Self {
            connections: Permits::new(config.limits.max_connections),
            handshakes: Permits::new(config.limits.max_handshakes),
            handshaking: Arc::default(),
            addresses: Arc::new(Addresses {
                counts: Mutex::default(),
                limit: config.limits.max_connections_per_ip,
            }),
            trusted_proxies: config.listen.trusted_proxies.clone(),
            patience: Mutex::new(HANDSHAKE_PATIENCE),
        }
    }

    /// Free places under `limits.max_connections`.
    pub fn connections(&self) -> Arc<Permits> {
        Arc::clone(&self.connections)
    }

    /// Admits a connection, or says how it is to be refused.
    pub fn admit(
        &self,
        id: ConnectionId,
        socket: &Arc<TcpStream>,
        peer: IpAddr,
    ) -> Result<Admission, Answer> {
        let connection = self
            .connections
            .acquire_within(Duration::ZERO)
            .ok_or_else(no_room)?;
        let proxied = self.trusted_proxies.contains(peer);
        let address = if proxied {
            None
        } else {
            Some(self.addresses.count(peer)?)
        };
        // A burst waits in the backlog. Once waiting has not helped, no one else waits for it.
        let mut patience = self.patience.lock();
        let permit = self.handshakes.acquire_within(*patience);
        *patience = if permit.is_some() {
            HANDSHAKE_PATIENCE
        } else {
            Duration::ZERO
        };
        let permit = permit.ok_or_else(no_room)?;
        self.handshaking.lock().insert(id, Arc::clone(socket));
        let handshake = Handshake {
            id,
            handshaking: Arc::clone(&self.handshaking),
            _permit: permit,
        };
        Ok(Admission {
            peer,
            address,
            addresses: Arc::clone(&self.addresses),
            handshake: Some(handshake),
            _connection: connection,
        })
    }

    /// Ends the handshakes that are under way.
    pub fn cut_handshakes(&self) {
        for socket in self.handshaking.lock().values() {
            // It fails when the client is gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// The answer when the gateway is full.
pub(super) fn no_room() -> Answer {
    Answer::unavailable("The gateway has no room for another connection")
}

/// What one connection occupies.
pub(super) struct Admission {
    peer: IpAddr,
    /// `None` behind a trusted proxy, until the head says who the client is.
    address: Option<AddressPermit>,
    addresses: Arc<Addresses>,
    handshake: Option<Handshake>,
    _connection: Permit,
}

impl Admission {
    /// The client's address, as far as it is known.
    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    /// The head has said who the client behind a trusted proxy is.
    pub fn count_for(&mut self, client: IpAddr) -> Result<(), Answer> {
        self.peer = client;
        if self.address.is_none() {
            self.address = Some(self.addresses.count(client)?);
        }
        Ok(())
    }

    /// The head is read and the token validated: the next one may begin.
    pub fn handshake_is_over(&mut self) {
        self.handshake = None;
    }
}

struct Handshake {
    id: ConnectionId,
    handshaking: Arc<Mutex<HashMap<ConnectionId, Arc<TcpStream>>>>,
    _permit: Permit,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.handshaking.lock().remove(&self.id);
    }
}

/// Connections by [`counted_address`].
struct Addresses {
    counts: Mutex<HashMap<IpAddr, usize>>,
    limit: usize,
}

struct AddressPermit {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    fn count(self: &Arc<Self>, address: IpAddr) -> Result<AddressPermit, Answer> {
        let address = counted_address(address);
        let mut counts = self.counts.lock();
        let count = counts.entry(address).or_default();
        if *count >= self.limit {
            return Err(Answer::too_many("Too many connections from this address"));
        }
        *count += 1;
        Ok(AddressPermit {
            addresses: Arc::clone(self),
            address,
        })
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let mut counts = self.addresses.counts.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}
