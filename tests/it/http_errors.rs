//! Every HTTP status before the upgrade, provoked byte by byte, each with the JSON error object.

use std::time::{Duration, Instant};

use crate::chat;
use crate::support::asyncapi::check_refusal;
use crate::support::backend::Backend;
use crate::support::broker::Broker;
use crate::support::client::error_message;
use crate::support::cluster::remote;
use crate::support::raw::{Response, UPGRADE, head};
use crate::support::settings::token_of;
use crate::support::{Client, Gateway, Settings, wait_until};

fn gateway() -> Gateway {
    Gateway::start(&chat::settings())
}

/// An upgrade whose token is alice's, with these headers instead of or besides the usual ones.
fn upgrade_with(gateway: &Gateway, changed: &[(&str, &str)]) -> Response {
    let bearer = format!("Bearer {}", token_of("alice"));
    let mut headers = UPGRADE.to_vec();
    headers.push(("Authorization", &bearer));
    headers.retain(|(name, _)| changed.iter().all(|(other, _)| other != name));
    headers.extend(changed.iter().filter(|(_, value)| !value.is_empty()));
    gateway.raw().get_with(&gateway.path, &headers)
}

/// Checks the status, and the body: the error object of the protocol.
fn assert_error(response: &Response, status: u16, code: &str) {
    assert_eq!(response.status, status, "{response:?}");
    check_refusal(response.status, &response.body);
    let kind = response.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("application/json"), "{response:?}");
    let body = response.json();
    if code.is_empty() {
        let code = body["code"].as_str().expect("a code");
        assert!(
            code.bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte == b'_'),
            "{body}"
        );
        error_message(&body, code);
    } else {
        error_message(&body, code);
    }
}

#[test]
fn a_head_that_is_no_http_is_400() {
    let gateway = gateway();
    let broken = [
        "hello\r\n\r\n".to_owned(),
        "GET /ws\r\n\r\n".into(),
        "GET /ws HTTP/1.1\r\nno colon here\r\n\r\n".into(),
        "\u{16}\u{3}\u{1}\r\n\r\n".into(),
        format!("GET {} HTTP/1.1\r\nA: \u{0}\r\n\r\n", gateway.path),
    ];
    for text in broken {
        let mut raw = gateway.raw();
        raw.send(&text);
        let response = raw.response();
        assert_error(&response, 400, "INVALID_MESSAGE");
        raw.expect_end();
    }
    for key in [
        "",
        "short",
        "not base64 at all, really",
        "dGhlIHNhbXBsZSBub25jZQ",
    ] {
        let response = upgrade_with(&gateway, &[("Sec-WebSocket-Key", key)]);
        assert_error(&response, 400, "INVALID_MESSAGE");
    }
}

#[test]
fn without_a_known_token_it_is_401() {
    let gateway = gateway();
    let long = format!("Bearer {}", "x".repeat(4000));
    for token in [
        "",
        "Bearer nobody",
        "Bearer ",
        "Bearer",
        "Basic YWxpY2U6eA==",
        &long,
    ] {
        let response = upgrade_with(&gateway, &[("Authorization", token)]);
        assert_error(&response, 401, "UNAUTHENTICATED");
        assert_eq!(
            response.header("www-authenticate"),
            Some("Bearer"),
            "{response:?}"
        );
    }
    for query in [
        "",
        "?token=",
        "?token=nobody",
        "?token=alice%2Dtoke",
        "?other=alice-token",
    ] {
        let response = gateway
            .raw()
            .get_with(&format!("{}{query}", gateway.path), &UPGRADE);
        assert_error(&response, 401, "UNAUTHENTICATED");
    }
    let path = format!("{}?token={}", gateway.path, token_of("alice"));
    let mut headers = UPGRADE.to_vec();
    headers.push(("Authorization", "Bearer nobody"));
    let response = gateway.raw().get_with(&path, &headers);
    assert_error(&response, 401, "UNAUTHENTICATED");
    let encoded = format!("{}?a=b&token=alice%2Dtoken&c", gateway.path);
    assert_eq!(gateway.raw().get_with(&encoded, &UPGRADE).status, 101);
}

#[test]
fn an_origin_that_is_not_allowed_is_403() {
    let origins = vec![
        "https://chat.example.com".to_owned(),
        "http://localhost:3000".into(),
    ];
    let gateway = Gateway::start(&chat::settings().set("listen.allowed_origins", origins));
    for origin in [
        "https://evil.example.com",
        "http://chat.example.com",
        "https://chat.example.com:444",
        "https://chat.example.com.evil.com",
        "http://localhost",
        "null",
    ] {
        assert_error(
            &upgrade_with(&gateway, &[("Origin", origin)]),
            403,
            "PERMISSION_DENIED",
        );
    }
    for origin in ["https://chat.example.com", "http://localhost:3000"] {
        assert_eq!(
            upgrade_with(&gateway, &[("Origin", origin)]).status,
            101,
            "{origin}"
        );
    }
    let response = upgrade_with(
        &gateway,
        &[("Origin", "https://evil.test"), ("Authorization", "")],
    );
    assert_eq!(
        response.status, 403,
        "the origin is looked at before the token"
    );
}

