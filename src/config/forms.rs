//! How addresses, origins, paths and keys are written.

use std::net::Ipv6Addr;

/// What is wrong with an address that asks for TLS, where there is none.
pub(super) const WITHOUT_TLS: &str = "this binary was built without TLS (cargo's feature tls)";

/// `http://host:port`; or `https://host:port`, where TLS is built in.
pub fn is_service(address: &str) -> bool {
    is_address("http", address) || cfg!(feature = "tls") && is_address("https", address)
}

/// `scheme://host:port`.
pub fn is_address(scheme: &str, text: &str) -> bool {
    let written = text.split_once("://").map_or("", |(written, _)| written);
    written.eq_ignore_ascii_case(scheme) && is_origin(text.strip_suffix('/').unwrap_or(text))
}

/// `scheme://host` or `scheme://host:port`, as a browser writes it.
pub(super) fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else {
        return false;
    };
    let (host, port) = match authority.rsplit_once(':') {
        // Else the colon is one of an IPv6 address.
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (authority, "0"),
    };
    let of_a_scheme = |b: u8| b.is_ascii_alphanumeric() || b"+.-".contains(&b);
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(of_a_scheme)
        && is_host(host)
        && port.bytes().all(|b| b.is_ascii_digit())
        && port.parse::<u16>().is_ok()
}

/// `host:port`.
pub fn is_host_and_port(text: &str) -> bool {
    let has_port = |(_, port): (&str, &str)| port.parse().is_ok_and(|port: u16| port > 0);
    text.rsplit_once(':').is_some_and(has_port) && is_origin(&format!("http://{text}"))
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
