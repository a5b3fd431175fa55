//! The PROXY protocol: by hand, and as HAProxy and nginx send it. The limit by address and the lists of
//! the admin listener show whom the gateway takes for the client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::balancer::{Balancer, nginx_with, started};
use crate::support::broker::free_port;
use crate::support::cluster::remote;
use crate::support::process::Process;
use crate::support::raw::{FIN, Raw, Response, TEXT, UPGRADE, head};
use crate::support::recipe::{approves, written};
use crate::support::settings::token_of;
use crate::support::{Client, Gateway, Settings, wait_until, watchdog};

const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// A proxy on 127.0.0.1 is trusted, and some others that a header can name.
fn settings() -> Settings {
    Settings::new()
        .users(["alice", "bob", "dave"])
        .set("limits.max_connections_per_user", 100)
        .set("listen.trusted_proxies", vec!["127.0.0.1", "10.0.0.0/8"])
        .set("listen.proxy_protocol", true)
}

/// One connection for each address.
fn limited() -> Gateway {
    Gateway::start(&settings().set("limits.max_connections_per_ip", 1))
}

/// Version 1.
fn line(source: &str) -> Vec<u8> {
    let (family, to) = if source.contains(':') {
        ("TCP6", "::1")
    } else {
        ("TCP4", "127.0.0.1")
    };
    format!("PROXY {family} {source} {to} 5678 443\r\n").into_bytes()
}

/// Version 2, with this behind the addresses.
fn binary_with(source: &str, tlvs: &[u8]) -> Vec<u8> {
    let (family, mut addresses) = match source.parse().expect("an address") {
        IpAddr::V4(source) => (0x11, source.octets().to_vec()),
        IpAddr::V6(source) => (0x21, source.octets().to_vec()),
    };
    // Theirs, ours, the ports.
    addresses.extend(addresses.clone());
    addresses.extend([0x16, 0x2e, 0x01, 0xbb]);
    binary(0x21, family, &[&addresses, tlvs].concat())
}

fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("it fits").to_be_bytes();
    [
        b"\r\n\r\n\0\r\nQUIT\n",
        &[command, family][..],
        &length,
        rest,
    ]
    .concat()
}

/// An upgrade of dave's, with these headers as well.
fn upgrade(gateway: &Gateway, further: &[(&str, &str)]) -> Vec<u8> {
    let bearer = format!("Bearer {}", token_of("dave"));
    let headers = [&UPGRADE[..], &[("Authorization", &bearer)], further].concat();
    head("GET", &gateway.path, &headers).into_bytes()
}

/// What is answered to these bytes, which come in one piece.
fn answer(gateway: &Gateway, bytes: impl AsRef<[u8]>) -> (Response, Raw) {
    let mut raw = gateway.raw();
    raw.send(bytes);
    (raw.response(), raw)
}

/// An upgrade behind this header.
fn behind(gateway: &Gateway, header: &[u8]) -> (u16, Raw) {
    let (response, raw) = answer(gateway, [header, &upgrade(gateway, &[])].concat());
    (response.status, raw)
}

fn connections(gateway: &Gateway) -> Vec<(String, String)> {
    let shown = gateway.admin.json("/connections");
    let connections = shown["connections"].as_array().expect("a list");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let found = connections.iter();
    found
        .map(|it| (text(&it["address"]), text(&it["address_source"])))
        .collect()
}

/// The refusals that are listed, newest first or last: address, status, reason.
fn refusals(gateway: &Gateway) -> Vec<(String, u64, String)> {
    let shown = gateway.admin.json("/disconnects");
    let refused = shown["refused"].as_array().expect("a list");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let listed = refused.iter().map(|it| {
        let status = it["status"].as_u64().expect("a number");
        (text(&it["address"]), status, text(&it["reason"]))
    });
    listed.collect()
}

