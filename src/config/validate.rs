//! What values must be, beyond their types. A value that would be accepted and then not acted
//! upon is an error too.

use std::time::Duration;

use super::{Addresses, Config, Mode, SAMPLE_TOKENS};
use crate::ids::{GroupId, UserId};

/// A key whose value cannot be used.
pub(super) struct Invalid {
    pub key: &'static str,
    pub reason: String,
}

type Checked = Result<(), Invalid>;

fn require(holds: bool, key: &'static str, reason: impl Into<String>) -> Checked {
    if holds {
        Ok(())
    } else {
        Err(Invalid {
            key,
            reason: reason.into(),
        })
    }
}

/// Checks every value, and puts the host's name where `gateway.id` is empty.
pub(super) fn validate(config: &mut Config) -> Checked {
    gateway_id(config)?;
    listen(config)?;
    limits(config)?;
    session(config)?;
    backend(config)?;
    embedded(config)?;
    not_yet(config)
}

fn gateway_id(config: &mut Config) -> Checked {
    let id = &mut config.gateway.id;
    if id.is_empty() {
        *id = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
    }
    require(
        UserId::new(id).is_ok(),
        "gateway.id",
        "must be 1 to 200 bytes without control characters (empty: the host's name)",
    )
}

fn listen(config: &Config) -> Checked {
    let listen = &config.listen;
    let path = &listen.path;
    let plain = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && b != b'?');
    require(
        plain,
        "listen.path",
        "must start with / and hold no space, ? or control character",
    )?;
    require(
        path != "/" && path != "/healthz" && path != "/readyz",
        "listen.path",
        "/, /healthz and /readyz are taken",
    )?;
    for origin in &listen.allowed_origins {
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        require(
            !host.is_empty() && !host.contains(['/', '*']),
            "listen.allowed_origins",
            format!("`{origin}` is not of the form scheme://host or scheme://host:port"),
        )?;
    }
    positive(listen.handshake_timeout, "listen.handshake_timeout")
}

fn limits(config: &Config) -> Checked {
    let limits = &config.limits;
    at_least_one(limits.max_connections, "limits.max_connections")?;
    at_least_one(
        limits.max_connections_per_user,
        "limits.max_connections_per_user",
    )?;
    at_least_one(
        limits.max_connections_per_ip,
        "limits.max_connections_per_ip",
    )?;
    at_least_one(limits.max_handshakes, "limits.max_handshakes")?;
    require(
        (128..=16 << 20).contains(&limits.max_message_size),
        "limits.max_message_size",
        "must be 128 to 16777216 bytes",
    )?;
    at_least_one(limits.rate as usize, "limits.rate")?;
    at_least_one(limits.burst as usize, "limits.burst")
}

fn session(config: &Config) -> Checked {
    let session = &config.session;
    positive(session.ping_interval, "session.ping_interval")?;
    positive(session.write_timeout, "session.write_timeout")?;
    require(
        session.ping_interval < session.idle_timeout,
        "session.ping_interval",
        "must be shorter than session.idle_timeout: a quiet client is known to live by its pongs",
    )?;
    countable(session.idle_timeout, "session.idle_timeout")?;
    require(
        (1..=1_000_000).contains(&session.send_queue),
        "session.send_queue",
        "must be 1 to 1000000 frames",
    )?;
    at_least_one(session.send_queue_bytes, "session.send_queue_bytes")
}

