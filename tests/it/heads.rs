//! Request heads as balancers and proxies send them, and as those do who hope that two servers read
//! them in two ways.

use std::time::Duration;

use crate::chat;
use crate::support::backend::Backend;
use crate::support::broker::free_port;
use crate::support::client::error_message;
use crate::support::cluster::remote;
use crate::support::raw::{FIN, PING, Response, TEXT, frame};
use crate::support::{Gateway, Settings, wait_until};

/// An upgrade of alice's, without Host and without the empty line.
const FIELDS: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                      Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer alice-token\r\n";

fn gateway() -> Gateway {
    Gateway::start(&chat::settings().set("limits.max_connections_per_user", 100))
}

/// A gateway on a fake backend that lets users in and, since its broker is away, is not ready.
fn without_broker(backend: &Backend) -> Gateway {
    let broker = format!("amqp://127.0.0.1:{}/%2f", free_port());
    let settings = remote(&Settings::new(), &backend.url(), &broker);
    Gateway::start(&settings.set("services.timeout", "10s"))
}

/// Sends `bytes`, and reads the answer to the end of the stream: what else came is its body.
fn exchange(gateway: &Gateway, bytes: impl AsRef<[u8]>) -> (Response, Vec<u8>) {
    let mut raw = gateway.raw();
    raw.send(bytes);
    raw.response_to_the_end()
}

/// The status of the answer to an upgrade whose target is `target`, with these fields besides.
fn upgrade(gateway: &Gateway, target: &str, further: impl AsRef<[u8]>) -> u16 {
    let mut bytes = format!("GET {target} HTTP/1.1\r\n").into_bytes();
    bytes.extend(further.as_ref());
    bytes.extend(format!("{FIELDS}\r\n").bytes());
    let mut raw = gateway.raw();
    raw.send(bytes);
    raw.response().status
}

fn assert_bad_request(gateway: &Gateway, bytes: impl AsRef<[u8]>) {
    let shown = String::from_utf8_lossy(bytes.as_ref()).into_owned();
    let (response, body) = exchange(gateway, bytes);
    assert_eq!(response.status, 400, "{shown:?}: {response:?}");
    let body = serde_json::from_slice(&body).expect("JSON");
    error_message(&body, "INVALID_MESSAGE");
}

#[test]
fn pages_answer_get_head_and_options_of_1_0_and_1_1() {
    let gateway = gateway();
    gateway.wait_ready();
    for version in ["1.0", "1.1"] {
        for target in [
            "/healthz",
            "/readyz",
            "/",
            "/healthz?check=1",
            "http://gateway.test/healthz",
            "HTTPS://gateway.test:443/readyz",
            "http://gateway.test",
            "http://gateway.test?a=b",
        ] {
            let ask = |method: &str| {
                let text =
                    format!("{method} {target} HTTP/{version}\r\nHost: x\r\nUser-Agent: y\r\n\r\n");
                exchange(&gateway, text)
            };
            let (get, body) = ask("GET");
            assert_eq!(get.status, 200, "{version} {target}: {get:?}");
            assert!(!body.is_empty(), "{target}");
            assert_eq!(get.header("content-length"), Some(&*body.len().to_string()));
            let (head, nothing) = ask("HEAD");
            assert_eq!(head.status, 200, "{version} {target}: {head:?}");
            assert_eq!(nothing, b"", "{target}");
            for field in [
                "content-length",
                "content-type",
                "cache-control",
                "connection",
            ] {
                assert_eq!(head.header(field), get.header(field), "{target}: {field}");
            }
            let (options, nothing) = ask("OPTIONS");
            assert_eq!(options.status, 200, "{version} {target}: {options:?}");
            assert_eq!(nothing, b"", "{target}");
            assert_eq!(options.header("content-length"), Some("0"));
            assert_eq!(options.header("allow"), Some("GET, HEAD, OPTIONS"));
            for answer in [get, head, options] {
                assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
            }
        }
    }
}

