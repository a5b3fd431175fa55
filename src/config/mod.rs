//! The configuration: every key of `gateway.toml`, with its type, its default and what its value
//! must be ([`validate`]). [`mod@load`] says where values come from.

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

use self::values::{addresses, duration};

use crate::logging::Levels;

pub use endpoint::Endpoint;
pub use forms::{in_etcd, is_address, is_host_and_port, is_service};
pub use load::load;
pub use network::Network;
pub use validate::may_listen;
pub use values::Token;

/// The users that the shipped configuration lets in, alice with `alice-token` and so on: everybody
/// knows these tokens.
const SAMPLE_USERS: [&str; 3] = ["alice", "bob", "carol"];

/// Declares the tables of the configuration and their keys, each as
///
/// ```text
/// key: type as "module that reads and writes it" = default => rule(arguments),
/// ```
///
/// where `as` is for types that serde cannot read as they are written, and the rule is a function of
/// [`validate`] that says what the value must be beyond its type. Neither is needed.
macro_rules! tables {
    ($($(#[$doc:meta])* $table:ident: $name:ident {
        $(
            $(#[$key_doc:meta])*
            $key:ident: $type:ty $(as $form:literal)? = $default:expr
                $(=> $rule:ident $(($($argument:expr),*))?)?,
        )*
    })*) => {
        /// The whole of `gateway.toml`.
        #[derive(Debug, Clone, Default, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config { $(pub $table: $name,)* }

        /// Checks each value by the rule of its key.
        fn check_rules(config: &Config) -> Result<(), validate::Invalid> {
            $($($(
                let checked = validate::$rule(&config.$table.$key $($(, $argument)*)?);
                validate::check(concat!(stringify!($table), ".", stringify!($key)), checked)?;
            )?)*)*
            Ok(())
        }

        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Serialize, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $name {
                $($(#[$key_doc])* $(#[serde(with = $form)])? pub $key: $type,)*
            }

            impl Default for $name {
                fn default() -> Self {
                    Self { $($key: $default,)* }
                }
            }
        )*
    };
}

tables! {
    gateway: Gateway {
        /// Names this gateway's queues and its presence lease. Empty as written, the host's name
        /// once validated. Two running gateways need two ids.
        id: String = String::new() => gateway_id,
    }

    listen: Listen {
        addr: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8080)),
        path: String = "/ws".into() => path,
        /// `scheme://host[:port]` of the pages that may connect; empty: any.
        allowed_origins: Vec<String> = Vec::new() => origins,
        /// The proxies whose X-Forwarded-For or PROXY header is believed: addresses and networks.
        trusted_proxies: Vec<Network> = Vec::new(),
        /// From these a PROXY header comes first.
        proxy_protocol: bool = false
            => built_in(cfg!(feature = "proxy-protocol"), false, "the PROXY protocol"),
        /// For the whole request head, however slowly it comes.
        handshake_timeout: Duration as "duration" = Duration::from_secs(10) => positive,
    }

    tls: Tls {
        /// PEM files: the certificate with its chain, and its key. Both empty: no TLS.
        cert: String = String::new() => tls_file,
        key: String = String::new() => tls_file,
    }

    limits: Limits {
        max_connections: usize = 10_000 => at_least_one,
        max_connections_per_user: usize = 5 => at_least_one,
        over_limit: OverLimit = OverLimit::Reject,
        max_connections_per_ip: usize = 1_000 => at_least_one,
        /// Heads and tokens being read at once.
        max_handshakes: usize = 256 => at_least_one,
        /// Of a message from a client, in bytes.
        max_message_size: usize = 65_536 => within(128..=16 << 20, " bytes"),
        /// Requests per second and connection, on average; and as many pings.
        rate: u32 = 20 => at_least_one,
        /// Requests, and pings, that may come at once.
        burst: u32 = 40 => at_least_one,
    }

    session: Session {
        ping_interval: Duration as "duration" = Duration::from_secs(30) => positive,
        idle_timeout: Duration as "duration" = Duration::from_secs(60) => countable,
        write_timeout: Duration as "duration" = Duration::from_secs(10) => positive,
        /// In frames.
        send_queue: usize = 256 => within(1..=1_000_000, " frames"),
        send_queue_bytes: usize = 1_048_576 => at_least_one,
    }

    backend: Backend {
        mode: Mode = Mode::Embedded
            => built_in(cfg!(feature = "reference"), Mode::Remote, "the embedded services"),
    }

    services: Services {
        user: Vec<String> as "addresses" = vec!["http://127.0.0.1:50051".into()] => services,
        message: Vec<String> as "addresses" = vec!["http://127.0.0.1:50051".into()] => services,
        presence: Vec<String> as "addresses" = vec!["http://127.0.0.1:50051".into()] => services,
        /// The deadline of each call.
        timeout: Duration as "duration" = Duration::from_secs(3) => positive,
        worker_threads: usize = 1 => within(1..=8, ""),
        /// A PEM file of authorities for `https://` addresses; empty: the system's.
        ca: String = String::new() => tls_file,
    }

    broker: Broker {
        url: String = "amqp://guest:guest@127.0.0.1:5672/%2f".into() => url,
        /// Deliveries that are on their way to a consumer, or in its hand.
        prefetch: u16 = 512 => within(1..=u16::MAX, ""),
        heartbeat: Duration as "duration" = Duration::from_secs(10) => whole_seconds(1..=60, r#""1s" to "60s""#),
        /// As `services.ca`, for `amqps://`.
        ca: String = String::new() => tls_file,
    }

    groups: Groups {
        cache_ttl: Duration as "duration" = Duration::from_secs(30) => countable,
    }

    presence: Presence {
        lease: Duration as "duration" = Duration::from_secs(60) => whole_seconds(3..=86_400, r#""3s" to "1day""#),
        /// How long after the last connection a user counts as gone.
        offline_grace: Duration as "duration" = Duration::from_secs(5) => countable,
    }

    admin: Admin {
        addr: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 9090)),
        /// Empty: none is asked for.
        token: String = String::new() => bearer,
    }

    discovery: Discovery {
        /// Of etcd, `http://host:port` each; empty: no discovery.
        endpoints: Vec<String> = Vec::new() => etcd,
        /// What every key begins with.
        prefix: String = "/services".into() => prefix,
        /// Of the lease.
        ttl: Duration as "duration" = Duration::from_secs(10) => whole_seconds(2..=86_400, r#""2s" to "1day""#),
        /// `host:port` that clients reach; empty: `listen.addr`.
        advertise: String = String::new() => advertise,
    }

    shutdown: Shutdown {
        /// How long newcomers are let in after the gateway is told to end.
        settle: Duration as "duration" = Duration::ZERO => countable,
        /// From when the gateway is told to end until it has; what is left of connections is cut after
        /// three quarters of it.
        drain: Duration as "duration" = Duration::from_secs(30) => positive,
        /// What the clients' ways back are spread over.
        reconnect_spread: Duration as "duration" = Duration::from_secs(5) => countable,
    }

    log: Log {
        level: Levels = Levels::default(),
        /// Empty: standard error.
        file: PathBuf = PathBuf::new(),
    }

    /// The reference services' own keys, in both of their forms.
    embedded: Embedded {
        /// An SQLite file; `:memory:` keeps nothing.
        database: PathBuf = "gateway.db".into() => not_empty,
        page: bool = true,
        /// Token to user.
        tokens: BTreeMap<String, Token> =
            SAMPLE_USERS.map(|user| (format!("{user}-token"), Token::Unlimited(user.into()))).into(),
        /// Group to members.
        groups: BTreeMap<String, Vec<String>> =
            [("team".into(), SAMPLE_USERS.map(String::from).into())].into(),
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

/// Where the backend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// In this process: the reference services and the in-process bus.
    Embedded,
    /// RabbitMQ and gRPC services.
    Remote,
}
