//! `ws-gateway check` warns of what is risky, and with `--connect` says what is there and what is not.

use amiquip::ExchangeType;
use toml::Table;

use crate::support::amqp::Amqp;
use crate::support::broker::{Broker, free_port};
use crate::support::cluster::remote;
use crate::support::etcd::Etcd;
use crate::support::gateway::{Outcome, Services, run};
use crate::support::{Gateway, Settings, watchdog};

fn check(settings: &Settings, more: &[&str]) -> Outcome {
    let file = settings.write(&watchdog::directory("check"));
    let config = file.display().to_string();
    run(&[&["check", "--config", &config], more].concat(), &[])
}

/// What `--connect` found, behind the configuration.
#[derive(Debug)]
struct Findings {
    code: i32,
    lines: Vec<String>,
    stderr: String,
}

fn connect(settings: &Settings) -> Findings {
    let outcome = check(settings, &["--connect"]);
    let is_finding = |line: &&str| line.starts_with("ok: ") || line.starts_with("failed: ");
    let (lines, configuration): (Vec<_>, Vec<_>) = outcome.stdout.lines().partition(is_finding);
    assert!(
        configuration.join("\n").parse::<Table>().is_ok(),
        "{outcome:?}"
    );
    let lines = lines.into_iter().map(String::from).collect();
    Findings {
        code: outcome.code,
        lines,
        stderr: outcome.stderr,
    }
}

impl Findings {
    fn failed(&self) -> Vec<&str> {
        let failed = self
            .lines
            .iter()
            .filter(|line| line.starts_with("failed: "));
        failed.map(String::as_str).collect()
    }

    fn is_ok(&self, what: &str) -> bool {
        let mut ok = self.lines.iter().filter(|line| line.starts_with("ok: "));
        ok.any(|line| line.contains(what))
    }

    /// One thing keeps the gateway from being ready, and its line holds these words.
    fn fails_with(&self, words: &[&str]) {
        let failed = self.failed();
        assert_eq!((self.code, failed.len()), (1, 1), "{self:?}");
        for word in words {
            assert!(failed[0].contains(word), "{word}: {}", failed[0]);
        }
        assert!(self.stderr.contains("would not be ready"), "{self:?}");
    }
}

/// A virtual host that nobody else has, services that use it, and what a gateway would be told.
fn backend(broker: &Broker) -> (Services, String, Settings) {
    let url = broker.vhost();
    let services = Services::start(&Settings::new(), &url);
    // Enough of everything, wherever this runs.
    let settings = Settings::new().set("limits.max_connections", 10);
    let settings = remote(&settings, &services.url(), &url).set("gateway.id", "checked");
    (services, url, settings)
}

fn queues(broker: &Broker, url: &str) -> String {
    let vhost = url.rsplit('/').next().expect("a virtual host");
    broker.rabbitmqctl(&["-p", vhost, "list_queues", "--no-table-headers", "name"])
}

#[test]
fn what_is_risky_is_warned_of_and_is_no_error() {
    let risky = Settings::new()
        .set("listen.addr", "0.0.0.0:0")
        .set("admin.addr", "0.0.0.0:0")
        .set("backend.mode", "remote")
        .set("broker.url", "amqp://guest:s3cret@localhost")
        .set("session.ping_interval", "60s")
        .set("session.idle_timeout", "3m");
    let outcome = check(&risky, &[]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stdout.parse::<Table>().is_ok(), "{outcome:?}");
    let keys: Vec<_> = outcome
        .stderr
        .lines()
        .map(|line| line.strip_prefix("warning: ").expect("a warning"))
        .map(|line| line.split(": ").next().expect("a key"))
        .collect();
    let risks = [
        "listen.allowed_origins",
        "tls.cert",
        "session.ping_interval",
        "broker.url",
        "admin.token",
    ];
    assert_eq!(keys, risks);
    assert!(!outcome.stderr.contains("s3cret"), "{outcome:?}");

    let safe = Settings::new().set("listen.allowed_origins", vec!["https://chat.example.com"]);
    assert_eq!(check(&safe, &[]).stderr, "");
}

