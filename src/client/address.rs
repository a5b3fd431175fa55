//! Whose connection it is, by address: the client behind proxies that are trusted, and what counts
//! as one client. An IPv4 address that comes as IPv6 (`::ffff:10.0.0.1`) is IPv4 everywhere.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::Serialize;

use crate::config::{Listen, Network};
use crate::http::Head;
use crate::logging::log_limited;

/// The bits of an IPv6 address that one customer of a provider has to themselves (RFC 6177): any
/// number of addresses, and so no measure of anything.
const IPV6_HOST: u128 = u64::MAX as u128;

/// A client, by its address and by how that was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "address_source", content = "address", rename_all = "snake_case")]
pub enum Peer {
    /// The other end of the TCP connection.
    Socket(IpAddr),
    /// A trusted proxy has said so in a PROXY header.
    ProxyProtocol(IpAddr),
    /// A trusted proxy has said so in the header field.
    XForwardedFor(IpAddr),
}

impl Peer {
    pub fn address(self) -> IpAddr {
        let (Self::Socket(at) | Self::ProxyProtocol(at) | Self::XForwardedFor(at)) = self;
        at
    }

    /// Whether its address is in one of the networks.
    pub fn is_among(self, networks: &[Network]) -> bool {
        networks.iter().any(|it| it.contains(self.address()))
    }

    /// What its connections are counted by: an IPv4 address, or the /64 of an IPv6 one.
    pub(super) fn counted(self) -> IpAddr {
        match self.address().to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !IPV6_HOST).into(),
            address => address,
        }
    }
}

/// The client's address: `peer`'s own, or, as long as who speaks is a trusted proxy, the one that it
/// names in `X-Forwarded-For`, from the last address to the first.
pub(super) fn client_address(head: &Head<'_>, peer: Peer, listen: &Listen) -> Peer {
    let mut hops = head
        .values("X-Forwarded-For")
        .flat_map(|value| value.split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|hop| !hop.is_empty());
    let mut client = peer;
    while client.is_among(&listen.trusted_proxies)
        && let Some(hop) = hops.next_back()
    {
        let Some(address) = std::str::from_utf8(hop).ok().and_then(parse_hop) else {
            let peer = peer.address();
            log_limited!(info, "X-Forwarded-For not understood: peer={peer}");
            break;
        };
        client = Peer::XForwardedFor(address);
    }
    client
}

