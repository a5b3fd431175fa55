//! TLS towards the broker and towards the services: a deployment over it, and what is told of
//! certificates that are not as they must be.

use std::net::{SocketAddr, TcpListener};

use crate::chat;
use crate::scenarios::broker::killed_under;
use crate::scenarios::flow::Load;
use crate::support::backend::Backend;
use crate::support::broker::{Broker, free_port};
use crate::support::certificates::{Authority, Identity, path, self_signed};
use crate::support::cluster::remote;
use crate::support::etcd::Etcd;
use crate::support::gateway::{Outcome, Services, run};
use crate::support::terminator::Terminator;
use crate::support::{Cluster, Gateway, Settings, wait_until, watchdog};

const LOCAL: [&str; 2] = ["localhost", "127.0.0.1"];

/// An authority, and a broker with a certificate of its own.
fn broker() -> (Authority, std::sync::Arc<Broker>) {
    let authority = Authority::new("the broker's authority");
    let Identity { cert, key } = authority.sign(&LOCAL);
    let broker = Broker::private_with_tls([&cert, &key]);
    (authority, broker)
}

fn check(settings: &Settings) -> Outcome {
    let file = settings.write(&watchdog::directory("check"));
    let config = file.display().to_string();
    run(&["check", "--config", &config, "--connect"], &[])
}

/// `what` was found in order.
fn is_ok(outcome: &Outcome, what: &str) -> bool {
    let mut lines = outcome.stdout.lines();
    lines.any(|line| line.starts_with("ok: ") && line.contains(what))
}

#[test]
fn two_gateways_and_the_services_chat_over_amqps() {
    let (authority, broker) = broker();
    let ca = path(authority.file());
    let settings = chat::settings().set("broker.ca", ca);
    let cluster = Cluster::on(broker.clone(), &settings, 2);
    chat::single_chat(&cluster);
    chat::large_group_chat(&cluster);
    let connections = broker.rabbitmqctl(&[
        "list_connections",
        "ssl",
        "ssl_protocol",
        "--no-table-headers",
    ]);
    let lines: Vec<_> = connections.lines().collect();
    assert!(
        lines.len() >= 3,
        "two gateways and the services: {connections}"
    );
    let are_all = lines.iter().all(|line| line.starts_with("true\ttlsv1.3"));
    assert!(are_all, "{connections}");

    let outcome = check(
        &cluster
            .settings("checked")
            .set("limits.max_connections", 10),
    );
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(is_ok(&outcome, "logged in as guest"), "{outcome:?}");
    assert!(is_ok(&outcome, "RabbitMQ 3."), "{outcome:?}");
}

/// Bodies of many records each, one close upon the other.
#[test]
fn large_messages_come_whole_over_amqps() {
    const COUNT: usize = 30;
    let (authority, broker) = broker();
    let settings = chat::settings()
        .set("broker.ca", path(authority.file()))
        .set("limits.max_message_size", 2 << 20)
        .set("limits.rate", 1000)
        .set("limits.burst", 1000)
        .set("session.send_queue_bytes", 1 << 30);
    let cluster = Cluster::on(broker, &settings, 2);
    let (mut alice, mut bob) = (cluster.connect(0, "alice"), cluster.connect(1, "bob"));
    let content = |from: &str, number: usize| format!("{from}{number:04}").repeat(150_000);
    let mut sent = Vec::new();
    for number in 0..COUNT {
        let to_bob = alice.send_message("bob", &content("a", number));
        let to_alice = bob.send_message("alice", &content("b", number));
        sent.push((to_bob, to_alice));
    }
    for (number, (to_bob, to_alice)) in sent.iter().enumerate() {
        let came = bob.expect_message(to_bob);
        assert!(came["content"] == content("a", number), "{number} to bob");
        let came = alice.expect_message(to_alice);
        assert!(came["content"] == content("b", number), "{number} to alice");
    }
    for gateway in &cluster.gateways {
        let log = gateway.stderr();
        assert!(!log.contains("Broker down"), "{log}");
        assert!(
            !log.contains("Fell back to the inbox"),
            "by the broker: {log}"
        );
    }
}

