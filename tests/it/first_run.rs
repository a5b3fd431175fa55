//! What a newcomer is told: where to go once it listens, and what to do where it cannot.

use std::net::TcpListener;
use std::process::Command;

use crate::chat;
use crate::support::broker::free_port;
use crate::support::cluster::remote;
use crate::support::process::Process;
use crate::support::raw::Raw;
use crate::support::{Gateway, Settings, wait_until};

/// What stands behind `name` in the lines after those that say where it listens.
fn told(gateway: &Gateway, name: &str) -> Option<String> {
    let stdout = gateway.stdout();
    let mut lines = stdout.lines();
    assert!(
        lines
            .next()
            .is_some_and(|line| line.starts_with("listening ws"))
    );
    assert!(
        lines
            .next()
            .is_some_and(|line| line.starts_with("listening admin http://"))
    );
    lines.find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
}

/// The last line is there.
fn has_told(gateway: &Gateway, last: &str) {
    wait_until("the banner is printed", || told(gateway, last).is_some());
}

/// Without TLS, whatever the rest of the suite does.
fn settings() -> Settings {
    let settings = chat::settings();
    settings.set("tls.cert", "").set("tls.key", "")
}

#[test]
fn the_start_says_where_to_go_and_each_of_it_works() {
    let gateway = Gateway::start(&settings());
    has_told(&gateway, "admin page");
    let page = told(&gateway, "chat page").expect("a page");
    assert_eq!(page, format!("http://{}/", gateway.addr));
    let page = gateway.get("/");
    assert_eq!(page.status, 200);
    assert!(page.body.contains("<html"), "{}", page.body);
    let admin = told(&gateway, "admin page").expect("a page");
    assert_eq!(admin, format!("http://{}/", gateway.admin.addr));
    assert_eq!(Raw::connect(gateway.admin.addr).get("/").status, 200);
    let tokens = told(&gateway, "tokens").expect("tokens");
    assert!(
        tokens.starts_with("alice-token, bob-token, carol-token"),
        "{tokens}"
    );
    assert!(!gateway.stdout().contains("member0-token"), "no one else's");

    let mut bob = gateway.connect("bob");
    let command = told(&gateway, "terminal").expect("a command");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("echo hi | {command}"));
    let mut shell = Process::start("the command", &mut shell);
    assert_eq!(shell.exit_code(), 0, "{command}: {}", shell.stderr());
    let message = bob.expect("message");
    assert_eq!(
        (&message["from_user_id"], &message["content"]),
        (&"alice".into(), &"hi".into())
    );
}

#[test]
fn it_says_only_what_is_true() {
    let mut settings = Settings::new().set("embedded.page", false);
    settings.put("tls.cert", "");
    settings.put("tls.key", "");
    settings.put_token("alice-token", "mallory");
    settings.put_token("a-secret-token", "zoe");
    let gateway = Gateway::start(&settings.set("admin.token", "an-operators-secret"));
    has_told(&gateway, "admin page");
    assert_eq!(told(&gateway, "chat page"), None);
    assert_eq!(
        told(&gateway, "tokens").as_deref(),
        Some("those of embedded.tokens")
    );
    let command = told(&gateway, "terminal").expect("a command");
    assert!(
        command.starts_with("GATEWAY_CHAT_TOKEN=TOKEN "),
        "{command}"
    );
    let admin = told(&gateway, "admin page").expect("a page");
    assert!(admin.ends_with("(asks for admin.token)"), "{admin}");
    for secret in ["alice-token", "a-secret-token", "an-operators-secret"] {
        assert!(!gateway.stdout().contains(secret), "{}", gateway.stdout());
    }
}

#[test]
fn without_broker_and_services_it_says_what_is_missing_and_what_to_do() {
    let port = free_port();
    let services = format!("http://127.0.0.1:{}", free_port());
    let broker = format!("amqp://me:s3cret@127.0.0.1:{port}/v");
    let gateway = Gateway::start(&remote(&settings(), &services, &broker));
    has_told(&gateway, "ready?");
    let needs = told(&gateway, "needs").expect("what it needs");
    let needed = format!("RabbitMQ at 127.0.0.1:{port}, services at {services}");
    assert_eq!(needs, needed);
    let ready = told(&gateway, "ready?").expect("where to look");
    let readyz = format!("http://{}/readyz", gateway.admin.addr);
    assert!(ready.starts_with(&readyz), "{ready}");
    assert_eq!(told(&gateway, "tokens"), None);
    let line = gateway.stderr_line("Broker down");
    for said in [
        &*format!("127.0.0.1:{port}"),
        "start RabbitMQ",
        "broker.url",
    ] {
        assert!(line.contains(said), "{said}: {line}");
    }
    let line = gateway.stderr_line("Service out of reach: service=user_service");
    assert!(line.contains("start it or mend [services]"), "{line}");
    for text in [gateway.stdout(), gateway.stderr()] {
        assert!(!text.contains("s3cret"), "{text}");
    }
    // The news was told, and a later try is none.
    let body = gateway.get("/readyz").body;
    assert!(body.contains("start RabbitMQ"), "{body}");
    assert_eq!(gateway.stderr().matches("start RabbitMQ").count(), 1);
}

#[test]
fn a_port_that_is_taken_is_named_with_its_key_and_the_cure() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("an address");
    let port = addr.port();
    for (key, variable) in [
        ("listen.addr", "GATEWAY_LISTEN__ADDR="),
        ("admin.addr", "GATEWAY_ADMIN__ADDR="),
    ] {
        let (mut process, _) = Gateway::launch(&settings().set(key, addr.to_string()), &[]);
        assert_eq!(process.exit_code(), 1);
        let told = process.stderr();
        let look = format!("`ss -ltnp 'sport = :{port}'`");
        for said in [&*addr.to_string(), key, variable, &look] {
            assert!(told.contains(said), "{said}: {told}");
        }
        assert_eq!(process.stdout(), "", "nothing listens");
    }
}

#[test]
fn an_address_that_is_not_this_machines_is_named_with_its_key() {
    // RFC 5737: nobody's.
    let settings = Settings::new().set("listen.addr", "192.0.2.1:0");
    let (mut process, _) = Gateway::launch(&settings, &[]);
    assert_eq!(process.exit_code(), 1);
    let told = process.stderr();
    for said in ["listen.addr", "192.0.2.1", "ip addr"] {
        assert!(told.contains(said), "{said}: {told}");
    }
}