#[test]
fn whoever_the_header_names_is_the_client() {
    let gateway = limited();
    let (status, _first) = behind(&gateway, &line("203.0.113.7"));
    assert_eq!(status, 101);
    let tlvs = [&[0x04, 0x0f, 0x00][..], &[0; 0x0f00]].concat();
    for same in [
        line("203.0.113.7"),
        line("::ffff:203.0.113.7"),
        binary_with("203.0.113.7", &[]),
        binary_with("203.0.113.7", &tlvs),
        binary_with("::ffff:203.0.113.7", &[]),
    ] {
        assert_eq!(behind(&gateway, &same).0, 429, "{}", same.escape_ascii());
    }
    let (status, _second) = behind(&gateway, &binary_with("2001:db8::1", &[]));
    assert_eq!(status, 101);
    // The same customer's.
    assert_eq!(behind(&gateway, &line("2001:db8::ffff:2")).0, 429);
    let others = [
        line("203.0.113.8"),
        line("2001:db8:0:1::1"),
        binary_with("203.0.113.9", &tlvs),
    ];
    let held = others.map(|header| behind(&gateway, &header));
    assert!(held.iter().all(|(status, _)| *status == 101));
    let mut shown = connections(&gateway);
    shown.sort();
    let named = |address: &str| (address.to_owned(), "proxy_protocol".to_owned());
    let expected = [
        "2001:db8:0:1::1",
        "2001:db8::1",
        "203.0.113.7",
        "203.0.113.8",
        "203.0.113.9",
    ];
    assert_eq!(shown, expected.map(named));
    let refused = refusals(&gateway);
    let first = refused
        .iter()
        .filter(|(address, ..)| address == "203.0.113.7");
    assert_eq!(first.count(), 5, "{refused:?}");
}

