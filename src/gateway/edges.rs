//! What the core does without, each part a cargo feature: tied in around it here, and nowhere else.

#![cfg_attr(
    not(all(
        feature = "admin",
        feature = "chat-page",
        feature = "discovery",
        feature = "proxy-protocol",
        feature = "reference"
    )),
    allow(unused_variables, clippy::unused_self)
)]

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::StartError;
#[cfg(feature = "admin")]
use crate::admin::{Admin, Sources};
use crate::broker::source::DeliverySource;
use crate::broker::{DeliveryContext, Endpoint, amqp};
#[cfg(feature = "chat-page")]
use crate::chat_page::ChatPage;
use crate::client::accept::Listener;
use crate::client::transport::{self, Opener};
use crate::client::{ConnectionObserver, Context};
#[cfg(feature = "proxy-protocol")]
use crate::config::Listen;
use crate::config::{Config, Mode};
#[cfg(feature = "discovery")]
use crate::discovery::Discovery;
use crate::http::Page;
use crate::ids::UserId;
use crate::metrics::Metrics;
#[cfg(feature = "planted")]
use crate::planted::Planted;
#[cfg(feature = "proxy-protocol")]
use crate::proxy_protocol;
use crate::readiness::Readiness;
#[cfg(feature = "reference")]
use crate::reference::embedded;
use crate::registry::Registry;
use crate::services::{self, Services, Upstream};
use crate::threads::Fatal;
#[cfg(feature = "tls")]
use crate::tls;

/// Has deliveries come from the services in this process, once there is somebody to deliver them to.
pub(super) type Deliver =
    Box<dyn FnOnce(&Arc<DeliveryContext>) -> io::Result<Box<dyn DeliverySource>>>;

/// Starts the services in this process, and has `config` name them, if it wants them.
pub(super) fn embedded(config: &mut Config, fatal: &Fatal) -> Result<Option<Deliver>, StartError> {
    if config.backend.mode != Mode::Embedded {
        return Ok(None);
    }
    #[cfg(feature = "reference")]
    {
        let started = embedded::Embedded::start(config, fatal);
        let started = started.map_err(|error| StartError::Part(error.to_string()))?;
        let fatal = fatal.clone();
        let deliver = move |deliver: &_| -> io::Result<Box<dyn DeliverySource>> {
            Ok(Box::new(started.consume(deliver, &fatal)?))
        };
        Ok(Some(Box::new(deliver)))
    }
    #[cfg(not(feature = "reference"))]
    {
        let reason = "backend.mode: this binary was built without the embedded services";
        Err(StartError::Part(reason.into()))
    }
}

/// TLS to the services, where it is built in.
pub(super) fn to_services(config: &Config) -> Option<Arc<dyn services::Tls>> {
    #[cfg(feature = "tls")]
    return Some(Arc::new(tls::ServicesTls::new(&config.services.ca)));
    #[cfg(not(feature = "tls"))]
    None
}

/// What opens connections to the broker. An error names the key that cannot be used.
pub(super) fn to_broker(config: &Config) -> Result<amqp::Opener, StartError> {
    let (broker, id) = (&config.broker, &config.gateway.id);
    let endpoint = Endpoint::parse(&broker.url);
    let endpoint = endpoint.map_err(|error| StartError::Part(format!("broker.url: {error}")))?;
    #[cfg(feature = "tls")]
    let wrap = tls::to_broker(&endpoint, &broker.ca).map_err(StartError::Part)?;
    // TLS is refused as a URL.
    #[cfg(not(feature = "tls"))]
    let wrap = None;
    let name = format!("ws-gateway {id}");
    Ok(amqp::Opener::new(endpoint, name, broker.heartbeat, wrap))
}

/// The edges of one gateway.
pub(super) struct Edges {
    #[cfg(feature = "proxy-protocol")]
    listen: Listen,
    #[cfg(feature = "admin")]
    admin: Admin,
    #[cfg(feature = "chat-page")]
    chat_page: Option<ChatPage>,
    /// Once it is started.
    #[cfg(feature = "discovery")]
    discovery: Option<Discovery>,
    #[cfg(feature = "tls")]
    tls: Option<tls::Tls>,
    #[cfg(feature = "planted")]
    planted: Arc<Planted>,
}

