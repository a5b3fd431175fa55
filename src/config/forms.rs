//! How addresses, origins, paths and keys are written.

use std::net::Ipv6Addr;

use url::Position::BeforePath;
use url::Url;

/// What is wrong with an address that asks for TLS, where there is none.
pub(super) const WITHOUT_TLS: &str = "this binary was built without TLS (cargo's feature tls)";

/// `http://host:port`; or `https://host:port`, where TLS is built in.
pub fn is_service(address: &str) -> bool {
    is_address("http", address) || cfg!(feature = "tls") && is_address("https", address)
}

/// `scheme://host:port`, or without the port.
pub fn is_address(scheme: &str, text: &str) -> bool {
    text.split_once("://").is_some_and(|(written, at)| {
        let at = at.strip_suffix('/').unwrap_or(at);
        written.eq_ignore_ascii_case(scheme) && (is_host(at) || is_host_and_port(at))
    })
}

/// `scheme://host` or `scheme://host:port`, as a browser writes it: an address in its one form, and
/// without the port that is its scheme's own.
pub(super) fn is_origin(text: &str) -> bool {
    let is_whole = |url: Url| url.has_host() && url[..BeforePath].eq_ignore_ascii_case(text);
    Url::parse(text).is_ok_and(is_whole) && !text.contains(['@', '*'])
}

/// `host:port`.
pub fn is_host_and_port(text: &str) -> bool {
    // A number may have a sign.
    let is_port = |text: &str| text.parse().is_ok_and(|it: u16| it > 0) && !text.starts_with('+');
    text.rsplit_once(':')
        .is_some_and(|(host, port)| is_host(host) && is_port(port))
}

/// The name behind `etcd:///`, if that is where a service's addresses are found.
pub fn in_etcd(addresses: &[String]) -> Option<&str> {
    addresses.first()?.strip_prefix("etcd:///")
}

/// RFC 3986, section 3.3: `pchar`, and the slashes between.
pub(super) fn is_of_a_path(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@".contains(&b)
}

/// Whether this is a host's name, an IPv4 address, or an IPv6 address in brackets.
pub(super) fn is_host(text: &str) -> bool {
    match text.strip_prefix('[').and_then(|v6| v6.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            !text.is_empty() && text.bytes().all(plain)
        }
    }
}

/// Whether the key `inner` is one of the table `outer`, or an element of it.
pub(super) fn is_within(outer: &str, inner: &str) -> bool {
    let rest = inner.strip_prefix(outer);
    rest.is_some_and(|rest| rest.starts_with(['.', '[']))
}
