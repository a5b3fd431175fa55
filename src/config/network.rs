//! Networks of IP addresses, as `listen.trusted_proxies` lists them: `10.0.0.1`, `10.0.0.0/8`,
//! `fd00::/8`. An IPv4 address that comes as IPv6 (`::ffff:10.0.0.1`) is IPv4, on either side.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The length of the prefix that makes an IPv6 address out of an IPv4 one (`::ffff:0:0`).
const MAPPED: u32 = 96;

/// Any number of networks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Networks(Vec<Network>);

impl Networks {
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }
}

/// Some first bits of an address, and all the addresses that begin with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// As IPv6; 0 behind the prefix.
    bits: u128,
    /// In bits.
    prefix: u32,
}

impl Network {
    fn new(address: IpAddr, prefix: u32) -> Self {
        let bits = bits(address) & mask(prefix);
        Self { bits, prefix }
    }

    fn contains(&self, address: IpAddr) -> bool {
        bits(address) & mask(self.prefix) == self.bits
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn mask(prefix: u32) -> u128 {
    u128::MAX.checked_shl(u128::BITS - prefix).unwrap_or(0)
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let no_network = || {
            format!("`{text}` is no address such as 10.0.0.1, and no network such as 10.0.0.0/8")
        };
        let address: IpAddr = address.parse().map_err(|_| no_network())?;
        let (before, longest) = match address {
            IpAddr::V4(_) => (MAPPED, u128::BITS - MAPPED),
            IpAddr::V6(_) => (0, u128::BITS),
        };
        let prefix = match prefix {
            Some(digits) if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(no_network());
            }
            Some(digits) => digits.parse().unwrap_or(u32::MAX),
            None => longest,
        };
        if prefix > longest {
            return Err(format!("`{text}`: the prefix is {longest} bits at most"));
        }
        let network = Self::new(address, before + prefix);
        if network.bits != bits(address) {
            return Err(format!(
                "`{text}` has bits set behind its prefix: write {network}, or {address} for this one address"
            ));
        }
        Ok(network)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = Ipv6Addr::from_bits(self.bits);
        match address.to_ipv4_mapped() {
            _ if self.prefix == u128::BITS => address.to_canonical().fmt(f),
            Some(address) if self.prefix >= MAPPED => {
                write!(f, "{address}/{}", self.prefix - MAPPED)
            }
            _ => write!(f, "{address}/{}", self.prefix),
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
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Network;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address such as \"10.0.0.1\" or a network such as \"10.0.0.0/8\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Network, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
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
        for prefix in 0..=128 {
            let network = Network::new(base.into(), prefix);
            for bit in 0..128u32 {
                let other = Ipv6Addr::from_bits(base.to_bits() ^ (1 << (127 - bit)));
                assert_eq!(
                    network.contains(other.into()),
                    bit >= prefix,
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
            let error = text.parse::<Network>().expect_err(text);
            assert!(error.contains(reason), "{error}");
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
