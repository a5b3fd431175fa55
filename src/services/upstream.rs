//! The addresses of one service. They take turns; one that fails rests until it answers again.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use log::{info, warn};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, ConnectError, Request, Response, Status, TimeoutExpired};

/// How often an address that rests is asked whether it answers again.
const REST: Duration = Duration::from_secs(1);

/// An empty call, to which any answer will do.
pub(super) type Ping = fn(Channel) -> Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

/// One service, behind one address or several.
pub(super) struct Upstream {
    addresses: Vec<Arc<Address>>,
    turn: AtomicUsize,
    ping: Ping,
}

struct Address {
    uri: String,
    channel: Channel,
    resting: AtomicBool,
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
                .keep_alive_while_idle(true);
            let channel = endpoint.connect_lazy();
            Ok(Arc::new(Address {
                uri: uri.clone(),
                channel,
                resting: AtomicBool::new(false),
            }))
        };
        let addresses = uris.iter().map(address).collect::<Result<_, _>>()?;
        Ok(Self {
            addresses,
            turn: AtomicUsize::new(0),
            ping,
        })
    }

    /// Calls the address whose turn it is, to be answered before `deadline`. A call that reached
    /// no server is tried once on another address; an idempotent one is tried once more whenever
    /// the service was unavailable.
    pub async fn call<Q, A, F>(
        &self,
        deadline: Instant,
        idempotent: bool,
        request: Q,
        attempt: impl Fn(Channel, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let address = self.pick(None);
        let failed = match self
            .attempt(address, deadline, request.clone(), &attempt)
            .await
        {
            Err(status) if status.code() == Code::Unavailable => status,
            answer => return answer,
        };
        let other = self.pick(Some(address));
        let elsewhere = !Arc::ptr_eq(address, other);
        if idempotent || (elsewhere && reached_no_server(&failed)) {
            self.attempt(other, deadline, request, &attempt).await
        } else {
            Err(failed)
        }
    }

    async fn attempt<Q, A, F>(
        &self,
        address: &Arc<Address>,
        deadline: Instant,
        request: Q,
        attempt: &impl Fn(Channel, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut request = Request::new(request);
        request.set_timeout(left);
        match timeout(left, attempt(address.channel.clone(), request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => {
                let status = as_the_service_would(status);
                if status.code() == Code::Unavailable {
                    self.rest(address, &status);
                }
                Err(status)
            }
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        }
    }

    /// The next address that does not rest and is not `failed`; where there is none, any.
    fn pick(&self, failed: Option<&Arc<Address>>) -> &Arc<Address> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.addresses.len();
        let mut candidates = (0..count).map(|step| &self.addresses[(turn + step) % count]);
        let rested = |address: &&Arc<Address>| {
            !address.resting.load(Ordering::Relaxed)
                && failed.is_none_or(|failed| !Arc::ptr_eq(failed, address))
        };
        candidates
            .find(rested)
            .unwrap_or(&self.addresses[turn % count])
    }

    /// Passes `address` over until it answers again. The only one there is never rests.
    fn rest(&self, address: &Arc<Address>, why: &Status) {
        if self.addresses.len() == 1 || address.resting.swap(true, Ordering::Relaxed) {
            return;
        }
        warn!(
            "Service address rests: address={}, error={}",
            address.uri,
            cause(why)
        );
        let (address, ping) = (Arc::clone(address), self.ping);
        tokio::spawn(async move {
            loop {
                sleep(REST).await;
                let answer = timeout(REST, ping(address.channel.clone())).await;
                let silent = match answer {
                    Ok(Err(status)) => as_the_service_would(status).code() == Code::Unavailable,
                    Ok(Ok(())) => false,
                    Err(_) => true,
                };
                if !silent {
                    break;
                }
            }
            address.resting.store(false, Ordering::Relaxed);
            info!("Service address answers again: address={}", address.uri);
        });
    }
}

/// A status that the transport made up, not the service, has whatever code came to hand: here it
/// is UNAVAILABLE, or DEADLINE_EXCEEDED when time ran out.
fn as_the_service_would(status: Status) -> Status {
    if status.source().is_none() {
        return status;
    }
    let code = match in_chain::<TimeoutExpired>(&status) {
        Some(_) => Code::DeadlineExceeded,
        None => Code::Unavailable,
    };
    let mut renamed = Status::new(code, cause(&status));
    renamed.set_source(Arc::new(status));
    renamed
}

fn reached_no_server(status: &Status) -> bool {
    in_chain::<ConnectError>(status).is_some()
}

fn in_chain<E: Error + 'static>(status: &Status) -> Option<&E> {
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

/// The last error of the chain: "connection refused", not "transport error".
pub(super) fn cause(status: &Status) -> String {
    let mut root: &dyn Error = match status.source() {
        Some(source) => source,
        None => return status.message().to_owned(),
    };
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}
