//! TLS on the client listener: the very same gateway behind it, and what is TLS' own.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConnection;
use serde_json::Value;

use crate::chat;
use crate::scenarios::tls;
use crate::support::certificates::{Authority, Identity, path, self_signed};
use crate::support::process::Signal;
use crate::support::raw::Raw;
use crate::support::stream::{self, Stream, trusting};
use crate::support::wait::wait_until_within;
use crate::support::{DEADLINE, Gateway, Settings, gateway, wait_until};

fn settings() -> Settings {
    chat::settings().tls()
}

/// What `embedded.rs` does, over TLS; `IT_TLS=1 tests/run` does everything so.
macro_rules! over_tls {
    ($($name:ident),+ $(,)?) => {$(
        #[test]
        fn $name() {
            chat::$name(&Gateway::start(&settings().set("limits.rate", 1000)));
        }
    )+};
}

over_tls! {
    connected,
    single_chat,
    large_group_chat,
    every_device,
    history_of_fifty,
    offline_pages,
    presence,
    requests_and_answers,
}

/// A certificate, where it is read from.
struct Installed {
    authority: Authority,
    cert: String,
    key: String,
}

impl Installed {
    fn new(first: &Identity, authority: Authority) -> Self {
        // These two are written over; what was signed later is only read.
        Self {
            authority,
            cert: path(&first.cert),
            key: path(&first.key),
        }
    }

    fn write(&self, new: &Identity) {
        fs::copy(&new.cert, &self.cert).expect("a file");
        fs::copy(&new.key, &self.key).expect("a file");
    }

    fn gateway(&self) -> Gateway {
        let settings = chat::settings();
        let settings = settings.set("tls.cert", &*self.cert);
        Gateway::start(&settings.set("tls.key", &*self.key))
    }

    /// What a newcomer is shown.
    fn shown(&self, gateway: &Gateway) -> Vec<u8> {
        let tcp = TcpStream::connect(gateway.addr).expect("the gateway listens");
        let config = Arc::new(trusting(&self.authority));
        let mut stream = Stream::with_tls(tcp, &config, "localhost");
        let head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(head).expect("it is trusted");
        stream.read_exact(&mut [0; 12]).expect("an answer");
        let certificates = stream.tls().and_then(|tls| tls.peer_certificates());
        certificates.expect("a certificate")[0].to_vec()
    }

    fn check(gateway: &Gateway) -> Value {
        gateway.admin.ask("GET", "/readyz", &[]).json()["checks"]["certificate"].clone()
    }
}

#[test]
fn a_new_certificate_is_shown_to_newcomers_and_a_bad_one_to_nobody() {
    let authority = Authority::new("an authority");
    let [first, second, third] = [(); 3].map(|()| authority.sign(&["localhost"]));
    let other = self_signed(&["localhost"]);
    let installed = Installed::new(&first, authority);
    let gateway = installed.gateway();
    let old = installed.shown(&gateway);
    // Whoever is there stays, whatever happens.
    let tcp = TcpStream::connect(gateway.addr).expect("the gateway listens");
    let config = Arc::new(trusting(&installed.authority));
    let mut held = Stream::with_tls(tcp, &config, "localhost");
    held.write_all(b"GET /ws HTTP/1.1\r\n").expect("it reads");

    installed.write(&second);
    wait_until("another certificate is shown", || {
        installed.shown(&gateway) != old
    });
    assert_eq!(Installed::check(&gateway)["ok"], true);
    let current = installed.shown(&gateway);

    fs::copy(&other.key, &installed.key).expect("a file");
    gateway.signal(Signal::HUP);
    wait_until("the fault is said", || {
        Installed::check(&gateway)["ok"] == false
    });
    let reason = Installed::check(&gateway)["reason"].to_string();
    assert!(
        reason.contains("tls.key: does not belong to the certificate"),
        "{reason}"
    );
    assert!(
        gateway
            .stderr()
            .contains("Certificate not changed, the old one stays: tls.key")
    );
    assert_eq!(
        gateway.admin.ask("GET", "/readyz", &[]).status,
        200,
        "it still works"
    );
    assert_eq!(installed.shown(&gateway), current);

    installed.write(&third);
    gateway.signal(Signal::HUP);
    wait_until("the third is shown", || {
        installed.shown(&gateway) != current
    });
    assert_eq!(Installed::check(&gateway)["ok"], true);

    held.write_all(b"Host: x\r\n\r\n").expect("it reads");
    let mut answer = [0; 12];
    held.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 426");
    assert_eq!(gateway.stop(), 0);
}