#[test]
fn a_header_may_come_in_pieces_and_nothing_behind_it_is_lost() {
    let gateway = Gateway::start(&settings());
    for header in [
        line("203.0.113.7"),
        binary_with("203.0.113.7", &[0x04, 0, 2, 1, 1]),
    ] {
        let all = [&header[..], &upgrade(&gateway, &[])].concat();
        // Byte by byte, and parted around the header's end.
        let ends = [header.len() - 1, header.len(), header.len() + 1];
        let parted = ends.map(|end| vec![&all[..end], &all[end..]]);
        for pieces in [all.chunks(1).collect()].into_iter().chain(parted) {
            let mut raw = gateway.raw();
            for piece in pieces {
                raw.send(piece);
            }
            assert_eq!(raw.response().status, 101);
            assert_eq!(raw.json()["type"], "connected");
            raw.frame(FIN | TEXT, r#"{"type":"ping","request_id":"p"}"#);
            raw.json_that(|frame| frame["request_id"] == "p");
        }
    }
    assert!(
        connections(&gateway)
            .iter()
            .all(|(address, _)| address == "203.0.113.7")
    );
    // A client that sends before the 101 is refused behind a header as well.
    let early = [line("203.0.113.7"), upgrade(&gateway, &[]), vec![0x81]].concat();
    assert_eq!(answer(&gateway, early).0.status, 400);
}

#[test]
fn from_anybody_else_no_header_is_believed() {
    let gateway = Gateway::start(&settings());
    for header in [
        line("203.0.113.7"),
        binary_with("203.0.113.7", &[]),
        binary(0x20, 0, &[]),
    ] {
        let mut raw = Raw::connect_from(STRANGER, gateway.addr);
        raw.send([header, upgrade(&gateway, &[])].concat());
        let response = raw.response();
        assert_eq!(response.status, 400, "{response:?}");
    }
    let listed = (STRANGER.to_string(), 400, "bad_request".to_owned());
    assert_eq!(refusals(&gateway), vec![listed; 3]);
    // None is asked for either.
    let mut raw = Raw::connect_from(STRANGER, gateway.addr);
    raw.send(upgrade(&gateway, &[("X-Forwarded-For", "203.0.113.7")]));
    assert_eq!(raw.response().status, 101);
    assert_eq!(
        connections(&gateway),
        [(STRANGER.to_string(), "socket".to_owned())]
    );
}

/// A proxy that comes over IPv4 is trusted as such, and IPv6 is another network.
#[test]
fn a_listener_for_both_families_knows_its_proxies() {
    for (trusted, stranger) in [("127.0.0.1", "::1"), ("::1", "127.0.0.1")] {
        let settings = Settings::new()
            .users(["dave"])
            .set("listen.addr", "[::]:0")
            .set("listen.trusted_proxies", vec![trusted])
            .set("listen.proxy_protocol", true);
        let gateway = Gateway::start(&settings);
        for (from, status) in [(trusted, 101), (stranger, 400)] {
            let from: IpAddr = from.parse().expect("an address");
            let to = SocketAddr::new(from, gateway.addr.port());
            let mut raw = Raw::connect_from(from, to);
            raw.send([line("203.0.113.7"), upgrade(&gateway, &[])].concat());
            assert_eq!(raw.response().status, status, "{from}");
            let shown = connections(&gateway);
            let address = shown.iter().map(|(address, _)| address.as_str());
            let expected: &[&str] = if status == 101 { &["203.0.113.7"] } else { &[] };
            assert_eq!(address.collect::<Vec<_>>(), expected);
            drop(raw);
            wait_until("it is gone", || connections(&gateway).is_empty());
        }
    }
}

/// The client has an answer, the operator a line and an entry, and nobody an address.
#[test]
fn a_trusted_proxy_that_sends_no_header_or_a_broken_one_is_refused() {
    let gateway = Gateway::start(&settings());
    let request = upgrade(&gateway, &[("X-Forwarded-For", "203.0.113.7")]);
    let too_long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100)).into_bytes();
    let broken = [
        Vec::new(),
        b"\x16\x03\x01".to_vec(),
        b"PROXY TCP4 203.0.113.7\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.256 127.0.0.1 1 1\r\n".to_vec(),
        b"PROXY TCP6 203.0.113.7 127.0.0.1 1 1\r\n".to_vec(),
        too_long,
        binary(0x31, 0x11, &[7; 12]),
        binary(0x21, 0x12, &[7; 12]),
        binary(0x21, 0x11, &[7; 11]),
        binary(0x21, 0x11, &vec![7; 0xffff]),
    ];
    for header in &broken {
        // Of what is too long, the end may meet a connection that is over.
        let mut raw = gateway.raw();
        let _ = raw.try_send([&header[..], &request].concat());
        let response = raw.response();
        assert_eq!(
            response.status,
            400,
            "{}: {response:?}",
            header.escape_ascii()
        );
        assert!(response.body.contains("PROXY header"), "{response:?}");
        raw.expect_end();
    }
    let listed = (PROXY.to_string(), 400, "bad_preamble".to_owned());
    assert_eq!(refusals(&gateway), vec![listed; broken.len()]);
    let logged = gateway.stderr();
    let lines: Vec<_> = logged
        .lines()
        .filter(|it| it.contains("PROXY header"))
        .collect();
    assert!(!lines.is_empty() && lines.len() < broken.len(), "{lines:?}");
    for cure in [
        "peer=127.0.0.1",
        "have the proxy send one",
        "listen.trusted_proxies",
    ] {
        assert!(lines[0].contains(cure), "{}", lines[0]);
    }
    assert!(!logged.contains(&token_of("dave")));
    assert_eq!(gateway.admin.metric("gateway_connections_total"), 0.0);
}