#[test]
fn an_amqps_broker_that_is_killed_under_load_loses_nothing_and_nobody() {
    const LOAD: Load = Load {
        users: 8,
        messages: 3_000,
        rate: 150,
    };
    let (authority, broker) = broker();
    let settings = LOAD.settings().set("broker.ca", path(authority.file()));
    killed_under(&Cluster::on(broker, &settings, 2), LOAD).assert_sound();
}

/// Servers at `target` behind certificates that are not as they must be, each at a port of its own;
/// the first one's is good. And what is said of each other one.
struct Faults {
    authority: Authority,
    terminator: Terminator,
    target: SocketAddr,
    told: Vec<&'static [&'static str]>,
}

impl Faults {
    fn before(target: SocketAddr) -> Self {
        let authority = Authority::new("the authority");
        let faults: [(Identity, &[&str]); 5] = [
            (
                authority.sign(&["mq.example"]),
                &["certificate is for mq.example, not for localhost"],
            ),
            (
                authority.sign_expired(&LOCAL),
                &["certificate expired on 2020-12-31"],
            ),
            (
                authority.sign_premature(&LOCAL),
                &["not valid before 2090-01-01"],
            ),
            (self_signed(&LOCAL), &["self-signed", "ca.pem"]),
            (
                Authority::new("another").sign(&LOCAL),
                &["by an authority that is not among", "ca.pem"],
            ),
        ];
        let good = authority.sign(&LOCAL);
        let identities: Vec<_> = [&good]
            .into_iter()
            .chain(faults.iter().map(|(identity, _)| identity))
            .collect();
        let terminator = Terminator::start(&identities, target);
        Self {
            terminator,
            target,
            told: faults.iter().map(|(_, told)| *told).collect(),
            authority,
        }
    }

    fn good_port(&self) -> u16 {
        self.terminator.ports[0]
    }

    /// The port of each fault, and what is said of it.
    fn each(&self) -> impl Iterator<Item = (u16, &[&str])> {
        let ports = self.terminator.ports[1..].iter().copied();
        ports.zip(self.told.iter().copied())
    }

    /// From now on all certificates are good.
    fn heal(self) -> Terminator {
        let Self {
            authority,
            terminator,
            target,
            ..
        } = self;
        let ports = terminator.ports.clone();
        drop(terminator);
        let good = authority.sign(&LOCAL);
        Terminator::start_at(&ports, &vec![&good; ports.len()], target)
    }
}

/// A gateway says so in its log and in `/readyz`, and `check` does.
fn is_told(settings: &Settings, log: &str, words: &[&str]) -> Gateway {
    let gateway = Gateway::start(settings);
    let is_it = |line: &&str| line.contains(log) && words.iter().all(|word| line.contains(word));
    wait_until(format!("{log} with {words:?}"), || {
        gateway.stderr().lines().any(|line| is_it(&line))
    });
    let logged = gateway.stderr();
    let ready = gateway.get("/readyz");
    assert_eq!(ready.status, 503, "{ready:?}");
    let outcome = check(settings);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    for word in words {
        assert!(ready.body.contains(word), "{word}: {ready:?}");
        let mut failed = outcome.stdout.lines();
        let is_told = failed.any(|line| line.starts_with("failed: ") && line.contains(word));
        assert!(is_told, "{word}: {outcome:?}");
    }
    for text in [&logged, &ready.body, &outcome.stdout, &outcome.stderr] {
        assert!(!text.contains("s3cret"), "{text}");
    }
    gateway
}

