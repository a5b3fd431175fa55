//! The gateway's entry in etcd: `<prefix>/ws-gateway/<gateway id>`, under a lease that is kept alive.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use log::{info, warn};
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::interval;
use uuid::Uuid;

use super::client::{Client, Failure};

/// How often the connection count is written anew.
const REFRESH: Duration = Duration::from_secs(10);

/// Whether the gateway is registered, and whether it is to be.
pub struct Registration {
    key: String,
    value: Value,
    ttl: Duration,
    /// Chosen here, once: to grant it again does no harm, and it can be revoked without knowing
    /// what became of the grant, or of a write under it. One that comes late fails, for its lease
    /// is gone.
    lease: i64,
    wanted: watch::Sender<Wanted>,
    standing: Mutex<Standing>,
    settled: Condvar,
}

/// What comes last is not taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    Registered,
    Deregistered,
    /// Deregistered, for good.
    Gone,
    /// Nothing any more.
    End,
}

/// How things stand with etcd, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is not in reach.
    Away,
    /// It has been asked for something.
    Unsettled,
    Registered,
    Deregistered,
}

impl Registration {
    pub(super) fn new(key: String, ttl: Duration, value: Value) -> Self {
        // Positive, and not 0, which would have etcd choose.
        let lease = i64::MAX & Uuid::new_v4().as_u128() as i64 | 1;
        Self {
            key,
            value,
            ttl,
            lease,
            wanted: watch::Sender::new(Wanted::Registered),
            standing: Mutex::new(Standing::Away),
            settled: Condvar::new(),
        }
    }

    /// From now on the gateway is to be registered, as it is from the start. Waits for it, for `limit`
    /// at most, and not at all for an etcd that is out of reach; answers whether it is.
    pub fn register(&self, limit: Duration) -> bool {
        self.order(Wanted::Registered, Standing::Registered, limit)
    }

    /// From now on it is not to be registered. Waits as [`register`](Self::register) does; answers
    /// whether the entry is gone. Where it is not, it is removed once etcd is back, or its lease
    /// ends.
    pub fn deregister(&self, limit: Duration) -> bool {
        self.leave(Wanted::Deregistered, limit)
    }

    /// As [`deregister`](Self::deregister); from now on, nobody registers it again.
    pub(super) fn deregister_for_good(&self, limit: Duration) -> bool {
        self.leave(Wanted::Gone, limit)
    }

    fn leave(&self, wanted: Wanted, limit: Duration) -> bool {
        let is_gone = self.order(wanted, Standing::Deregistered, limit);
        if !is_gone {
            let (key, ttl) = (&self.key, self.ttl);
            warn!("Not deregistered, the lease ends without the gateway: key={key}, ttl={ttl:?}");
        }
        is_gone
    }

    fn order(&self, wanted: Wanted, done: Standing, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        self.want(wanted);
        let mut standing = self.standing.lock();
        let goes_on = |standing: &mut Standing| *standing != done && *standing != Standing::Away;
        self.settled
            .wait_while_until(&mut standing, goes_on, deadline);
        *standing == done
    }

    fn want(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|now| {
            let is_taken = *now < Wanted::Gone || wanted > *now;
            if is_taken {
                *now = wanted;
            }
            is_taken
        });
    }

    /// [`ended`](Self::ended) comes true.
    pub(super) fn end(&self) {
        self.want(Wanted::End);
    }

    pub(super) async fn ended(&self) {
        self.wait_for(|wanted| wanted == Wanted::End).await;
    }

    async fn wait_for(&self, is_so: impl Fn(Wanted) -> bool) {
        // The sender is this registration's own: the channel does not end before it.
        let _ = self.wanted.subscribe().wait_for(|now| is_so(*now)).await;
    }

    /// Answers how things stood before.
    pub(super) fn set(&self, standing: Standing) -> Standing {
        let before = std::mem::replace(&mut *self.standing.lock(), standing);
        self.settled.notify_all();
        before
    }

    /// Does at etcd what is wanted, until that fails.
    pub(super) async fn keep(&self, client: &Client) -> Result<Infallible, Failure> {
        loop {
            tokio::select! {
                biased;
                () = self.wait_for(|wanted| wanted != Wanted::Registered) => {}
                failed = self.hold(client) => return failed,
            }
            // The entry goes with its lease.
            client.revoke(self.lease).await?;
            self.set(Standing::Deregistered);
            info!("Deregistered: key={}", self.key);
            self.wait_for(|wanted| wanted == Wanted::Registered).await;
        }
    }

    /// Registers the gateway, and keeps it registered.
    async fn hold(&self, client: &Client) -> Result<Infallible, Failure> {
        self.set(Standing::Unsettled);
        client.grant(self.lease, self.ttl).await?;
        let mut lease = client.keep_alive(self.lease, self.ttl).await?;
        let mut refresh = interval(REFRESH);
        loop {
            tokio::select! {
                _ = refresh.tick() => {
                    client.put(&self.key, self.value.now(), self.lease).await?;
                    if self.set(Standing::Registered) != Standing::Registered {
                        info!("Registered: key={}, lease={:x}", self.key, self.lease);
                    }
                }
                renewed = lease.next() => renewed?,
            }
        }
    }
}

/// What is written of the gateway.
pub(super) struct Value {
    address: String,
    admin_address: Option<String>,
    connections: Box<dyn Fn() -> usize + Send + Sync>,
}

/// The same, as JSON.
#[derive(Serialize)]
struct Entry<'a> {
    address: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin_address: Option<&'a str>,
    connections: usize,
    version: &'static str,
}

impl Value {
    /// `advertise`: `host:port`, or empty where that is `addr`.
    pub fn new(
        advertise: &str,
        addr: SocketAddr,
        admin: Option<SocketAddr>,
        connections: impl Fn() -> usize + Send + Sync + 'static,
    ) -> Self {
        let address = match advertise {
            "" => addr.to_string(),
            _ => advertise.to_owned(),
        };
        // One that listens everywhere is found where clients find the gateway.
        let admin_address = admin.map(|admin| match address.rsplit_once(':') {
            Some((host, _)) if admin.ip().is_unspecified() => format!("{host}:{}", admin.port()),
            _ => admin.to_string(),
        });
        Self {
            address,
            admin_address,
            connections: Box::new(connections),
        }
    }

    fn now(&self) -> String {
        let entry = Entry {
            address: &self.address,
            admin_address: self.admin_address.as_deref(),
            connections: (self.connections)(),
            version: env!("CARGO_PKG_VERSION"),
        };
        serde_json::to_string(&entry).expect("strings and a number are JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_written_is_where_the_gateway_is_found() {
        let admin = Some(addr("127.0.0.1:9090"));
        let value = Value::new("", addr("10.0.0.1:8080"), admin, || 7);
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            value.now(),
            format!(
                "{{\"address\":\"10.0.0.1:8080\",\"admin_address\":\"127.0.0.1:9090\",\
                 \"connections\":7,\"version\":\"{version}\"}}"
            )
        );
        let everywhere = Some(addr("[::]:9090"));
        let value = Value::new("[fd00::1]:443", addr("[::]:8080"), everywhere, || 0);
        assert_eq!(value.address, "[fd00::1]:443");
        assert_eq!(value.admin_address.as_deref(), Some("[fd00::1]:9090"));
        let value = Value::new("chat.example.com:443", addr("0.0.0.0:80"), None, || 0);
        assert!(!value.now().contains("admin"));
    }
}
