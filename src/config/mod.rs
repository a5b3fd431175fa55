//! The configuration: every key of `gateway.toml`, with its default. [`mod@load`] says where values
//! come from, [`validate`] what they must be.

mod display;
mod endpoint;
mod forms;
pub mod load;
mod network;
mod secrets;
#[cfg(test)]
mod tests;
mod validate;
mod values;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use display::display;
pub use endpoint::{Endpoint, InvalidUrl};
pub use load::{ConfigError, load, reload};
pub use network::{Network, Networks};
pub use validate::may_listen;
pub use values::{Addresses, Token};

/// The users that the shipped configuration lets in: `(token, user)`. Everybody knows them.
pub const SAMPLE_TOKENS: [(&str, &str); 3] = [
    ("alice-token", "alice"),
    ("bob-token", "bob"),
    ("carol-token", "carol"),
];

/// Declares one table of the configuration: its keys, their types and their defaults.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $key:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $key: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }
    };
}

table! {
    /// The whole of `gateway.toml`.
    Config {
        gateway: Gateway = Gateway::default(),
        listen: Listen = Listen::default(),
        tls: Tls = Tls::default(),
        limits: Limits = Limits::default(),
        session: Session = Session::default(),
        backend: Backend = Backend::default(),
        services: Services = Services::default(),
        broker: Broker = Broker::default(),
        groups: Groups = Groups::default(),
        presence: Presence = Presence::default(),
        admin: Admin = Admin::default(),
        discovery: Discovery = Discovery::default(),
        shutdown: Shutdown = Shutdown::default(),
        log: Log = Log::default(),
        embedded: Embedded = Embedded::default(),
    }
}

table! {
    Gateway {
        /// Names this gateway's queues and its presence lease. Empty as written, the host's name
        /// once validated. Two running gateways need two ids.
        id: String = String::new(),
    }
}

table! {
    Listen {
        addr: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8080)),
        path: String = "/ws".into(),
        /// `scheme://host[:port]` of the pages that may connect; empty: any.
        allowed_origins: Vec<String> = Vec::new(),
        /// The proxies whose X-Forwarded-For is believed: addresses and networks.
        trusted_proxies: Networks = Networks::default(),
        /// For the whole request head, however slowly it comes.
        #[serde(with = "values::duration")]
        handshake_timeout: Duration = Duration::from_secs(10),
    }
}

table! {
    Tls {
        cert: String = String::new(),
        key: String = String::new(),
    }
}

/// What happens to a connection over `max_connections_per_user`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverLimit {
    /// It is answered with 429.
    Reject,
    /// It is let in, and the user's oldest one is closed (4004).
    CloseOldest,
}

table! {
    Limits {
        max_connections: usize = 10_000,
        max_connections_per_user: usize = 5,
        over_limit: OverLimit = OverLimit::Reject,
        max_connections_per_ip: usize = 1_000,
        /// Heads and tokens being read at once.
        max_handshakes: usize = 256,
        /// Of a message from a client, in bytes.
        max_message_size: usize = 65_536,
        /// Requests per second and connection, on average.
        rate: u32 = 20,
        /// Requests that may come at once.
        burst: u32 = 40,
    }
}

table! {
    Session {
        #[serde(with = "values::duration")]
        ping_interval: Duration = Duration::from_secs(30),
        #[serde(with = "values::duration")]
        idle_timeout: Duration = Duration::from_secs(60),
        #[serde(with = "values::duration")]
        write_timeout: Duration = Duration::from_secs(10),
        /// In frames.
        send_queue: usize = 256,
        send_queue_bytes: usize = 1_048_576,
    }
}

/// Where the backend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// In this process: the reference services and the in-process bus.
    Embedded,
    /// RabbitMQ and gRPC services.
    Remote,
}

table! {
    Backend {
        mode: Mode = Mode::Embedded,
    }
}

table! {
    Services {
        user: Addresses = Addresses::one("http://127.0.0.1:50051"),
        message: Addresses = Addresses::one("http://127.0.0.1:50051"),
        presence: Addresses = Addresses::one("http://127.0.0.1:50051"),
        /// The deadline of each call.
        #[serde(with = "values::duration")]
        timeout: Duration = Duration::from_secs(3),
        worker_threads: usize = 1,
        ca: String = String::new(),
    }
}

table! {
    Broker {
        url: String = "amqp://guest:guest@127.0.0.1:5672/%2f".into(),
        /// Deliveries that are on their way to a consumer, or in its hand.
        prefetch: u16 = 512,
        #[serde(with = "values::duration")]
        heartbeat: Duration = Duration::from_secs(10),
        ca: String = String::new(),
    }
}

table! {
    Groups {
        #[serde(with = "values::duration")]
        cache_ttl: Duration = Duration::from_secs(30),
    }
}

table! {
    Presence {
        #[serde(with = "values::duration")]
        lease: Duration = Duration::from_secs(60),
        /// How long after the last connection a user counts as gone.
        #[serde(with = "values::duration")]
        offline_grace: Duration = Duration::from_secs(5),
    }
}

table! {
    Admin {
        addr: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 9090)),
        token: String = String::new(),
    }
}

table! {
    Discovery {
        endpoints: Vec<String> = Vec::new(),
        prefix: String = "/services".into(),
        #[serde(with = "values::duration")]
        ttl: Duration = Duration::from_secs(10),
        advertise: String = String::new(),
    }
}

table! {
    Shutdown {
        #[serde(with = "values::duration")]
        drain: Duration = Duration::from_secs(30),
    }
}

table! {
    Log {
        level: log::LevelFilter = log::LevelFilter::Info,
        /// Empty: standard error.
        file: PathBuf = PathBuf::new(),
    }
}

table! {
    /// The reference services' own keys, in both of their forms.
    Embedded {
        /// An SQLite file; `:memory:` keeps nothing.
        database: PathBuf = "gateway.db".into(),
        page: bool = true,
        /// Token to user.
        tokens: BTreeMap<String, Token> =
            SAMPLE_TOKENS.iter().map(|(token, user)| ((*token).into(), Token::of(user))).collect(),
        /// Group to members.
        groups: BTreeMap<String, Vec<String>> =
            [("team".into(), SAMPLE_TOKENS.iter().map(|(_, user)| (*user).into()).collect())].into(),
    }
}
