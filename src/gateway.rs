//! The composition root: builds the parts of a gateway, starts them, and stops them in order.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::broker::source::{DeliverySource, ReloadError};
use crate::broker::supervisor::{EXCHANGE_POLL_INTERVAL, RETRY_FIRST, Settings, Supervisor};
use crate::broker::{DeliveryContext, Endpoint, Routes};
use crate::capacity;
use crate::client::accept::Listener;
use crate::client::close::CloseReason;
use crate::client::connection::Connection;
use crate::client::{ConnectionObserver, Context, OverUserLimit, Route};
use crate::config::{Config, Limits, Mode};
#[cfg(feature = "discovery")]
use crate::discovery::Discovery;
use crate::http::{HttpResponse, Page};
use crate::presence::Presence;
use crate::readiness::Readiness;
#[cfg(feature = "reference")]
use crate::reference::{ReferenceError, embedded::Embedded};
use crate::registry::Registry;
use crate::services::Services;
use crate::services::grpc::{self, Grpc};
use crate::services::probe::Probe;
use crate::threads::semaphore::Semaphore;
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
    registry: Arc<Registry>,
    listener: Listener,
    presence: Worker,
    probe: Probe,
    source: Box<dyn DeliverySource>,
    #[cfg(feature = "discovery")]
    discovery: Discovery,
}

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The client listener's address cannot be bound: in use, or not this host's.
    #[error("listen.addr: cannot listen on {addr}: {error}")]
    Listen { addr: SocketAddr, error: io::Error },
    /// A value that reading the configuration lets nobody have: mend it.
    #[error("{0}")]
    Configuration(String),
    /// The services cannot be called at all.
    #[error("services: {0}")]
    Services(#[from] grpc::StartError),
    /// The system has no room for a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
    #[cfg(feature = "reference")]
    #[error(transparent)]
    Reference(#[from] ReferenceError),
}

/// Has deliveries come, once there is somebody to deliver them to.
type StartSource =
    Box<dyn FnOnce(Arc<DeliveryContext>, Arc<Presence>) -> io::Result<Box<dyn DeliverySource>>>;

impl Gateway {
    /// Starts everything; the services and the broker may come later. A reason to end that shows
    /// only then, such as another gateway with the same id, is sent to `fatal`: it is to be stopped.
    pub fn start(mut config: Config, fatal: &Fatal) -> Result<Self, StartError> {
        let addr = config.listen.addr;
        let socket = Listener::bind(addr).map_err(|error| StartError::Listen { addr, error })?;
        let registry = Arc::new(Registry::default());
        let (start_source, routes, chat) = match config.backend.mode {
            Mode::Remote => {
                let routes = Arc::new(Routes::new(Arc::clone(&registry)));
                let source = from_broker(&config, Arc::clone(&routes), fatal.clone())?;
                (source, Some(routes), None)
            }
            #[cfg(feature = "reference")]
            Mode::Embedded => {
                let embedded = Embedded::start(&mut config, fatal)?;
                let (chat, fatal) = (Embedded::page(&config), fatal.clone());
                let source: StartSource = Box::new(move |deliver, presence| {
                    presence.take_over();
                    Ok(Box::new(embedded.consume(&deliver, &fatal)?))
                });
                (source, None, chat)
            }
            #[cfg(not(feature = "reference"))]
            Mode::Embedded => {
                let reason = "backend.mode: this binary was built without the embedded services";
                return Err(StartError::Configuration(reason.into()));
            }
        };
        capacity::lower(&mut config);

        let grpc = Grpc::start(&config.services)?;
        #[cfg(feature = "discovery")]
        let upstreams = grpc.upstreams();
        let services: Arc<dyn Services> = Arc::new(grpc);
        let ttl = config.groups.cache_ttl;
        let deliver = DeliveryContext::new(Arc::clone(&registry), Arc::clone(&services), ttl);
        let released = routes.clone();
        let (presence, presence_thread) = Presence::start(
            Arc::clone(&registry),
            Arc::clone(&services),
            &config.gateway.id,
            &config.presence,
            fatal,
            move |user| released.iter().for_each(|routes| routes.release(user)),
        )?;
        let source = start_source(Arc::new(deliver), Arc::clone(&presence))?;

        let readiness = Arc::new(Readiness::default());
        readiness.add("broker", true, source.check());
        let probe = Probe::start(Arc::clone(&services), &readiness, fatal)?;
        let told = Arc::clone(&presence);
        readiness.add("presence_service", false, move || told.state());
        let draining = Arc::new(AtomicBool::new(false));
        let is_draining = Arc::clone(&draining);
        readiness.add("draining", true, move || {
            let goes_on = !is_draining.load(Ordering::SeqCst);
            goes_on
                .then_some(())
                .ok_or_else(|| "the gateway is shutting down".into())
        });

        let users = Users {
            registry: Arc::clone(&registry),
            presence,
            routes,
            limits: config.limits.clone(),
        };
        let context = Arc::new(Context {
            services,
            observer: Arc::new(users),
            draining,
            pacing: Semaphore::new(CATCH_UPS),
            validating: Semaphore::new(VALIDATIONS),
            pages: pages(Arc::clone(&readiness), chat),
            config,
        });
        // Last of all: whoever asks is told of every check.
        let listener = Listener::start(socket, Arc::clone(&context), fatal)?;
        let has_room = listener.has_room();
        readiness.add("capacity", true, move || {
            has_room()
                .then_some(())
                .ok_or_else(|| "limits.max_connections is reached".into())
        });
        #[cfg(feature = "discovery")]
        let discovery = {
            let (config, addr) = (&context.config, listener.addr());
            Discovery::start(config, addr, None, &registry, upstreams, fatal)?
        };
        Ok(Self {
            context,
            registry,
            listener,
            presence: presence_thread,
            probe,
            source,
            #[cfg(feature = "discovery")]
            discovery,
        })
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        let (addr, path) = (self.listener.addr(), &self.context.config.listen.path);
        format!("ws://{addr}{path}")
    }

    /// Where the tokens of [`reload`](Self::reload) let users in; `None`: it has none of its own.
    pub fn lets_in_at(&self) -> Option<SocketAddr> {
        let embedded = self.context.config.backend.mode == Mode::Embedded;
        embedded.then(|| self.listener.addr())
    }

    /// Puts the tokens and groups of `config` in force, in embedded mode.
    pub fn reload(&self, config: &Config) -> Result<(), ReloadError> {
        self.source.reload(config)
    }

    /// Ends within `shutdown.drain`: clients are told to go (1012) while what comes for them is
    /// still delivered; then users go offline, deliveries end, and the threads are joined.
    pub fn stop(self) {
        let drain = self.context.config.shutdown.drain;
        let start = Instant::now();
        let deadline = start + drain;
        let connections = self.registry.connections().len();
        info!("Shutting down: connections={connections}");
        self.context.draining.store(true, Ordering::SeqCst);
        #[cfg(feature = "discovery")]
        self.discovery.deregister(drain);
        self.close_connections(start, drain);
        // A Presence Service that does not answer leaves the others half of the time.
        let now = Instant::now();
        let half = now + deadline.saturating_duration_since(now) / 2;
        if !self.presence.stop(half) {
            warn!("Presence Service not waited for any longer");
        }
        #[cfg(feature = "discovery")]
        self.discovery.stop(deadline);
        self.source.stop(deadline);
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
        let needed = self.registry.connections().len() as f64 / (drain / 2).as_secs_f64();
        let rate = needed.max(CLOSES_PER_SECOND as f64);
        let batch = (rate * SHUTDOWN_TICK.as_secs_f64()).ceil() as usize;
        loop {
            let mut connections = self.registry.connections();
            if connections.is_empty() {
                return;
            }
            if start.elapsed() > drain * 3 / 4 {
                warn!("Connections cut: connections={}", connections.len());
                for connection in connections {
                    connection.abort(CloseReason::ShuttingDown);
                }
                return;
            }
            connections.retain(|connection| !connection.is_closing());
            for connection in connections.into_iter().take(batch) {
                connection.close(CloseReason::ShuttingDown);
            }
            thread::sleep(SHUTDOWN_TICK);
        }
    }
}

/// Deliveries of RabbitMQ.
fn from_broker(
    config: &Config,
    routes: Arc<Routes>,
    fatal: Fatal,
) -> Result<StartSource, StartError> {
    let endpoint = Endpoint::parse(&config.broker.url)
        .map_err(|error| StartError::Configuration(format!("broker.url: {error}")))?;
    let settings = Settings {
        endpoint,
        gateway_id: config.gateway.id.clone(),
        heartbeat: config.broker.heartbeat,
        prefetch: config.broker.prefetch,
        retry_first: RETRY_FIRST,
        exchange_poll_interval: EXCHANGE_POLL_INTERVAL,
    };
    Ok(Box::new(move |deliver, presence| {
        let owned = move || presence.take_over();
        let supervisor = Supervisor::start(settings, deliver, routes, &fatal, owned)?;
        Ok(Box::new(supervisor))
    }))
}

/// Enters connections into the registry, and tells presence and routes of their users.
struct Users {
    registry: Arc<Registry>,
    presence: Arc<Presence>,
    /// `None`: the in-process bus reaches every user.
    routes: Option<Arc<Routes>>,
    limits: Limits,
}

impl ConnectionObserver for Users {
    fn connected(&self, connection: &Arc<Connection>) -> Result<Route, OverUserLimit> {
        self.registry.admit(connection, &self.limits)?;
        let user = connection.user();
        self.presence.arrived(user);
        let routes = self.routes.as_ref();
        Ok(routes.map_or(Route::Bound, |routes| routes.want(user)))
    }

    fn disconnected(&self, connection: &Connection) {
        self.registry.remove(connection);
        self.presence.left(connection.user());
    }
}

/// What the client listener shows: `listen.path` is none of these paths (`config/validate.rs`).
fn pages(readiness: Arc<Readiness>, chat: Option<String>) -> Vec<Page> {
    let mut pages = vec![
        Page::new("/healthz", || HttpResponse::page(200, "text/plain", "ok\n")),
        Page::new("/readyz", move || {
            let report = readiness.check();
            let status = if report.is_ready() { 200 } else { 503 };
            HttpResponse::page(status, "application/json", report.to_json())
        }),
    ];
    let html = "text/html; charset=utf-8";
    let chat =
        chat.map(|page| Page::new("/", move || HttpResponse::page(200, html, page.as_str())));
    pages.extend(chat);
    pages
}
