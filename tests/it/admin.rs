//! The admin listener: every path, who may ask, and what an operator learns.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::chat;
use crate::support::admin::Admin;
use crate::support::backend::Backend;
use crate::support::cluster::remote;
use crate::support::raw::{Raw, Response, UPGRADE};
use crate::support::settings::token_of;
use crate::support::{Client, Gateway, wait_until};

/// Paths that are read, and those that act.
const READ: [&str; 6] = [
    "/",
    "/healthz",
    "/readyz",
    "/metrics",
    "/connections",
    "/disconnects",
];
const ACT: [&str; 3] = ["/drain", "/undrain", "/users/alice/disconnect"];

fn start() -> Gateway {
    let gateway = Gateway::start(&chat::settings());
    gateway.wait_ready();
    gateway
}

#[test]
fn every_path_answers_the_methods_that_it_knows() {
    let gateway = start();
    let admin = &gateway.admin;
    for path in READ {
        let page = admin.get(path);
        assert_eq!(page.status, 200, "{path}: {page:?}");
        assert!(!page.body.is_empty(), "{path}");
        // The length of a page that changes with time is another one a moment later.
        let head = admin.ask("HEAD", path, &[("Connection", "close")]);
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        assert!(head.header("content-length") != Some("0"), "{path}");
        let wrong = admin.post(path);
        assert_eq!(wrong.status, 405, "{path}");
        assert_eq!(wrong.header("allow"), Some("GET, HEAD, OPTIONS"));
    }
    for path in ACT {
        let wrong = admin.get(path);
        assert_eq!(wrong.status, 405, "{path}");
        assert_eq!(wrong.header("allow"), Some("POST, OPTIONS"), "{path}");
        assert_eq!(admin.post(path).status, 200, "{path}");
    }
    for (method, path) in [
        ("GET", "/nowhere"),
        ("POST", "/nowhere"),
        ("GET", "/users/alice"),
        ("POST", "/users//disconnect/x"),
    ] {
        let missing = admin.ask(method, path, &[]);
        assert_eq!(missing.status, 404, "{method} {path}");
        assert_eq!(missing.json()["code"], "NOT_FOUND", "{method} {path}");
    }
    let strange = admin.ask("BREW", "/", &[]);
    assert_eq!(strange.status, 405);
    let options = admin.ask("OPTIONS", "/drain", &[]);
    assert_eq!(options.status, 200);
    assert_eq!(options.header("allow"), Some("POST, OPTIONS"));
    // It lets no other origin read or act.
    assert_eq!(options.header("access-control-allow-origin"), None);
}

#[test]
fn a_connection_is_kept_as_long_as_the_client_likes() {
    let gateway = start();
    let admin = &gateway.admin;
    let mut raw = Raw::connect(admin.addr);
    for _ in 0..3 {
        raw.send(admin.head("GET", "/healthz", &[]));
        let kept = raw.response();
        assert_eq!((kept.status, kept.body.as_str()), (200, "ok\n"));
        assert_eq!(kept.header("connection"), Some("keep-alive"));
    }
    // Two at once are answered one after the other.
    let two = admin.head("GET", "/healthz", &[]) + &admin.head("GET", "/nowhere", &[]);
    raw.send(two);
    assert_eq!((raw.response().status, raw.response().status), (200, 404));
    raw.send(admin.head("GET", "/healthz", &[("Connection", "close")]));
    let last = raw.response();
    assert_eq!(last.header("connection"), Some("close"));
    raw.expect_end();

    let mut old = Raw::connect(admin.addr);
    old.send("GET /healthz HTTP/1.0\r\n\r\n");
    assert_eq!(old.response().header("connection"), Some("close"));
    old.expect_end();

    let mut broken = Raw::connect(admin.addr);
    broken.send("GET / HTTP/9.9\r\n\r\n");
    assert_eq!(broken.response().status, 400);
    broken.expect_end();
}

#[test]
fn a_token_is_asked_for_where_something_is_about_somebody() {
    let gateway = Gateway::start(&chat::settings().set("admin.token", "s3cret"));
    gateway.wait_ready();
    let none = &gateway.admin;
    let (wrong, right) = (none.with_token("s3cres"), none.with_token("s3cret"));
    for path in ["/", "/healthz", "/readyz"] {
        assert_eq!(none.get(path).status, 200, "{path}");
    }
    for path in ["/metrics", "/connections", "/disconnects"] {
        for admin in [
            none,
            &wrong,
            &none.with_token("s3cret1"),
            &none.with_token(""),
        ] {
            let denied = admin.get(path);
            assert_eq!(denied.status, 401, "{path}");
            assert_eq!(denied.header("www-authenticate"), Some("Bearer"));
        }
        assert_eq!(right.get(path).status, 200, "{path}");
    }
    for path in ACT {
        assert_eq!(none.post(path).status, 401, "{path}");
        assert_eq!(right.post(path).status, 200, "{path}");
    }
}

