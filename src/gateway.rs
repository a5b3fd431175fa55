//! The composition root: builds the parts of a gateway, and starts them; [`shutdown`] stops them in
//! order, and [`edges`] ties in what the core does without.

mod edges;
mod shutdown;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::broker::source::DeliverySource;
use crate::broker::supervisor::{EXCHANGE_POLL_INTERVAL, RETRY_FIRST, Settings, Supervisor};
use crate::broker::{DeliveryContext, Endpoint, Routes};
use crate::capacity;
use crate::client::accept::Listener;
use crate::client::connection::Connection;
use crate::client::{ConnectionObserver, Context, OverUserLimit, REQUEST_TYPES, Route};
use crate::config::{Config, Limits, Mode};
use crate::drain::Drain;
use crate::http::{HttpResponse, Page};
use crate::metrics::Metrics;
use crate::presence::Presence;
use crate::readiness::Readiness;
#[cfg(feature = "reference")]
use crate::reference::{ReferenceError, embedded::Embedded};
use crate::registry::Registry;
use crate::services::Services;
use crate::services::grpc::Grpc;
use crate::services::probe::Probe;
use crate::threads::semaphore::Semaphore;
use crate::threads::{Fatal, Worker};
use edges::{Edges, Surroundings};

/// Connections that fetch a page of unread messages at the same time: the most calls that catch-up
/// has under way at the Message Service.
const CATCH_UPS: usize = 32;
/// And whose token is validated again at the same time.
const VALIDATIONS: usize = 32;

/// A running gateway.
pub struct Gateway {
    context: Arc<Context>,
    registry: Arc<Registry>,
    listener: Listener,
    presence: Worker,
    probe: Probe,
    source: Box<dyn DeliverySource>,
    edges: Edges,
}

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener's address cannot be bound: in use, or not this host's.
    #[error("{key}: cannot listen on {addr}: {error}")]
    Listen {
        key: &'static str,
        addr: SocketAddr,
        error: io::Error,
    },
    /// A value that reading the configuration lets nobody have: mend it.
    #[error("{0}")]
    Configuration(String),
    /// The services cannot be called at all.
    #[error("services: {0}")]
    Services(String),
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
        let key = "listen.addr";
        let socket =
            Listener::bind(addr).map_err(|error| StartError::Listen { key, addr, error })?;
        let admin = edges::bind_admin(&config)?;
        let registry = Arc::new(Registry::default());
        let metrics = Arc::new(Metrics::new(REQUEST_TYPES));
        let (start_source, routes, chat) = match config.backend.mode {
            Mode::Remote => {
                let routes = Arc::new(Routes::new(Arc::clone(&registry), Arc::clone(&metrics)));
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

        let grpc = Grpc::start(&config.services).map_err(StartError::Services)?;
        let upstreams = grpc.upstreams();
        let grpc: Arc<dyn Services> = Arc::new(grpc);
        let services = edges::measured(Arc::clone(&grpc), &metrics);
        let deliver = DeliveryContext::new(
            Arc::clone(&registry),
            Arc::clone(&services),
            Arc::clone(&metrics),
            config.groups.cache_ttl,
        );
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
        let broker = source.state();
        readiness.add("broker", true, move || broker.get());
        let probe = Probe::start(grpc, &readiness, fatal)?;
        let last_call = presence.last_call.clone();
        readiness.add("presence_service", false, move || last_call.get());
        let drain = Arc::<Drain>::default();
        let told = Arc::clone(&drain);
        readiness.add("draining", true, move || told.check());

        let users = Users {
            registry: Arc::clone(&registry),
            presence,
            routes,
            limits: config.limits.clone(),
        };
        let observer = edges::observer(users, &metrics);
        let context = Arc::new(Context {
            services,
            observer: Arc::clone(&observer) as _,
            metrics,
            drain,
            pacing: Semaphore::new(CATCH_UPS),
            validating: Semaphore::new(VALIDATIONS),
            pages: pages(Arc::clone(&readiness), chat),
            config,
        });
        // Last of all: whoever asks is told of every check.
        let listener = Listener::start(socket, Arc::clone(&context), fatal)?;
        let limits = listener.limits();
        readiness.add("capacity", true, move || {
            let has_room = limits.have_room().then_some(());
            has_room.ok_or_else(|| "limits.max_connections is reached".into())
        });
        let around = Surroundings {
            context: &context,
            observer,
            registry: &registry,
            readiness,
            listener: &listener,
            broker: source.state(),
            upstreams,
        };
        let edges = Edges::start(admin, around, fatal)?;
        Ok(Self {
            context,
            registry,
            listener,
            presence: presence_thread,
            probe,
            source,
            edges,
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

    /// Where operators ask, if anywhere.
    pub fn admin_url(&self) -> Option<String> {
        self.edges.admin_url()
    }

    /// Puts the tokens and groups of `config` in force, in embedded mode.
    pub fn reload(&self, config: &Config) -> Result<(), String> {
        self.source.reload(config)
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
            HttpResponse::readiness(&readiness.check())
        }),
    ];
    pages.extend(chat.map(|page| Page::new("/", move || HttpResponse::html(page.as_str()))));
    pages
}
