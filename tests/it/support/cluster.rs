//! A whole deployment: gateways and a services process as processes, on a virtual host of a broker.

use std::sync::Arc;

use toml::Table;

use super::amqp::Amqp;
use super::broker::{Broker, free_port};
use super::{Client, Gateway, Services, Settings};

pub struct Cluster {
    pub gateways: Vec<Gateway>,
    pub services: Services,
    pub broker: Arc<Broker>,
    /// Of the virtual host.
    pub url: String,
    settings: Settings,
}

impl Cluster {
    /// Two gateways that are ready, on the shared broker. `settings` hold users and groups for the
    /// services, and everything else for the gateways.
    pub fn start(settings: &Settings) -> Self {
        Self::on(Broker::shared(), settings, 2)
    }

    /// `count` gateways that are ready, named g0, g1, …
    pub fn on(broker: Arc<Broker>, settings: &Settings, count: usize) -> Self {
        let url = broker.vhost();
        let services = Services::start(settings, &url);
        let settings = remote(settings, &services.url(), &url);
        // A gateway that is started again finds its port free.
        let start = |number| {
            let settings = settings
                .clone()
                .set("gateway.id", format!("g{number}"))
                .set("listen.addr", format!("127.0.0.1:{}", free_port()));
            Gateway::start(&settings)
        };
        let gateways: Vec<Gateway> = (0..count).map(start).collect();
        for gateway in &gateways {
            gateway.wait_ready();
        }
        Self {
            gateways,
            services,
            broker,
            url,
            settings,
        }
    }

    /// The configuration of a gateway of this cluster, with this id.
    pub fn settings(&self, id: &str) -> Settings {
        self.settings.clone().set("gateway.id", id)
    }

    /// Connects `user` at one gateway, and waits until what was unread is through.
    pub fn connect(&self, gateway: usize, user: &str) -> Client {
        self.gateways[gateway].connect(user)
    }

    /// Starts a gateway that was killed or stopped again: its id, its address.
    pub fn start_again(&mut self, gateway: usize) {
        let settings = self.settings(&format!("g{gateway}"));
        let addr = self.gateways[gateway].addr;
        self.gateways[gateway] = Gateway::start_at(addr, &settings);
    }

    pub fn amqp(&self) -> Amqp {
        Amqp::open(&self.url)
    }
}

/// `settings` for a gateway in remote mode: it gets users and groups from the services alone.
pub fn remote(settings: &Settings, services: &str, broker: &str) -> Settings {
    settings
        .clone()
        .set("backend.mode", "remote")
        .set("services.user", services)
        .set("services.message", services)
        .set("services.presence", services)
        .set("broker.url", broker)
        .set("embedded.tokens", Table::new())
        .set("embedded.groups", Table::new())
}
