//! The limits that a connection meets before anyone knows whose it is: connections in all and per
//! address; and then handshakes at a time. What it occupies is given back when it ends, also by a
//! panic.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::address::counted_address;
use super::answer::Answer;
use super::handshakes::Place;
use super::permits::{Permit, Permits};
use crate::config::{Config, Networks};
use crate::services::ErrorCode;

/// The gateway's limits, and what is occupied of them.
pub(super) struct Limits {
    connections: Arc<Permits>,
    addresses: Arc<Addresses>,
    trusted_proxies: Networks,
}

impl Limits {
    pub fn new(config: &Config) -> Self {
        Self {
            connections: Permits::new(config.limits.max_connections),
            addresses: Arc::new(Addresses {
                counts: Mutex::default(),
                limit: config.limits.max_connections_per_ip,
            }),
            trusted_proxies: config.listen.trusted_proxies.clone(),
        }
    }

    /// Free places under `limits.max_connections`.
    pub fn connections(&self) -> Arc<Permits> {
        Arc::clone(&self.connections)
    }

    /// Admits a connection, or says how it is to be refused.
    pub fn admit(&self, peer: IpAddr) -> Result<Admission, Answer> {
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
        Ok(Admission {
            peer,
            address,
            addresses: Arc::clone(&self.addresses),
            since: Instant::now(),
            place: None,
            _connection: connection,
        })
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
    since: Instant,
    place: Option<Place>,
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

    /// What the connection counts as until its head is read: behind a trusted proxy, as the proxy.
    pub fn counted_as(&self) -> IpAddr {
        let permit = self.address.as_ref();
        permit.map_or_else(|| counted_address(self.peer), |permit| permit.address)
    }

    /// When the connection was accepted.
    pub fn since(&self) -> Instant {
        self.since
    }

    pub fn begin_handshake(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// The head has come, or will not. An error is for a client that had to give way meanwhile.
    pub fn head_is_over(&mut self) -> Result<(), Answer> {
        if self.place.as_mut().is_none_or(Place::end_silence) {
            return Ok(());
        }
        let message = "Others wait, and the request head did not come at once";
        Err(Answer::error(408, ErrorCode::DeadlineExceeded, message))
    }

    /// The head is read and the token validated: the next one may begin.
    pub fn handshake_is_over(&mut self) {
        self.place = None;
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
