//! What values must be, beyond their types: the rules that the keys name, and what holds across
//! keys. A value that would be accepted and then not acted upon is an error too.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use super::forms::{WITHOUT_TLS, in_etcd, is_address, is_host_and_port, is_of_a_path};
use super::forms::{is_origin, is_service};
use super::{Config, Embedded, Endpoint, Mode, check_rules};
use crate::error::ensure;
use crate::ids::is_id;

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A key whose value cannot be used, as far as the value is concerned alone
/// (`embedded.groups.team`), and the reason.
pub type Invalid = (String, String);

/// What a rule says to a value; an error is the reason against it.
pub type Checked = Result<(), String>;

/// Names the key that was checked.
pub fn check(key: impl Into<String>, checked: Checked) -> Result<(), Invalid> {
    checked.map_err(|reason| (key.into(), reason))
}

/// Checks every value, and puts the host's name where `gateway.id` is empty. What is `bound` is left
/// to whoever can reach it: the tokens must not be ones that everybody knows, whatever address the
/// configuration names by now.
pub fn validate(mut config: Config, bound: Option<SocketAddr>) -> Result<Config, Invalid> {
    if config.gateway.id.is_empty() {
        let host = rustix::system::uname();
        config.gateway.id = host.nodename().to_string_lossy().into_owned();
    }
    check_rules(&config)?;
    tokens_and_groups(&config.embedded)?;

    let session = &config.session;
    let shorter = |key: &str, duration: Duration, why: &str| {
        let reason = format!("must be shorter than session.idle_timeout: {why}");
        check(key, ensure(duration < session.idle_timeout, reason))
    };
    let why = "a quiet client is known to live by its pongs";
    shorter("session.ping_interval", session.ping_interval, why)?;
    let why = "a connection that waits for an answer is not idle";
    shorter("services.timeout", config.services.timeout, why)?;
    let reason = "must be half of shutdown.drain at most: closing comes after it";
    let (settle, drain) = (config.shutdown.settle, config.shutdown.drain);
    check("shutdown.settle", ensure(settle * 2 <= drain, reason))?;
    discovery(&config)?;
    let has_proxies = !config.listen.proxy_protocol || !config.listen.trusted_proxies.is_empty();
    let reason = "needs listen.trusted_proxies: from these alone a header is believed";
    check("listen.proxy_protocol", ensure(has_proxies, reason))?;
    let (cert, key) = (&config.tls.cert, &config.tls.key);
    let missing = ["tls.key", "tls.cert"][usize::from(cert.is_empty())];
    let reason = "is needed: a certificate and its key go together";
    check(missing, ensure(cert.is_empty() == key.is_empty(), reason))?;
    if config.backend.mode == Mode::Embedded {
        check("listen.addr", may_listen(&config, config.listen.addr))?;
    }
    if let Some(bound) = bound {
        let reason = format!(
            "holds sample tokens, which everybody knows, and {bound} is listened on: they are for \
             a loopback address only"
        );
        let checked = may_listen(&config, bound).or(Err(reason));
        check("embedded.tokens", checked)?;
    }
    Ok(config)
}

fn discovery(config: &Config) -> Result<(), Invalid> {
    let (etcd, services, addr) = (&config.discovery, &config.services, config.listen.addr);
    if !etcd.endpoints.is_empty() {
        let is_known = !etcd.advertise.is_empty() || !addr.ip().is_unspecified();
        let reason = format!("is needed: listen.addr is {addr}, which is no address to connect to");
        return check("discovery.advertise", ensure(is_known, reason));
    }
    let keys = ["services.user", "services.message", "services.presence"];
    let addresses = [&services.user, &services.message, &services.presence];
    let reason = "etcd:///name needs discovery.endpoints, which is empty";
    let mut services = keys.into_iter().zip(addresses);
    services.try_for_each(|(key, at)| check(key, ensure(in_etcd(at).is_none(), reason)))
}

fn tokens_and_groups(embedded: &Embedded) -> Result<(), Invalid> {
    for (text, token) in &embedded.tokens {
        let key = format!("embedded.tokens.{text}");
        check(&key, ensure(!text.is_empty(), "a token is not empty"))?;
        // Who writes user = token by mistake shows no token.
        let reason = "a user is 1 to 200 bytes without control characters";
        check(&key, ensure(is_id(token.user()), reason))?;
    }
    for (group, members) in &embedded.groups {
        let reason = "group and members are 1 to 200 bytes without control characters";
        let are_ids = is_id(group) && members.iter().all(|user| is_id(user));
        check(format!("embedded.groups.{group}"), ensure(are_ids, reason))?;
    }
    Ok(())
}