/// What nginx, HAProxy and others send unless they are told otherwise.
#[test]
fn the_default_checks_of_balancers_are_answered() {
    let without_page = Gateway::start(&chat::settings().set("embedded.page", false));
    for gateway in [gateway(), without_page] {
        for check in [
            "OPTIONS / HTTP/1.0\r\n\r\n",
            "OPTIONS / HTTP/1.0\r\nConnection: close\r\n\r\n",
            "OPTIONS / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
            "OPTIONS * HTTP/1.0\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
            "OPTIONS http://x HTTP/1.1\r\nHost: x\r\n\r\n",
            "OPTIONS /healthz HTTP/1.0\r\n\r\n",
            "GET /healthz HTTP/1.0\r\nHost: gateway_backend\r\nConnection: close\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: 10.0.0.1:8080\r\nUser-Agent: kube-probe/1.30\r\n\r\n",
            "HEAD /healthz HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n\r\n",
            "HEAD /healthz HTTP/1.0\r\n\r\n",
        ] {
            let (response, _) = exchange(&gateway, check);
            assert_eq!(response.status, 200, "{check:?}: {response:?}");
        }
    }
}

/// `option httpchk /readyz` asks with OPTIONS: the answer must not hide that it is not ready.
#[test]
fn whatever_asks_for_readiness_is_told() {
    let gateway = without_broker(&Backend::start());
    let status = |method: &str, path: &str| {
        let text = format!("{method} {path} HTTP/1.0\r\n\r\n");
        exchange(&gateway, text).0.status
    };
    for method in ["GET", "HEAD", "OPTIONS"] {
        assert_eq!(status(method, "/readyz"), 503, "{method}");
        assert_eq!(status(method, "/healthz"), 200, "{method}");
    }
    assert_eq!(status("OPTIONS", "/"), 200, "without a page, too");
    assert_eq!(status("GET", "/"), 404);
}