#[test]
fn what_is_wrong_with_the_brokers_certificate_is_told_and_mended_without_a_restart() {
    let broker = Broker::shared();
    let backend = Backend::start();
    let faults = Faults::before(broker.addr);
    let vhost = broker.vhost().rsplit('/').next().unwrap().to_owned();
    let settings = |scheme: &str, port: u16| {
        let url = format!("{scheme}://guest:guest@localhost:{port}/{vhost}");
        remote(&Settings::new(), &backend.url(), &url)
            .set("broker.ca", path(faults.authority.file()))
            .set("limits.max_connections", 10)
            .set("gateway.id", format!("g{port}"))
    };
    Gateway::start(&settings("amqps", faults.good_port())).wait_ready();
    let mut gateways = Vec::new();
    for (port, words) in faults.each() {
        gateways.push(is_told(&settings("amqps", port), "Broker down", words));
    }
    let log = "Broker down";
    is_told(
        &settings("amqps", broker.addr.port()),
        log,
        &["does not speak TLS at this port"],
    );
    is_told(&settings("amqp", faults.good_port()), log, &["amqps://"]);

    // The services say it too.
    let (port, words) = faults.each().next().expect("a fault");
    let url = format!("amqps://guest:s3cret@localhost:{port}/{vhost}");
    let with_users = Settings::new().set("broker.ca", path(faults.authority.file()));
    let services = Services::start(&with_users.clone().users(["alice"]), &url);
    // There is something to publish: alice's session is revoked.
    services.reload(&with_users);
    let said = services.stderr_line("certificate");
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    assert!(!services.stderr().contains("s3cret"));

    let _healed = faults.heal();
    for gateway in &gateways {
        gateway.wait_ready();
    }
}

#[test]
fn a_cluster_calls_its_services_over_https() {
    let (url, broker) = (Broker::shared().vhost(), Broker::shared());
    let settings = chat::settings();
    let services = Services::start(&settings, &url);
    let faults = Faults::before(services.addr);
    let port = faults.good_port();
    let base = remote(&settings, &format!("https://localhost:{port}"), &url);
    let ca = path(faults.authority.file());

    // By name and by address; the authority by its key, or as one of the system's.
    let by_key = base
        .clone()
        .set("services.ca", ca.as_str())
        .set("gateway.id", "g0");
    let first = Gateway::start(&by_key);
    let by_address = format!("https://127.0.0.1:{port}/");
    let of_system = remote(&settings, &by_address, &url).set("gateway.id", "g1");
    let (process, directory) = Gateway::launch(&of_system, &[("SSL_CERT_FILE", &ca)]);
    let second = Gateway::listening(process, directory);
    first.wait_ready();
    second.wait_ready();
    let (mut alice, mut bob) = (first.connect("alice"), second.connect("bob"));
    let id = alice.send_message("bob", "over TLS");
    assert_eq!(bob.expect_message(&id)["content"], "over TLS");
    let outcome = check(&by_key.set("limits.max_connections", 10));
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(is_ok(
        &outcome,
        &format!("User Service at https://localhost:{port} answers")
    ));
    drop(broker);

    // Whom the system does not know is refused.
    let untrusting = base.set("gateway.id", "g2");
    let stranger = Authority::new("a stranger");
    let (process, directory) =
        Gateway::launch(&untrusting, &[("SSL_CERT_FILE", &path(stranger.file()))]);
    let third = Gateway::listening(process, directory);
    let line = third.stderr_line("Service out of reach");
    assert!(
        line.contains("not among the system's (services.ca is empty)"),
        "{line}"
    );
}

#[test]
fn what_is_wrong_with_a_services_certificate_is_told_and_mended_without_a_restart() {
    let url = Broker::shared().vhost();
    let backend = Backend::start();
    let faults = Faults::before(backend.addr);
    let settings = |scheme: &str, port: u16| {
        remote(
            &Settings::new(),
            &format!("{scheme}://localhost:{port}"),
            &url,
        )
        .set("services.ca", path(faults.authority.file()))
        .set("limits.max_connections", 10)
        .set("gateway.id", format!("g{port}"))
    };
    Gateway::start(&settings("https", faults.good_port())).wait_ready();
    let mut gateways = Vec::new();
    for (port, words) in faults.each() {
        gateways.push(is_told(
            &settings("https", port),
            "Service out of reach",
            words,
        ));
    }
    let plain = backend.addr.port();
    let words = ["does not speak TLS at this port"];
    is_told(&settings("https", plain), "Service out of reach", &words);
    let log = "Service out of reach";
    is_told(&settings("http", faults.good_port()), log, &["https://"]);

    let _healed = faults.heal();
    for gateway in &gateways {
        gateway.wait_ready();
    }
}