/// Whether the reference services' tokens may be in force behind this address: the shipped ones,
/// which let anybody in, on this machine alone.
pub fn may_listen(config: &Config, addr: SocketAddr) -> Result<(), String> {
    let mut samples = Embedded::default().tokens.into_keys();
    let has_sample = samples.any(|token| config.embedded.tokens.contains_key(&token));
    // An IPv4 address that is written as IPv6 is the IPv4 one.
    let is_local = addr.ip().to_canonical().is_loopback();
    let reason =
        "only a loopback address while embedded.tokens holds sample tokens, which everybody knows";
    ensure(!has_sample || is_local, reason)
}

/// As it stands in a header field: `Authorization: Bearer T`.
pub fn bearer(token: &str) -> Checked {
    let is_visible = token.bytes().all(|byte| byte.is_ascii_graphic());
    ensure(is_visible, "must be printable ASCII without spaces")
}

/// What the file holds is looked at by whoever needs it.
pub fn tls_file(file: &str) -> Checked {
    ensure(cfg!(feature = "tls") || file.is_empty(), WITHOUT_TLS)
}

pub fn not_empty(path: &Path) -> Checked {
    ensure(!path.as_os_str().is_empty(), "must not be empty")
}

pub fn at_least_one<T: PartialOrd + From<u8>>(number: &T) -> Checked {
    ensure(*number >= T::from(1), "must be at least 1")
}

pub fn within<T: PartialOrd + Display>(value: &T, range: RangeInclusive<T>, unit: &str) -> Checked {
    let reason = format!("must be {} to {}{unit}", range.start(), range.end());
    ensure(range.contains(value), reason)
}

pub fn positive(duration: &Duration) -> Checked {
    ensure(!duration.is_zero(), "must be longer than 0")?;
    countable(duration)
}

/// Added to the time of day, it still is a time.
pub fn countable(duration: &Duration) -> Checked {
    ensure(*duration <= YEAR, "must be a year at most")
}

pub fn whole_seconds(duration: &Duration, range: RangeInclusive<u64>, shown: &str) -> Checked {
    let is_whole = duration.subsec_nanos() == 0;
    let reason = format!("must be whole seconds, {shown}");
    ensure(is_whole && range.contains(&duration.as_secs()), reason)
}

pub fn gateway_id(id: &str) -> Checked {
    let reason = "must be 1 to 200 bytes without control characters (empty: the host's name)";
    ensure(is_id(id), reason)
}

pub fn path(path: &str) -> Checked {
    let reason = "must start with / and hold nothing but what a URL's path may (RFC 3986, 3.3)";
    ensure(is_path(path), reason)?;
    let is_taken = ["/", "/healthz", "/readyz", "/rehearse"].contains(&path);
    ensure(!is_taken, "/, /healthz, /readyz and /rehearse are taken")
}

pub fn origins(origins: &[String]) -> Checked {
    origins.iter().try_for_each(|origin| {
        let reason = format!("`{origin}` is no scheme://host[:port] as a browser sends it");
        ensure(is_origin(origin), reason)
    })
}

/// A `part` that may be left out of the binary; only the value `without` does without it.
pub fn built_in<T: PartialEq>(value: &T, is_built: bool, without: T, part: &str) -> Checked {
    let reason = format!("this binary was built without {part}");
    ensure(is_built || *value == without, reason)
}

pub fn services(addresses: &[String]) -> Checked {
    ensure(!addresses.is_empty(), "needs at least one address")?;
    match in_etcd(addresses) {
        Some(name) if addresses.len() == 1 => {
            let is_name = !name.is_empty() && name.bytes().all(|b| b != b'/' && is_of_a_path(b));
            ensure(is_name, "must be of the form etcd:///name")
        }
        _ => addresses.iter().try_for_each(|address| service(address)),
    }
}

fn service(address: &str) -> Checked {
    let reason = match address.split_once("://") {
        Some(("etcd", _)) => ": etcd:///name stands alone, beside no address",
        _ if is_service(address) => return Ok(()),
        _ if is_address("https", address) => &format!(": {WITHOUT_TLS}"),
        _ => " is not of the form http://host:port or https://host:port",
    };
    // What may be a password is not repeated.
    let shown = address.rsplit('@').next().unwrap_or_default();
    Err(format!("`{shown}`{reason}"))
}

pub fn etcd(endpoints: &[String]) -> Checked {
    built_in(&endpoints, cfg!(feature = "discovery"), &[], "discovery")?;
    let are_plain = endpoints.iter().all(|at| is_address("http", at));
    ensure(are_plain, "must each be of the form http://host:port")
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(is_of_a_path)
}

pub fn prefix(prefix: &str) -> Checked {
    let reason = "must start with /, not end with it, and hold nothing but what a URL's path may";
    ensure(is_path(prefix) && !prefix.ends_with('/'), reason)
}

pub fn advertise(address: &str) -> Checked {
    let reason = "must be of the form host:port (empty: listen.addr)";
    ensure(address.is_empty() || is_host_and_port(address), reason)
}

pub fn url(url: &str) -> Checked {
    Endpoint::parse(url).map(drop)
}