fn backend(config: &Config) -> Checked {
    let services = &config.services;
    positive(services.timeout, "services.timeout")?;
    require(
        services.timeout < config.session.idle_timeout,
        "services.timeout",
        "must be shorter than session.idle_timeout: a connection that waits for an answer is not idle",
    )?;
    require(
        (1..=8).contains(&services.worker_threads),
        "services.worker_threads",
        "must be 1 to 8",
    )?;
    addresses(&services.user, "services.user")?;
    addresses(&services.message, "services.message")?;
    addresses(&services.presence, "services.presence")?;

    let broker = &config.broker;
    require(
        broker.url.starts_with("amqp://"),
        "broker.url",
        "must be of the form amqp://user:password@host:port/vhost",
    )?;
    require(broker.prefetch > 0, "broker.prefetch", "must be 1 to 65535")?;
    require(
        whole_seconds(broker.heartbeat, 1..=60),
        "broker.heartbeat",
        "must be whole seconds, \"1s\" to \"60s\"",
    )?;
    require(
        whole_seconds(config.presence.lease, 3..=86_400),
        "presence.lease",
        "must be whole seconds, \"3s\" to \"1day\"",
    )?;
    countable(config.groups.cache_ttl, "groups.cache_ttl")?;
    countable(config.presence.offline_grace, "presence.offline_grace")?;
    positive(config.shutdown.drain, "shutdown.drain")
}

fn addresses(addresses: &Addresses, key: &'static str) -> Checked {
    require(!addresses.0.is_empty(), key, "needs at least one address")?;
    for address in &addresses.0 {
        require(
            !address.starts_with("etcd://") && !address.starts_with("https://"),
            key,
            format!("`{address}`: only http:// addresses are supported by this version"),
        )?;
        let host = address.strip_prefix("http://").unwrap_or("");
        require(
            !host.is_empty() && !host.contains(char::is_whitespace),
            key,
            format!("`{address}` is not of the form http://host:port"),
        )?;
    }
    Ok(())
}

fn embedded(config: &Config) -> Checked {
    let embedded = &config.embedded;
    require(
        !embedded.database.as_os_str().is_empty(),
        "embedded.database",
        "must not be empty",
    )?;
    for token in embedded.tokens.values() {
        require(
            UserId::new(&token.user).is_ok(),
            "embedded.tokens",
            format!(
                "`{}` cannot be a user: 1 to 200 bytes, no control characters",
                token.user
            ),
        )?;
    }
    for (group, members) in &embedded.groups {
        require(
            GroupId::new(group).is_ok() && members.iter().all(|user| UserId::new(user).is_ok()),
            "embedded.groups",
            format!("`{group}`: group and members are 1 to 200 bytes, no control characters"),
        )?;
    }
    let open = config.backend.mode == Mode::Embedded && !config.listen.addr.ip().is_loopback();
    require(
        !(open && has_sample_token(config)),
        "listen.addr",
        "only a loopback address while embedded.tokens holds sample tokens, which everybody knows",
    )
}

/// Whether one of the shipped tokens lets anybody in.
pub fn has_sample_token(config: &Config) -> bool {
    SAMPLE_TOKENS
        .iter()
        .any(|(token, _)| config.embedded.tokens.contains_key(*token))
}

/// Keys of parts that are not built yet: better an error than a setting without effect.
fn not_yet(config: &Config) -> Checked {
    let unset = "is not supported by this version: leave it empty";
    require(config.tls.cert.is_empty(), "tls.cert", unset)?;
    require(config.tls.key.is_empty(), "tls.key", unset)?;
    require(config.services.ca.is_empty(), "services.ca", unset)?;
    require(config.broker.ca.is_empty(), "broker.ca", unset)?;
    require(config.admin.token.is_empty(), "admin.token", unset)?;
    require(
        config.discovery.endpoints.is_empty(),
        "discovery.endpoints",
        unset,
    )
}

fn positive(duration: Duration, key: &'static str) -> Checked {
    require(!duration.is_zero(), key, "must be longer than 0")?;
    countable(duration, key)
}

/// Added to the time of day, it still is a time.
fn countable(duration: Duration, key: &'static str) -> Checked {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    require(duration <= YEAR, key, "must be a year at most")
}

fn at_least_one(number: usize, key: &'static str) -> Checked {
    require(number >= 1, key, "must be at least 1")
}

fn whole_seconds(duration: Duration, range: std::ops::RangeInclusive<u64>) -> bool {
    duration.subsec_nanos() == 0 && range.contains(&duration.as_secs())
}