#[test]
fn a_web_page_can_neither_act_nor_look() {
    let gateway = start();
    let admin = &gateway.admin;
    let port = admin.addr.port();
    // A form or a link sets no header field of its own.
    let form = admin.ask("POST", "/drain", &[]);
    assert_eq!(form.status, 403, "{form:?}");
    assert!(form.body.contains("X-Gateway-Admin"), "{form:?}");
    assert!(gateway.is_ready(), "nothing was done");
    // A name that was made to point here.
    let act = |host: &str| {
        let headers = [("Host", host), ("X-Gateway-Admin", "1")];
        admin.ask("POST", "/undrain", &headers).status
    };
    let look = |host: &str| admin.ask("GET", "/connections", &[("Host", host)]).status;
    for host in [
        "evil.example",
        &format!("evil.example:{port}"),
        "127.0.0.1.evil.example",
    ] {
        assert_eq!((act(host), look(host)), (421, 421), "{host}");
    }
    for host in [
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}"),
        "LOCALHOST".into(),
        format!("[::1]:{port}"),
    ] {
        assert_eq!((act(&host), look(&host)), (200, 200), "{host}");
    }
    // A scraper may know it by any name.
    let scraped = admin.ask("GET", "/metrics", &[("Host", "gateway-1.internal:9090")]);
    assert_eq!(scraped.status, 200);
}

/// Of the connections that `/connections` shows, the one of this user.
fn connection_of(admin: &Admin, user: &str) -> Value {
    let shown = admin.json(&format!("/connections?user={user}"));
    let connections = shown["connections"].as_array().expect("a list");
    assert_eq!(connections.len(), 1, "{shown}");
    connections[0].clone()
}

#[test]
fn connections_are_shown_with_what_they_do() {
    let backend = Backend::start();
    backend.slow("SendMessage", Duration::from_secs(1));
    let settings = remote(&chat::settings(), &backend.url(), "amqp://127.0.0.1:1/")
        .set("listen.trusted_proxies", vec!["127.0.0.0/8"])
        .set("session.ping_interval", "200ms");
    let gateway = Gateway::start(&settings);
    let admin = &gateway.admin;
    let mut alice = gateway.connect_cold("alice");
    let mut bob = gateway.raw();
    let bearer = format!("Bearer {}", token_of("bob"));
    let mut headers = UPGRADE.to_vec();
    headers.extend([
        ("Authorization", &*bearer),
        ("X-Forwarded-For", "192.0.2.7"),
    ]);
    assert_eq!(bob.get_with(&gateway.path, &headers).status, 101);

    let bob = connection_of(admin, "bob");
    assert_eq!(bob["address"], "192.0.2.7");
    assert_eq!(bob["address_source"], "x_forwarded_for");
    assert_eq!(bob["reader"], "reading");
    let by_address = admin.json("/connections?address=192.0.2.7");
    assert_eq!(by_address["connections"][0]["id"], bob["id"]);

    let message = json!({ "to_user_id": "bob", "content": "hello", "client_message_id": "c-1" });
    let request = alice.send_request("send_message", message);
    wait_until("the reader thread is in the call", || {
        let reader = connection_of(admin, "alice")["reader"].clone();
        let reader = reader.as_str().expect("a text");
        reader.starts_with("SendMessage since ") && reader.ends_with(" s")
    });
    alice.answer(&request);
    wait_until(
        "the reader thread reads again, and has heard a pong",
        || {
            alice.next_event(Duration::from_millis(20));
            let shown = connection_of(admin, "alice");
            shown["reader"] == "reading" && shown["round_trip_seconds"].is_f64()
        },
    );
    let shown = connection_of(admin, "alice");
    assert_eq!(shown["id"], alice.hello["connection_id"]);
    assert_eq!(shown["address_source"], "socket");
    assert!(shown["connected_seconds"].as_f64().expect("a number") > 0.0);
    assert!(shown["bytes_received"].as_u64().expect("a number") > 0);
    assert!(shown["bytes_sent"].as_u64().expect("a number") > 0);
    assert_eq!(admin.get("/connections?user").status, 200);
    assert_eq!(admin.get("/connections?who=alice").status, 400);
    assert_eq!(admin.get("/disconnects?address=here").status, 400);
}