/// Those for whom there is no room are answered by another thread: the same way.
#[test]
fn a_full_gateway_answers_pages_all_the_same() {
    let gateway = Gateway::start(&chat::settings().set("limits.max_connections", 1));
    let _held = gateway.connect("alice");
    for (text, status) in [
        ("GET /healthz HTTP/1.0\r\n\r\n", 200),
        ("OPTIONS / HTTP/1.0\r\n\r\n", 200),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("HEAD /readyz HTTP/1.1\r\nHost: x\r\n\r\n", 503),
        ("GET http://x/healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("GET http://x/ws HTTP/1.1\r\nHost: x\r\n\r\n", 503),
        ("HEAD /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("POST /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("HEAD / HTTP/1.1\r\n\r\n", 400),
        ("GET /ws HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
    ] {
        let (response, body) = exchange(&gateway, text);
        assert_eq!(response.status, status, "{text:?}: {response:?}");
        assert_eq!(
            body.is_empty(),
            !text.starts_with("GET") && !text.starts_with("POST")
        );
    }
}

#[test]
fn an_error_for_head_has_no_body() {
    let timeout = chat::settings().set("listen.handshake_timeout", "300ms");
    let gateway = Gateway::start(&timeout);
    let large = "x".repeat(9000);
    for (text, status) in [
        (
            "HEAD /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            404,
        ),
        ("HEAD /ws HTTP/1.1\r\nHost: x\r\n\r\n".into(), 405),
        (format!("HEAD /ws HTTP/1.1\r\nHost: x\r\n{FIELDS}\r\n"), 405),
        ("HEAD /healthz HTTP/1.1\r\n\r\n".into(), 400),
        (
            "HEAD /healthz HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n".into(),
            400,
        ),
        (
            "HEAD /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello".into(),
            400,
        ),
        (format!("HEAD /healthz HTTP/1.1\r\nA: {large}\r\n\r\n"), 431),
        ("HEAD /healthz HTTP/1.1\r\n".into(), 408),
    ] {
        let (response, body) = exchange(&gateway, &text);
        assert_eq!(response.status, status, "{text:?}: {response:?}");
        assert_eq!(body, b"", "{text:?}");
        let length = response.header("content-length").expect("a length");
        assert!(
            length.parse::<usize>().expect("a number") > 0,
            "{response:?}"
        );
    }
}

#[test]
fn another_method_is_told_which_are_allowed() {
    let gateway = gateway();
    for method in ["POST", "PUT", "DELETE", "PATCH", "TRACE", "get", "BREW"] {
        for (path, allowed) in [
            ("/healthz", "GET, HEAD, OPTIONS"),
            ("/readyz", "GET, HEAD, OPTIONS"),
            ("/", "GET, HEAD, OPTIONS"),
            ("/ws", "GET"),
            ("http://x/ws", "GET"),
        ] {
            let (response, body) = exchange(
                &gateway,
                format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n"),
            );
            assert_eq!(response.status, 405, "{method} {path}: {response:?}");
            assert_eq!(response.header("allow"), Some(allowed), "{method} {path}");
            assert!(!body.is_empty(), "{method} {path}");
        }
    }
    let connect = "CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n";
    assert_eq!(exchange(&gateway, connect).0.status, 405);
    for method in ["HEAD", "OPTIONS"] {
        let text = format!("{method} /ws HTTP/1.1\r\nHost: x\r\n\r\n");
        let (response, _) = exchange(&gateway, text);
        assert_eq!(response.status, 405, "{method}");
        assert_eq!(response.header("allow"), Some("GET"), "{method}");
    }
}

#[test]
fn an_upgrade_may_be_asked_for_in_absolute_form() {
    let gateway = gateway();
    for target in [
        "http://gateway.test/ws",
        "https://gateway.test/ws",
        "ws://gateway.test/ws",
        "WSS://gateway.test:8080/ws?a=b",
        "hTTp://10.0.0.1:80/ws",
        "http://[::1]:8080/ws",
    ] {
        for host in ["gateway.test", "another.test:1"] {
            let status = upgrade(&gateway, target, format!("Host: {host}\r\n"));
            assert_eq!(status, 101, "{target} {host}");
        }
    }
    // The token in it, too.
    let text = format!("GET http://x/ws?token=alice-token HTTP/1.1\r\nHost: x\r\n{FIELDS}\r\n");
    let text = text.replace("Authorization: Bearer alice-token\r\n", "");
    let mut raw = gateway.raw();
    raw.send(text);
    assert_eq!(raw.response().status, 101);
    assert_eq!(upgrade(&gateway, "http://x/elsewhere", "Host: x\r\n"), 404);
    for target in [
        "ftp://x/ws",
        "http:///ws",
        "http://user@x/ws",
        "http://a b/ws",
        "http:/ws",
        "x/ws",
        "*",
        "http://x:y/ws",
    ] {
        let status = upgrade(&gateway, target, "Host: x\r\n");
        assert_eq!(status, 400, "{target}");
    }
}

/// HTTP/1.0 has no upgrade (RFC 9110, section 7.8): a proxy that is not told to speak 1.1.
#[test]
fn an_upgrade_needs_http_1_1() {
    let gateway = gateway();
    for host in ["", "Host: x\r\n"] {
        let (response, body) =
            exchange(&gateway, format!("GET /ws HTTP/1.0\r\n{host}{FIELDS}\r\n"));
        assert_eq!(response.status, 426, "{response:?}");
        assert_eq!(response.header("upgrade"), Some("websocket"));
        assert!(String::from_utf8_lossy(&body).contains("HTTP/1.1"));
    }
    for version in ["0.9", "1.2", "2.0", "3", "1.10", "1", "x"] {
        assert_bad_request(
            &gateway,
            format!("GET /healthz HTTP/{version}\r\nHost: x\r\n\r\n"),
        );
    }
}

#[test]
fn a_field_that_nobody_reads_may_hold_any_bytes() {
    let gateway = gateway();
    let unread = [
        &b"Cookie: name=Jos\xe9"[..],
        b"CF-IPCity: M\xfcnchen",
        b"X-Any: \x80\xff\xfe",
        b"X-Any: \xf0\x28\x8c\x28",
        b"X-Forwarded-For: \xe9",
        b"User-Agent: \xa0",
        b"X-Empty:",
        b"X-Twice: 1\r\nX-Twice: 2",
        b"Cookie: a=1\r\nCookie: b=\xe9",
        "X-Utf-8: 李雷".as_bytes(),
    ];
    for field in unread {
        let shown = String::from_utf8_lossy(field);
        let further = [b"Host: x\r\n", field, b"\r\n"].concat();
        assert_eq!(upgrade(&gateway, "/ws", &further), 101, "{shown}");
        let page = [b"GET /healthz HTTP/1.1\r\n", &further[..], b"\r\n"].concat();
        assert_eq!(exchange(&gateway, page).0.status, 200, "{shown}");
    }
    // For a page, those of an upgrade are not read either.
    let page = b"GET /healthz HTTP/1.1\r\nHost: x\r\nOrigin: \xe9\r\nUpgrade: \xff\r\n\
                 Authorization: \xe9\r\nAuthorization: a\r\n\r\n";
    assert_eq!(exchange(&gateway, page).0.status, 200);
    // A field that is read is refused, by name.
    for name in [
        "Host",
        "Connection",
        "Upgrade",
        "Sec-WebSocket-Version",
        "Sec-WebSocket-Key",
        "Origin",
        "Authorization",
    ] {
        let text = format!("GET /ws HTTP/1.1\r\nHost: x\r\nOrigin: http://x\r\n{FIELDS}\r\n");
        let place = text.find(&format!("\n{name}: ")).expect("it is there") + name.len() + 3;
        let mut bytes = text.into_bytes();
        bytes.insert(place, 0xe9);
        let (response, body) = exchange(&gateway, &bytes);
        assert_eq!(response.status, 400, "{name}: {response:?}");
        let body = String::from_utf8_lossy(&body);
        assert!(body.contains(name), "{name}: {body}");
    }
}

/// A field of which there is to be one.
#[test]
fn a_field_that_is_there_twice_is_400() {
    let gateway = gateway();
    for field in [
        "Host: x",
        "host: y",
        "Host:",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Version: 8",
        "Authorization: Bearer alice-token",
        "Authorization: Bearer bob-token",
        "authorization: Basic YTpi",
        "Origin: http://y",
    ] {
        for behind in [true, false] {
            let origin = "Host: x\r\nOrigin: http://x\r\n";
            let fields = if behind {
                format!("{origin}{FIELDS}{field}\r\n")
            } else {
                format!("{field}\r\n{origin}{FIELDS}")
            };
            assert_bad_request(&gateway, format!("GET /ws HTTP/1.1\r\n{fields}\r\n"));
        }
    }
    // Lists may go on in another field.
    let text = "Connection: keep-alive\r\nUpgrade: h2c\r\nHost: x\r\n";
    assert_eq!(upgrade(&gateway, "/ws", text), 101);
}

#[test]
fn a_body_or_a_second_host_is_400() {
    let gateway = gateway();
    for fields in [
        "Host: x\r\nContent-Length: 5\r\n",
        "Host: x\r\nContent-Length: 1\r\n",
        "Host: x\r\nContent-Length: +0\r\n",
        "Host: x\r\nContent-Length: -1\r\n",
        "Host: x\r\nContent-Length: 0x5\r\n",
        "Host: x\r\nContent-Length: 18446744073709551616\r\n",
        "Host: x\r\nContent-Length: 0, 5\r\n",
        "Host: x\r\nContent-Length: five\r\n",
        "Host: x\r\nContent-Length:\r\n",
        "Host: x\r\nContent-Length: 0\r\nContent-Length: 5\r\n",
        "Host: x\r\nContent-Length: 0\r\ncontent-length: 0\r\n",
        "Host: x\r\nContent-Length : 0\r\n",
        "Host: x\r\nTransfer-Encoding: chunked\r\n",
        "Host: x\r\nTransfer-Encoding: identity\r\n",
        "Host: x\r\nTransfer-Encoding:\r\n",
        "Host: x\r\ntransfer-encoding: xchunked\r\n",
        "Host: x\r\nTransfer-Encoding : chunked\r\n",
        "Host: x\r\nContent-Length: 0\r\nTransfer-Encoding: gzip, chunked\r\n",
        "Host: x\r\nA: b\r\n Transfer-Encoding: chunked\r\n",
        "Host: x\r\nA: b\nTransfer-Encoding: chunked\r\n",
        "Host: x\r\nA: b\rTransfer-Encoding: chunked\r\n",
        "Host: x\nA: b\r\n",
        "",
        "Host: \r\n",
        "Host: a b\r\n",
        "Host: user@x\r\n",
        "Host: x/ws\r\n",
        "Host: x, y\r\n",
        "Host: x:y\r\n",
        "Host: [::1\r\n",
        "Host: x\r\nHost: x\r\n",
        "Host: x\r\nHost: y\r\n",
        " Host: x\r\n",
        "Host : x\r\n",
    ] {
        assert_bad_request(
            &gateway,
            format!("GET /ws HTTP/1.1\r\n{fields}{FIELDS}\r\n"),
        );
        assert_bad_request(&gateway, format!("GET /healthz HTTP/1.1\r\n{fields}\r\n"));
        assert_bad_request(
            &gateway,
            format!("POST http://x/ws HTTP/1.1\r\n{fields}\r\n"),
        );
        if !fields.is_empty() {
            assert_bad_request(&gateway, format!("GET /healthz HTTP/1.0\r\n{fields}\r\n"));
        }
    }
    for fields in ["Content-Length: 0\r\n", "Content-Length: 00\r\n"] {
        assert_eq!(
            upgrade(&gateway, "/ws", format!("Host: x\r\n{fields}")),
            101
        );
    }
}

/// In the packet of the head, a part of it at a time, or while the token is being validated.
#[test]
fn nothing_may_come_before_the_101() {
    let gateway = gateway();
    let head = format!("GET /ws HTTP/1.1\r\nHost: x\r\n{FIELDS}\r\n").into_bytes();
    let frames = [
        frame(FIN | TEXT, br#"{"type":"ping"}"#),
        frame(FIN | PING, b""),
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"\r\n".to_vec(),
        vec![0x81],
        vec![0],
    ];
    for early in frames {
        assert_bad_request(&gateway, [&head[..], &early].concat());
        let mut raw = gateway.raw();
        raw.send(&head[..head.len() - 1]);
        raw.send([&head[head.len() - 1..], &early].concat());
        assert_eq!(raw.response().status, 400);
        raw.expect_end();
    }
}

#[test]
fn nothing_may_come_while_the_token_is_validated() {
    let backend = Backend::start();
    let gateway = without_broker(&backend);
    let head = format!("GET /ws HTTP/1.1\r\nHost: x\r\n{FIELDS}\r\n");
    backend.slow("ValidateToken", Duration::from_millis(700));
    for early in [&frame(FIN | TEXT, br#"{"type":"ping"}"#)[..], b"\0"] {
        let calls = backend.calls("ValidateToken");
        let mut raw = gateway.raw();
        raw.send(&head);
        wait_until("the token is being validated", || {
            backend.calls("ValidateToken") > calls
        });
        raw.send(early);
        let response = raw.response();
        assert_eq!(response.status, 400, "{response:?}");
        raw.expect_end();
    }
    // Who waits is let in, and is heard from then on.
    let mut raw = gateway.raw();
    raw.send(&head);
    assert_eq!(raw.response().status, 101);
    raw.text(r#"{"type":"ping","request_id":"first"}"#);
    raw.json_that(|frame| frame["type"] == "pong" && frame["request_id"] == "first");
}

#[test]
fn a_page_may_be_asked_for_in_pieces_and_is_the_only_one() {
    let gateway = gateway();
    let text = "\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut raw = gateway.raw();
    for byte in text.bytes() {
        raw.send([byte]);
    }
    assert_eq!(raw.response().status, 200);
    // Pipelined: the first is answered, and the connection ends.
    let twice = text.repeat(2);
    let (response, body) = exchange(&gateway, twice.trim_start());
    assert_eq!((response.status, &body[..]), (200, &b"ok\n"[..]));
}

/// 8 KiB and 64 fields: both are the last that is taken.
#[test]
fn the_largest_head_is_as_large_as_promised() {
    let gateway = gateway();
    // Host and those of the upgrade.
    let usual = 1 + FIELDS.matches("\r\n").count();
    for (fields, status) in [(64, 101), (65, 431)] {
        let more: String = (usual..fields)
            .map(|number| format!("X-{number}: x\r\n"))
            .collect();
        let answer = upgrade(&gateway, "/ws", format!("Host: x\r\n{more}"));
        assert_eq!(answer, status, "{fields} fields");
    }
    let rest = format!("GET /ws HTTP/1.1\r\nHost: x\r\nX: \r\n{FIELDS}\r\n").len();
    for (length, status) in [(8 << 10, 101), ((8 << 10) + 1, 431)] {
        let filling = "x".repeat(length - rest);
        let answer = upgrade(&gateway, "/ws", format!("Host: x\r\nX: {filling}\r\n"));
        assert_eq!(answer, status, "{length} bytes");
    }
}

/// Thousands of them, many at once.
#[test]
fn heads_that_are_refused_leave_memory_as_it_was() {
    let gateway = gateway();
    let fields: String = (0..100)
        .map(|number| format!("X-{number}: x\r\n"))
        .collect();
    let large = "x".repeat(8 << 10);
    let usual = format!("Host: x\r\n{FIELDS}");
    let refused = [
        (
            format!("GET /ws HTTP/1.1\r\n{usual}X: {large}\r\n\r\n"),
            431,
        ),
        (format!("GET /ws?{large} HTTP/1.1\r\n{usual}\r\n"), 431),
        (format!("GET /ws HTTP/1.1\r\n{usual}{fields}\r\n"), 431),
        (large.repeat(8), 431),
        (format!("POST /ws HTTP/1.1\r\n{usual}\r\n"), 405),
        (
            format!("GET /ws HTTP/1.1\r\n{usual}\r\n").replace("13", "8"),
            426,
        ),
        (
            format!("GET /ws HTTP/1.1\r\n{usual}\r\n").replace("dGhl", ""),
            400,
        ),
        (
            format!("GET /ws HTTP/1.1\r\n{usual}X: a\r\n b\r\n\r\n"),
            400,
        ),
        (
            format!("GET /ws HTTP/1.1\r\n{usual}X: a\r\n\tb\r\n\r\n"),
            400,
        ),
        (
            format!("GET /ws HTTP/1.1\r\n{usual}\r\n").replace("alice", "mallory"),
            401,
        ),
    ];
    let round = || {
        for (bytes, status) in &refused {
            let mut raw = gateway.raw();
            // What is too large is answered before it is read.
            let _ = raw.try_send(bytes);
            let shown = &bytes[..bytes.len().min(200)];
            assert_eq!(raw.response().status, *status, "{shown:?}");
        }
    };
    let rounds = |count: usize| {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..count).for_each(|_| round()));
            }
        });
    };
    rounds(10);
    let ((), peak) = gateway.memory_peak(|| rounds(200));
    println!("{peak} KiB more after {} heads", 8 * 200 * refused.len());
    // They were 128 MiB. How many threads are there at a time is the system's to say: their stacks may
    // be a few dozen.
    assert!(peak < 64 << 10, "{peak} KiB more");
}
