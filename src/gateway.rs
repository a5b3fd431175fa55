//! The composition root: builds the parts of a gateway, starts them, and stops them in order.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::broker::Endpoint;
use crate::broker::deliver::Deliver;
use crate::broker::routes::Routes;
use crate::broker::supervisor::{LOOK_EVERY, RETRY_FIRST, Settings, Supervisor};
use crate::capacity;
use crate::client::accept::Listener;
use crate::client::close::CloseReason;
use crate::client::permits::Permits;
use crate::client::{Attendance, Context, Route};
use crate::config::{self, Config, Mode};
use crate::ids::UserId;
use crate::presence::Presence;
use crate::readiness::Readiness;
#[cfg(feature = "reference")]
use crate::reference::{Embedded, ReferenceError};
use crate::registry::Registry;
use crate::services::Services;
use crate::services::grpc::Grpc;
use crate::services::probe::Probe;
use crate::threads::{Fatal, Worker};

/// Connections that fetch a page of unread messages at the same time: the most calls that catch-up
/// has under way at the Message Service.
const CATCH_UPS: usize = 32;
/// And whose token is validated again at the same time.
const VALIDATIONS: usize = 32;
/// Connections closed per second at shutdown, or more where half of the drain needs it.
const CLOSES_PER_SECOND: usize = 1_000;
/// How often the shutdown looks how far it has come.
const SHUTDOWN_TICK: Duration = Duration::from_millis(20);

/// A running gateway.
pub struct Gateway {
    context: Arc<Context>,
    listener: Listener,
    presence: Worker,
    probe: Probe,
    feed: Box<dyn Feed>,
}

/// Where deliveries come from: the broker, or the services in this process.
pub trait Feed: Send {
    /// Answers, whenever it is asked, why nothing comes, for `/readyz`.
    fn check(&self) -> Box<dyn Fn() -> Result<(), String> + Send + Sync>;
    /// Puts the tokens and groups of `config` in force.
    fn reload(&self, config: &Config) -> Result<(), String>;
    /// Ends by `deadline`, deliveries in hand included.
    fn stop(self: Box<Self>, deadline: Instant);
}

impl Feed for Supervisor {
    fn check(&self) -> Box<dyn Fn() -> Result<(), String> + Send + Sync> {
        Box::new(Supervisor::check(self))
    }

    fn reload(&self, _: &Config) -> Result<(), String> {
        Err("only the embedded services have something to read again".into())
    }

    fn stop(self: Box<Self>, deadline: Instant) {
        Supervisor::stop(*self, deadline);
    }
}