#[test]
fn another_path_is_404_and_another_method_405() {
    let gateway = gateway();
    for path in ["/wss", "/ws/", "/WS", "/ws/x", "/readyz/", "//ws"] {
        assert_error(&gateway.get(path), 404, "NOT_FOUND");
    }
    for method in ["POST", "PUT", "OPTIONS", "DELETE"] {
        let mut raw = gateway.raw();
        raw.send(head(method, &gateway.path, &[("Content-Length", "0")]));
        let response = raw.response();
        assert_error(&response, 405, "");
        assert!(
            response.header("allow").unwrap_or_default().contains("GET"),
            "{response:?}"
        );
    }
}

#[test]
fn no_upgrade_or_another_version_is_426() {
    let gateway = gateway();
    for changed in [
        ("Upgrade", ""),
        ("Upgrade", "h2c"),
        ("Connection", ""),
        ("Connection", "keep-alive"),
        ("Sec-WebSocket-Version", ""),
        ("Sec-WebSocket-Version", "8"),
    ] {
        let response = upgrade_with(&gateway, &[changed]);
        assert_error(&response, 426, "");
        assert_eq!(
            response.header("sec-websocket-version"),
            Some("13"),
            "{response:?}"
        );
        assert_eq!(
            response.header("upgrade"),
            Some("websocket"),
            "{response:?}"
        );
    }
    for changed in [
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "WebSocket"),
    ] {
        assert_eq!(
            upgrade_with(&gateway, &[changed]).status,
            101,
            "{changed:?}"
        );
    }
}

/// One deadline for the whole head: bytes that drip in do not move it.
#[test]
fn a_head_that_takes_too_long_is_408() {
    let timeout = Duration::from_millis(800);
    let gateway = Gateway::start(&chat::settings().set("listen.handshake_timeout", "800ms"));
    let mut silent = gateway.raw();
    let mut dripping = gateway.raw();
    let start = Instant::now();
    let answered = std::thread::spawn(move || {
        let response = silent.response();
        (response, start.elapsed())
    });
    for byte in head("GET", "/ws", &UPGRADE).bytes().cycle() {
        if byte == b'\r' {
            continue;
        }
        if dripping.try_send([byte]).is_err() || start.elapsed() > timeout * 4 {
            break;
        }
        // The pace of the drip, not a wait for anything.
        std::thread::sleep(Duration::from_millis(20));
        if start.elapsed() > timeout * 2 {
            break;
        }
    }
    assert_error(&dripping.response(), 408, "");
    let (response, took) = answered.join().expect("an answer");
    assert_error(&response, 408, "");
    assert!(took >= timeout && took < timeout * 4, "{took:?}");
}

#[test]
fn a_user_over_the_limit_is_429() {
    let gateway = Gateway::start(&chat::settings().set("limits.max_connections_per_user", 2));
    let (mut first, second) = (gateway.connect("alice"), gateway.connect("alice"));
    let response = upgrade_with(&gateway, &[]);
    assert_error(&response, 429, "RATE_LIMITED");
    assert!(response.header("retry-after").is_some(), "{response:?}");
    gateway.connect("bob");
    first.request("ping", serde_json::Value::Null);
    second.close();
    wait_until("there is room again", || {
        Client::try_connect(gateway.addr, &gateway.path, &token_of("alice")).is_ok()
    });
}

#[test]
fn an_address_over_the_limit_is_429() {
    let gateway = Gateway::start(&chat::settings().set("limits.max_connections_per_ip", 2));
    let held = [gateway.connect("alice"), gateway.connect("bob")];
    let response = upgrade_with(&gateway, &[]);
    assert_error(&response, 429, "RATE_LIMITED");
    assert!(response.header("retry-after").is_some(), "{response:?}");
    assert_eq!(
        gateway.get("/healthz").status,
        200,
        "health checks are answered all the same"
    );
    held.into_iter().for_each(Client::close);
    wait_until("there is room again", || {
        upgrade_with(&gateway, &[]).status == 101
    });
}

/// Behind a proxy that is trusted, the address is the one that it forwards.
#[test]
fn a_trusted_proxy_says_whose_limit_it_is() {
    let settings = chat::settings()
        .set("limits.max_connections_per_ip", 1)
        .set("listen.trusted_proxies", vec!["127.0.0.1".to_owned()]);
    let gateway = Gateway::start(&settings);
    let connect = |from: &str| {
        let mut raw = gateway.raw();
        let bearer = format!("Bearer {}", token_of("alice"));
        let mut headers = UPGRADE.to_vec();
        headers.extend([
            ("Authorization", bearer.as_str()),
            ("X-Forwarded-For", from),
        ]);
        (raw.get_with(&gateway.path, &headers).status, raw)
    };
    let (status, _first) = connect("203.0.113.7");
    assert_eq!(status, 101);
    assert_eq!(
        connect("198.51.100.1, 203.0.113.7").0,
        429,
        "the last one is who reached the proxy"
    );
    assert_eq!(connect("203.0.113.8").0, 101);
}

