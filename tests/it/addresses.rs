//! Whose connection it is: the limit by address shows what the gateway takes for the client's.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use toml::Value;

use crate::support::gateway::run;
use crate::support::raw::{Raw, UPGRADE};
use crate::support::settings::token_of;
use crate::support::{Gateway, Settings, watchdog};

/// One connection for each address; `listen` without the shipped tokens, for any address.
fn limited(listen: &str, trusted: &[&str]) -> Gateway {
    let trusted: Vec<Value> = trusted.iter().map(|&text| text.into()).collect();
    let settings = Settings::new()
        .users(["dave"])
        .set("listen.addr", listen)
        .set("limits.max_connections_per_ip", 1)
        .set("limits.max_connections_per_user", 100)
        .set("listen.trusted_proxies", trusted);
    Gateway::start(&settings)
}

/// A connection of dave's that came through these proxies, to this address of the gateway.
fn connect_to(to: SocketAddr, gateway: &Gateway, forwarded: &[&str]) -> (u16, Raw) {
    let mut raw = Raw::connect(to);
    let bearer = format!("Bearer {}", token_of("dave"));
    let mut headers = UPGRADE.to_vec();
    headers.push(("Authorization", &bearer));
    headers.extend(forwarded.iter().map(|&value| ("X-Forwarded-For", value)));
    (raw.get_with(&gateway.path, &headers).status, raw)
}

fn connect(gateway: &Gateway, forwarded: &[&str]) -> (u16, Raw) {
    connect_to(gateway.addr, gateway, forwarded)
}

#[test]
fn every_form_of_a_forwarded_address_is_the_same_client() {
    let gateway = limited("127.0.0.1:0", &["127.0.0.1", "10.0.0.0/8", "fd00::/8"]);
    let (status, _first) = connect(&gateway, &["203.0.113.7"]);
    assert_eq!(status, 101);
    for same in [
        &["203.0.113.7:5678"][..],
        &["::ffff:203.0.113.7"],
        &["[::ffff:203.0.113.7]"],
        &["[::ffff:cb00:7107]:5678"],
        &["198.51.100.1, 203.0.113.7"],
        &["198.51.100.1", "203.0.113.7"],
        &["198.51.100.1,203.0.113.7:1 ,\t10.0.0.2"],
        &[
            "203.0.113.7, 10.255.0.1:443",
            "[fd00::2]:80, ::ffff:10.0.0.1",
        ],
        &["203.0.113.7, ,"],
        &["unknown, 203.0.113.7"],
    ] {
        assert_eq!(connect(&gateway, same).0, 429, "{same:?}");
    }
    let (status, _first) = connect(&gateway, &["2001:db8::1"]);
    assert_eq!(status, 101);
    for same in [
        "[2001:db8::1]",
        "[2001:db8::1]:5678",
        "2001:DB8:0:0::1",
        "2001:db8::ffff:2",
        "[2001:db8::a:b:c:d]:1",
    ] {
        assert_eq!(connect(&gateway, &[same]).0, 429, "{same}");
    }
    let others = ["203.0.113.8", "2001:db8:0:1::1", "[2001:db8:0:2::1]:80"];
    let held: Vec<_> = others.map(|other| connect(&gateway, &[other])).into();
    assert!(held.iter().all(|(status, _)| *status == 101));
}

/// The proxy answers for whom it does not name; a proxy's health checks are answered.
#[test]
fn who_is_not_named_counts_as_the_proxy() {
    let gateway = limited("127.0.0.1:0", &["127.0.0.1", "10.0.0.0/8"]);
    let (status, _first) = connect(&gateway, &[]);
    assert_eq!(status, 101);
    for same in [
        &["unknown"][..],
        &["_hidden"],
        &[""],
        &[" , "],
        &["203.0.113.7, unknown"],
        &["1.2.3.4:99999"],
        &["1.2.3"],
        &["client.example.com"],
        &["127.0.0.1"],
        &["203.0.113.7", "nonsense"],
    ] {
        assert_eq!(connect(&gateway, same).0, 429, "{same:?}");
    }
    assert_eq!(gateway.get("/healthz").status, 200);
    // Of two proxies, the one that was asked; of trusted hops alone, the first.
    let (status, _second) = connect(&gateway, &["unknown, 10.0.0.2"]);
    assert_eq!(status, 101);
    assert_eq!(connect(&gateway, &["10.0.0.2"]).0, 429);
    assert_eq!(connect(&gateway, &["10.0.0.2, 10.0.0.3"]).0, 429);
}

