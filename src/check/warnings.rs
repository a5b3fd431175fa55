//! What may be configured so, and seldom should.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::config::{Config, Endpoint, Mode, Network};

/// How long the usual proxy waits in silence before it cuts a connection: nginx, HAProxy as most
/// configure it, the large clouds' balancers.
const PROXY_TIMEOUT: Duration = Duration::from_secs(60);
/// RabbitMQ's own user, whose password everybody knows.
const GUEST: &str = "guest";

/// A value that is risky.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub key: &'static str,
    /// What the risk is, and what to do.
    pub text: &'static str,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.text)
    }
}

/// What is risky in a configuration that is valid, in the order of its keys.
pub fn warnings(config: &Config) -> Vec<Warning> {
    let is_public = is_public(config.listen.addr);
    let proxies = &config.listen.trusted_proxies;
    let is_behind_proxy = !proxies.is_empty();
    let user = Endpoint::parse(&config.broker.url).map(|endpoint| endpoint.user);
    let is_guest = user.is_ok_and(|user| user == GUEST);
    let risks = [
        (
            config.listen.allowed_origins.is_empty(),
            "listen.allowed_origins",
            "lists no origin, so any web page may connect; list those of your pages, such as \
             \"https://chat.example.com\"",
        ),
        (
            proxies.iter().any(holds_everybody),
            "listen.trusted_proxies",
            "holds every address, so anybody may say to be anybody; list the proxies alone",
        ),
        (
            is_public && config.tls.cert.is_empty() && !is_behind_proxy,
            "tls.cert",
            "is empty and listen.addr can be reached from elsewhere, so tokens and messages cross \
             the network in the clear; set tls.cert and tls.key, or let a proxy do it and list that \
             in listen.trusted_proxies",
        ),
        (
            config.session.ping_interval >= PROXY_TIMEOUT,
            "session.ping_interval",
            "is not shorter than the 60s of silence after which most proxies cut a connection; make \
             it \"30s\", or raise the proxy's timeout above it",
        ),
        (
            config.backend.mode == Mode::Remote && is_guest,
            "broker.url",
            "names the user guest, whose password everybody knows; give the gateway a user of its \
             own (rabbitmqctl add_user)",
        ),
        (
            self::is_public(config.admin.addr) && config.admin.token.is_empty(),
            "admin.token",
            "is empty and admin.addr can be reached from elsewhere, so anybody may disconnect users \
             there; set a token, or listen on 127.0.0.1",
        ),
    ];
    let risks = risks.into_iter().filter(|(is_risky, ..)| *is_risky);
    risks.map(|(_, key, text)| Warning { key, text }).collect()
}

/// Whether this is all of IPv4, or of IPv6.
fn holds_everybody(network: &Network) -> bool {
    let all: [[IpAddr; 2]; 2] = [
        [Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into()],
        [
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::from_bits(u128::MAX).into(),
        ],
    ];
    all.iter()
        .any(|ends| ends.iter().all(|end| network.contains(*end)))
}

/// Whether others than this machine can reach it. An IPv4 address that is written as IPv6 is the
/// IPv4 one.
fn is_public(addr: SocketAddr) -> bool {
    !addr.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::parse;

    /// The keys of which a file is warned, beside that of origins, which it lists.
    fn keys(text: &str) -> Vec<&'static str> {
        let variables = [
            ("GATEWAY_LISTEN__ALLOWED_ORIGINS", "['https://h']"),
            ("GATEWAY_EMBEDDED__TOKENS", "{}"),
        ];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let config = parse("gateway.toml", text, variables, None).unwrap();
        warnings(&config)
            .iter()
            .map(|warning| warning.key)
            .collect()
    }

    #[test]
    fn the_defaults_are_safe_but_for_origins() {
        let warnings = warnings(&Config::default());
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert_eq!(warnings[0].key, "listen.allowed_origins");
        assert!(warnings[0].to_string().contains("any web page"));
        assert!(keys("").is_empty());
    }

    #[test]
    fn an_address_that_others_reach_wants_tls_or_a_proxy() {
        for public in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "203.0.113.7:1"] {
            let listen = format!("[listen]\naddr = \"{public}\"\n");
            assert_eq!(keys(&listen), ["tls.cert"], "{public}");
            let proxied = format!("{listen}trusted_proxies = [\"10.0.0.2\"]\n");
            assert!(keys(&proxied).is_empty(), "{public}");
        }
        for own in [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(
                keys(&format!("[listen]\naddr = \"{own}\"\n")).is_empty(),
                "{own}"
            );
        }
        let mut config = Config::default();
        config.listen.addr = ([0, 0, 0, 0], 1).into();
        config.tls.cert = "chat.pem".into();
        assert_eq!(warnings(&config).len(), 1, "origins alone");
    }

    #[test]
    fn a_proxy_at_any_address_is_anybody() {
        let proxies = |text| format!("[listen]\ntrusted_proxies = [\"10.0.0.1\", \"{text}\"]");
        for all in ["0.0.0.0/0", "::/0", "::ffff:0:0/96", "::/1"] {
            assert_eq!(keys(&proxies(all)), ["listen.trusted_proxies"], "{all}");
        }
        for some in ["0.0.0.0/1", "128.0.0.0/1", "8000::/1", "::/81"] {
            assert!(keys(&proxies(some)).is_empty(), "{some}");
        }
    }

    #[test]
    fn an_admin_listener_that_others_reach_wants_a_token() {
        assert_eq!(keys("[admin]\naddr = \"0.0.0.0:1\"\n"), ["admin.token"]);
        let mut config = Config::default();
        config.admin.addr = ([0, 0, 0, 0], 1).into();
        config.admin.token = "t".into();
        assert_eq!(warnings(&config).len(), 1, "origins alone");
    }

    #[test]
    fn guest_is_told_of_where_there_is_a_broker() {
        let remote = "[backend]\nmode = \"remote\"\n[broker]\nurl = ";
        assert_eq!(
            keys(&format!("{remote}\"amqp://guest:g@h\"")),
            ["broker.url"]
        );
        assert_eq!(keys(&format!("{remote}\"amqp://h\"")), ["broker.url"]);
        assert!(keys(&format!("{remote}\"amqp://gateway:g@h\"")).is_empty());
        assert!(
            keys("[broker]\nurl = \"amqp://guest:guest@h\"").is_empty(),
            "embedded"
        );
    }

    #[test]
    fn pings_are_to_come_before_a_proxy_gives_up() {
        let interval =
            |text| format!("[session]\nidle_timeout = \"5m\"\nping_interval = \"{text}\"");
        assert!(keys(&interval("59s")).is_empty());
        assert_eq!(keys(&interval("60s")), ["session.ping_interval"]);
        assert_eq!(keys(&interval("2m")), ["session.ping_interval"]);
    }
}