#[test]
fn services_are_looked_for_where_etcd_says() {
    let broker = Broker::shared();
    let (services, _url, settings) = backend(&broker);
    let mut etcd = Etcd::start();
    let mut settings = settings.set("discovery.endpoints", vec![etcd.url()]);
    let found = connect(&settings);
    assert_eq!((found.code, found.failed()), (0, vec![]), "{found:?}");
    assert!(
        found.is_ok(&format!("etcd at {} answers", etcd.url())),
        "{found:?}"
    );
    for (key, name) in [
        ("user", "users"),
        ("message", "messages"),
        ("presence", "presence"),
    ] {
        settings.put(&format!("services.{key}"), format!("etcd:///{name}"));
        etcd.put(&format!("/services/{name}/1"), services.url());
    }
    let found = connect(&settings);
    assert_eq!((found.code, found.failed()), (0, vec![]), "{found:?}");
    assert!(
        found.is_ok(&format!("Message Service at {} answers", services.url())),
        "{found:?}"
    );
    etcd.delete("/services/messages/1");
    connect(&settings)
        .fails_with(&["services.message: etcd knows no address under /services/messages/"]);
    etcd.kill9();
    connect(&settings).fails_with(&["etcd at", "mend discovery.endpoints"]);
}

#[test]
fn embedded_nothing_but_the_system_is_looked_at() {
    let settings = Settings::new().set("limits.max_connections", 10);
    let found = connect(&settings);
    assert_eq!((found.code, found.failed()), (0, vec![]), "{found:?}");
    assert!(found.is_ok("backend.mode"), "{found:?}");
    for resource in [
        "descriptors: RLIMIT_NOFILE",
        "threads: ",
        "memory mappings: ",
    ] {
        assert!(found.is_ok(resource), "{resource}: {found:?}");
    }
}

/// It is lowered to what fits, so the gateway would be ready all the same.
#[test]
fn a_system_that_grants_too_little_is_told() {
    let found = connect(&Settings::new().set("limits.max_connections", 100_000_000));
    assert_eq!(found.code, 0, "{found:?}");
    let failed = found.failed();
    let threads = failed.iter().find(|line| line.contains("kernel.pid_max"));
    assert!(
        threads.expect("a line").contains("needs 200000500"),
        "{found:?}"
    );
}

#[test]
fn all_is_well_also_beside_the_gateway_itself_and_nothing_is_left() {
    let broker = Broker::shared();
    let (_services, url, settings) = backend(&broker);
    // It declares what all share.
    let gateway = Gateway::start(&settings);
    gateway.wait_ready();
    let before = queues(&broker, &url);
    let beside = connect(&settings);
    assert_eq!((beside.code, beside.failed()), (0, vec![]), "{beside:?}");
    assert!(gateway.is_ready());
    assert_eq!(queues(&broker, &url), before);

    assert_eq!(gateway.stop(), 0);
    let found = connect(&settings);
    assert_eq!((found.code, found.failed()), (0, vec![]), "{found:?}");
    for what in [
        "RabbitMQ ",
        "logged in as guest",
        "default queue type is classic",
        "a queue may be declared",
        "exchange im.direct is as it must be",
        "exchange im.topic is as it must be",
        "exchange im.dead-letter is as it must be",
        "dead letters may be kept",
        "a queue may be consumed from",
        "User Service at http://",
        "Message Service at http://",
        "Presence Service at http://",
    ] {
        assert!(found.is_ok(what), "{what}: {found:?}");
    }
    assert_eq!(queues(&broker, &url).trim(), "queue.dead-letter");
}

#[test]
fn an_empty_virtual_host_stays_empty() {
    let broker = Broker::shared();
    let (url, elsewhere) = (broker.vhost(), broker.vhost());
    let services = Services::start(&Settings::new(), &elsewhere);
    let settings = Settings::new().set("limits.max_connections", 10);
    let found = connect(&remote(&settings, &services.url(), &url));
    assert_eq!((found.code, found.failed()), (0, vec![]), "{found:?}");
    assert!(
        found.is_ok("exchange im.direct is not there yet"),
        "{found:?}"
    );
    assert_eq!(queues(&broker, &url), "");
    let vhost = url.rsplit('/').next().expect("a virtual host");
    let exchanges = broker.rabbitmqctl(&["-p", vhost, "list_exchanges", "name"]);
    assert!(!exchanges.contains("im."), "{exchanges}");
}

#[test]
fn another_default_queue_type_is_told() {
    let broker = Broker::shared();
    let (_services, url, settings) = backend(&broker);
    let vhost = "check-quorum";
    broker.rabbitmqctl(&["add_vhost", vhost, "--default-queue-type", "quorum"]);
    broker.rabbitmqctl(&["set_permissions", "-p", vhost, "guest", ".*", ".*", ".*"]);
    let (host, _) = url.rsplit_once('/').expect("a host");
    let url = format!("{host}/{vhost}");
    let found = connect(&settings.set("broker.url", url.as_str()));
    assert_eq!((found.code, found.failed()), (0, vec![]), "{found:?}");
    assert!(found.is_ok("default queue type is quorum"), "{found:?}");
    assert_eq!(queues(&broker, &url), "");
}

