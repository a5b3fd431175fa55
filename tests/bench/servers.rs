//! The servers under test, each a process of its own with services of its own behind it.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use toml::Table;

use crate::remote::SELF;
use crate::results::GATEWAY;
use crate::support::broker::Broker;
use crate::support::gateway::binary;
use crate::support::process::{Process, Signal};
use crate::support::raw::Raw;
use crate::support::{Settings, wait_until, watchdog};

/// Who serves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// This project's gateway.
    Gateway,
    /// The asynchronous peer that awaits each send.
    PeerAwait,
    /// The asynchronous peer that tries first, and awaits only when a channel is full.
    PeerTry,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Gateway, Kind::PeerAwait, Kind::PeerTry];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => GATEWAY,
            Self::PeerAwait => "tokio await",
            Self::PeerTry => "tokio try",
        }
    }
}

/// `ws-gateway services` with nothing on disk. Users are u0, u1, … with tokens u0-token, …
pub struct Services {
    process: Process,
    url: String,
    settings: Settings,
    directory: std::path::PathBuf,
}

impl Services {
    pub fn start(broker: &str, users: usize) -> Self {
        let names: Vec<String> = (0..users).map(|number| format!("u{number}")).collect();
        let settings = Settings::new()
            // So that it says when it has read its configuration again.
            .set("log.level", "info")
            .users(names.iter().map(String::as_str));
        let directory = watchdog::directory("services");
        let mut command = binary();
        command.args(["services", "--listen", "127.0.0.1:0", "--broker", broker]);
        command.arg("--config").arg(settings.write(&directory));
        let mut process = Process::start("the services", command.current_dir(&directory));
        let url = process.stdout_line("listening grpc ");
        Self {
            process,
            url,
            settings,
            directory,
        }
    }

    /// Puts the first `members` users into `group`. Done after they are connected, since whoever
    /// shares a group hears of each other's presence: 1,000 connects would be a million pushes,
    /// which none of the figures is about.
    pub fn form_group(&mut self, group: &str, members: usize) {
        let names: Vec<String> = (0..members).map(|number| format!("u{number}")).collect();
        self.settings
            .put_group(group, names.iter().map(String::as_str));
        self.settings.write(&self.directory);
        self.process.signal(Signal::HUP);
        self.process.stderr_line("Configuration read again");
    }
}

/// A server that is ready, and the services behind it.
pub struct Server {
    pub process: Process,
    pub addr: SocketAddr,
    pub services: Services,
    pub id: String,
}

impl Server {
    /// Starts `kind` on the virtual host `url`, for so many users.
    pub fn start(kind: Kind, url: &str, users: usize) -> Self {
        let services = Services::start(url, users);
        let id = format!("bench-{}", kind.name().replace(' ', "-"));
        let mut process = match kind {
            Kind::Gateway => gateway(&services.url, url, &id),
            Kind::PeerAwait => peer("await", &services.url, url, &id),
            Kind::PeerTry => peer("try", &services.url, url, &id),
        };
        let listening = process.stdout_line("listening ws://");
        let addr = listening
            .trim_end_matches("/ws")
            .parse()
            .expect("an address");
        if kind == Kind::Gateway {
            wait_until("the gateway is ready", || {
                Raw::connect(addr).get("/readyz").status == 200
            });
        }
        Self {
            process,
            addr,
            services,
            id,
        }
    }

    /// As it is when it cannot keep up: nothing is read until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.process.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Ends both without a goodbye: announcing the departure of all would take long.
    pub fn kill(mut self) -> String {
        self.services.process.kill();
        self.process.kill();
        self.id
    }
}

/// The limits that are against clients such as the benchmark's are lifted; the rest is as shipped.
fn gateway(services: &str, broker: &str, id: &str) -> Process {
    let settings = Settings::from_text("")
        .set("gateway", Table::new())
        .set("gateway.id", id)
        .set("listen.addr", "127.0.0.1:0")
        .set("admin.addr", "127.0.0.1:0")
        .set("backend.mode", "remote")
        .set("services.user", services)
        .set("services.message", services)
        .set("services.presence", services)
        .set("broker.url", broker)
        // It is stopped for seconds on purpose.
        .set("broker.heartbeat", "60s")
        .set("limits.max_connections_per_ip", 20_000)
        .set("limits.rate", 1_000_000)
        .set("limits.burst", 1_000_000)
        .set("log.level", "warn");
    let directory = watchdog::directory("gateway");
    let mut command = binary();
    command.arg("--config").arg(settings.write(&directory));
    Process::start("the gateway", command.current_dir(&directory))
}

fn peer(send: &str, services: &str, broker: &str, id: &str) -> Process {
    let mut command = Command::new(SELF);
    command.args(["peer", "--send", send, "--listen", "127.0.0.1:0"]);
    command.args(["--services", services, "--broker", broker, "--id", id]);
    Process::start("the peer", &mut command)
}

/// What all scenarios share: a broker, and a virtual host for each kind of server.
pub struct Stand {
    _broker: Arc<Broker>,
    urls: [String; 3],
}

impl Stand {
    pub fn start() -> Self {
        let broker = Broker::shared();
        Self {
            urls: [(); 3].map(|()| broker.vhost()),
            _broker: broker,
        }
    }

    pub fn url(&self, kind: Kind) -> &str {
        &self.urls[kind as usize]
    }
}