#[test]
fn why_somebody_was_cut_is_one_request() {
    let gateway = start();
    let admin = &gateway.admin;
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    let closed = admin.post("/users/alice/disconnect");
    assert_eq!(closed.json(), json!({ "closed": 1 }));
    let reason = alice.expect_close(4005);
    let reason: Value = serde_json::from_str(&reason).expect("JSON");
    assert_eq!(reason["reconnect"], false);
    wait_until("it is remembered", || {
        let shown = admin.json("/disconnects?user=alice");
        let ended = shown["ended"].as_array().expect("a list");
        ended
            .iter()
            .any(|ended| ended["code"] == 4005 && ended["reason"] == "disconnected")
    });
    assert_eq!(admin.json("/disconnects?user=bob")["ended"], json!([]));
    bob.request("ping", Value::Null);
    // Nobody is there any more; and an id that takes escaping is one.
    assert_eq!(admin.post("/users/alice/disconnect").json()["closed"], 0);
    assert_eq!(
        admin.post("/users/a%20b%2Fc/disconnect").json()["closed"],
        0
    );
    assert_eq!(admin.post("/users/%ff/disconnect").status, 400);
    assert_eq!(admin.post("/users//disconnect").status, 400);
}

#[test]
fn why_somebody_does_not_get_in_is_one_request() {
    let gateway = Gateway::start(&chat::settings().set("limits.max_connections_per_user", 1));
    gateway.wait_ready();
    let admin = &gateway.admin;
    let refused = |query: &str, reason: &str| {
        wait_until(format!("{reason} is remembered"), || {
            let shown = admin.json(&format!("/disconnects{query}"));
            let refused = shown["refused"].as_array().expect("a list");
            refused.iter().any(|refused| refused["reason"] == reason)
        });
    };
    assert_eq!(
        gateway.raw().try_upgrade(&gateway.path, "wrong").status,
        401
    );
    refused("?address=127.0.0.1", "unauthenticated");
    assert_eq!(
        admin.json("/disconnects?address=127.0.0.9")["refused"],
        json!([])
    );
    let _alice = gateway.connect("alice");
    let second = gateway.raw().try_upgrade(&gateway.path, &token_of("alice"));
    assert_eq!(second.status, 429);
    refused("?user=alice", "max_connections_per_user");
    let shown = admin.json("/disconnects?user=alice");
    assert_eq!(shown["refused"][0]["status"], 429, "{shown}");
    assert_eq!(
        admin.metric(r#"gateway_rejected_total{reason="max_connections_per_user"}"#),
        1.0
    );
}

#[test]
fn the_last_thousand_are_remembered() {
    let gateway = start();
    for _ in 0..1_005 {
        assert_eq!(gateway.get("/nowhere").status, 404);
    }
    let shown = gateway.admin.json("/disconnects");
    assert_eq!(shown["refused"].as_array().map(Vec::len), Some(1_000));
    assert_eq!(
        gateway
            .admin
            .metric(r#"gateway_rejected_total{reason="not_found"}"#),
        1_005.0
    );
}

#[test]
fn a_gateway_that_drains_is_not_ready_and_closes_nobody() {
    let gateway = start();
    let admin = &gateway.admin;
    let mut alice = gateway.connect("alice");
    assert_eq!(admin.post("/drain").json(), json!({ "draining": true }));
    for response in [admin.get("/readyz"), gateway.get("/readyz")] {
        assert_eq!(response.status, 503);
        let reason = &response.json()["checks"]["draining"]["reason"];
        assert!(
            reason.as_str().is_some_and(|text| text.contains("undrain")),
            "{reason}"
        );
    }
    alice.request("ping", Value::Null);
    // Whoever comes all the same is let in.
    gateway.connect("bob").request("ping", Value::Null);
    assert_eq!(admin.post("/undrain").json(), json!({ "draining": false }));
    assert!(gateway.is_ready());
    alice.request("ping", Value::Null);
}

#[test]
fn silence_keeps_nobody_out_for_long() {
    let gateway = start();
    let admin = &gateway.admin;
    let silent: Vec<Raw> = (0..16).map(|_| Raw::connect(admin.addr)).collect();
    let busy = |response: &Response| response.status == 503;
    let start = Instant::now();
    wait_until("all places are taken", || {
        let mut raw = Raw::connect(admin.addr);
        raw.try_send(admin.head("GET", "/healthz", &[])).is_ok() && busy(&raw.response())
    });
    wait_until("silence is over", || {
        let mut raw = Raw::connect(admin.addr);
        raw.try_send(admin.head("GET", "/healthz", &[])).is_ok() && !busy(&raw.response())
    });
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
    drop(silent);
    // Clients are served as ever meanwhile.
    Client::connect(&gateway, &token_of("alice")).request("ping", Value::Null);
}