/// An address as proxies write it: `1.2.3.4`, `1.2.3.4:5678`, `2001:db8::1`, `[2001:db8::1]`,
/// `[2001:db8::1]:5678`, and with the zone of a link-local one, `fe80::1%eth0`.
fn parse_hop(text: &str) -> Option<IpAddr> {
    let (address, zone) = text.split_once('%').unwrap_or((text, ""));
    let behind = zone.find(']').map_or("", |end| &zone[end..]);
    // std knows the brackets with a port alone.
    let port = if text.ends_with(']') { ":0" } else { "" };
    let plain = format!("{address}{behind}{port}");
    let with_port = || plain.parse().ok().map(|socket: SocketAddr| socket.ip());
    let parsed: IpAddr = plain.parse().ok().or_else(with_port)?;
    let address = parsed.to_canonical();
    (address.is_ipv6() || !text.contains('%')).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::parse_head;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// The client, where 10.0.0.0/8 and 2001:db8:ffff::/48 are trusted.
    fn client(peer: &str, forwarded: &[&[u8]]) -> IpAddr {
        let mut text = b"GET / HTTP/1.1\r\nHost: x\r\n".to_vec();
        for value in forwarded {
            text.extend(b"x-forwarded-for: ");
            text.extend(*value);
            text.extend(b"\r\n");
        }
        text.extend(b"\r\n");
        let head = parse_head(&text).expect("no error").expect("complete");
        let config = crate::config::load::parse(
            "test",
            "[listen]\ntrusted_proxies = [\"10.0.0.0/8\", \"2001:db8:ffff::/48\"]",
            [],
            None,
        );
        let listen = config.expect("valid").listen;
        client_address(&head, Peer::Socket(address(peer)), &listen).address()
    }

    #[test]
    fn every_form_of_an_address_is_understood() {
        for (written, meant) in [
            ("1.2.3.4", "1.2.3.4"),
            ("1.2.3.4:5678", "1.2.3.4"),
            ("2001:db8::1", "2001:db8::1"),
            ("2001:DB8:0::0:1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:5678", "2001:db8::1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("[::ffff:1.2.3.4]", "1.2.3.4"),
            ("[::ffff:102:304]:80", "1.2.3.4"),
            ("fe80::1%eth0", "fe80::1"),
            ("[fe80::1%2]:80", "fe80::1"),
            ("[fe80::1%eth0]", "fe80::1"),
        ] {
            assert_eq!(
                client("10.0.0.1", &[written.as_bytes()]),
                address(meant),
                "{written}"
            );
            let among = format!("9.9.9.9, \t{written} ,");
            assert_eq!(
                client("10.0.0.1", &[among.as_bytes()]),
                address(meant),
                "{among}"
            );
        }
    }

    #[test]
    fn what_is_not_understood_ends_with_the_last_who_is_trusted() {
        for hop in [
            &b"unknown"[..],
            b"_hidden",
            b"1.2.3.4:port",
            b"1.2.3.4:99999",
            b"1.2.3",
            b"1.2.3.4%eth0",
            b"[1.2.3.4]",
            b"[2001:db8::1",
            b"2001:db8::1]",
            b"[]",
            b"%",
            b"]%[",
            b"client.example.com",
            b"caf\xe9",
            b"1.2.3.4 5.6.7.8",
        ] {
            let named = [b"9.9.9.9, ", hop].concat();
            let shown = String::from_utf8_lossy(hop);
            assert_eq!(
                client("10.0.0.1", &[&named]),
                address("10.0.0.1"),
                "{shown}"
            );
            let named = [b"9.9.9.9, ", hop, b", 10.0.0.2"].concat();
            assert_eq!(
                client("10.0.0.1", &[&named]),
                address("10.0.0.2"),
                "{shown}"
            );
            // Behind somebody who is not trusted, nobody looks.
            let named = [hop, b", 1.2.3.4"].concat();
            assert_eq!(client("10.0.0.1", &[&named]), address("1.2.3.4"), "{shown}");
        }
    }

    #[test]
    fn only_trusted_proxies_are_believed_each_in_its_turn() {
        for (peer, forwarded, meant) in [
            ("9.9.9.9", &["1.1.1.1"][..], "9.9.9.9"),
            ("10.0.0.1", &["1.1.1.1, 2.2.2.2, 10.0.0.2"], "2.2.2.2"),
            (
                "10.0.0.1",
                &["1.1.1.1", "2.2.2.2", "10.0.0.2:80"],
                "2.2.2.2",
            ),
            (
                "10.0.0.1",
                &["1.1.1.1, 2.2.2.2", "10.9.9.9,10.0.0.2"],
                "2.2.2.2",
            ),
            ("10.0.0.1", &["1.1.1.1, [2001:db8:ffff::7]:80"], "1.1.1.1"),
            ("2001:db8:ffff::7", &["::ffff:10.0.0.3"], "10.0.0.3"),
            ("10.0.0.1", &["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["", " , ,"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1", ","], "1.1.1.1"),
        ] {
            let values: Vec<&[u8]> = forwarded.iter().map(|value| value.as_bytes()).collect();
            assert_eq!(
                client(peer, &values),
                address(meant),
                "{peer} {forwarded:?}"
            );
        }
    }

    #[test]
    fn an_ipv6_client_counts_by_its_64() {
        for (one, other, same) in [
            ("2001:db8::1", "2001:db8::ffff:0:0:2", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("1.2.3.4", "::ffff:1.2.3.4", true),
            ("1.2.3.4", "1.2.3.5", false),
            ("::ffff:1.2.3.4", "::ffff:1.2.3.5", false),
            ("::1", "::ffff:127.0.0.1", false),
        ] {
            let counted = |text| Peer::Socket(address(text)).counted();
            assert_eq!(counted(one) == counted(other), same, "{one} {other}");
        }
    }
}
