//! A PROXY protocol header, version 1 (a line of text) or 2 (binary), as HAProxy's specification
//! `proxy-protocol.txt` of 2020 has it. No socket is here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// What version 2 begins with; nothing that HTTP, TLS or version 1 could begin with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// What version 1 begins with.
const PREFIX: &[u8] = b"PROXY ";
/// The longest header of version 1, in bytes, with its line end (section 2.1).
pub const MAX_V1: usize = 107;
/// Of version 2, in bytes: signature, version and command, family and protocol, length of the rest.
const FIXED: usize = SIGNATURE.len() + 4;
/// The longest header of version 2, in bytes. The format has room for 64 KiB; addresses and what
/// HAProxy, nginx and the large clouds' balancers put behind them take a few hundred.
pub const MAX_V2: usize = 4 << 10;

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The client, where the proxy names one: not for a connection of its own, such as a health check,
    /// nor for one whose client has no IP address. An IPv4 address that comes as IPv6 is IPv4.
    pub client: Option<IpAddr>,
    /// The header's own, in bytes.
    pub length: usize,
}

/// What comes can be no header. Have the proxy send one, or none where none is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("it begins with neither version's first bytes")]
    Missing,
    #[error("version 1: no line end within {MAX_V1} bytes")]
    LineTooLong,
    #[error(
        "version 1: not of the form PROXY TCP4 SOURCE DESTINATION PORT PORT, with TCP6 for IPv6, nor \
         PROXY UNKNOWN"
    )]
    NoSuchLine,
    #[error("version 2: an unknown version or command, {0:#04x}")]
    Command(u8),
    #[error(
        "version 2: neither TCP over IPv4 or IPv6, nor a UNIX socket, nor unspecified, {0:#04x}"
    )]
    Family(u8),
    #[error("version 2: {0} bytes do not hold the addresses")]
    TooShort(usize),
    #[error("version 2: longer than {MAX_V2} bytes")]
    TooLong,
}

/// The header that `bytes` begin with, or `None` while it is not whole. What is behind it is looked at
/// as little as what a proxy adds to version 2 (TLVs, section 2.2).
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, Broken> {
    if let Some(rest) = bytes.strip_prefix(SIGNATURE) {
        parse_v2(rest)
    } else if let Some(rest) = bytes.strip_prefix(PREFIX) {
        parse_v1(rest)
    } else if SIGNATURE.starts_with(bytes) || PREFIX.starts_with(bytes) {
        Ok(None)
    } else {
        Err(Broken::Missing)
    }
}

/// Section 2.1. `rest`: behind the prefix.
fn parse_v1(rest: &[u8]) -> Result<Option<Header>, Broken> {
    let rest = &rest[..rest.len().min(MAX_V1 - PREFIX.len())];
    let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else {
        let is_full = PREFIX.len() + rest.len() == MAX_V1;
        return if is_full {
            Err(Broken::LineTooLong)
        } else {
            Ok(None)
        };
    };
    let line = str::from_utf8(&rest[..end]).map_err(|_| Broken::NoSuchLine)?;
    let fields: Vec<&str> = line.split(' ').collect();
    let client = match fields[..] {
        // Whatever follows is to be ignored.
        ["UNKNOWN", ..] => None,
        ["TCP4", from, to, from_port, to_port] => {
            Some(source::<Ipv4Addr>([from, to], [from_port, to_port])?)
        }
        ["TCP6", from, to, from_port, to_port] => {
            Some(source::<Ipv6Addr>([from, to], [from_port, to_port])?)
        }
        _ => return Err(Broken::NoSuchLine),
    };
    let length = PREFIX.len() + end + 2;
    Ok(Some(Header { client, length }))
}

/// The first of two addresses, if all four parts are as they must be.
fn source<A: FromStr + Into<IpAddr>>(
    addresses: [&str; 2],
    ports: [&str; 2],
) -> Result<IpAddr, Broken> {
    let [source, destination] = addresses.map(|text| text.parse::<A>().ok());
    let is_port = |text: &str| text.parse().is_ok_and(|port: u16| port.to_string() == text);
    match (source, destination) {
        (Some(source), Some(_)) if ports.iter().all(|port| is_port(port)) => {
            Ok(source.into().to_canonical())
        }
        _ => Err(Broken::NoSuchLine),
    }
}

