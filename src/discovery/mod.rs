//! etcd: this gateway is registered there as long as it runs, and services are found there.
//!
//! One thread has a session with one endpoint at a time, in which the [registration](Registration)
//! is kept and the services' addresses are followed ([`resolver`]). Whatever of it fails ends the
//! session, and the next one, with the next endpoint, begins from what etcd holds by then: so an etcd
//! that was away, has compacted its history or has lost everything takes no path of its own. What is
//! known of the services stays in use meanwhile.

mod client;
mod registration;
mod resolver;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, iter};

use futures_util::future::{try_join, try_join_all};
use log::{Level, log};
use tokio::runtime::Builder;
use tokio::time::sleep;

use self::client::{Client, Failure};
use self::registration::{Standing, Value};
use self::resolver::Resolver;
use crate::backoff::Backoff;
use crate::config::{self, Config};
use crate::registry::Registry;
use crate::services::Upstream;
use crate::threads::{Fatal, Worker};

pub use self::registration::Registration;

/// Between two tries to reach etcd, at first. The longest wait is a third of the lease, and so are
/// the deadline of a call and the time between two renewals: whoever waits for a call that nobody
/// answers, and then for the next try, still has a third left to be registered in.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// How long the runtime may take to end: a name may still be looked up.
const SHUTDOWN: Duration = Duration::from_secs(1);

/// The gateway's side of etcd.
pub struct Discovery {
    registration: Arc<Registration>,
    worker: Worker,
}

impl Discovery {
    /// Registers the gateway and follows the services that are named `etcd:///…`, as soon as etcd is
    /// there: it is not waited for. `None`: `discovery.endpoints` is empty. `addr` and `admin` are
    /// where the two listeners are bound.
    pub fn start(
        config: &Config,
        addr: SocketAddr,
        admin: Option<SocketAddr>,
        registry: Arc<Registry>,
        upstreams: [Arc<Upstream>; 3],
        fatal: &Fatal,
    ) -> io::Result<Option<Self>> {
        let etcd = &config.discovery;
        if etcd.endpoints.is_empty() {
            return Ok(None);
        }
        let connections = move || registry.connections().len();
        let value = Value::new(&etcd.advertise, addr, admin, connections);
        let key = format!("{}/ws-gateway/{}", etcd.prefix, config.gateway.id);
        let registration = Arc::new(Registration::new(key, etcd.ttl, value));
        let services = &config.services;
        let addresses = [&services.user, &services.message, &services.presence];
        let named = iter::zip(addresses, upstreams).filter_map(|(addresses, upstream)| {
            let prefix = format!("{}/{}/", etcd.prefix, addresses.in_etcd()?);
            Some(Resolver::new(prefix, upstream))
        });
        let mut sessions = Sessions {
            registration: Arc::clone(&registration),
            resolvers: named.collect(),
            config: etcd.clone(),
        };
        let runtime = Builder::new_current_thread()
            .thread_name("discovery")
            .enable_all()
            .build()?;
        let mut runtime = Some(runtime);
        // The signal to stop is one of the registration's, which async code can wait for.
        let worker = Worker::start("discovery", fatal, move |_| {
            runtime.iter().for_each(|runtime| {
                runtime.block_on(sessions.until_the_end());
            });
            runtime.take().into_iter().for_each(|runtime| {
                runtime.shutdown_timeout(SHUTDOWN);
            });
        })?;
        Ok(Some(Self {
            registration,
            worker,
        }))
    }

    /// For whoever drains the gateway.
    pub fn registration(&self) -> &Arc<Registration> {
        &self.registration
    }

    /// Ends it. A gateway that is still registered stays so until its lease ends.
    pub fn stop(self, deadline: Instant) {
        self.registration.end();
        self.worker.stop(deadline);
    }
}

/// One session after the other.
struct Sessions {
    registration: Arc<Registration>,
    resolvers: Vec<Resolver>,
    config: config::Discovery,
}

impl Sessions {
    async fn until_the_end(&mut self) {
        let registration = Arc::clone(&self.registration);
        tokio::select! {
            () = registration.ended() => {}
            () = self.run() => {}
        }
    }

    async fn run(&mut self) {
        let longest = self.config.ttl / 3;
        let mut backoff = Backoff::new(RETRY_FIRST, longest);
        let mut is_first = true;
        for endpoint in self.config.endpoints.clone().iter().cycle() {
            let start = Instant::now();
            self.registration.set(Standing::Unsettled);
            let failure = self.session(endpoint).await;
            let was_settled = self.registration.set(Standing::Away) != Standing::Unsettled;
            let level = if was_settled || is_first {
                Level::Warn
            } else {
                Level::Debug
            };
            log!(
                level,
                "etcd fails, will be retried: endpoint={endpoint}, error={failure}"
            );
            is_first = false;
            if start.elapsed() > longest {
                backoff.reset();
            }
            sleep(backoff.next()).await;
        }
    }

    /// Ends with what went wrong.
    async fn session(&mut self, endpoint: &str) -> Failure {
        let client = match Client::connect(endpoint, self.config.ttl / 3).await {
            Ok(client) => client,
            Err(failure) => return failure,
        };
        let resolvers = self.resolvers.iter_mut();
        let followed = resolvers.map(|resolver| resolver.follow(&client));
        let kept = self.registration.keep(&client);
        let Err(failure): Result<(Infallible, Vec<Infallible>), _> =
            try_join(kept, try_join_all(followed)).await;
        failure
    }
}