#[test]
fn a_proxys_own_connections_have_its_own_address() {
    let gateway = limited();
    let check = head("GET", "/readyz", &[]).into_bytes();
    let own = [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 203.0.113.7 127.0.0.1 5678 443\r\n".to_vec(),
        binary(0x20, 0x00, &[]),
        binary(0x20, 0x11, &[203, 0, 113, 7, 127, 0, 0, 1, 0, 1, 0, 1]),
        binary(0x21, 0x00, &[]),
        binary(0x21, 0x31, &[b'/'; 216]),
    ];
    wait_until("the gateway is ready", || {
        answer(&gateway, [&own[0][..], &check].concat()).0.status == 200
    });
    for header in &own {
        let (response, raw) = answer(&gateway, [&header[..], &check].concat());
        assert_eq!(
            response.status,
            200,
            "{}: {response:?}",
            header.escape_ascii()
        );
        // Checks are counted, too.
        drop(raw);
        let mut held = None;
        wait_until("there is room for a client", || {
            let (status, raw) = behind(&gateway, header);
            held = (status == 101).then_some(raw);
            held.is_some()
        });
        assert_eq!(
            connections(&gateway),
            [(PROXY.to_string(), "socket".to_owned())]
        );
        assert_eq!(behind(&gateway, header).0, 429);
        drop(held);
        wait_until("it is gone", || connections(&gateway).is_empty());
    }
    // A check that connects and says nothing, or breaks off, is nothing to speak of.
    drop(gateway.raw());
    let mut raw = gateway.raw();
    raw.send(&line("203.0.113.7")[..20]);
    raw.finish_sending();
    assert!(!raw.has_answer());
    assert_eq!(
        answer(&gateway, [&own[0][..], &check].concat()).0.status,
        200
    );
    assert!(
        !gateway.stderr().contains("PROXY header"),
        "{}",
        gateway.stderr()
    );
}

/// Behind it may stand another one, which speaks HTTP.
#[test]
fn a_forwarded_address_counts_where_the_header_names_a_trusted_proxy() {
    let gateway = Gateway::start(&settings());
    for (named, address, source) in [
        ("10.0.0.2", "203.0.113.7", "x_forwarded_for"),
        ("198.51.100.1", "198.51.100.1", "proxy_protocol"),
    ] {
        let request = upgrade(&gateway, &[("X-Forwarded-For", "192.0.2.1, 203.0.113.7")]);
        let (response, raw) = answer(&gateway, [line(named), request].concat());
        assert_eq!(response.status, 101);
        assert_eq!(
            connections(&gateway),
            [(address.to_owned(), source.to_owned())]
        );
        drop(raw);
        wait_until("it is gone", || connections(&gateway).is_empty());
    }
}

#[test]
fn a_header_that_does_not_come_in_time_is_408() {
    let timeout = Duration::from_secs(1);
    let gateway = Gateway::start(&settings().set("listen.handshake_timeout", "1s"));
    let header = line("203.0.113.7");
    let start = Instant::now();
    let mut silent: Vec<_> = [0, 1, 20, header.len()]
        .map(|length| {
            let mut raw = gateway.raw();
            raw.send(&header[..length]);
            raw
        })
        .into();
    // A line that never ends: each byte is new, and the time the same.
    let mut dripping = gateway.raw();
    let drip = [b"PROXY UNKNOWN ", &[b'x'; 90][..]].concat();
    let mut bytes = drip.chunks(1);
    while start.elapsed() < timeout / 2 {
        if let Some(byte) = bytes.next() {
            dripping.send(byte);
        }
        // The pace of a slow sender, not a wait for anything.
        std::thread::sleep(Duration::from_millis(10));
    }
    silent.push(dripping);
    for mut raw in silent {
        assert_eq!(raw.response().status, 408);
    }
    let took = start.elapsed();
    assert!(took >= timeout && took < timeout * 8, "{took:?}");
    let mut named = refusals(&gateway);
    named.sort();
    let listed = |address: &str| (address.to_owned(), 408, "timed_out".to_owned());
    let proxy = listed(&PROXY.to_string());
    let expected = [
        proxy.clone(),
        proxy.clone(),
        proxy.clone(),
        proxy,
        listed("203.0.113.7"),
    ];
    assert_eq!(named, expected);
}