#[test]
fn the_metric_says_when_the_certificate_expires() {
    let authority = Authority::new("an authority");
    let identity = authority.sign_expired(&["localhost"]);
    let gateway = Installed::new(&identity, authority).gateway();
    let metrics = gateway.admin.ask("GET", "/metrics", &[]).body;
    let name = "gateway_tls_certificate_expiry_seconds ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    let left: f64 = line.expect("the metric").parse().expect("a number");
    // It expired on the last day of 2020.
    let year = 365.25 * 86_400.0;
    assert!(left < -5.0 * year && left > -100.0 * year, "{left}");
    let reason = Installed::check(&gateway)["reason"].to_string();
    assert!(reason.contains("expired at 2020-12-31"), "{reason}");
    let config = gateway.directory.join("gateway.toml");
    let asked = gateway::binary()
        .arg("check")
        .arg("--connect")
        .arg("--config")
        .arg(config)
        .output();
    let found = String::from_utf8_lossy(&asked.expect("an answer").stdout).into_owned();
    assert!(found.contains("failed: tls.cert: "), "{found}");
    assert!(
        gateway
            .stderr()
            .contains("Certificate expires soon, or has: expires=2020-12-31")
    );
}

/// Whoever says nothing, half of a greeting, or a byte now and then.
#[test]
fn the_deadline_of_the_handshake_covers_tls() {
    let gateway = Gateway::start(&settings().set("listen.handshake_timeout", "1s"));
    // The beginning of a ClientHello (RFC 8446, sections 4.1.2 and 5.1).
    let hello = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let start = Instant::now();
    let sockets: Vec<TcpStream> = (0..20)
        .map(|number| {
            let mut socket = TcpStream::connect(gateway.addr).expect("the gateway listens");
            socket.write_all(&hello[..number % 12]).expect("it reads");
            socket
        })
        .collect();
    let mut slow = TcpStream::connect(gateway.addr).expect("the gateway listens");
    for mut socket in sockets {
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("an option");
        // Until its end; nobody is answered in the clear.
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
        assert!(!rest.starts_with(b"HTTP"));
        let _ = slow.write_all(&[22]);
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    let mut alice = gateway.connect("alice");
    alice.request("ping", Value::Null);
}

#[test]
fn who_speaks_no_tls_is_refused_with_the_reason_and_never_in_the_clear() {
    let gateway = Gateway::start(&settings());
    let mut plain = TcpStream::connect(gateway.addr).expect("the gateway listens");
    plain
        .write_all(b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("it reads");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let disconnects = || gateway.admin.ask("GET", "/disconnects", &[]).body;
    wait_until("it is listed", || disconnects().contains("bad_preamble"));
    assert!(disconnects().contains("ws://"), "{}", disconnects());

    // A record of data in place of a greeting: rustls has a warning for it, and would repeat it.
    let mut odd = TcpStream::connect(gateway.addr).expect("the gateway listens");
    odd.write_all(&[23, 3, 3, 0, 1, 0]).expect("it reads");
    let _ = odd.read_to_end(&mut answer);
    wait_until("it is listed", || disconnects().contains("ApplicationData"));
    assert!(
        !gateway.stderr().contains("ApplicationData"),
        "{}",
        gateway.stderr()
    );

    // And who does not trust the certificate.
    let stranger = Arc::new(trusting(&Authority::new("another authority")));
    let tcp = TcpStream::connect(gateway.addr).expect("the gateway listens");
    let mut stream = Stream::with_tls(tcp, &stranger, "localhost");
    stream
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .expect_err("it is not trusted");
    wait_until("it is listed", || {
        disconnects().contains("it may not trust the certificate")
    });
}

/// What a proxy says of its client comes before TLS, in the same packet or not; and browsers' greetings
/// are longer than what is read at once.
#[cfg(feature = "proxy-protocol")]
#[test]
fn a_proxy_names_its_client_before_a_greeting_of_any_size() {
    let settings = settings().set("listen.trusted_proxies", vec!["127.0.0.1"]);
    let gateway = Gateway::start(&settings.set("listen.proxy_protocol", true));
    let identity = stream::identity_authority();
    for padding in [0, 100, 200, 255] {
        for pieces in [1, 2, 300] {
            let mut config = trusting(identity);
            config.alpn_protocols =
                vec![b"http/1.1".to_vec(), vec![b'x'; padding], vec![b'y'; 200]];
            config.alpn_protocols.retain(|name| !name.is_empty());
            let name = "localhost".try_into().expect("a name");
            let mut tls = ClientConnection::new(Arc::new(config), name).expect("a session");
            let mut bytes = b"PROXY TCP4 192.0.2.7 127.0.0.1 1000 443\r\n".to_vec();
            tls.write_tls(&mut bytes).expect("a greeting");
            let mut tcp = TcpStream::connect(gateway.addr).expect("the gateway listens");
            tcp.set_nodelay(true).expect("an option");
            tcp.set_read_timeout(Some(DEADLINE)).expect("an option");
            for piece in bytes.chunks(bytes.len().div_ceil(pieces)) {
                tcp.write_all(piece).expect("it reads");
            }
            let mut stream = Stream::of(tcp, tls);
            let head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
            stream.write_all(head).expect("it reads");
            let mut answer = [0; 12];
            let outcome = stream.read_exact(&mut answer);
            outcome.unwrap_or_else(|error| panic!("{padding} in {pieces}: {error}"));
            assert_eq!(&answer, b"HTTP/1.1 200");
        }
    }
}

/// The refuser, who has no thread for each, speaks TLS as well.
#[test]
fn who_is_refused_for_want_of_room_is_told_over_tls() {
    let gateway = Gateway::start(&settings().set("limits.max_connections", 1));
    let _alice = gateway.connect("alice");
    let answer = gateway.raw().try_upgrade(&gateway.path, "bob-token");
    assert_eq!(answer.status, 503);
    let from = Ipv4Addr::new(127, 0, 0, 2).into();
    assert_eq!(
        Raw::connect_from(from, gateway.addr).get("/healthz").status,
        200
    );
}

#[test]
fn a_client_of_openssls_is_served_with_either_version_and_resumes() {
    let gateway = Gateway::start(&settings());
    for version in ["-tls1_2", "-tls1_3"] {
        let session = gateway.directory.join(format!("session{version}"));
        let ask = |sessions: &[&str]| {
            let mut openssl = Command::new("openssl");
            openssl.args([
                "s_client",
                "-connect",
                &gateway.addr.to_string(),
                version,
                "-ign_eof",
            ]);
            openssl.args(sessions).arg(&session);
            let mut openssl = openssl
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::null())
                .spawn()
                .expect("openssl");
            let mut stdin = openssl.stdin.take().expect("piped");
            let head = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            stdin.write_all(head.as_bytes()).expect("it reads");
            let output = openssl.wait_with_output().expect("its end");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let first = ask(&["-sess_out"]);
        assert!(
            first.contains("HTTP/1.1 200") && first.contains("New, "),
            "{first}"
        );
        let second = ask(&["-sess_in"]);
        assert!(
            second.contains("HTTP/1.1 200") && second.contains("Reused, "),
            "{second}"
        );
    }
    for version in ["-tls1", "-tls1_1"] {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-connect", &gateway.addr.to_string(), version]);
        openssl.args(["-cipher", "ALL:@SECLEVEL=0"]);
        let output = openssl.stdin(std::process::Stdio::null()).output();
        let output = String::from_utf8_lossy(&output.expect("openssl").stderr).into_owned();
        assert!(output.contains("SSL alert number"), "{version}: {output}");
    }
}

/// What is wrong with the files is an error of the configuration.
#[test]
fn a_start_with_a_bad_pair_says_what_is_wrong() {
    let authority = Authority::new("an authority");
    let [one, other] = [(); 2].map(|()| authority.sign(&["localhost"]));
    let missing = Path::new("/nowhere/key.pem");
    for (cert, key, fault) in [
        (
            path(&one.cert),
            path(&other.key),
            "tls.key: does not belong to the certificate",
        ),
        (
            path(&one.key),
            path(&one.key),
            "tls.cert: holds no certificate",
        ),
        (
            path(&one.cert),
            path(missing),
            "tls.key: cannot read /nowhere/key.pem",
        ),
        (path(&one.cert), String::new(), "tls.key: is needed"),
    ] {
        let settings = chat::settings().set("tls.cert", cert).set("tls.key", key);
        let (mut process, _directory) = Gateway::launch(&settings, &[]);
        assert_eq!(process.exit_code(), 2, "{fault}");
        let said = process.stderr();
        assert!(said.contains(fault), "{fault}: {said}");
    }
}

#[test]
fn both_directions_at_full_rate_lose_nothing() {
    tls::both_ways(8, Duration::from_secs(4)).assert_sound();
}

/// Large pushes to clients that read late, through what TLS has half sent, with pings among them.
#[test]
fn pings_go_between_the_frames_of_a_client_that_is_behind() {
    let settings = settings()
        .set("session.ping_interval", "20ms")
        .set("session.idle_timeout", "30s")
        .set("limits.rate", 100_000)
        .set("limits.burst", 100_000)
        .set("session.send_queue_bytes", 64 << 20)
        .set("log.level", "info");
    let gateway = Gateway::start(&settings);
    let mut bob = gateway.connect("bob");
    let mut alice = gateway.connect("alice");
    let content = "x".repeat(60_000);
    let mut last = String::new();
    for _ in 0..300 {
        last = alice.send_message("bob", &content);
        alice.take_held();
    }
    let messages = bob.messages_until(&last);
    assert_eq!(messages.len(), 300);
    assert!(
        messages
            .iter()
            .all(|message| message["content"] == *content)
    );
    wait_until_within(Duration::from_secs(10), "bob is there", || {
        bob.request("ping", Value::Null)["type"] == "pong"
    });
    bob.close();
    assert_eq!(gateway.stop(), 0);
}
