//! The addresses of one service. They take turns; one that fails rests until it answers again.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use log::{info, warn};
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint, Error};

use super::failure::{Failure, Health, Why};
use super::unary::{Answer, MAX_ANSWER, Request};

/// How often an address that rests is asked whether it answers again.
const REST: Duration = Duration::from_secs(1);
/// How often a call is begun again whose connection was going away: the channel notices only
/// when it is used, so that one more attempt or two may end up on the old connection. And how often
/// after an address was found away: between two of these attempts another one may have been.
const STALE: usize = 3;
/// How large a status may be, in bytes: as an answer. A server may say in its text and its details,
/// percent-encoded, what it failed over. What is larger costs the call its code, and from a fourth
/// more the connection.
const MAX_STATUS: u32 = MAX_ANSWER as u32;

/// What TLS adds to connections, as an edge brings it.
pub trait Tls: Send + Sync {
    /// Has the connections to an `https://` address encrypted; an error is why they cannot be.
    fn encrypt(&self, endpoint: Endpoint) -> Result<Endpoint, String>;

    /// Why a call to the service at `uri` came to nothing, in people's words, where TLS is why: that
    /// it is spoken, or that it is not.
    fn explain(&self, uri: &str, error: &Error) -> Option<String>;
}

/// One service, behind one address or several. They may be exchanged while it is called.
pub struct Upstream {
    pub(super) name: &'static str,
    /// The method that an address that rests is asked, with an empty message: any answer will do.
    pub(super) ping: &'static str,
    /// Of a call, and of connecting for it.
    pub(super) timeout: Duration,
    /// Carries the connections.
    pub(super) runtime: Handle,
    /// Those handed over. It has no bound of its own: each caller waits for its answer.
    pub(super) calls: UnboundedSender<BoxFuture<'static, ()>>,
    pub(super) tls: Option<Arc<dyn Tls>>,
    /// Each is connected to when it is first called.
    pub(super) addresses: RwLock<Vec<Arc<Address>>>,
    pub(super) turn: AtomicUsize,
}

pub(super) struct Address {
    uri: String,
    channel: Channel,
    /// A [`Health`]; all but the best rest.
    health: AtomicU8,
}

impl Upstream {
    /// From now on the service is at these addresses, `http[s]://host:port` each, and at no other; any
    /// thread may say so. One that it has already keeps its connection, and rests if it does; calls
    /// under way end at the address that they have. Without an address every call fails at once. An
    /// error is the reason, and changes nothing.
    pub fn set_addresses(&self, uris: &[String]) -> Result<(), String> {
        let _within = self.runtime.enter();
        let mut addresses = self.addresses.write();
        let address = |uri: &String| {
            let known = addresses.iter().find(|address| address.uri == *uri);
            known.map_or_else(|| self.address(uri), |known| Ok(Arc::clone(known)))
        };
        let set: Result<_, String> = uris.iter().map(address).collect();
        let invalid = |error| format!("{} at {uris:?}: {error}", self.name);
        *addresses = set.map_err(invalid)?;
        Ok(())
    }

    fn address(&self, uri: &str) -> Result<Arc<Address>, String> {
        let endpoint = Endpoint::from_shared(uri.to_owned())
            .map_err(|error| error.to_string())?
            .connect_timeout(self.timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(self.timeout)
            .keep_alive_while_idle(true)
            .http2_max_header_list_size(MAX_STATUS);
        let mut tls = self.tls.iter();
        let endpoint = tls.try_fold(endpoint, |endpoint, tls| tls.encrypt(endpoint))?;
        Ok(Arc::new(Address {
            uri: uri.to_owned(),
            channel: endpoint.connect_lazy(),
            health: AtomicU8::new(Health::Well as u8),
        }))
    }

    /// Calls the address whose turn it is, to be answered before the deadline. A call that is certain
    /// not to have been processed is repeated, on another address if there is one: once if it was
    /// refused. So is an idempotent one whenever the service was not available.
    pub(super) async fn ask(&self, request: &Request, deadline: Instant) -> Answer {
        let nowhere = || Failure::new(Why::Unreached, "no address of it is known");
        let mut address = self.pick(None).ok_or_else(nowhere)?;
        let (mut stale, mut unreached, mut repeats) = (STALE, STALE, 1);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let explain = |error: &Error| self.tls.as_ref()?.explain(&address.uri, error);
            let attempt = request.send(address.channel.clone(), explain, Some(left));
            let failure = match timeout(left, attempt).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::new(Why::Late, "no answer in time"),
            };
            self.rest(&address, &failure);
            let Some(other) = self.pick(Some(&address)) else {
                return Err(failure);
            };
            let left = match failure.why {
                Why::GoingAway => &mut stale,
                Why::Refused => &mut repeats,
                Why::Unreached if !Arc::ptr_eq(&address, &other) => &mut unreached,
                _ if request.idempotent && failure.health() == Health::Broken => &mut repeats,
                _ => return Err(failure),
            };
            if *left == 0 {
                return Err(failure);
            }
            *left -= 1;
            address = other;
        }
    }

    /// The next address of the best health, and `failed` last of these.
    fn pick(&self, failed: Option<&Arc<Address>>) -> Option<Arc<Address>> {
        let addresses = self.addresses.read();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len().max(1);
        let in_turn = addresses.iter().cycle().skip(turn).take(addresses.len());
        // The first of several that are as good.
        let best = in_turn.min_by_key(|address| {
            let failed = failed.is_some_and(|failed| Arc::ptr_eq(failed, address));
            (address.health.load(Ordering::Relaxed), failed)
        });
        best.cloned()
    }

    /// Passes `address` over until it answers again, if its health asks for it. The only one there is
    /// never rests.
    fn rest(&self, address: &Arc<Address>, failure: &Failure) {
        if self.addresses.read().len() < 2 {
            return;
        }
        let health = failure.health();
        let before = address.health.fetch_max(health as u8, Ordering::Relaxed);
        let (uri, error) = (&address.uri, &failure.text);
        match health {
            // As before, or better: it is asked already, if it rests.
            _ if before >= health as u8 => return,
            Health::Broken => warn!("Service address rests: address={uri}, error={error}"),
            _ => info!("Service address turned a call away: address={uri}, error={error}"),
        }
        if before == Health::Well as u8 {
            let ping = Request::new(self.ping, &());
            tokio::spawn(until_it_answers(Arc::downgrade(address), ping));
        }
    }
}

/// Asks an address that rests, unless it was given up.
async fn until_it_answers(resting: Weak<Address>, ping: Request) {
    loop {
        sleep(REST).await;
        let Some(address) = resting.upgrade() else {
            return;
        };
        let asked = timeout(REST, ping.send(address.channel.clone(), |_| None, None)).await;
        let is_well = |failure: Failure| failure.health() == Health::Well;
        if asked.is_ok_and(|answer| answer.err().is_none_or(is_well)) {
            address.health.store(Health::Well as u8, Ordering::Relaxed);
            return info!("Service address answers again: address={}", address.uri);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_given_up_is_asked_no_more() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let asked = until_it_answers(Weak::new(), Request::new("/", &()));
        let ended = runtime.block_on(async { timeout(20 * REST, asked).await });
        assert!(ended.is_ok());
    }
}
