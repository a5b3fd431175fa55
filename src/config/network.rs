//! Networks of IP addresses, as `listen.trusted_proxies` lists them: `10.0.0.1`, `10.0.0.0/8`,
//! `fd00::/8`. An IPv4 address that comes as IPv6 (`::ffff:10.0.0.1`) is IPv4, on either side.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::Ipv6Net;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_untagged::UntaggedEnumVisitor;

/// The length of the prefix that makes an IPv6 address out of an IPv4 one (`::ffff:0:0`).
const MAPPED: u8 = 96;

/// Some first bits of an address, and all the addresses that begin with them: as IPv6, and with no
/// bits set behind the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(Ipv6Net);

impl Network {
    pub fn contains(self, address: IpAddr) -> bool {
        self.0.contains(&as_ipv6(address))
    }

    /// An error is the reason.
    fn parse(text: &str) -> Result<Self, String> {
        let (address, digits) = text.split_once('/').unzip();
        let is_number = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit());
        let is_prefix = digits.is_none_or(|digits| !digits.is_empty() && is_number(digits));
        let address = address.unwrap_or(text).parse::<IpAddr>().ok();
        let address = address.filter(|_| is_prefix).ok_or_else(|| {
            format!("`{text}` is no address such as 10.0.0.1, and no network such as 10.0.0.0/8")
        })?;
        let before = if address.is_ipv4() { MAPPED } else { 0 };
        let longest = 128 - before;
        let prefix = digits.map_or(longest, |digits| digits.parse().unwrap_or(u8::MAX));
        let written = Ipv6Net::new(as_ipv6(address), prefix.saturating_add(before))
            .map_err(|_| format!("`{text}`: the prefix is {longest} bits at most"))?;
        let network = Self(written.trunc());
        if network.0 != written {
            return Err(format!(
                "`{text}` has bits set behind its prefix: write {network}, or {address} for this one address"
            ));
        }
        Ok(network)
    }
}

fn as_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, prefix) = (self.0.addr(), self.0.prefix_len());
        match address.to_ipv4_mapped() {
            _ if prefix == self.0.max_prefix_len() => address.to_canonical().fmt(f),
            Some(address) if prefix >= MAPPED => write!(f, "{address}/{}", prefix - MAPPED),
            _ => self.0.fmt(f),
        }
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        UntaggedEnumVisitor::new()
            .expecting("an address such as \"10.0.0.1\" or a network such as \"10.0.0.0/8\"")
            .string(|text| Network::parse(text).map_err(Error::custom))
            .deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        Network::parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_network_holds_what_begins_with_its_prefix() {
        for (text, inside, outside) in [
            (
                "10.0.0.1",
                &["10.0.0.1", "::ffff:10.0.0.1"][..],
                &["10.0.0.2", "::10.0.0.1"][..],
            ),
            (
                "10.0.0.0/8",
                &["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"],
                &["9.255.255.255", "11.0.0.0", "::a00:0"],
            ),
            (
                "::ffff:10.0.0.0/104",
                &["10.1.2.3", "::ffff:10.1.2.3"],
                &["11.0.0.0", "::1"],
            ),
            ("192.168.4.0/22", &["192.168.7.255"], &["192.168.8.0"]),
            ("0.0.0.0/0", &["255.255.255.255", "0.0.0.0"], &["::1"]),
            ("::/0", &["::1", "fe80::1", "10.0.0.1"], &[]),
            (
                "fd00::/8",
                &["fd12:3456::1", "fdff::"],
                &["fc00::", "10.0.0.1"],
            ),
            (
                "2001:db8::1/128",
                &["2001:db8::1", "2001:db8:0:0::1"],
                &["2001:db8::2"],
            ),
            ("10.0.0.1/32", &["10.0.0.1"], &["10.0.0.0"]),
        ] {
            let network = network(text);
            for address in inside {
                assert!(
                    network.contains(address.parse().unwrap()),
                    "{text} {address}"
                );
            }
            for address in outside {
                assert!(
                    !network.contains(address.parse().unwrap()),
                    "{text} {address}"
                );
            }
        }
    }

    /// Bit by bit, against arithmetic that knows no masks.
    #[test]
    fn every_prefix_ends_where_it_says() {
        let base = "2001:db8:1234:5678:9abc:def0:1357:9bdf"
            .parse::<Ipv6Addr>()
            .unwrap();
        for prefix in 0..=128u8 {
            let network = Network(Ipv6Net::new(base, prefix).unwrap());
            for bit in 0..128u32 {
                let other = Ipv6Addr::from_bits(base.to_bits() ^ (1 << (127 - bit)));
                assert_eq!(
                    network.contains(other.into()),
                    bit >= prefix.into(),
                    "{prefix} {bit}"
                );
            }
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for (text, shown) in [
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1/32", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("FD00::/8", "fd00::/8"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            assert_eq!(network(text).to_string(), shown);
            assert_eq!(network(shown), network(text));
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "no address"),
            ("proxy", "no address"),
            (" 10.0.0.1", "no address"),
            ("10.0.0.1/", "no address"),
            ("10.0.0.0/+8", "no address"),
            ("10.0.0.0/8/8", "no address"),
            ("10.0.0.0/255.0.0.0", "no address"),
            ("10.0.0/8", "no address"),
            ("010.0.0.1", "no address"),
            ("[::1]", "no address"),
            ("10.0.0.1:80", "no address"),
            ("fe80::1%eth0", "no address"),
            ("10.0.0.0/33", "32 bits at most"),
            ("fd00::/129", "128 bits at most"),
            ("10.0.0.0/99999999999", "32 bits at most"),
            ("10.0.0.5/8", "write 10.0.0.0/8, or 10.0.0.5 for"),
            ("::ffff:10.0.0.5/104", "write 10.0.0.0/8"),
            ("fd00::1/8", "write fd00::/8"),
        ] {
            let error = Network::parse(text).expect_err(text);
            assert!(error.contains(reason), "{error}");
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