/// The refuser takes headers off as well, and its answers are for whom they name.
#[test]
fn a_full_gateway_knows_whom_it_refuses() {
    let gateway = Gateway::start(&settings().set("limits.max_connections", 1));
    let (status, _first) = behind(&gateway, &line("203.0.113.7"));
    assert_eq!(status, 101);
    let all = [line("203.0.113.8"), upgrade(&gateway, &[])].concat();
    for size in [all.len(), 1] {
        let mut raw = gateway.raw();
        all.chunks(size).for_each(|piece| raw.send(piece));
        assert_eq!(raw.response().status, 503);
    }
    let health = head("GET", "/healthz", &[]).into_bytes();
    let (response, _raw) = answer(&gateway, [binary(0x20, 0, &[]), health].concat());
    assert_eq!(response.status, 200);
    assert_eq!(answer(&gateway, upgrade(&gateway, &[])).0.status, 400);
    let mut refused = refusals(&gateway);
    refused.sort();
    let expected = [
        (PROXY.to_string(), 400, "bad_preamble".to_owned()),
        ("203.0.113.8".to_owned(), 503, "no_room".to_owned()),
        ("203.0.113.8".to_owned(), 503, "no_room".to_owned()),
    ];
    assert_eq!(refused, expected);
}

/// A shutdown ends a proxy's connections that have not said who their client is, too.
#[test]
fn a_gateway_that_ends_waits_for_no_header() {
    let gateway = Gateway::start(&settings());
    let mut half = gateway.raw();
    half.send(b"PROXY TCP4 ");
    let start = Instant::now();
    assert_eq!(gateway.stop(), 0);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    half.expect_end();
}

#[test]
fn without_the_key_a_header_is_no_http() {
    let gateway = Gateway::start(&settings().set("listen.proxy_protocol", false));
    assert_eq!(behind(&gateway, &line("203.0.113.7")).0, 400);
    assert_eq!(
        gateway
            .raw()
            .try_upgrade(&gateway.path, &token_of("dave"))
            .status,
        101
    );
}

/// HAProxy passing bytes on, for IPv4 and IPv6, to these gateways.
fn haproxy(send: &str, gateways: &[SocketAddr]) -> Balancer {
    let port = free_port();
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    let servers = gateways.iter().enumerate();
    let servers = servers.map(|(number, at)| format!("    server g{number} {at} {send}\n"));
    let text = format!(
        "global\n    log stdout format raw local0\n    maxconn 500\n\
         defaults\n    mode tcp\n    log global\n    timeout connect 3s\n    timeout client 60s\n    \
         timeout server 60s\n\
         frontend clients\n    bind {addr}\n    bind [::1]:{port}\n    default_backend gateways\n\
         backend gateways\n    option httpchk\n    \
         http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host localhost\n    \
         http-check expect status 200\n    \
         default-server check check-send-proxy inter 200ms fall 2 rise 1\n{}",
        servers.collect::<String>()
    );
    let file = written("haproxy.cfg", &text);
    let haproxy = || {
        let mut command = Command::new("/usr/sbin/haproxy");
        command.arg("-f").arg(&file);
        command
    };
    let said = approves(haproxy().arg("-c"));
    assert!(!said.contains("WARNING"), "{said}");
    started(Process::start("HAProxy", haproxy().arg("-db")), addr, None)
}

/// nginx passing bytes on, for IPv4 and IPv6. It knows version 1.
fn nginx(gateway: SocketAddr) -> Balancer {
    let directory = watchdog::directory("nginx");
    let port = free_port();
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    let text = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
         error_log stderr;\npid {}/nginx.pid;\nevents {{}}\n\
         stream {{\n  server {{\n    listen {addr};\n    listen [::1]:{port};\n    \
         proxy_pass {gateway};\n    proxy_protocol on;\n  }}\n}}\n",
        directory.display()
    );
    started(nginx_with(&directory, &text), addr, None)
}