#[test]
fn a_head_that_is_too_large_is_431() {
    let gateway = gateway();
    let large = "x".repeat(8 * 1024);
    assert_error(&upgrade_with(&gateway, &[("X-Large", &large)]), 431, "");
    let long_path = format!("{}?{}", gateway.path, "x".repeat(9000));
    assert_error(&gateway.get(&long_path), 431, "");
    let names: Vec<String> = (0..80).map(|number| format!("X-{number}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
    assert_error(&upgrade_with(&gateway, &many), 431, "");
    assert_eq!(upgrade_with(&gateway, &many[..40]).status, 101);
    // Endless, and never a whole line.
    let mut raw = gateway.raw();
    let _ = raw.try_send("x".repeat(100_000));
    assert_error(&raw.response(), 431, "");
}

#[test]
fn a_full_gateway_is_503_and_says_when_to_retry() {
    let gateway = Gateway::start(&chat::settings().set("limits.max_connections", 2));
    let held = [gateway.connect("alice"), gateway.connect("bob")];
    let response = upgrade_with(&gateway, &[]);
    assert_error(&response, 503, "SERVICE_UNAVAILABLE");
    let retry = response
        .header("retry-after")
        .and_then(|text| text.parse::<u32>().ok());
    assert!(retry.is_some(), "seconds: {response:?}");
    assert_eq!(
        gateway.get("/healthz").status,
        200,
        "health checks are answered all the same"
    );
    assert_eq!(
        gateway.get("/readyz").status,
        503,
        "capacity is one of the checks"
    );
    held.into_iter().for_each(Client::close);
    wait_until("there is room again", || {
        upgrade_with(&gateway, &[]).status == 101
    });
}

/// Nobody is let in unauthenticated: not while the User Service is down, slow, or errs.
#[test]
fn a_user_service_that_does_not_answer_is_503() {
    let backend = Backend::start();
    let settings = remote(&Settings::new(), &backend.url(), &Broker::shared().vhost());
    let gateway = Gateway::start(&settings.set("services.timeout", "300ms"));
    gateway.wait_ready();
    let (tokens, error) = ("ValidateToken", tonic::Code::Internal);
    let refused = |why: &str| {
        let response = upgrade_with(&gateway, &[]);
        assert!(
            response.status == 503 || why == "errs",
            "{why}: {response:?}"
        );
        assert!((500..600).contains(&response.status), "{why}: {response:?}");
        assert_error(&response, response.status, "");
        assert!(
            response.status != 503 || response.header("retry-after").is_some(),
            "{why}: {response:?}"
        );
    };
    backend.fail(tokens, tonic::Code::Unavailable);
    refused("is unavailable");
    backend.slow(tokens, Duration::from_secs(10));
    refused("is slow");
    backend.fail(tokens, error);
    refused("errs");
    backend.heal(tokens);
    backend.answer(|answers| {
        let user_id = "x".repeat(300);
        answers.token = Some(ws_gateway::services::proto::ValidateTokenResponse {
            user_id,
            expires_at: 0,
        });
    });
    refused("errs");
    backend.answer(|answers| answers.token = None);
    let _alice = gateway.connect("alice");
    drop(backend);
    refused("is gone");
}

/// The method, the path, the upgrade, the origin, the token, the limits: in this order.
#[test]
fn the_first_thing_that_is_wrong_decides() {
    let settings = chat::settings()
        .set("limits.max_connections_per_user", 1)
        .set(
            "listen.allowed_origins",
            vec!["https://chat.example.com".to_owned()],
        );
    let gateway = Gateway::start(&settings);
    let _alice = gateway.connect("alice");
    let mut raw = gateway.raw();
    raw.send(head(
        "POST",
        "/elsewhere",
        &[("Origin", "https://evil.test")],
    ));
    assert_eq!(raw.response().status, 405);
    assert_eq!(
        gateway
            .raw()
            .get_with("/elsewhere", &[("Origin", "https://evil.test")])
            .status,
        404
    );
    assert_eq!(
        gateway
            .raw()
            .get_with("/ws", &[("Origin", "https://evil.test")])
            .status,
        426
    );
    let evil = [("Origin", "https://evil.test"), ("Authorization", "")];
    assert_eq!(upgrade_with(&gateway, &evil).status, 403);
    assert_eq!(
        upgrade_with(&gateway, &[("Authorization", "Bearer nobody")]).status,
        401
    );
    assert_eq!(upgrade_with(&gateway, &[]).status, 429);
}