/// Why a gateway does not start.
#[derive(Debug)]
pub enum StartError {
    /// The client listener's address cannot be bound: in use, or not this host's.
    Listen { addr: SocketAddr, error: io::Error },
    /// A value that reading the configuration lets nobody have: mend it.
    Configuration(String),
    /// The gRPC runtime does not start.
    Services(String),
    /// The system has no room for a thread.
    Thread(io::Error),
    #[cfg(feature = "reference")]
    Reference(ReferenceError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen { addr, error } => {
                write!(f, "listen.addr: cannot listen on {addr}: {error}")
            }
            Self::Services(reason) => write!(f, "services: {reason}"),
            Self::Configuration(reason) => f.write_str(reason),
            Self::Thread(error) => write!(f, "cannot start a thread: {error}"),
            #[cfg(feature = "reference")]
            Self::Reference(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

/// What the gateway is built on, in either mode.
struct Backend {
    services: Arc<dyn Services>,
    registry: Arc<Registry>,
    deliver: Arc<Deliver>,
    page: Option<String>,
}

impl Backend {
    fn new(services: impl Services, config: &Config, page: Option<String>) -> Self {
        let registry = Arc::new(Registry::default());
        let services: Arc<dyn Services> = Arc::new(services);
        let (for_deliver, ttl) = (Arc::clone(&services), config.groups.cache_ttl);
        let deliver = Arc::new(Deliver::new(Arc::clone(&registry), for_deliver, ttl));
        Self {
            services,
            registry,
            deliver,
            page,
        }
    }
}

impl Gateway {
    /// Starts everything; the services and the broker may come later. A reason to end that shows
    /// only then, such as another gateway with the same id, is sent to `fatal`: it is to be stopped.
    pub fn start(config: Config, fatal: Fatal) -> Result<Self, StartError> {
        let addr = config.listen.addr;
        let listener = Listener::bind(addr).map_err(|error| StartError::Listen { addr, error })?;
        match config.backend.mode {
            Mode::Remote => Self::remote(config, listener, &fatal),
            #[cfg(feature = "reference")]
            Mode::Embedded => Self::embedded(config, listener, &fatal),
            #[cfg(not(feature = "reference"))]
            Mode::Embedded => Err(StartError::Configuration(
                "backend.mode: this binary was built without the embedded services".into(),
            )),
        }
    }

    fn remote(config: Config, listener: TcpListener, fatal: &Fatal) -> Result<Self, StartError> {
        let endpoint = Endpoint::parse(&config.broker.url)
            .map_err(|error| StartError::Configuration(format!("broker.url: {error}")))?;
        let services = Grpc::start(&config.services).map_err(StartError::Services)?;
        let backend = Backend::new(services, &config, None);
        let routes = Arc::new(Routes::new(Arc::clone(&backend.registry)));
        let deliver = Arc::clone(&backend.deliver);
        let settings = Settings {
            endpoint,
            gateway_id: config.gateway.id.clone(),
            heartbeat: config.broker.heartbeat,
            prefetch: config.broker.prefetch,
            retry_first: RETRY_FIRST,
            look_every: LOOK_EVERY,
        };
        let routes_too = Some(Arc::clone(&routes));
        Self::assemble(config, listener, backend, routes_too, fatal, |presence| {
            let owned = move || presence.take_over();
            let supervisor = Supervisor::start(settings, deliver, routes, fatal, owned);
            Ok(Box::new(supervisor.map_err(StartError::Thread)?))
        })
    }

    #[cfg(feature = "reference")]
    fn embedded(
        mut config: Config,
        listener: TcpListener,
        fatal: &Fatal,
    ) -> Result<Self, StartError> {
        let embedded = Embedded::start(&mut config, fatal).map_err(StartError::Reference)?;
        let services = Grpc::start(&config.services).map_err(StartError::Services)?;
        let page = Embedded::page(&config);
        let backend = Backend::new(services, &config, page);
        let embedded = embedded
            .consume(&backend.deliver, fatal)
            .map_err(StartError::Thread)?;
        Self::assemble(config, listener, backend, None, fatal, |presence| {
            presence.take_over();
            Ok(Box::new(embedded))
        })
    }

    fn assemble(
        mut config: Config,
        listener: TcpListener,
        backend: Backend,
        routes: Option<Arc<Routes>>,
        fatal: &Fatal,
        feed: impl FnOnce(Arc<Presence>) -> Result<Box<dyn Feed>, StartError>,
    ) -> Result<Self, StartError> {
        lower_to_capacity(&mut config);
        let Backend {
            services,
            registry,
            page,
            ..
        } = backend;
        let presence = Presence::start(
            Arc::clone(&registry),
            Arc::clone(&services),
            &config.gateway.id,
            &config.presence,
            fatal,
            {
                let routes = routes.clone();
                move |user| {
                    if let Some(routes) = &routes {
                        routes.release(user);
                    }
                }
            },
        );
        let (presence, presence_thread) = presence.map_err(StartError::Thread)?;
        let readiness = Arc::new(Readiness::default());
        let draining = Arc::new(AtomicBool::new(false));
        let context = Arc::new(Context {
            config,
            registry,
            services,
            users: Arc::new(Users {
                presence: Arc::clone(&presence),
                routes,
            }),
            readiness: Arc::clone(&readiness),
            draining: Arc::clone(&draining),
            pacing: Permits::new(CATCH_UPS),
            validating: Permits::new(VALIDATIONS),
            page,
        });
        let feed = feed(Arc::clone(&presence))?;
        readiness.add("broker", true, feed.check());
        let probe = Probe::start(Arc::clone(&context.services), &readiness, fatal);
        let probe = probe.map_err(StartError::Thread)?;
        let presence_state = Arc::clone(&presence);
        readiness.add("presence_service", false, move || presence_state.state());
        readiness.add("draining", true, move || {
            if draining.load(Ordering::SeqCst) {
                Err("the gateway is shutting down".into())
            } else {
                Ok(())
            }
        });
        // Last of all: whoever asks is told of every check.
        let listener = Listener::start(listener, Arc::clone(&context), fatal);
        let listener = listener.map_err(StartError::Thread)?;
        let has_room = listener.has_room();
        readiness.add("capacity", true, move || {
            if has_room() {
                Ok(())
            } else {
                Err("limits.max_connections is reached".into())
            }
        });
        Ok(Self {
            context,
            listener,
            presence: presence_thread,
            probe,
            feed,
        })
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!(
            "ws://{}{}",
            self.listener.addr(),
            self.context.config.listen.path
        )
    }

    /// Where the tokens of [`reload`](Self::reload) let users in; `None`: it has none of its own.
    pub fn lets_in_at(&self) -> Option<SocketAddr> {
        let embedded = self.context.config.backend.mode == Mode::Embedded;
        embedded.then(|| self.listener.addr())
    }

    /// Puts the tokens and groups of `config` in force, in embedded mode.
    pub fn reload(&self, config: &Config) -> Result<(), String> {
        self.feed.reload(config)
    }

    /// Ends within `shutdown.drain`: clients are told to go (1012) while what comes for them is
    /// still delivered; then users go offline, the feed ends, and the threads are joined.
    pub fn stop(self) {
        let drain = self.context.config.shutdown.drain;
        let start = Instant::now();
        let deadline = start + drain;
        info!(
            "Shutting down: connections={}",
            self.context.registry.connections().len()
        );
        self.context.draining.store(true, Ordering::SeqCst);
        self.close_connections(start, drain);
        // A Presence Service that does not answer leaves the feed half of the time.
        let now = Instant::now();
        let half = now + deadline.saturating_duration_since(now) / 2;
        if !self.presence.stop(half) {
            warn!("Presence Service not waited for any longer");
        }
        self.feed.stop(deadline);
        self.probe.stop(deadline);
        let left = self.listener.stop(deadline);
        if left > 0 {
            warn!("Threads left behind: threads={left}");
        }
        info!("Shut down: seconds={:.1}", start.elapsed().as_secs_f64());
    }

    /// Closes connections at an even pace, and cuts those that are left when three quarters of
    /// the drain are over.
    fn close_connections(&self, start: Instant, drain: Duration) {
        let registry = &self.context.registry;
        let per_tick = |rate: f64| (rate * SHUTDOWN_TICK.as_secs_f64()).ceil() as usize;
        let needed = registry.connections().len() as f64 / (drain / 2).as_secs_f64();
        let batch = per_tick(needed.max(CLOSES_PER_SECOND as f64));
        loop {
            let connections = registry.connections();
            if connections.is_empty() {
                return;
            }
            if start.elapsed() > drain * 3 / 4 {
                warn!("Connections cut: connections={}", connections.len());
                connections
                    .iter()
                    .for_each(|connection| connection.cut(CloseReason::ShuttingDown));
                return;
            }
            let open = connections
                .iter()
                .filter(|connection| !connection.is_closing());
            open.take(batch)
                .for_each(|connection| connection.close(CloseReason::ShuttingDown));
            thread::sleep(SHUTDOWN_TICK);
        }
    }
}

/// Tells presence and routes of arrivals and departures.
struct Users {
    presence: Arc<Presence>,
    /// `None`: the in-process bus reaches every user.
    routes: Option<Arc<Routes>>,
}

impl Attendance for Users {
    fn arrived(&self, user: &UserId) -> Route {
        self.presence.arrived(user);
        let routes = self.routes.as_ref();
        routes.map_or(Route::Bound, |routes| routes.want(user))
    }

    fn left(&self, user: &UserId) {
        self.presence.left(user);
    }
}

fn lower_to_capacity(config: &mut Config) {
    let config::Services {
        user,
        message,
        presence,
        ..
    } = &config.services;
    let addresses = [user, message, presence].map(|addresses| addresses.0.len());
    let capacity = capacity::measure(addresses.iter().sum());
    let wanted = config.limits.max_connections;
    if wanted > capacity.connections {
        config.limits.max_connections = capacity.connections;
        warn!(
            "limits.max_connections lowered: from={wanted}, to={}, because={}",
            capacity.connections, capacity.bound
        );
    }
}