/// Users chat through it, and each is taken for whom it is, by IPv4 and IPv6.
fn clients_are_told_apart(gateway: &Gateway, balancer: &Balancer) {
    let own = |at: u8| IpAddr::from([127, 0, 0, at]);
    let at = |from: IpAddr| {
        let mut to = balancer.addr;
        if from.is_ipv6() {
            to.set_ip(Ipv6Addr::LOCALHOST.into());
        }
        let mut raw = Raw::connect_from(from, to);
        // Whatever a client claims itself.
        raw.send(upgrade(gateway, &[("X-Forwarded-For", "203.0.113.7")]));
        (raw.response().status, raw)
    };
    let held = [own(2), own(3), Ipv6Addr::LOCALHOST.into()].map(|from| (from, at(from)));
    for (from, (status, _)) in &held {
        assert_eq!(*status, 101, "{from}");
    }
    assert_eq!(at(own(2)).0, 429);
    assert_eq!(at(Ipv6Addr::LOCALHOST.into()).0, 429);
    let mut shown = connections(gateway);
    shown.sort();
    let named = |address: &str| (address.to_owned(), "proxy_protocol".to_owned());
    assert_eq!(shown, ["127.0.0.2", "127.0.0.3", "::1"].map(named));
    drop(held);
    wait_until("they are gone", || connections(gateway).is_empty());
    // From where checks come from as well, which are counted while they last.
    let mut alice = None;
    wait_until("there is room for alice", || {
        let token = token_of("alice");
        alice = Client::try_connect(balancer.addr, &gateway.path, &token).ok();
        alice.is_some()
    });
    let mut alice = alice.expect("a client");
    let content = "x".repeat(60_000);
    let id = alice.send_message("alice", &content);
    assert_eq!(alice.expect_message(&id)["content"], content);
    assert_eq!(connections(gateway), [named("127.0.0.1")]);
    alice.close();
    assert!(
        !gateway.stderr().contains("PROXY header"),
        "{}",
        gateway.stderr()
    );
}

/// A header is sent with checks, too.
fn haproxy_is_understood(send: &str) {
    let gateway = Gateway::start(
        &settings()
            .set("limits.max_connections_per_ip", 1)
            .set("gateway.id", "ready"),
    );
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let unready = remote(&settings(), &nobody, "amqp://127.0.0.1:1");
    let unready = Gateway::start(&unready);
    let balancer = haproxy(send, &[unready.addr, gateway.addr]);
    balancer.process.stderr_line("Server gateways/g0 is DOWN");
    clients_are_told_apart(&gateway, &balancer);
    let said = balancer.process.stderr();
    assert!(!said.contains("gateways/g1 is DOWN"), "{said}");
}

#[test]
fn haproxys_version_1_is_understood_with_its_checks() {
    haproxy_is_understood("send-proxy");
}

#[test]
fn haproxys_version_2_is_understood_with_its_checks() {
    haproxy_is_understood("send-proxy-v2");
}

/// With what it can say besides, which nobody here reads.
#[test]
fn haproxys_version_2_may_say_more() {
    haproxy_is_understood("send-proxy-v2 proxy-v2-options crc32c,unique-id");
}

#[test]
fn nginxs_header_is_understood() {
    let gateway = limited();
    let balancer = nginx(gateway.addr);
    clients_are_told_apart(&gateway, &balancer);
}

/// A proxy that is not told to send one: its clients are refused, and the reason is on record.
#[test]
fn a_haproxy_without_a_header_finds_no_gateway_ready() {
    let gateway = Gateway::start(&settings());
    let balancer = haproxy("no-check-send-proxy", &[gateway.addr]);
    balancer.process.stderr_line("Server gateways/g0 is DOWN");
    wait_until("it is on record", || {
        let listed = (PROXY.to_string(), 400, "bad_preamble".to_owned());
        refusals(&gateway).contains(&listed)
    });
}
