//! What values must be, beyond their types. A value that would be accepted and then not acted
//! upon is an error too.

use std::net::SocketAddr;
use std::time::Duration;

use super::forms::{is_of_a_path, is_origin, is_service};
use super::{Addresses, Config, Endpoint, Mode, SAMPLE_TOKENS, Token};
use crate::ids::{GroupId, UserId};

/// A key whose value cannot be used.
pub(super) struct Invalid {
    /// As far as the value is concerned alone: `embedded.groups.team`.
    pub key: String,
    pub reason: String,
}

type Checked = Result<(), Invalid>;

fn require(holds: bool, key: &str, reason: impl Into<String>) -> Checked {
    if holds {
        Ok(())
    } else {
        Err(Invalid {
            key: key.into(),
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
    require(
        path.starts_with('/') && path.bytes().all(is_of_a_path),
        "listen.path",
        "must start with / and hold nothing but what a URL's path may (RFC 3986, 3.3)",
    )?;
    require(
        path != "/" && path != "/healthz" && path != "/readyz",
        "listen.path",
        "/, /healthz and /readyz are taken",
    )?;
    for origin in &listen.allowed_origins {
        require(
            is_origin(origin),
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
    require(
        cfg!(feature = "reference") || config.backend.mode == Mode::Remote,
        "backend.mode",
        "this binary was built without the embedded services",
    )?;
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
    let endpoint = Endpoint::parse(&broker.url);
    let reason = endpoint.err().map(|invalid| invalid.to_string());
    require(reason.is_none(), "broker.url", reason.unwrap_or_default())?;
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

fn addresses(addresses: &Addresses, key: &str) -> Checked {
    require(!addresses.0.is_empty(), key, "needs at least one address")?;
    for address in &addresses.0 {
        // What may be a password is not repeated.
        let shown = address.rsplit('@').next().unwrap_or_default();
        let of_this_version = !["etcd://", "https://"]
            .iter()
            .any(|scheme| address.starts_with(scheme));
        require(
            of_this_version,
            key,
            format!("`{shown}`: only http:// addresses are supported by this version"),
        )?;
        require(
            is_service(address),
            key,
            format!("`{shown}` is not of the form http://host:port"),
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
    for (text, Token { user, .. }) in &embedded.tokens {
        let key = format!("embedded.tokens.{text}");
        require(!text.is_empty(), &key, "a token is not empty")?;
        // Who writes user = token by mistake shows no token.
        let reason = "a user is 1 to 200 bytes without control characters";
        require(UserId::new(user).is_ok(), &key, reason)?;
    }
    for (group, members) in &embedded.groups {
        require(
            GroupId::new(group).is_ok() && members.iter().all(|user| UserId::new(user).is_ok()),
            &format!("embedded.groups.{group}"),
            "group and members are 1 to 200 bytes without control characters",
        )?;
    }
    require(
        config.backend.mode == Mode::Remote || may_listen(config, config.listen.addr),
        "listen.addr",
        "only a loopback address while embedded.tokens holds sample tokens, which everybody knows",
    )
}

/// What is `bound` is left to whoever can reach it: the tokens must not be ones that everybody
/// knows, whatever address the configuration names by now.
pub(super) fn bound(config: &Config, bound: SocketAddr) -> Checked {
    require(
        may_listen(config, bound),
        "embedded.tokens",
        format!(
            "holds sample tokens, which everybody knows, and {bound} is listened on: they are for \
             a loopback address only"
        ),
    )
}

/// Whether the reference services' tokens may be in force behind this address: the shipped ones,
/// which let anybody in, on this machine alone.
pub fn may_listen(config: &Config, addr: SocketAddr) -> bool {
    // An IPv4 address that is written as IPv6 is the IPv4 one.
    let mut samples = SAMPLE_TOKENS.iter();
    addr.ip().to_canonical().is_loopback()
        || !samples.any(|(token, _)| config.embedded.tokens.contains_key(*token))
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

fn positive(duration: Duration, key: &str) -> Checked {
    require(!duration.is_zero(), key, "must be longer than 0")?;
    countable(duration, key)
}

/// Added to the time of day, it still is a time.
fn countable(duration: Duration, key: &str) -> Checked {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    require(duration <= YEAR, key, "must be a year at most")
}

fn at_least_one(number: usize, key: &str) -> Checked {
    require(number >= 1, key, "must be at least 1")
}

fn whole_seconds(duration: Duration, range: std::ops::RangeInclusive<u64>) -> bool {
    duration.subsec_nanos() == 0 && range.contains(&duration.as_secs())
}