#[test]
fn a_broker_that_is_away_is_told_with_its_address() {
    let (_services, _, settings) = backend(&Broker::shared());
    let nobody = format!("127.0.0.1:{}", free_port());
    let settings = settings.set("broker.url", format!("amqp://me:s3cret@{nobody}"));
    let found = connect(&settings);
    found.fails_with(&[&nobody, "start RabbitMQ", "broker.url"]);
    assert!(!format!("{found:?}").contains("s3cret"), "{found:?}");
}

#[test]
fn a_wrong_password_and_a_wrong_virtual_host_are_told() {
    let (_services, url, settings) = backend(&Broker::shared());
    let wrong = url.replace("guest:guest", "guest:s3cret");
    let found = connect(&settings.clone().set("broker.url", wrong));
    found.fails_with(&["refused", "password", "broker.url"]);
    assert!(!format!("{found:?}").contains("s3cret"), "{found:?}");

    let nowhere = format!("{}/nowhere", url.rsplit_once('/').expect("a host").0);
    let found = connect(&settings.set("broker.url", nowhere));
    found.fails_with(&["refused", "nowhere", "add_vhost"]);
}

#[test]
fn a_missing_permission_is_told_with_what_grants_it() {
    let broker = Broker::shared();
    let (_services, url, settings) = backend(&broker);
    // It declares what all share.
    Gateway::start(&settings).wait_ready();
    let vhost = url.rsplit('/').next().expect("a virtual host");
    let user = format!("user-{vhost}");
    broker.rabbitmqctl(&["add_user", &user, "pw"]);
    let url = url.replace("guest:guest", &format!("{user}:pw"));
    let settings = settings.set("broker.url", url);
    let permit = |configure: &str, write: &str, read: &str| {
        broker.rabbitmqctl(&[
            "set_permissions",
            "-p",
            vhost,
            &user,
            configure,
            write,
            read,
        ]);
    };
    let grants = format!("rabbitmqctl set_permissions -p {vhost} {user}");

    // None at all: it may not even enter.
    connect(&settings).fails_with(&["refused", vhost, "set_permissions"]);

    let own = r"^(im\.|queue\.)";
    permit(own, own, own);
    let found = connect(&settings);
    assert_eq!((found.code, found.failed()), (0, vec![]), "{found:?}");

    permit(own, own, r"^(im\.d|queue\.)");
    connect(&settings).fails_with(&["im.topic", "ACCESS_REFUSED", &grants]);

    permit(r"^queue\.", own, own);
    let found = connect(&settings);
    assert_eq!(
        (found.code, found.failed().len()),
        (1, 3),
        "no exchange: {found:?}"
    );

    permit("^$", own, own);
    let found = connect(&settings);
    assert_eq!(found.code, 1, "{found:?}");
    let failed = found.failed();
    assert!(
        failed
            .iter()
            .any(|line| line.contains("queue.gateway.checked.check-")),
        "{failed:?}"
    );
    assert!(
        failed.iter().all(|line| line.contains(&grants)),
        "{failed:?}"
    );
}

#[test]
fn an_exchange_that_is_not_as_it_must_be_is_told_with_the_way_out() {
    let broker = Broker::shared();
    let (_services, _, settings) = backend(&broker);
    let url = broker.vhost();
    Amqp::open(&url).declare_exchange("im.topic", ExchangeType::Fanout);
    let found = connect(&settings.set("broker.url", url));
    found.fails_with(&["im.topic", "delete it", "start the gateway"]);
}

#[test]
fn services_that_are_away_are_told_each_with_its_key() {
    let (services, _, settings) = backend(&Broker::shared());
    let nobody = format!("http://127.0.0.1:{}", free_port());
    for (key, name) in [
        ("services.user", "User Service"),
        ("services.message", "Message Service"),
    ] {
        let found = connect(&settings.clone().set(key, nobody.as_str()));
        found.fails_with(&[name, &nobody, "start it there", key]);
    }
    // Neither is needed to be ready.
    let both = vec![services.url(), nobody.clone()];
    for (key, value) in [
        ("services.presence", vec![nobody.clone()]),
        ("services.user", both),
    ] {
        let found = connect(&settings.clone().set(key, value));
        assert_eq!((found.code, found.failed().len()), (0, 1), "{found:?}");
        let failed = found.failed()[0].to_owned();
        assert!(
            failed.contains(&nobody) && failed.contains("ready without it"),
            "{failed}"
        );
    }
    drop(services);
    let found = connect(&settings);
    assert_eq!((found.code, found.failed().len()), (1, 3), "{found:?}");
}
