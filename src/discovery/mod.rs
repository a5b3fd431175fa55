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
use self::resolver::{Resolver, address};
use crate::backoff::Backoff;
use crate::config::{self, Config, in_etcd};
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

/// How long somebody waits for an etcd that does not answer: it comes to know in its time, and a
/// lease ends by itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// The addresses that `endpoint` holds below `prefix` now, what is no address left out. Waits for 3 s at
/// most; an error is why it cannot be asked.
pub fn look_up(endpoint: &str, prefix: &str) -> Result<Vec<String>, String> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let look = async {
        let client = Client::connect(endpoint, LOOK_WITHIN).await?;
        client.read(prefix).await
    };
    let (entries, _) = runtime
        .block_on(look)
        .map_err(|failure| failure.to_string())?;
    Ok(entries
        .iter()
        .filter_map(|entry| address(&entry.value).ok())
        .collect())
}

/// How long each step of a look may take.
const LOOK_WITHIN: Duration = Duration::from_millis(1_500);

/// The gateway's side of etcd.
pub struct Discovery {
    /// `None`: `discovery.endpoints` is empty.
    running: Option<(Arc<Registration>, Worker)>,
}

impl Discovery {
    /// Registers the gateway and follows the services that are named `etcd:///…`, as soon as etcd is
    /// there: it is not waited for. `addr` and `admin` are where the two listeners are bound.
    pub fn start(
        config: &Config,
        addr: SocketAddr,
        admin: Option<SocketAddr>,
        registry: &Arc<Registry>,
        upstreams: [Arc<Upstream>; 3],
        fatal: &Fatal,
    ) -> io::Result<Self> {
        let etcd = &config.discovery;
        if etcd.endpoints.is_empty() {
            return Ok(Self { running: None });
        }
        let registry = Arc::clone(registry);
        let connections = move || registry.connections().len();
        let value = Value::new(&etcd.advertise, addr, admin, connections);
        let key = format!("{}/ws-gateway/{}", etcd.prefix, config.gateway.id);
        let registration = Arc::new(Registration::new(key, etcd.ttl, value));
        let services = &config.services;
        let addresses = [&services.user, &services.message, &services.presence];
        let named = iter::zip(addresses, upstreams).filter_map(|(addresses, upstream)| {
            let prefix = format!("{}/{}/", etcd.prefix, in_etcd(addresses)?);
            Some(Resolver::new(prefix, upstream))
        });
        let mut sessions = Sessions {
            registration: Arc::clone(&registration),
            resolvers: named.collect(),
            config: etcd.clone(),
        };
        let runtime = Builder::new_current_thread()
            .thread_name("etcd")
            .enable_all()
            .build()?;
        let mut runtime = Some(runtime);
        // The signal to stop is one of the registration's, which async code can wait for.
        let worker = Worker::start("etcd", fatal, move |_| {
            if let Some(runtime) = &runtime {
                runtime.block_on(sessions.until_the_end());
            }
            if let Some(runtime) = runtime.take() {
                runtime.shutdown_timeout(SHUTDOWN);
            }
        })?;
        let running = Some((registration, worker));
        Ok(Self { running })
    }

    /// `None`: it has no etcd to be registered in.
    pub fn registration(&self) -> Option<Arc<Registration>> {
        let running = self.running.as_ref();
        running.map(|(registration, _)| Arc::clone(registration))
    }

    /// To be told when the gateway drains by hand, and when it does no longer: it is not registered
    /// meanwhile.
    pub fn on_drain(&self) -> impl Fn(bool) + Send + Sync + use<> {
        let registration = self.registration();
        move |drains| match &registration {
            Some(registration) if drains => _ = registration.deregister(PATIENCE),
            Some(registration) => _ = registration.register(PATIENCE),
            None => {}
        }
    }

    /// What a shutdown begins with; it is not taken back. Waits for 1 s at most, and for an eighth of
    /// the time until `deadline`.
    pub fn deregister(&self, deadline: Instant) {
        if let Some((registration, _)) = &self.running {
            let left = deadline.saturating_duration_since(Instant::now());
            registration.deregister_for_good(PATIENCE.min(left / 8));
        }
    }

    /// Ends it. A gateway that is still registered stays so until its lease ends.
    pub fn stop(self, deadline: Instant) {
        if let Some((registration, worker)) = self.running {
            registration.end();
            worker.stop(deadline);
        }
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
