//! What is refused, under which name, and what an error does not say.

use super::load::parse;
use super::*;

const SECRET: &str = "hush-hush";

/// What is wrong with a file and an environment.
fn error(text: &str, variables: &[(&str, &str)], bound: Option<SocketAddr>) -> String {
    let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
    let parsed = parse("the-file", text, variables.iter().map(owned), bound);
    parsed
        .err()
        .unwrap_or_else(|| panic!("accepted: {text} {variables:?}"))
}

fn accepted(text: &str) -> Config {
    parse("the-file", text, [], None).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn addresses_of_services_are_what_can_be_connected_to() {
    for address in [
        "",
        "http://",
        "http:///",
        "http:/h",
        "h:1",
        "localhost",
        "//h:1",
        "http://[::1",
        "http://[::1]x",
        "http://[::g]:1",
        "http://::1:1",
        "http://h:x",
        "http://h:",
        "http://h:70000",
        "http://h:-1",
        "http://h:+1",
        "http://h:0",
        "http://h:1:2",
        "http://:1",
        "http://a b:1",
        "http://a%20b:1",
        "http://h\u{e9}:1",
        "http://h:1/path",
        "http://h:1/?query",
        "http://h:1?query",
        "http://h:1#fragment",
        "http://hush-hush@h:1",
        "http://u:hush-hush@h:1",
        "https://",
        "https://h:1/path",
        "https://u:hush-hush@h:1",
        "etcd:///user-service",
        "unix:/run/user.sock",
        "grpc://h:1",
        "http:h",
    ] {
        for service in ["user", "message", "presence"] {
            for value in [
                format!("{address:?}"),
                format!("[\"http://h:1\", {address:?}]"),
            ] {
                let error = error(&format!("[services]\n{service} = {value}\n"), &[], None);
                let named = format!("the-file: services.{service}: ");
                assert!(error.starts_with(&named), "{address}: {error}");
                assert!(!error.contains(SECRET), "{error}");
            }
        }
    }
    for address in [
        "http://h",
        "http://h:1",
        "http://h:1/",
        "http://user-service.im_1.svc.cluster.local:50051",
        "http://10.0.0.1:50051",
        "http://[::1]:50051",
        "http://[fe80::1]",
    ] {
        accepted(&format!("[services]\nuser = {address:?}\n"));
    }
    for address in ["https://h", "HTTPS://h:1/", "https://[::1]:1"] {
        let text = format!("[services]\nuser = {address:?}\n");
        if cfg!(feature = "tls") {
            accepted(&text);
        } else {
            let error = error(&text, &[], None);
            assert!(error.contains("feature tls"), "{error}");
        }
    }
}

#[test]
fn a_service_in_etcd_needs_etcd_and_stands_alone() {
    const ETCD: &str = "[discovery]\nendpoints = [\"http://h:2379\"]\n";
    for service in ["user", "message", "presence"] {
        let text = format!("[services]\n{service} = \"etcd:///im-{service}\"\n");
        let told = error(&text, &[], None);
        let named = format!("the-file: services.{service}: ");
        assert!(told.starts_with(&named), "{told}");
        assert!(told.contains("discovery.endpoints"), "{told}");
        let config = accepted(&format!("{text}{ETCD}"));
        let services = &config.services;
        let at = match service {
            "user" => &services.user,
            "message" => &services.message,
            _ => &services.presence,
        };
        assert_eq!(in_etcd(at), Some(format!("im-{service}").as_str()));
        for value in [
            "\"etcd:///\"",
            "\"etcd:///a/b\"",
            "\"etcd:///a b\"",
            "\"etcd://h/a\"",
            "\"etcd:a\"",
            "[\"etcd:///a\", \"etcd:///b\"]",
            "[\"etcd:///a\", \"http://h:1\"]",
            "[\"http://h:1\", \"etcd:///a\"]",
        ] {
            let told = error(
                &format!("[services]\n{service} = {value}\n{ETCD}"),
                &[],
                None,
            );
            assert!(told.starts_with(&named), "{value}: {told}");
            assert!(
                told.contains("etcd:///name") || told.contains("http://"),
                "{told}"
            );
        }
    }
}

#[test]
fn discovery_is_with_an_etcd_and_an_address_that_can_be_reached() {
    const ETCD: &str = "endpoints = [\"http://h:2379\", \"http://[::1]:2379\"]\n";
    for (key, values) in [
        (
            "endpoints",
            &[
                "[\"h:2379\"]",
                "[\"https://h:2379\"]",
                "[\"http://h:1\", \"\"]",
            ][..],
        ),
        (
            "prefix",
            &[
                "\"\"",
                "\"/\"",
                "\"services\"",
                "\"/services/\"",
                "\"/a b\"",
            ],
        ),
        ("ttl", &["\"1s\"", "\"2500ms\"", "\"2days\""]),
        (
            "advertise",
            &[
                "\"h\"",
                "\"h:\"",
                "\"h:0\"",
                "\"h:+1\"",
                "\"h:70000\"",
                "\":1\"",
                "\"ws://h:1\"",
                "\"[::1]\"",
                "\"::1:1\"",
            ],
        ),
    ] {
        for value in values {
            let told = error(&format!("[discovery]\n{key} = {value}\n"), &[], None);
            let named = format!("the-file: discovery.{key}: ");
            assert!(told.starts_with(&named), "{value}: {told}");
        }
    }
    for line in [
        "prefix = \"/im/eu\"",
        "ttl = \"2s\"",
        "advertise = \"chat.example.com:443\"",
        "advertise = \"[fd00::1]:8080\"",
    ] {
        accepted(&format!("[discovery]\n{ETCD}{line}\n"));
    }
    const REMOTE: &str = "[backend]\nmode = \"remote\"\n";
    for everywhere in ["0.0.0.0:8080", "[::]:8080"] {
        let listen = format!("{REMOTE}[listen]\naddr = \"{everywhere}\"\n[discovery]\n");
        accepted(&listen);
        let told = error(&format!("{listen}{ETCD}"), &[], None);
        assert!(
            told.starts_with("the-file: discovery.advertise: "),
            "{told}"
        );
        assert!(told.contains("listen.addr"), "{told}");
        accepted(&format!("{listen}{ETCD}advertise = \"h:8080\"\n"));
    }
}

#[test]
fn the_broker_url_is_read_as_the_start_reads_it() {
    for url in [
        "",
        "amqp://",
        "amqp://h:x/",
        "amqp://u:hush-hush@h:x/",
        "amqp://u:hush-hush@h/?heartbeat=5",
        "http://[::1",
        "http://h",
        "amqp://u:hush-hush@[::1",
    ] {
        let error = error(&format!("[broker]\nurl = {url:?}\n"), &[], None);
        assert!(
            error.starts_with("the-file: broker.url: "),
            "{url}: {error}"
        );
        assert!(!error.contains(SECRET), "{error}");
        assert!(Endpoint::parse(url).is_err(), "{url}");
    }
    for url in ["amqp://h", "amqp://u:p@[::1]:5672/%2f", "AMQP://h/im"] {
        accepted(&format!("[broker]\nurl = {url:?}\n"));
        Endpoint::parse(url).unwrap();
    }
}

#[test]
fn paths_and_origins_are_ones_that_a_client_can_send() {
    for path in [
        "", "ws", "/", "/healthz", "/readyz", "/a b", "/a?b", "/a#b", "/é", "/\"", "/<a>",
    ] {
        let error = error(&format!("[listen]\npath = {path:?}\n"), &[], None);
        assert!(
            error.starts_with("the-file: listen.path: "),
            "{path}: {error}"
        );
    }
    for path in ["/ws", "/chat/v1", "/a-b._~%20!$&'()*+,;=:@"] {
        accepted(&format!("[listen]\npath = {path:?}\n"));
    }
    for origin in [
        "*",
        "",
        "null",
        "chat.example.com",
        "https://",
        "https://h/",
        "https://h/path",
        "https://*.example.com",
        "https://h:x",
        "https://h:70000",
        "https://u@h",
        "https://h?q",
        "https://h h",
        "https://h:443",
        "http://h:80",
        "http://h:08080",
        "http://[0:0::1]",
        "https://b\u{fc}cher.example",
        "://h",
        "1://h",
    ] {
        let error = error(
            &format!("[listen]\nallowed_origins = [{origin:?}]\n"),
            &[],
            None,
        );
        let named = "the-file: listen.allowed_origins: ";
        assert!(error.starts_with(named), "{origin}: {error}");
    }
    for origin in [
        "https://chat.example.com",
        "http://[::1]:8080",
        "HTTPS://Chat.Example.com",
        "https://h:80",
        "app+x://host",
    ] {
        accepted(&format!("[listen]\nallowed_origins = [{origin:?}]\n"));
    }
}

#[cfg(not(feature = "proxy-protocol"))]
#[test]
fn a_proxy_header_is_not_expected_by_a_binary_that_knows_none() {
    let on = "[listen]\nproxy_protocol = true\ntrusted_proxies = [\"10.0.0.1\"]\n";
    let named = "the-file: listen.proxy_protocol: this binary was built without the PROXY protocol";
    assert_eq!(error(on, &[], None), named);
}

#[cfg(feature = "proxy-protocol")]
#[test]
fn a_proxy_header_is_believed_from_proxies_that_are_named() {
    let on = "[listen]\nproxy_protocol = true\n";
    let error = error(on, &[], None);
    assert!(
        error.starts_with("the-file: listen.proxy_protocol: "),
        "{error}"
    );
    assert!(error.contains("listen.trusted_proxies"), "{error}");
    accepted(&format!("{on}trusted_proxies = [\"10.0.0.1\"]\n"));
    accepted("[listen]\nproxy_protocol = false\n");
}

/// Whatever is wrong with a token, its text is not told; nor are other secrets.
#[test]
fn no_secret_is_in_an_error() {
    let long = "u".repeat(300);
    let tokens = [
        format!("{SECRET} = 7"),
        format!("{SECRET} = \"\""),
        format!("{SECRET} = \"a\\nb\""),
        format!("{SECRET} = {long:?}"),
        format!("{SECRET} = []"),
        format!("{SECRET} = {{}}"),
        format!("{SECRET} = true"),
        format!("{SECRET} = {{ user = 7, expires_in = \"1h\" }}"),
        format!("{SECRET} = {{ user = \"alice\" }}"),
        format!("{SECRET} = {{ expires_in = \"1h\" }}"),
        format!("{SECRET} = {{ user = \"alice\", expires_in = \"soon\" }}"),
        format!("{SECRET} = {{ user = \"alice\", expires_in = 7 }}"),
        format!("{SECRET} = {{ user = \"alice\", expires_in = \"1h\", extra = 1 }}"),
        format!("alice = {{ {SECRET} = \"alice\" }}"),
        format!("alice = {{ user = \"alice\", expires_in = \"{SECRET}\" }}"),
        format!("alice = [\"{SECRET}\"]"),
        format!("alice = \"{SECRET}\\n\""),
        format!("{SECRET}.more = \"alice\""),
        format!("{SECRET}.user.more = \"alice\""),
        format!("\"{SECRET}.with.dots[0]\" = 7"),
        "\"\" = \"alice\"".into(),
    ];
    for entry in &tokens {
        let told = error(&format!("[embedded.tokens]\n{entry}\n"), &[], None);
        assert!(told.starts_with("the-file: embedded.tokens: "), "{told}");
        assert!(!told.contains(SECRET) && !told.contains(&long), "{told}");
    }
    for (text, named) in [
        ("[embedded]\ntokens = \"hush-hush\"\n", "embedded.tokens"),
        ("[embedded]\ntokens = [\"hush-hush\"]\n", "embedded.tokens"),
        ("embedded = \"hush-hush, expected x\"\n", "embedded"),
        ("broker = \"amqp://u:hush-hush@h/\"\n", "broker"),
        (
            "[broker]\nurl = [\"amqp://u:hush-hush@h/\"]\n",
            "broker.url",
        ),
        ("[broker]\nurl = { a = \"hush-hush\" }\n", "broker.url"),
        ("admin = \"hush-hush\"\n", "admin"),
        ("[admin]\ntoken = [\"hush-hush\"]\n", "admin.token"),
        (
            "[admin]\ntoken = \"hush-hush with blanks\"\n",
            "admin.token",
        ),
    ] {
        let told = error(text, &[], None);
        assert!(told.starts_with(&format!("the-file: {named}: ")), "{told}");
        assert!(!told.contains(SECRET), "{told}");
    }
    let number = error("[admin]\ntoken = 20261125\n", &[], None);
    assert!(!number.contains("20261125"), "{number}");
    let number = error("[broker]\nurl = 20261125\n", &[], None);
    assert!(!number.contains("20261125"), "{number}");
}

#[test]
fn a_file_that_is_no_toml_is_told_by_its_line_and_not_shown() {
    for line in [
        "hush-hush = alice",
        "hush-hush \"alice\"",
        "hush-hush = \"alice",
        "hush hush-hush = \"alice\"",
        "hush-hush = \"a\"\nhush-hush = \"b\"",
        "hush-hush = { user = \"a\", user = \"hush-hush\" }",
        "hush-hush = \"\\q\"",
        "[hush-hush",
        "hush-hush = \"a\"\n[embedded.tokens.hush-hush]",
        "a = 'hush-hush",
        "a = \"\"\"hush-hush",
        "= \"hush-hush\"",
        "a = hush-hush-hush",
    ] {
        let told = error(&format!("# one\n[embedded.tokens]\n{line}\n"), &[], None);
        assert!(told.starts_with("the-file: line "), "{told}");
        assert!(!told.contains("hush"), "{told}");
    }
    let told = error("a = 1\nb = 2\nc d\n", &[], None);
    assert!(told.starts_with("the-file: line 3: "), "{told}");
}

#[test]
fn an_address_without_its_form_is_told_the_form() {
    for (table, key) in [("listen", "listen.addr"), ("admin", "admin.addr")] {
        for addr in ["localhost:8080", "127.0.0.1", ":8080", "8080", ""] {
            let told = error(&format!("[{table}]\naddr = \"{addr}\""), &[], None);
            let expected = format!("the-file: {key}: invalid address, expected IP:PORT");
            assert_eq!(told, expected);
        }
    }
}

/// The file is named when the file is at fault, and the variable when that is.
#[test]
fn who_is_at_fault_is_named() {
    for (variable, value, key) in [
        (
            "GATEWAY_LISTEN__TRUSTED_PROXIES",
            "[\"10.0.0.1\", 7]",
            "listen.trusted_proxies",
        ),
        (
            "GATEWAY_LISTEN__ALLOWED_ORIGINS",
            "[\"https://h\", 7]",
            "listen.allowed_origins[1]",
        ),
        (
            "GATEWAY_LISTEN__ALLOWED_ORIGINS",
            "[\"*\"]",
            "listen.allowed_origins",
        ),
        (
            "GATEWAY_SERVICES__USER",
            "[\"http://h:1\", 7]",
            "services.user",
        ),
        (
            "GATEWAY_SERVICES__USER",
            "[\"http://h:1\", \"http://[::1\"]",
            "services.user",
        ),
        (
            "GATEWAY_SERVICES__MESSAGE",
            "http://h:x",
            "services.message",
        ),
        ("GATEWAY_BROKER__URL", "amqp://h:x/", "broker.url"),
        (
            "GATEWAY_EMBEDDED__GROUPS__TEAM",
            "[\"alice\", 7]",
            "embedded.groups.team[1]",
        ),
        (
            "GATEWAY_EMBEDDED__GROUPS",
            "{ team = [\"alice\", 7] }",
            "embedded.groups.team[1]",
        ),
        (
            "GATEWAY_EMBEDDED__GROUPS",
            "{ team = [\"\"] }",
            "embedded.groups.team",
        ),
        (
            "GATEWAY_DISCOVERY__ENDPOINTS",
            "[7]",
            "discovery.endpoints[0]",
        ),
        ("GATEWAY_LIMIT__RATE", "5", "limit"),
        ("GATEWAY_LISTEN__PATH__X", "5", "listen.path"),
    ] {
        let told = error("", &[(variable, value)], None);
        assert!(told.starts_with(&format!("{variable}: {key}")), "{told}");
    }
    // Another entry of the same table, which is in order.
    let well = ("GATEWAY_EMBEDDED__GROUPS__TEAM", "[\"alice\"]");
    let told = error("[embedded.groups]\nother = [\"\"]\n", &[well], None);
    assert!(
        told.starts_with("the-file: embedded.groups.other: "),
        "{told}"
    );
    let told = error("[embedded.groups]\nteamwork = [7]\n", &[well], None);
    assert!(
        told.starts_with("the-file: embedded.groups.teamwork[0]: "),
        "{told}"
    );
    let well = ("GATEWAY_EMBEDDED__TOKENS__MINE", "me");
    let told = error("[embedded.tokens]\nother = 7\n", &[well], None);
    assert!(told.starts_with("the-file: embedded.tokens: "), "{told}");
}

#[test]
fn a_token_in_the_name_of_a_variable_is_not_told() {
    for (variable, value) in [
        ("GATEWAY_EMBEDDED__TOKENS__HUSH_HUSH", "7"),
        ("GATEWAY_EMBEDDED__TOKENS__HUSH_HUSH", "\"\""),
        ("GATEWAY_EMBEDDED__TOKENS__HUSH_HUSH__USER", "7"),
        ("GATEWAY_EMBEDDED__TOKENS__ALICE__HUSH_HUSH", "7"),
        ("GATEWAY_EMBEDDED__TOKENS", "{ hush_hush = 7 }"),
        ("GATEWAY_EMBEDDED__TOKENS", "hush_hush"),
        ("GATEWAY_EMBEDDED__TOKENS", "[\"hush_hush\"]"),
    ] {
        let told = error("", &[(variable, value)], None);
        assert!(told.starts_with("GATEWAY_EMBEDDED__TOKENS"), "{told}");
        assert!(told.contains(": embedded.tokens: "), "{told}");
        assert!(!told.to_lowercase().contains("hush"), "{told}");
    }
    let taken = ("GATEWAY_EMBEDDED__TOKENS__HUSH__USER", "alice");
    let told = error("[embedded.tokens]\nhush = \"alice\"\n", &[taken], None);
    assert!(!told.to_lowercase().contains("hush"), "{told}");
}

#[test]
fn sample_tokens_are_for_what_is_bound_to_loopback() {
    const OWN: &str = "[embedded.tokens]\nmine = \"me\"\n";
    for public in [
        "0.0.0.0:1",
        "[::]:1",
        "10.0.0.1:1",
        "[::ffff:10.0.0.1]:1",
        "[fe80::1]:1",
    ] {
        let addr: SocketAddr = public.parse().unwrap();
        for text in [
            "",
            "[listen]\naddr = \"127.0.0.1:1\"\n",
            "[backend]\nmode = \"remote\"\n",
        ] {
            let told = error(text, &[], Some(addr));
            assert!(told.starts_with("the-file: embedded.tokens: "), "{told}");
            assert!(told.contains("sample"), "{told}");
        }
        let one = error(&format!("{OWN}bob-token = \"me\"\n"), &[], Some(addr));
        assert!(one.starts_with("the-file: embedded.tokens: "), "{one}");
        parse("the-file", OWN, [], Some(addr)).unwrap();

        let told = error(&format!("[listen]\naddr = {public:?}\n"), &[], None);
        assert!(told.starts_with("the-file: listen.addr: "), "{told}");
        accepted(&format!("[listen]\naddr = {public:?}\n{OWN}"));
    }
    for loopback in [
        "127.0.0.1:1",
        "127.9.9.9:1",
        "[::1]:1",
        "[::ffff:127.0.0.1]:1",
    ] {
        let addr: SocketAddr = loopback.parse().unwrap();
        parse("the-file", "", [], Some(addr)).unwrap();
        accepted(&format!("[listen]\naddr = {loopback:?}\n"));
    }
}