/// As behind a cable that is pulled in the middle of it.
#[test]
fn a_handshake_that_hangs_is_given_up() {
    let (url, backend) = (Broker::shared().vhost(), Backend::start());
    let authority = Authority::new("the authority");
    let silent = TcpListener::bind(("127.0.0.1", free_port())).expect("a free port");
    let port = silent.local_addr().expect("an address").port();
    let settings = remote(&Settings::new(), &format!("https://localhost:{port}"), &url)
        .set("services.ca", path(authority.file()))
        .set("services.timeout", "500ms");
    let gateway = Gateway::start(&settings);
    // The connections stay open, and nobody answers there.
    let open: Vec<_> = silent.incoming().take(2).collect();
    gateway.stderr_line("did not answer in time");
    drop(silent);
    let _terminator = Terminator::start_at(&[port], &[&authority.sign(&LOCAL)], backend.addr);
    gateway.wait_ready();
    drop(open);
}

#[cfg(feature = "discovery")]
#[test]
fn services_that_etcd_names_are_called_over_https() {
    let (url, etcd, backend) = (Broker::shared().vhost(), Etcd::start(), Backend::start());
    let authority = Authority::new("the authority");
    let good = authority.sign(&LOCAL);
    let terminator = Terminator::start(&[&good], backend.addr);
    let settings = remote(&Settings::new(), "etcd:///im", &url)
        .set("discovery.endpoints", vec![etcd.url()])
        .set("services.ca", path(authority.file()));
    etcd.put(
        "/services/im/1",
        format!("https://localhost:{}", terminator.ports[0]),
    );
    Gateway::start(&settings).wait_ready();
}

/// Whatever is to be started.
#[test]
fn an_authority_that_is_not_there_is_an_error_of_the_configuration() {
    let directory = watchdog::directory("authorities");
    let file = |name: &str, text: &str| {
        let file = directory.join(name);
        std::fs::write(&file, text).expect("a file");
        path(file)
    };
    let key = path(Authority::new("a").sign(&LOCAL).key);
    for (ca, why) in [
        (path(directory.join("none.pem")), "cannot be read"),
        (file("empty.pem", ""), "holds no certificate"),
        (
            file("text.pem", "no certificate at all\n"),
            "holds no certificate",
        ),
        (key, "holds no certificate"),
    ] {
        for name in ["services.ca", "broker.ca"] {
            let settings = Settings::new().set(name, ca.as_str());
            let config = path(settings.write(&watchdog::directory("refused")));
            for command in [&["check"][..], &[], &["services"]] {
                let outcome = run(&[command, &["--config", &config]].concat(), &[]);
                assert_eq!(
                    (outcome.code, outcome.stdout.as_str()),
                    (2, ""),
                    "{outcome:?}"
                );
                let told = format!("{config}: {name}: {ca}: {why}");
                assert!(outcome.stderr.contains(&told), "{told}: {outcome:?}");
            }
        }
    }
    let variable = "GATEWAY_SERVICES__CA";
    let outcome = run(&["check"], &[(variable, "/nowhere.pem")]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(
        outcome
            .stderr
            .contains(&format!("{variable}: services.ca: /nowhere.pem")),
        "{outcome:?}"
    );

    // No system is without authorities, unless it is told so.
    let url = format!("amqps://localhost:{}", free_port());
    let settings = remote(&Settings::new(), "http://127.0.0.1:1", &url);
    let config = path(settings.write(&watchdog::directory("refused")));
    let nobody = [
        ("SSL_CERT_FILE", "/nowhere.pem"),
        ("SSL_CERT_DIR", "/nowhere"),
    ];
    let outcome = run(&["check", "--config", &config], &nobody);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(
        outcome
            .stderr
            .contains("broker.ca: is empty, and the system has no authorities"),
        "{outcome:?}"
    );
}