impl Edges {
    /// Binds their addresses. Nobody is answered yet.
    pub fn bind(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, StartError> {
        #[cfg(feature = "admin")]
        let (key, addr) = ("admin.addr", config.admin.addr);
        Ok(Self {
            #[cfg(feature = "proxy-protocol")]
            listen: config.listen.clone(),
            #[cfg(feature = "admin")]
            admin: Admin::bind(addr, Arc::clone(metrics)).map_err(|error| StartError::Listen {
                key,
                addr,
                error,
            })?,
            #[cfg(feature = "chat-page")]
            chat_page: ChatPage::new(config),
            #[cfg(feature = "discovery")]
            discovery: None,
            #[cfg(feature = "tls")]
            tls: tls::Tls::new(&config.tls, metrics).map_err(StartError::Part)?,
            #[cfg(feature = "planted")]
            planted: Planted::from_environment(metrics).map_err(StartError::Part)?,
        })
    }

    /// The services that are to be called in place of `services`.
    pub fn services(&self, services: Arc<dyn Services>) -> Arc<dyn Services> {
        #[cfg(feature = "planted")]
        let services = self.planted.services(services);
        #[cfg(feature = "chat-page")]
        let services = match &self.chat_page {
            Some(page) => page.rehearsed(services),
            None => services,
        };
        #[cfg(feature = "admin")]
        let services = self.admin.measured(services);
        services
    }

    /// Who is to be told of connections in place of `observer`.
    pub fn observer(&self, observer: Arc<dyn ConnectionObserver>) -> Arc<dyn ConnectionObserver> {
        #[cfg(feature = "planted")]
        let observer = self.planted.observer(observer);
        #[cfg(feature = "chat-page")]
        let observer = match &self.chat_page {
            Some(page) => page.followed(observer),
            None => observer,
        };
        #[cfg(feature = "admin")]
        let observer = self.admin.noted(observer);
        observer
    }

    /// What is to be called in place of `gone` for each user who has left.
    pub fn gone(
        &self,
        gone: impl Fn(&UserId) + Send + Sync + 'static,
    ) -> impl Fn(&UserId) + Send + Sync + 'static {
        #[cfg(feature = "planted")]
        let gone = self.planted.gone(gone);
        gone
    }

    /// What else the client listener shows and does.
    pub fn pages(&self) -> Vec<Page> {
        #[cfg(feature = "chat-page")]
        return (self.chat_page.as_ref()).map_or(Vec::new(), ChatPage::pages);
        #[cfg(not(feature = "chat-page"))]
        Vec::new()
    }

    /// What a client's socket is to be.
    pub fn opener(&self) -> Opener {
        let opener = transport::plain();
        #[cfg(feature = "proxy-protocol")]
        let opener = proxy_protocol::opener(opener, &self.listen);
        // What a proxy says comes before TLS.
        #[cfg(feature = "tls")]
        let opener = match &self.tls {
            Some(tls) => tls.opener(opener),
            None => opener,
        };
        // What it rewrites is plaintext.
        #[cfg(feature = "planted")]
        let opener = self.planted.opener(opener);
        opener
    }

    /// Has what is read from files read again.
    pub fn reload(&self) {
        #[cfg(feature = "tls")]
        self.tls.iter().for_each(tls::Tls::reload);
    }

    /// Registers the gateway, and answers operators from now on.
    pub fn start(
        &mut self,
        context: &Arc<Context>,
        registry: &Arc<Registry>,
        readiness: Arc<Readiness>,
        listener: &Listener,
        upstreams: [Arc<Upstream>; 3],
        fatal: &Fatal,
    ) -> io::Result<()> {
        #[cfg(feature = "planted")]
        self.planted.unready(&readiness, &context.metrics);
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            tls.start(&readiness, fatal)?;
        }
        #[cfg(feature = "admin")]
        let admin = Some(self.admin.addr());
        #[cfg(not(feature = "admin"))]
        let admin: Option<std::net::SocketAddr> = None;
        #[cfg(not(feature = "discovery"))]
        let on_drain = |_: bool| {};
        #[cfg(feature = "discovery")]
        let on_drain = {
            let (config, addr) = (&context.config, listener.addr());
            let started = Discovery::start(config, addr, admin, registry, upstreams, fatal)?;
            self.discovery.insert(started).on_drain()
        };
        #[cfg(feature = "admin")]
        self.admin.start(
            Sources {
                context: Arc::clone(context),
                registry: Arc::clone(registry),
                readiness,
                history: self.admin.history(),
                limits: listener.limits(),
                on_drain: Box::new(on_drain),
            },
            fatal,
        )?;
        Ok(())
    }

    /// Where operators ask, if anywhere.
    pub fn admin_url(&self) -> Option<String> {
        #[cfg(feature = "admin")]
        return self.admin.url();
        #[cfg(not(feature = "admin"))]
        None
    }

    /// Has nobody new find this gateway any more.
    pub fn deregister(&self, deadline: Instant) {
        #[cfg(feature = "discovery")]
        self.discovery.iter().for_each(|it| it.deregister(deadline));
        #[cfg(feature = "planted")]
        self.planted.give_back();
    }

    /// Ends them, last of all: until then an operator sees how far the shutdown is.
    pub fn stop(self, deadline: Instant) {
        #[cfg(feature = "discovery")]
        self.discovery.into_iter().for_each(|it| it.stop(deadline));
        #[cfg(feature = "tls")]
        self.tls.into_iter().for_each(|tls| tls.stop(deadline));
        #[cfg(feature = "admin")]
        self.admin.stop(deadline);
    }
}