/// Section 2.2. `rest`: behind the signature.
fn parse_v2(rest: &[u8]) -> Result<Option<Header>, Broken> {
    let Some((&[command, family, high, low], rest)) = rest.split_first_chunk() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let needed = match (command, family) {
        // The proxy's own connection, whatever the family says.
        (0x20, _) => 0,
        (0x21, 0x00) => 0,
        (0x21, 0x11) => 12,
        (0x21, 0x21) => 36,
        // A UNIX socket's stream, or datagrams.
        (0x21, 0x31 | 0x32) => 216,
        (0x21, _) => return Err(Broken::Family(family)),
        _ => return Err(Broken::Command(command)),
    };
    if length < needed {
        return Err(Broken::TooShort(length));
    }
    if FIXED + length > MAX_V2 {
        return Err(Broken::TooLong);
    }
    if rest.len() < length {
        return Ok(None);
    }
    let v4 = || Some(Ipv4Addr::from(*rest.first_chunk()?).into());
    let v6 = || Some(IpAddr::from(Ipv6Addr::from(*rest.first_chunk()?)).to_canonical());
    let client = match needed {
        12 => v4(),
        36 => v6(),
        _ => None,
    };
    let length = FIXED + length;
    Ok(Some(Header { client, length }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header of version 2.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("it fits").to_be_bytes();
        [SIGNATURE, &[command, family][..], &length, rest].concat()
    }

    /// Addresses and ports of version 2.
    fn addresses(source: IpAddr, destination: IpAddr) -> Vec<u8> {
        let octets = |address| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        [octets(source), octets(destination), vec![1, 2, 3, 4]].concat()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Whole headers, and whom they name.
    fn whole() -> Vec<(Vec<u8>, Option<IpAddr>)> {
        let v4 = || addresses(address("203.0.113.7"), address("10.0.0.1"));
        let v6 = |source| addresses(address(source), address("2001:db8::2"));
        let longest = "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255 \
                       ffff:f:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert_eq!(longest.len(), MAX_V1);
        let with_tlvs = [v4(), vec![0x04; MAX_V2 - FIXED - 12]].concat();
        let line = |text: &str| text.as_bytes().to_vec();
        let named = [
            (
                line("PROXY TCP4 203.0.113.7 10.0.0.1 5678 443\r\n"),
                "203.0.113.7",
            ),
            (
                line("PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n"),
                "0.0.0.0",
            ),
            (
                line("PROXY TCP6 2001:db8::1 ::1 5678 443\r\n"),
                "2001:db8::1",
            ),
            (
                line("PROXY TCP6 2001:DB8:0:0::1 ::1 1 1\r\n"),
                "2001:db8::1",
            ),
            (
                line("PROXY TCP6 ::ffff:203.0.113.7 ::ffff:10.0.0.1 1 1\r\n"),
                "203.0.113.7",
            ),
            (
                line("PROXY TCP6 ::ffff:cb00:7107 ::1 1 1\r\n"),
                "203.0.113.7",
            ),
            (line(longest), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            (v2(0x21, 0x11, &v4()), "203.0.113.7"),
            (v2(0x21, 0x11, &with_tlvs), "203.0.113.7"),
            // What is behind the addresses is nobody's business, not even whether it is in order.
            (
                v2(0x21, 0x11, &[v4(), vec![0x03, 0xff, 0xff]].concat()),
                "203.0.113.7",
            ),
            (v2(0x21, 0x21, &v6("2001:db8::1")), "2001:db8::1"),
            (v2(0x21, 0x21, &v6("::ffff:203.0.113.7")), "203.0.113.7"),
        ];
        let unnamed = [
            line("PROXY UNKNOWN\r\n"),
            line("PROXY UNKNOWN 203.0.113.7 10.0.0.1 5678 443\r\n"),
            line("PROXY UNKNOWN ffff::ffff \u{e9} \n \r 1\r\n"),
            v2(0x20, 0x00, &[]),
            v2(0x20, 0x11, &v4()),
            // Of a connection of the proxy's own, nothing of this counts.
            v2(0x20, 0x11, &[]),
            v2(0x20, 0xff, &[1, 2, 3]),
            v2(0x21, 0x00, &[]),
            v2(0x21, 0x00, &v4()),
            v2(0x21, 0x31, &[b'/'; 216]),
            v2(0x21, 0x32, &[b'/'; 300]),
        ];
        let named = named.map(|(bytes, client)| (bytes, Some(address(client))));
        named
            .into_iter()
            .chain(unnamed.map(|bytes| (bytes, None)))
            .collect()
    }

    #[test]
    fn every_form_names_its_client_and_leaves_what_is_behind_it() {
        for (bytes, client) in whole() {
            let header = Header {
                client,
                length: bytes.len(),
            };
            for behind in [
                &b""[..],
                b"G",
                b"\r\n",
                b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
                SIGNATURE,
            ] {
                let all = [&bytes, behind].concat();
                assert_eq!(parse(&all), Ok(Some(header)), "{}", all.escape_ascii());
            }
        }
    }

    #[test]
    fn a_part_of_a_header_is_none_yet() {
        for (bytes, _) in whole() {
            for end in 0..bytes.len() {
                let part = &bytes[..end];
                assert_eq!(parse(part), Ok(None), "{}", part.escape_ascii());
            }
        }
    }

    #[test]
    fn what_begins_with_something_else_is_missing_at_once() {
        for text in [
            "G",
            "GET / HTTP/1.1\r\n",
            "p",
            "proxy TCP4",
            "PUT / HTTP/1.1\r\n",
            "PROXY\t",
            "PROXYTCP4",
            " PROXY",
            "\r\nG",
            "\r\n\r\n\0\r\nQUIT\r",
            "\n",
            "\u{16}\u{3}\u{1}",
            "\0",
        ] {
            assert_eq!(parse(text.as_bytes()), Err(Broken::Missing), "{text:?}");
        }
    }

    #[test]
    fn a_line_that_is_almost_right_names_nobody() {
        for line in [
            "",
            "TCP4",
            "TCP4 ",
            "unknown",
            "UNKNOWNX",
            "TCP5 1.2.3.4 1.2.3.4 1 1",
            "UDP4 1.2.3.4 1.2.3.4 1 1",
            "tcp4 1.2.3.4 1.2.3.4 1 1",
            "TCP4  1.2.3.4 1.2.3.4 1 1",
            "TCP4 1.2.3.4 1.2.3.4 1",
            "TCP4 1.2.3.4 1.2.3.4 1 ",
            "TCP4 1.2.3.4 1.2.3.4 1 1 ",
            "TCP4 1.2.3.4 1.2.3.4 1 1 1",
            "TCP4 1.2.3.4 1.2.3.4 1 1\n",
            "TCP4 1.2.3.4 1.2.3.4 1 65536",
            "TCP4 1.2.3.4 1.2.3.4 +1 1",
            "TCP4 1.2.3.4 1.2.3.4 01 1",
            "TCP4 1.2.3.4 1.2.3.4 1 -1",
            "TCP4 1.2.3.4 1.2.3.4 1 \u{0661}",
            "TCP4 1.2.3.4 client.example.com 1 1",
            "TCP4 1.2.3.4, 1.2.3.4 1 1",
            "TCP4 1.2.3 1.2.3.4 1 1",
            "TCP4 1.2.3.4.5 1.2.3.4 1 1",
            "TCP4 01.2.3.4 1.2.3.4 1 1",
            "TCP4 1.2.3.256 1.2.3.4 1 1",
            "TCP4 ::1 ::1 1 1",
            "TCP4 1.2.3.4 ::1 1 1",
            "TCP6 1.2.3.4 1.2.3.4 1 1",
            "TCP6 [::1] ::1 1 1",
            "TCP6 ::1%eth0 ::1 1 1",
            "TCP6 fe80:::1 ::1 1 1",
            "TCP6 1:2:3:4:5:6:7:8:9 ::1 1 1",
            "TCP4 1.2.3.4 1.2.3.4 1 1\u{e9}",
        ] {
            let bytes = format!("PROXY {line}\r\nGET / HTTP/1.1\r\n");
            assert_eq!(parse(bytes.as_bytes()), Err(Broken::NoSuchLine), "{line:?}");
        }
        assert_eq!(parse(b"PROXY TCP4 \xff\r\n"), Err(Broken::NoSuchLine));
    }

    #[test]
    fn a_line_has_107_bytes_at_most() {
        let unknown = |length: usize| {
            format!(
                "PROXY UNKNOWN{}\r\n",
                "x".repeat(length - 15).replacen('x', " ", 1)
            )
        };
        assert_eq!(unknown(MAX_V1).len(), MAX_V1);
        let header = Header {
            client: None,
            length: MAX_V1,
        };
        assert_eq!(parse(unknown(MAX_V1).as_bytes()), Ok(Some(header)));
        let longer = unknown(MAX_V1 + 1);
        assert_eq!(parse(longer.as_bytes()), Err(Broken::LineTooLong));
        assert_eq!(
            parse(&longer.as_bytes()[..MAX_V1]),
            Err(Broken::LineTooLong)
        );
        assert_eq!(parse(&longer.as_bytes()[..MAX_V1 - 1]), Ok(None));
    }

    /// As soon as it shows, and before the rest is there.
    #[test]
    fn a_broken_second_version_is_found_by_its_first_16_bytes() {
        for (command, family, length, broken) in [
            (0x11, 0x11, 12, Broken::Command(0x11)),
            (0x31, 0x11, 12, Broken::Command(0x31)),
            (0x22, 0x11, 12, Broken::Command(0x22)),
            (0x00, 0x00, 0, Broken::Command(0)),
            (0x21, 0x01, 12, Broken::Family(0x01)),
            (0x21, 0x10, 12, Broken::Family(0x10)),
            (0x21, 0x12, 12, Broken::Family(0x12)),
            (0x21, 0x22, 36, Broken::Family(0x22)),
            (0x21, 0x41, 36, Broken::Family(0x41)),
            (0x21, 0xff, 36, Broken::Family(0xff)),
            (0x21, 0x11, 11, Broken::TooShort(11)),
            (0x21, 0x21, 35, Broken::TooShort(35)),
            (0x21, 0x31, 215, Broken::TooShort(215)),
            (0x21, 0x11, 0, Broken::TooShort(0)),
            (0x21, 0x11, MAX_V2 - FIXED + 1, Broken::TooLong),
            (0x20, 0x00, 0xffff, Broken::TooLong),
        ] {
            let bytes = v2(command, family, &vec![7; length]);
            assert_eq!(parse(&bytes[..FIXED]), Err(broken));
            assert_eq!(parse(&bytes), Err(broken));
        }
    }

    proptest! {
        /// However bytes are split among reads: what is once decided stays so.
        #[test]
        fn more_bytes_change_no_mind(
            start in prop_oneof![
                Just(Vec::new()),
                Just(PREFIX.to_vec()),
                Just(b"PROXY TCP4 1.2.3.4 5.6.7.8 ".to_vec()),
                Just(b"PROXY UNKNOWN ".to_vec()),
                Just(SIGNATURE.to_vec()),
                any::<[u8; 2]>().prop_map(|[family, length]| {
                    [SIGNATURE, &[0x21, family, 0, length][..]].concat()
                }),
            ],
            rest in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                "[0-9:. \r\n]{0,120}".prop_map(String::into_bytes),
            ],
        ) {
            let bytes = [start, rest].concat();
            let last = parse(&bytes);
            for end in 0..bytes.len() {
                let early = parse(&bytes[..end]);
                prop_assert!(early == Ok(None) || early == last, "{early:?} {last:?}");
            }
            if let Ok(Some(header)) = last {
                prop_assert!(header.length <= bytes.len());
                prop_assert_eq!(parse(&bytes[..header.length]), last);
                prop_assert_eq!(parse(&bytes[..header.length - 1]), Ok(None));
            }
        }

        #[test]
        fn what_a_proxy_writes_is_read(
            source: IpAddr,
            destination: u128,
            ports: [u16; 2],
            tlvs in prop::collection::vec(any::<u8>(), 0..500),
        ) {
            let [from, to] = ports;
            let (family, kind, destination) = match source {
                IpAddr::V4(_) => ("TCP4", 0x11, Ipv4Addr::from_bits(destination as u32).into()),
                IpAddr::V6(_) => ("TCP6", 0x21, IpAddr::from(Ipv6Addr::from_bits(destination))),
            };
            let client = Some(source.to_canonical());
            let line = format!("PROXY {family} {source} {destination} {from} {to}\r\n");
            let binary = v2(0x21, kind, &[addresses(source, destination), tlvs].concat());
            for bytes in [line.into_bytes(), binary] {
                let header = Header { client, length: bytes.len() };
                prop_assert_eq!(parse(&bytes), Ok(Some(header)));
            }
        }
    }
}
