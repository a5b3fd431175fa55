//! The addresses of one service. They take turns; one that fails rests until it answers again.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use log::{info, warn};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

use super::answer::{Checked, MAX_ANSWER};
use super::failure::{Failure, Health, Why};

/// How often an address that rests is asked whether it answers again.
const REST: Duration = Duration::from_secs(1);
/// How often a call is begun again whose connection was going away: the channel notices only
/// when it is used, so that one more attempt or two may end up on the old connection.
const STALE: usize = 3;
/// How large a status may be, in bytes: as an answer. A server may say in its text and its details,
/// percent-encoded, what it failed over. What is larger costs the call its code, and from a fourth
/// more the connection.
const MAX_STATUS: u32 = MAX_ANSWER as u32;

/// An empty call, to which any answer will do.
pub(super) type Ping = fn(Checked) -> Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

/// One service, behind one address or several.
pub(super) struct Upstream {
    addresses: Vec<Arc<Address>>,
    turn: AtomicUsize,
    ping: Ping,
}

struct Address {
    uri: String,
    channel: Checked,
    /// A [`Health`]; all but the best rest.
    health: AtomicU8,
}

impl Upstream {
    /// Connects when it is first called. Call it within the runtime.
    pub fn new(
        uris: &[String],
        call_timeout: Duration,
        ping: Ping,
    ) -> Result<Self, tonic::transport::Error> {
        let address = |uri: &String| {
            let endpoint = Endpoint::from_shared(uri.clone())?
                .connect_timeout(call_timeout)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(call_timeout)
                .keep_alive_while_idle(true)
                .http2_max_header_list_size(MAX_STATUS);
            let channel = Checked(endpoint.connect_lazy());
            Ok(Arc::new(Address {
                uri: uri.clone(),
                channel,
                health: AtomicU8::new(Health::Well as u8),
            }))
        };
        let addresses = uris.iter().map(address).collect::<Result<_, _>>()?;
        Ok(Self {
            addresses,
            turn: AtomicUsize::new(0),
            ping,
        })
    }

    /// Calls the address whose turn it is, to be answered before `deadline`. A call that is certain
    /// not to have been processed is repeated once, on another address if there is one; so is an
    /// idempotent one whenever the service was not available.
    pub async fn call<Q, A, F>(
        &self,
        deadline: Instant,
        idempotent: bool,
        request: Q,
        attempt: impl Fn(Checked, Request<Q>) -> F,
    ) -> Result<A, Failure>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut address = self.pick(None);
        let (mut stale, mut repeated) = (0, false);
        loop {
            let attempted = self.attempt(address, deadline, request.clone(), &attempt);
            let failure = match attempted.await {
                Err(failure) => failure,
                Ok(answer) => return Ok(answer),
            };
            let other = self.pick(Some(address));
            let repeat = match failure.why {
                Why::GoingAway => stale < STALE,
                Why::Refused => !repeated,
                Why::Unreached if !Arc::ptr_eq(address, other) => !repeated,
                _ => idempotent && failure.health() == Health::Broken && !repeated,
            };
            if !repeat {
                return Err(failure);
            }
            match failure.why {
                Why::GoingAway => stale += 1,
                _ => repeated = true,
            }
            address = other;
        }
    }

    async fn attempt<Q, A, F>(
        &self,
        address: &Arc<Address>,
        deadline: Instant,
        request: Q,
        attempt: &impl Fn(Checked, Request<Q>) -> F,
    ) -> Result<A, Failure>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut request = Request::new(request);
        request.set_timeout(left);
        let failure = match timeout(left, attempt(address.channel.clone(), request)).await {
            Ok(Ok(response)) => return Ok(response.into_inner()),
            Ok(Err(status)) => Failure::of(&status),
            Err(_) => Failure::new(Why::Late, "no answer in time"),
        };
        self.rest(address, &failure);
        Err(failure)
    }

    /// The next address of the best health, and `failed` last of these.
    fn pick(&self, failed: Option<&Arc<Address>>) -> &Arc<Address> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.addresses.len();
        let next = |step| &self.addresses[(turn + step) % count];
        let rank = |address: &&Arc<Address>| {
            let failed = failed.is_some_and(|failed| Arc::ptr_eq(failed, address));
            (address.health.load(Ordering::Relaxed), failed)
        };
        // The first of several that are as good.
        let best = (0..count).map(next).min_by_key(rank);
        best.unwrap_or(next(0))
    }

    /// Passes `address` over until it answers again, if its health asks for it. The only one there is
    /// never rests.
    fn rest(&self, address: &Arc<Address>, why: &Failure) {
        let health = why.health();
        if self.addresses.len() == 1 || health == Health::Well {
            return;
        }
        let before = address.health.fetch_max(health as u8, Ordering::Relaxed);
        if before >= health as u8 {
            return;
        }
        let uri = &address.uri;
        match health {
            Health::Broken => warn!("Service address rests: address={uri}, error={why}"),
            _ => info!("Service address turned a call away: address={uri}, error={why}"),
        }
        if before != Health::Well as u8 {
            return;
        }
        let (address, ping) = (Arc::clone(address), self.ping);
        tokio::spawn(async move {
            loop {
                sleep(REST).await;
                match timeout(REST, ping(address.channel.clone())).await {
                    Ok(Ok(())) => break,
                    Ok(Err(status)) if Failure::of(&status).is_answer() => break,
                    _ => {}
                }
            }
            address.health.store(Health::Well as u8, Ordering::Relaxed);
            info!("Service address answers again: address={}", address.uri);
        });
    }
}