/// A missing header is nothing to be told of; one that is not understood is.
#[test]
fn only_what_is_not_understood_is_logged() {
    let logged = |forwarded: &[&str]| {
        let gateway = limited("127.0.0.1:0", &["127.0.0.1"]);
        assert_eq!(connect(&gateway, forwarded).0, 101);
        gateway.stderr().contains("X-Forwarded-For not understood")
    };
    assert!(!logged(&[]));
    assert!(!logged(&["[2001:db8::1]:80"]));
    assert!(logged(&["unknown"]));
}

/// An IPv4 client of a listener for IPv6 is IPv4.
#[test]
fn an_ipv4_proxy_of_an_ipv6_listener_is_trusted() {
    for trusted in [
        "127.0.0.1",
        "127.0.0.0/8",
        "::ffff:127.0.0.1",
        "::ffff:127.0.0.0/104",
    ] {
        let gateway = limited("[::]:0", &[trusted]);
        let ipv4 = SocketAddr::from(([127, 0, 0, 1], gateway.addr.port()));
        let (status, _first) = connect_to(ipv4, &gateway, &["203.0.113.7"]);
        assert_eq!(status, 101, "{trusted}");
        assert_eq!(connect_to(ipv4, &gateway, &["203.0.113.7"]).0, 429);
        let (status, _second) = connect_to(ipv4, &gateway, &["203.0.113.8"]);
        assert_eq!(status, 101, "{trusted}");
        // Not trusted, and another address than 127.0.0.1.
        let ipv6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), gateway.addr.port());
        let (status, _third) = connect_to(ipv6, &gateway, &["203.0.113.7"]);
        assert_eq!(status, 101, "{trusted}");
        assert_eq!(connect_to(ipv6, &gateway, &["203.0.113.9"]).0, 429);
    }
    let gateway = limited("[::]:0", &["::1"]);
    let ipv6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), gateway.addr.port());
    let held = ["203.0.113.7", "203.0.113.8"].map(|client| connect_to(ipv6, &gateway, &[client]));
    assert!(held.iter().all(|(status, _)| *status == 101));
}

fn check(trusted: &str) -> crate::support::gateway::Outcome {
    let file = watchdog::directory("check").join("gateway.toml");
    std::fs::write(&file, format!("[listen]\ntrusted_proxies = {trusted}\n")).expect("a file");
    run(&["--config", &file.display().to_string(), "check"], &[])
}

#[test]
fn a_wrong_entry_is_named_with_its_place() {
    for (entry, said) in [
        ("\"proxy\"", "`proxy`"),
        ("\"10.0.0.0/33\"", "32 bits"),
        ("\"10.0.0.5/8\"", "10.0.0.0/8"),
        ("\"fd00::1/8\"", "fd00::/8"),
        ("\"::ffff:10.0.0.5/104\"", "10.0.0.0/8"),
        ("\"10.0.0.0/\"", "`10.0.0.0/`"),
        ("\"10.0.0.1:80\"", "`10.0.0.1:80`"),
        ("\"\"", "``"),
        ("10", "10.0.0.0/8"),
    ] {
        let outcome = check(&format!("[\"10.0.0.1\", {entry}]"));
        assert_eq!(outcome.code, 2, "{entry}: {outcome:?}");
        for part in ["listen.trusted_proxies[1]", said] {
            assert!(outcome.stderr.contains(part), "{entry}: {}", outcome.stderr);
        }
    }
    let outcome = check("[\"::ffff:10.0.0.0/104\", \"FD00::/8\", \"10.1.1.1/32\"]");
    assert_eq!(outcome.code, 0, "{outcome:?}");
    for shown in ["\"10.0.0.0/8\"", "\"fd00::/8\"", "\"10.1.1.1\""] {
        assert!(outcome.stdout.contains(shown), "{}", outcome.stdout);
    }
}
