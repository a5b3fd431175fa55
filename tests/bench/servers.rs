//! The servers under test, each a process of its own with services of its own behind it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use toml::Table;

use crate::remote::SELF;
use crate::results::GATEWAY;
use crate::support::admin::Admin;
use crate::support::broker::Broker;
use crate::support::certificates::{self, Authority, Identity};
use crate::support::gateway::binary;
use crate::support::process::{Process, Signal};
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
    /// This project's gateway, with TLS.
    GatewayTls,
    /// The asynchronous peer that tries first, with TLS by tokio-rustls.
    PeerTryTls,
}

impl Kind {
    /// All without TLS.
    pub const ALL: [Kind; 3] = [Kind::Gateway, Kind::PeerAwait, Kind::PeerTry];
    /// Those with TLS, and what the gateway is without.
    pub const TLS: [Kind; 3] = [Kind::GatewayTls, Kind::Gateway, Kind::PeerTryTls];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => GATEWAY,
            Self::PeerAwait => "tokio await",
            Self::PeerTry => "tokio try",
            Self::GatewayTls => "gateway tls",
            Self::PeerTryTls => "tokio try tls",
        }
    }

    const fn has_tls(self) -> bool {
        matches!(self, Self::GatewayTls | Self::PeerTryTls)
    }
}

/// `ws-gateway services` with nothing on disk. Users are u0, u1, … with tokens u0-token, …
pub struct Services {
    process: Process,
    url: String,
    settings: Settings,
    directory: PathBuf,
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
    /// Whom clients trust, where TLS is spoken.
    pub ca: Option<PathBuf>,
    pub services: Services,
    pub id: String,
}

impl Server {
    /// Starts `kind` on its virtual host, for so many users.
    pub fn start(stand: &Stand, kind: Kind, users: usize) -> Self {
        Self::start_by_way_of(stand.url(kind), stand, kind, users)
    }

    /// As [`start`](Self::start), with another way to that virtual host.
    pub fn start_by_way_of(url: &str, stand: &Stand, kind: Kind, users: usize) -> Self {
        let identity = kind.has_tls().then_some(&stand.identity);
        let services = Services::start(url, users);
        let id = format!("bench-{}", kind.name().replace(' ', "-"));
        let mut process = match kind {
            Kind::Gateway | Kind::GatewayTls => gateway(&services.url, url, &id, identity),
            Kind::PeerAwait => peer("await", &services.url, url, &id, identity),
            Kind::PeerTry | Kind::PeerTryTls => peer("try", &services.url, url, &id, identity),
        };
        let scheme = if kind.has_tls() { "wss" } else { "ws" };
        let listening = process.stdout_line(&format!("listening {scheme}://"));
        let addr = listening
            .trim_end_matches("/ws")
            .parse()
            .expect("an address");
        if matches!(kind, Kind::Gateway | Kind::GatewayTls) {
            let admin = process.stdout_line("listening admin http://").parse();
            let admin = Admin::at(admin.expect("an address"));
            wait_until("the gateway is ready", || {
                admin.get("/readyz").status == 200
            });
        }
        Self {
            process,
            addr,
            ca: kind.has_tls().then(|| stand.authority.file()),
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
fn gateway(services: &str, broker: &str, id: &str, tls: Option<&Identity>) -> Process {
    let mut settings = Settings::from_text("")
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
    if let Some(identity) = tls {
        settings.put("tls.cert", certificates::path(&identity.cert));
        settings.put("tls.key", certificates::path(&identity.key));
    }
    let directory = watchdog::directory("gateway");
    let mut command = binary();
    command.arg("--config").arg(settings.write(&directory));
    Process::start("the gateway", command.current_dir(&directory))
}

fn peer(send: &str, services: &str, broker: &str, id: &str, tls: Option<&Identity>) -> Process {
    let mut command = Command::new(SELF);
    command.args(["peer", "--send", send, "--listen", "127.0.0.1:0"]);
    command.args(["--services", services, "--broker", broker, "--id", id]);
    if let Some(identity) = tls {
        command.arg("--cert").arg(&identity.cert);
        command.arg("--key").arg(&identity.key);
    }
    Process::start("the peer", &mut command)
}

/// What all scenarios share: a broker, a virtual host for each kind of server, and the certificate
/// of those with TLS.
pub struct Stand {
    broker: Arc<Broker>,
    urls: [String; 5],
    authority: Authority,
    identity: Identity,
}

impl Stand {
    pub fn start() -> Self {
        let broker = Broker::shared();
        let authority = Authority::new("The benchmark's");
        Self {
            urls: [(); 5].map(|()| broker.vhost()),
            broker,
            identity: authority.sign(&["localhost"]),
            authority,
        }
    }

    /// The processor time that the broker used so far.
    pub fn broker_time(&self) -> Duration {
        self.broker.processor_time()
    }

    pub fn url(&self, kind: Kind) -> &str {
        &self.urls[kind as usize]
    }
}
