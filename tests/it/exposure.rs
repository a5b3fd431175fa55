//! What others on the network reach of a gateway: nothing, as it is shipped.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use toml::Table;

use crate::support::gateway::binary;
use crate::support::process::Process;
use crate::support::{Gateway, Settings, watchdog};

/// `TCP_LISTEN`, as `/proc/net/tcp` writes it (proc_pid_net(5)).
const LISTENS: &str = "0A";

/// The addresses that a process listens on, TCP, and those that it takes datagrams at.
fn listens_on(process: &Process) -> BTreeSet<SocketAddr> {
    let directory = format!("/proc/{}", process.pid());
    let descriptors = fs::read_dir(format!("{directory}/fd")).expect("/proc");
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let inode = |target: std::path::PathBuf| {
        let target = target
            .to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?
            .to_owned();
        Some(target)
    };
    let own: BTreeSet<String> = targets.filter_map(inode).collect();
    let mut found = BTreeSet::new();
    for protocol in ["tcp", "tcp6", "udp", "udp6"] {
        let table = fs::read_to_string(format!("{directory}/net/{protocol}")).expect("/proc");
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (local, state, inode) = (fields[1], fields[3], fields[9]);
            let takes = protocol.starts_with("udp") || state == LISTENS;
            if takes && own.contains(inode) {
                found.insert(address(local));
            }
        }
    }
    found
}

/// `0100007F:1F90` is 127.0.0.1:8080: words of 32 bits as they lie in memory, and the port.
fn address(text: &str) -> SocketAddr {
    let (address, port) = text.split_once(':').expect("a port");
    let word = |start: usize| {
        let word = u32::from_str_radix(&address[start..start + 8], 16).expect("a number");
        word.to_ne_bytes()
    };
    let ip: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)).into(),
        _ => {
            let bytes = [word(0), word(8), word(16), word(24)].concat();
            let bytes: [u8; 16] = bytes.try_into().expect("16 bytes");
            Ipv6Addr::from(bytes).into()
        }
    };
    SocketAddr::new(ip, u16::from_str_radix(port, 16).expect("a port"))
}

/// The shipped file, with nothing changed but its ports, which others may use.
#[test]
fn as_it_is_shipped_only_loopback_addresses_are_listened_on() {
    let shipped: Table = include_str!("../../gateway.toml").parse().expect("TOML");
    let any_port = |table: &str| {
        let addr = shipped[table]["addr"].as_str().expect("an address");
        let mut addr: SocketAddr = addr.parse().expect("an address");
        addr.set_port(0);
        addr.to_string()
    };
    let directory = watchdog::directory("shipped");
    fs::copy("gateway.toml", directory.join("gateway.toml")).expect("a copy");
    let mut command = binary();
    command
        .current_dir(&directory)
        .env("GATEWAY_LISTEN__ADDR", any_port("listen"))
        .env("GATEWAY_ADMIN__ADDR", any_port("admin"));
    let gateway = Gateway::listening(Process::start("the gateway", &mut command), directory);
    gateway.wait_ready();
    gateway.connect("alice").close();
    let found = listens_on(&gateway);
    // Clients, operators, and the reference services that it calls.
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found.contains(&gateway.addr) && found.contains(&gateway.admin.addr));
    assert!(
        found.iter().all(|addr| addr.ip().is_loopback()),
        "{found:?}"
    );
}

/// The same look finds what is not loopback.
#[test]
fn what_is_listened_on_is_seen() {
    let any: HashMap<&str, &str> = [("listen.addr", "0.0.0.0:0"), ("admin.addr", "[::]:0")].into();
    let mut settings = Settings::new().users(["dave"]);
    any.iter().for_each(|(key, addr)| settings.put(key, *addr));
    let (mut process, _directory) = Gateway::launch(&settings, &[]);
    process.stdout_line("listening ws://0.0.0.0:");
    process.stdout_line("listening admin http://[::]:");
    let found = listens_on(&process);
    let open: Vec<IpAddr> = found
        .iter()
        .map(SocketAddr::ip)
        .filter(|ip| !ip.is_loopback())
        .collect();
    let unspecified: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    assert_eq!(open, unspecified, "{found:?}");
}
