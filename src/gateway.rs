//! The composition root: builds the parts of a gateway, and starts them; [`shutdown`] stops them in
//! order, and [`edges`] ties in what the core does without.

mod edges;
mod shutdown;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::broker::source::DeliverySource;
use crate::broker::{DeliveryContext, Groups, Routes, Settings, Supervisor};
use crate::capacity;
use crate::client::accept::Listener;
use crate::client::connection::Connection;
use crate::client::{ConnectionObserver, Context, OverUserLimit, REQUEST_TYPES, Route};
use crate::config::{Config, Limits, Mode};
use crate::drain::Drain;
use crate::error::ensure;
use crate::http::{HttpResponse, Page};
use crate::metrics::Metrics;
use crate::presence::Presence;
use crate::probe;
use crate::readiness::Readiness;
use crate::registry::Registry;
use crate::services::Services;
use crate::services::grpc::Grpc;
use crate::threads::fan_out::FanOut;
use crate::threads::semaphore::Semaphore;
use crate::threads::{Fatal, Worker};
use edges::Edges;

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
    probe: Worker,
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
    /// What a part says that cannot work with this configuration: mend it.
    #[error("{0}")]
    Part(String),
    /// The system has no room for a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

impl Gateway {
    /// Starts everything; the services and the broker may come later. A reason to end that shows
    /// only then, such as another gateway with the same id, is sent to `fatal`: it is to be stopped.
    pub fn start(mut config: Config, fatal: &Fatal) -> Result<Self, StartError> {
        let addr = config.listen.addr;
        let key = "listen.addr";
        let socket =
            Listener::bind(addr).map_err(|error| StartError::Listen { key, addr, error })?;
        let metrics = Arc::new(Metrics::new(REQUEST_TYPES));
        let mut edges = Edges::bind(&config, &metrics)?;
        let embedded = edges::embedded(&mut config, fatal)?;
        capacity::lower(&mut config);

        let grpc = Grpc::start(&config.services, edges::to_services(&config))
            .map_err(|error| StartError::Part(format!("services: {error}")))?;
        let upstreams = grpc.upstreams();
        let grpc: Arc<dyn Services> = Arc::new(grpc);
        let services = edges.services(Arc::clone(&grpc));
        let registry = Arc::new(Registry::default());
        let deliver = Arc::new(DeliveryContext {
            registry: Arc::clone(&registry),
            services: Arc::clone(&services),
            metrics: Arc::clone(&metrics),
            groups: Groups::new(config.groups.cache_ttl).into(),
            fan_out: FanOut::start(),
        });
        let routes = Arc::new(Routes::new(Arc::clone(&registry), Arc::clone(&metrics)));
        let released = Arc::clone(&routes);
        let (presence, presence_thread) = Presence::start(
            Arc::clone(&registry),
            Arc::clone(&services),
            &config,
            fatal,
            edges.gone(move |user| released.release(user)),
        )?;
        let (source, routes): (Box<dyn DeliverySource>, _) = match embedded {
            Some(consume) => {
                presence.take_over();
                (consume(&deliver)?, None)
            }
            None => {
                let owned = Arc::clone(&presence);
                let supervisor = Supervisor::start(
                    Settings::new(&config, edges::to_broker(&config)?),
                    deliver,
                    Arc::clone(&routes),
                    fatal,
                    move || owned.take_over(),
                )?;
                (Box::new(supervisor), Some(routes))
            }
        };

        let readiness = Arc::new(Readiness::default());
        readiness.show("broker", true, source.state());
        let probe = probe::start(grpc, &readiness, fatal)?;
        readiness.show("presence_service", false, presence.last_call.clone());
        let drain = Arc::<Drain>::default();
        let told = Arc::clone(&drain);
        readiness.add("draining", true, move || told.check());

        let users = Users {
            registry: Arc::clone(&registry),
            presence,
            routes,
            limits: config.limits.clone(),
        };
        let context = Arc::new(Context {
            services,
            observer: edges.observer(Arc::new(users)),
            metrics,
            drain,
            pacing: Semaphore::new(CATCH_UPS),
            validating: Semaphore::new(VALIDATIONS),
            pages: pages(Arc::clone(&readiness), edges.pages()),
            echo: false,
            config,
        });
        // Last of all: whoever asks is told of every check.
        let listener = Listener::start(socket, edges.opener(), Arc::clone(&context), fatal)?;
        let limits = listener.limits();
        readiness.add("capacity", true, move || {
            ensure(limits.have_room(), "limits.max_connections is reached")
        });
        edges.start(&context, &registry, readiness, &listener, upstreams, fatal)?;
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
        let (addr, config) = (self.listener.addr(), &self.context.config);
        let scheme = if config.tls.cert.is_empty() {
            "ws"
        } else {
            "wss"
        };
        format!("{scheme}://{addr}{}", config.listen.path)
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

    /// Reads the certificate again.
    pub fn reload_files(&self) {
        self.edges.reload();
    }

    /// Puts the tokens and groups of `config` in force, in embedded mode.
    pub fn reload(&self, config: &Config) -> Result<(), String> {
        self.source.reload(config)
    }
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
fn pages(readiness: Arc<Readiness>, of_edges: Vec<Page>) -> Vec<Page> {
    let ready = move || HttpResponse::readiness(&readiness.check());
    let mut pages = vec![
        Page::new("/healthz", HttpResponse::healthy),
        Page::new("/readyz", ready),
    ];
    pages.extend(of_edges);
    pages
}
