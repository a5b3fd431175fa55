//! Who gets in: whatever is no token, wherever it stands, and whatever the User Service says instead of
//! an answer; and pages of other origins, in a real browser. What somebody in is shown, and can change,
//! is their own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message as _;
use serde_json::{Value, json};
use toml::Table;
use ws_gateway::services::proto::ValidateTokenResponse;

use crate::chat;
use crate::support::backend::{Backend, garbage_server, silent_server};
use crate::support::broker::{Broker, free_port};
use crate::support::browser::Browser;
use crate::support::client::{error_message, is_push, sent};
use crate::support::cluster::remote;
use crate::support::http2::{Call, Http2, Reply, framed};
use crate::support::random::Random;
use crate::support::raw::{Raw, Response, UPGRADE};
use crate::support::settings::token_of;
use crate::support::{Client, Gateway, Settings, wait_until, watchdog};

/// Where a token may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Header,
    Protocol,
    Query,
}

use Place::{Header, Protocol, Query};

const PLACES: [Place; 3] = [Header, Protocol, Query];

fn protocol(token: &str) -> String {
    format!("base64url.bearer.{}", URL_SAFE_NO_PAD.encode(token))
}

/// An upgrade with tokens in these places, and the connection.
fn upgrade(gateway: &Gateway, tokens: &[(Place, &str)]) -> (Response, Raw) {
    let (mut path, mut headers) = (gateway.path.clone(), Vec::new());
    for (place, token) in tokens {
        match place {
            Header => headers.push(("Authorization", format!("Bearer {token}"))),
            Protocol => {
                let offered = format!("im.v1, {}", protocol(token));
                headers.push(("Sec-WebSocket-Protocol", offered));
            }
            Query => path += &format!("?token={token}"),
        }
    }
    let headers = headers.iter().map(|(name, value)| (*name, value.as_str()));
    let headers: Vec<_> = UPGRADE.into_iter().chain(headers).collect();
    let mut raw = gateway.raw();
    // Of a head that is too large, the rest may meet a connection that is over.
    let _ = raw.try_send(crate::support::raw::head("GET", &path, &headers));
    (raw.response(), raw)
}

/// Nobody has been let in so far.
fn assert_nobody_was_admitted(gateway: &Gateway) {
    assert_eq!(gateway.admin.metric("gateway_connections_total"), 0.0);
}

/// Neither text that somebody is shown nor a line of the log holds a token, as it is or encoded.
fn assert_untold(token: &str, texts: &[&str]) {
    for secret in [token, &URL_SAFE_NO_PAD.encode(token)] {
        let told = texts.iter().find(|text| text.contains(secret));
        assert_eq!(told, None, "{secret}");
    }
}

#[test]
fn what_is_no_token_lets_nobody_in_wherever_it_stands() {
    let mut settings = chat::settings();
    let expiring: Table = "user = \"alice\"\nexpires_in = \"1s\"".parse().expect("it");
    settings.put_token("expiring-token", expiring);
    let gateway = Gateway::start(&settings);
    let known = token_of("alice");
    wait_until("the token has expired", || {
        upgrade(&gateway, &[(Header, "expiring-token")]).0.status == 401
    });
    let before = gateway.admin.metric("gateway_connections_total");
    let long = "x".repeat(1 << 20);
    for (token, status) in [
        ("unknown-token", 401),
        ("expiring-token", 401),
        ("ALICE-TOKEN", 401),
        ("alice-toke", 401),
        ("alice-token-", 401),
        ("alice-token%00", 401),
        ("undefined", 401),
        ("", 401),
        (&long, 431),
    ] {
        for place in PLACES {
            let (response, mut raw) = upgrade(&gateway, &[(place, token)]);
            let shown = &token[..token.len().min(20)];
            assert_eq!(response.status, status, "{place:?}, {shown}: {response:?}");
            assert_eq!(response.header("sec-websocket-protocol"), None);
            if !token.is_empty() {
                assert_untold(token, &[&response.body]);
            }
            raw.expect_end();
        }
    }
    // As long as a head may be, too.
    let fits = "x".repeat(7_000);
    for (place, token) in [
        (Header, &fits[..]),
        (Protocol, &fits[..5_000]),
        (Query, &fits),
    ] {
        assert_eq!(
            upgrade(&gateway, &[(place, token)]).0.status,
            401,
            "{place:?}"
        );
    }
    assert_eq!(upgrade(&gateway, &[]).0.status, 401);
    assert_eq!(gateway.admin.metric("gateway_connections_total"), before);
    for place in PLACES {
        assert_eq!(
            upgrade(&gateway, &[(place, &known)]).0.status,
            101,
            "{place:?}"
        );
    }
    let (logged, listed) = (gateway.stderr(), gateway.admin.get("/disconnects").body);
    for token in ["unknown-token", "expiring-token", &known, &long, &fits] {
        assert_untold(token, &[&logged, &listed]);
    }
}

#[test]
fn a_refresh_with_a_token_of_a_megabyte_is_no_refresh() {
    let gateway = Gateway::start(&chat::settings().set("limits.max_message_size", 2 << 20));
    let mut alice = gateway.connect("alice");
    let long = "x".repeat(1 << 20);
    for token in [&long, "", "unknown-token"] {
        let answer = alice.request("refresh_token", json!({ "token": token }));
        assert_eq!(answer["type"], "error", "{answer}");
        assert!(token.is_empty() || !answer.to_string().contains(token));
    }
    let answer = alice.request("refresh_token", json!({ "token": token_of("alice") }));
    assert_eq!(answer["type"], "token_refreshed", "{answer}");
    assert_untold(&long, &[&gateway.stderr()]);
}

/// The header, the protocol, the query: the first that is there decides, right or wrong.
#[test]
fn of_tokens_in_several_places_the_first_one_counts() {
    let gateway = Gateway::start(&chat::settings());
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(token_of);
    for (tokens, user) in [
        (
            &[(Header, &*alice), (Protocol, &*bob), (Query, &*carol)][..],
            "alice",
        ),
        (&[(Protocol, &bob), (Query, &carol)], "bob"),
        (&[(Header, &alice), (Query, &carol)], "alice"),
        (
            &[(Header, &alice), (Protocol, "wrong"), (Query, "wrong")],
            "alice",
        ),
        (&[(Protocol, &bob), (Query, "wrong")], "bob"),
        (&[(Header, ""), (Protocol, &bob), (Query, &carol)], "bob"),
        (&[(Header, "wrong"), (Protocol, &bob), (Query, &carol)], ""),
        (&[(Protocol, "wrong"), (Query, &carol)], ""),
        (&[(Protocol, ""), (Query, &carol)], ""),
    ] {
        let (response, mut raw) = upgrade(&gateway, tokens);
        if user.is_empty() {
            assert_eq!(response.status, 401, "{tokens:?}: {response:?}");
        } else {
            assert_eq!(response.status, 101, "{tokens:?}: {response:?}");
            assert_eq!(raw.json()["user_id"], user, "{tokens:?}");
        }
    }
}

#[test]
fn of_the_protocols_that_are_offered_im_v1_is_chosen_or_none() {
    let gateway = Gateway::start(&chat::settings().set("limits.max_connections_per_user", 100));
    let (alice, bearer) = (
        protocol("alice-token"),
        format!("Bearer {}", token_of("alice")),
    );
    let by_protocol = |fields: &[&str]| {
        let offered = fields
            .iter()
            .map(|&value| ("Sec-WebSocket-Protocol", value));
        let headers: Vec<_> = UPGRADE.into_iter().chain(offered).collect();
        gateway.raw().get_with(&gateway.path, &headers)
    };
    for (fields, chosen) in [
        (&[&*format!("im.v1, {alice}")][..], Some("im.v1")),
        (&[&format!("{alice},im.v1")], Some("im.v1")),
        (&[&alice, "im.v1"], Some("im.v1")),
        (
            &["chat, im.v2", &format!("x, {alice}"), "y, im.v1"],
            Some("im.v1"),
        ),
        (&[&alice], None),
        (&[&format!("{alice}, im.v2")], None),
        (&[&format!("IM.V1, {alice}")], None),
    ] {
        let response = by_protocol(fields);
        assert_eq!(response.status, 101, "{fields:?}: {response:?}");
        assert_eq!(
            response.header("sec-websocket-protocol"),
            chosen,
            "{fields:?}"
        );
        assert_untold("alice-token", &[&format!("{response:?}")]);
    }
    // Where the token stands elsewhere, protocols are answered in the same way.
    for (offered, chosen) in [("im.v1", Some("im.v1")), ("chat, soap", None), ("", None)] {
        let further = [
            ("Authorization", &*bearer),
            ("Sec-WebSocket-Protocol", offered),
        ];
        let headers = [&UPGRADE[..], &further].concat();
        let response = gateway.raw().get_with(&gateway.path, &headers);
        assert_eq!(response.status, 101, "{offered}: {response:?}");
        assert_eq!(
            response.header("sec-websocket-protocol"),
            chosen,
            "{offered}"
        );
    }
    // The error says how it is written, and not what was.
    for written in [
        "alice-token=",
        "YWxpY2UtdG9rZW4=",
        "YWxpY2U+",
        "_____w",
        "YWxpY2UtdG9rZW5",
    ] {
        let response = by_protocol(&[&format!("im.v1, base64url.bearer.{written}")]);
        assert_eq!(response.status, 400, "{written}: {response:?}");
        let message = error_message(&response.json(), "INVALID_MESSAGE");
        assert!(message.contains("base64url without padding"), "{message}");
        assert!(!message.contains(written), "{message}");
        assert!(!gateway.stderr().contains(written));
    }
    assert_eq!(by_protocol(&[&alice, &protocol("bob-token")]).status, 400);
}

/// Half an answer, or one to something else, whose message would let alice in.
fn almost(call: &Call, how: usize) -> Reply {
    let message = ValidateTokenResponse {
        user_id: "alice".into(),
        expires_at: 0,
    };
    let message = framed(&message.encode_to_vec());
    let grpc =
        |reply: Reply| reply.head(call.stream, "200", &[("content-type", b"application/grpc")]);
    let answer = grpc(Reply::default()).data(call.stream, &message);
    match how {
        0 => answer.end(call.stream),
        1 => answer.trailers(call.stream, &[("grpc-status", b"13")]),
        2 => answer.trailers(call.stream, &[("grpc-status", b"ok")]),
        3 => grpc(Reply::default())
            .data(call.stream, &message[..message.len() - 2])
            .end(call.stream),
        4 => answer.reset(call.stream, 2),
        5 => call.page("200", "text/html"),
        6 => call.page("200", "application/grpc"),
        7 => call.answer(b"\xff\xff\xff\xff"),
        8 => call.answer(b""),
        _ => answer.and_close(),
    }
}

/// A crowd at a time, in every way; each is told to come again, and nobody is in.
#[test]
fn without_an_answer_of_the_user_service_not_one_is_admitted() {
    const AT_ONCE: usize = 10;
    let (backend, user_service) = (Backend::start(), Backend::start());
    let (_silent, silent) = silent_server();
    let odd: Vec<_> = (0..10)
        .map(|how| Http2::start(move |call| almost(call, how)))
        .collect();
    let slow = user_service.url();
    user_service.slow("ValidateToken", Duration::from_secs(30));
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let mut faults = vec![
        ("slow", slow),
        ("down", nobody),
        ("silent", silent),
        ("garbage", garbage_server()),
    ];
    faults.extend(odd.iter().map(|it| ("half an answer", it.url())));
    let start = |url: &str| {
        let settings = remote(&Settings::new(), &backend.url(), &Broker::shared().vhost())
            .set("services.user", url)
            .set("services.timeout", "300ms");
        Gateway::start(&settings)
    };
    for (number, (fault, url)) in faults.iter().enumerate() {
        let gateway = start(url);
        thread::scope(|scope| {
            for turn in 0..AT_ONCE {
                let gateway = &gateway;
                let place = PLACES[turn % PLACES.len()];
                scope.spawn(move || {
                    let (response, mut raw) = upgrade(gateway, &[(place, "alice-token")]);
                    let what = format!("{fault} {number}, {place:?}: {response:?}");
                    assert_eq!(response.status, 503, "{what}");
                    assert!(response.header("retry-after").is_some(), "{what}");
                    raw.expect_end();
                });
            }
        });
        assert_nobody_was_admitted(&gateway);
        assert_untold("alice-token", &[&gateway.stderr()]);
    }
    user_service.heal("ValidateToken");
    let gateway = start(&user_service.url());
    for place in PLACES {
        assert_eq!(upgrade(&gateway, &[(place, "alice-token")]).0.status, 101);
    }
}

/// Also with a token that is no ASCII, as only a protocol can carry it.
#[test]
fn the_chat_page_brings_its_token_as_a_protocol() {
    let mut settings = chat::settings();
    settings.put_token("t\u{f6}ken \u{20ac}~?>", "dave");
    let gateway = Gateway::start(&settings);
    let browser = Browser::start();
    browser.open(&format!("http://{}/", gateway.addr));
    browser.run(
        "const Real = WebSocket; window.opened = []; window.WebSocket = class extends Real { \
         constructor(...all) { super(...all); opened.push(this); } };",
    );
    let log_in = |token: &str| {
        browser.run(&format!(
            "document.getElementById('token').value = {}; \
             document.querySelector('#login button').click();",
            Value::from(token)
        ));
    };
    let state = "document.getElementById('state-text').textContent";
    for (token, user) in [("alice-token", "alice"), ("t\u{f6}ken \u{20ac}~?>", "dave")] {
        log_in(token);
        browser.wait_for(&format!("{state}.startsWith('{user} at ')"));
        let opened = "opened.at(-1)";
        browser.wait_for(&format!("{opened}.protocol === 'im.v1'"));
        let url = browser.run(&format!("return {opened}.url;"));
        assert_eq!(url, format!("ws://{}{}", gateway.addr, gateway.path));
        let mut bob = gateway.connect("bob");
        let id = bob.send_message(user, &format!("hello {user}"));
        bob.expect_message(&id);
        browser.wait_for(&format!(
            "document.getElementById('conversations').textContent.includes('hello {user}')"
        ));
        bob.close();
        browser.run("document.getElementById('leave').click();");
        assert_untold(token, &[&gateway.stderr()]);
    }
    log_in("wrong-token");
    browser.wait_for("document.getElementById('refusal').textContent.includes('401')");
    assert_untold("wrong-token", &[&gateway.stderr()]);
}

/// Origins as Chromium sends them.
#[test]
fn a_page_of_another_origin_is_kept_out() {
    let port = free_port();
    let own = format!("http://127.0.0.1:{port}");
    let settings = chat::settings()
        .set("listen.addr", format!("127.0.0.1:{port}"))
        .set("listen.allowed_origins", vec![own.as_str()]);
    let gateway = Gateway::start(&settings);
    let elsewhere = Gateway::start(&chat::settings());
    let browser = Browser::start();
    let socket = format!(
        "const socket = new WebSocket('ws://127.0.0.1:{port}{}', ['im.v1', '{}']);",
        gateway.path,
        protocol("alice-token")
    );
    let try_from = |page: &str| {
        browser.open(page);
        browser.run(&format!(
            "{socket} socket.onopen = () => window.outcome = socket.protocol; \
             socket.onerror = () => window.outcome = 'refused';"
        ));
        browser.wait_for("window.outcome");
        browser.run("return window.outcome;")
    };
    assert_eq!(try_from(&own), "im.v1");
    let file = watchdog::directory("page").join("page.html");
    std::fs::write(&file, "<p>a page</p>").expect("a file");
    let file = format!("file://{}", file.display());
    let pages = [
        format!("http://{}/", elsewhere.addr),
        // The same place, by another name.
        format!("http://localhost:{port}/"),
        file.clone(),
    ];
    for page in &pages {
        assert_eq!(try_from(page), "refused", "{page}");
    }
    // In a frame that is nobody's the origin is `null`.
    browser.open(&file);
    browser.run(&format!(
        "onmessage = event => window.outcome = event.data; \
         const frame = document.createElement('iframe'); frame.sandbox = 'allow-scripts'; \
         frame.srcdoc = `<script>const tell = outcome => parent.postMessage(outcome, '*'); \
         {} socket.onopen = () => tell('open'); socket.onerror = () => tell('refused');</script>`; \
         document.body.append(frame);",
        socket
    ));
    browser.wait_for("window.outcome");
    assert_eq!(browser.run("return window.outcome;"), "refused");
    let listed = gateway.admin.json("/disconnects");
    let refused = listed["refused"].as_array().expect("a list");
    assert_eq!(refused.len(), pages.len() + 1, "{listed}");
    assert!(
        refused.iter().all(|it| it["reason"] == "forbidden_origin"),
        "{listed}"
    );
    assert_eq!(try_from(&own), "im.v1");
}

const USERS: usize = 100;
const GROUPS: usize = 10;
/// Of each user.
const ATTEMPTS: usize = 60;
/// Change it to try another course of events.
const SEED: u64 = 0x5eed_0002;

fn user(number: usize) -> String {
    format!("user{number:02}")
}

fn group(number: usize) -> String {
    format!("group{number}")
}

/// Everybody is in two groups, or in one.
fn is_member(user: usize, group: usize) -> bool {
    user % GROUPS == group || user / GROUPS == group
}

/// A message, and whom it is for. What it says tells this as well, so that it gives itself away
/// wherever it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Secret {
    from: usize,
    /// A user's or a group's name.
    to: String,
    serial: usize,
}

impl Secret {
    fn content(&self) -> String {
        format!("secret({}>{}>{})", user(self.from), self.to, self.serial)
    }

    /// The secrets that a text tells, each with who is named as its sender.
    fn told_by(text: &str) -> impl Iterator<Item = Self> {
        text.split("secret(").skip(1).map(|text| {
            let parts = text.split(')').next().expect("one").split('>');
            let [from, to, serial] = parts.collect::<Vec<_>>()[..] else {
                panic!("half a secret: {text}");
            };
            let number = |text: &str| text.parse().expect("a number");
            Self {
                from: number(&from["user".len()..]),
                to: to.to_owned(),
                serial: number(serial),
            }
        })
    }

    fn is_for(&self, reader: usize) -> bool {
        let of_a_group = (0..GROUPS).any(|it| group(it) == self.to && is_member(reader, it));
        self.to == user(reader) || of_a_group
    }
}

/// What really happened.
#[derive(Default)]
struct Truth {
    /// By message id.
    messages: BTreeMap<String, Secret>,
    /// (user, id): acknowledged by whom it is for.
    acked: BTreeSet<(usize, String)>,
}

impl Truth {
    /// The ids of what is unread by `reader`.
    fn unread(&self, reader: usize) -> BTreeSet<String> {
        let theirs = self.messages.iter().filter(|(id, secret)| {
            let is_read = self.acked.contains(&(reader, (*id).clone()));
            secret.is_for(reader) && secret.from != reader && !is_read
        });
        theirs.map(|(id, _)| id.clone()).collect()
    }
}

/// One of the hundred, connected, with all that they are shown.
struct Somebody {
    number: usize,
    client: Client,
    random: Random,
    serial: usize,
    /// The serials of which this one has used the `client_message_id`.
    keys: BTreeSet<usize>,
    truth: Arc<Mutex<Truth>>,
    /// Ids of messages that were pushed.
    pushed: BTreeSet<String>,
    leaks: Vec<String>,
}

impl Somebody {
    /// Looks at frames: no secret of others, and no sender who is not.
    fn judge(&mut self, frames: &[Value]) {
        for frame in frames {
            let me = self.number;
            for secret in Secret::told_by(&frame.to_string()) {
                if secret.from != me && !secret.is_for(me) {
                    self.leaks.push(format!("{} is shown {frame}", user(me)));
                }
            }
            let of_history = frame["messages"].as_array().into_iter().flatten();
            for message in of_history.chain(is_push(frame).then_some(frame)) {
                let content = message["content"].as_str().expect("a content");
                let secret = Secret::told_by(content).next().expect("a secret");
                let to = if message["group_id"].is_string() {
                    "group_id"
                } else {
                    "to_user_id"
                };
                if message["from_user_id"] != user(secret.from) || message[to] != secret.to {
                    self.leaks
                        .push(format!("{} is shown a forgery: {message}", user(me)));
                }
            }
            if is_push(frame) {
                self.pushed
                    .insert(frame["id"].as_str().expect("an id").to_owned());
            }
        }
    }

    /// A request and all that came up to its answer.
    fn ask(&mut self, kind: &str, data: Value) -> Value {
        let answer = self.client.request(kind, data);
        let frames = self.client.take_held();
        self.judge(&frames);
        self.judge(std::slice::from_ref(&answer));
        answer
    }

    fn must_fail(&mut self, kind: &str, data: Value, code: &str) {
        let answer = self.ask(kind, data);
        error_message(&answer, code);
    }

    /// The next message from here to `to`, as a request with what else is claimed.
    fn send(&mut self, to: &str, claimed: Value) {
        self.serial += 1;
        let secret = Secret {
            from: self.number,
            to: to.to_owned(),
            serial: self.serial,
        };
        let is_group = to.starts_with("group");
        let (kind, key) = if is_group {
            ("send_group_message", "group_id")
        } else {
            ("send_message", "to_user_id")
        };
        let mut data = json!({
            key: to,
            "content": secret.content(),
            "client_message_id": format!("c-{}", self.serial),
        });
        let claims = claimed.as_object().expect("an object").clone();
        data.as_object_mut().expect("an object").extend(claims);
        self.keys.insert(self.serial);
        let id = sent(self.ask(kind, data));
        let before = self
            .truth
            .lock()
            .unwrap()
            .messages
            .insert(id.clone(), secret);
        if let Some(before) = before {
            self.leaks.push(format!("{id} was {before:?} before"));
        }
    }

    /// Something that is not theirs to do, with knowledge that they should not have: `known`.
    fn attempt(&mut self, known: &[(String, Secret)]) {
        let me = self.number;
        let victim = (me + 1 + self.random.below(USERS - 1)) % USERS;
        let name = user(victim);
        let foreign: Vec<_> = (0..GROUPS).filter(|&it| !is_member(me, it)).collect();
        let foreign = *self.random.pick(&foreign);
        // One of its members.
        let member = user(foreign + GROUPS * self.random.below(USERS / GROUPS));
        let ids_of = |reader: usize| {
            let theirs = known
                .iter()
                .filter(|(_, it)| it.is_for(reader) && !it.is_for(me));
            theirs.map(|(id, _)| id.clone()).collect::<Vec<_>>()
        };
        match self.random.below(12) {
            0 => {
                let others = known.iter().filter(|(_, secret)| !secret.is_for(me));
                let ids: Vec<_> = others.map(|(id, _)| id).collect();
                let ids: Vec<_> = (0..20).map(|_| *self.random.pick(&ids)).collect();
                let answer = self.ask("ack", json!({ "message_ids": ids }));
                assert_eq!(answer["type"], "acked", "{answer}");
            }
            1 => {
                let ids = ids_of(victim);
                let claimed = json!({ "user_id": name, "from_user_id": name, "message_ids": ids });
                self.ask("ack", claimed);
            }
            2 => {
                let before = &self.random.pick(known).0;
                let asked = json!({ "user_id": name, "before_id": before, "limit": 100 });
                self.ask("get_history", asked);
            }
            3 => {
                let other = user((victim + 1) % USERS);
                let asked = json!({ "user_id": name, "from_user_id": other, "requester_id": other,
                    "peer_id": other, "limit": 100 });
                self.ask("get_history", asked);
            }
            4 => {
                let asked = json!({ "group_id": group(foreign), "user_id": member, "limit": 100 });
                self.must_fail("get_group_history", asked, "PERMISSION_DENIED");
            }
            5 => {
                let (before, to) = (&self.random.pick(known).0, group(foreign));
                let asked = json!({ "group_id": to, "from_user_id": member, "before_id": before });
                self.must_fail("get_group_history", asked, "PERMISSION_DENIED");
            }
            6 => {
                let to = group(foreign);
                let forged = json!({ "group_id": to, "from_user_id": member, "user_id": member,
                    "content": format!("secret({member}>{to}>0)") });
                self.must_fail("send_group_message", forged, "PERMISSION_DENIED");
            }
            7 => {
                let third = user((victim + 7) % USERS);
                self.send(
                    &name,
                    json!({ "from_user_id": third, "id": known[0].0, "timestamp": 1 }),
                );
            }
            8 => {
                // The other's key for repeating a message is not theirs.
                let unused = known
                    .iter()
                    .filter(|(_, it)| !self.keys.contains(&it.serial));
                let unused: Vec<_> = unused.map(|(_, it)| it.serial).collect();
                let key = *self.random.pick(&unused);
                self.keys.insert(key);
                self.send(&name, json!({ "client_message_id": format!("c-{key}") }));
            }
            9 => {
                let taken = json!({ "token": token_of(&name), "user_id": name });
                let answer = self.ask("refresh_token", taken);
                assert_eq!(answer["type"], "error", "{answer}");
            }
            10 => {
                let forged =
                    json!({ "id": known[0].0, "from_user_id": name, "to_user_id": user(me) });
                let kind = *self
                    .random
                    .pick(&["message", "group_message", "history", "presence"]);
                self.must_fail(kind, forged, "UNKNOWN_MESSAGE_TYPE");
            }
            _ => {
                // Their own, which counts.
                let ids = known
                    .iter()
                    .filter(|(_, it)| it.is_for(me) && it.from != me);
                let ids: Vec<_> = ids.map(|(id, _)| id.clone()).collect();
                let id = self.random.pick(&ids).clone();
                let answer = self.ask("ack", json!({ "message_ids": [id] }));
                assert_eq!(answer["type"], "acked", "{answer}");
                self.truth.lock().unwrap().acked.insert((me, id));
            }
        }
    }

    /// Reads until all that is for them was pushed.
    fn catch_up(&mut self) {
        let truth = Arc::clone(&self.truth);
        wait_until(format!("{} has all", user(self.number)), || {
            self.ask("ping", Value::Null);
            let truth = truth.lock().unwrap();
            let me = self.number;
            let mut all = truth.messages.iter();
            all.all(|(id, it)| !(it.from == me || it.is_for(me)) || self.pushed.contains(id))
        });
    }
}

/// All at once.
fn each(everybody: &mut [Somebody], act: impl Fn(&mut Somebody) + Sync) {
    thread::scope(|scope| {
        for one in everybody {
            let act = &act;
            scope.spawn(move || act(one));
        }
    });
}

/// A hundred users who know each other's names, tokens and message ids. What they are shown is judged,
/// and in the end everybody's unread messages: those that they did not acknowledge themselves.
#[test]
fn a_hundred_users_neither_read_nor_acknowledge_nor_forge_what_is_anothers() {
    println!("seed {SEED:#x}");
    let names: Vec<String> = (0..USERS).map(user).collect();
    let mut settings = Settings::new()
        .users(names.iter().map(String::as_str))
        .set("limits.rate", 100_000)
        .set("limits.burst", 100_000)
        .set("log.level", "info");
    for it in 0..GROUPS {
        let members = (0..USERS).filter(|&number| is_member(number, it));
        let members: Vec<_> = members.map(|number| &*names[number]).collect();
        settings.put_group(&group(it), members);
    }
    let gateway = Gateway::start(&settings);
    let truth = Arc::<Mutex<Truth>>::default();
    let mut everybody: Vec<Somebody> = (0..USERS)
        .map(|number| Somebody {
            number,
            client: gateway.connect(&names[number]),
            random: Random(SEED + number as u64),
            // Nobody repeats another's by chance.
            serial: 1_000_000 * (number + 1),
            keys: BTreeSet::new(),
            truth: Arc::clone(&truth),
            pushed: BTreeSet::new(),
            leaks: Vec::new(),
        })
        .collect();
    each(&mut everybody, |one| {
        for _ in 0..3 {
            let to = (one.number + 1 + one.random.below(USERS - 1)) % USERS;
            one.send(&user(to), json!({}));
        }
        one.send(&group(one.number % GROUPS), json!({}));
    });
    let known: Vec<_> = truth.lock().unwrap().messages.clone().into_iter().collect();
    assert_eq!(known.len(), 4 * USERS);
    each(&mut everybody, |one| {
        (0..ATTEMPTS).for_each(|_| one.attempt(&known))
    });
    each(&mut everybody, Somebody::catch_up);
    let mut leaks: Vec<String> = Vec::new();
    for one in everybody {
        leaks.extend(one.leaks);
        one.client.close();
    }
    // Whoever could have acknowledged another's, or become another: now it shows.
    let truth = truth.lock().unwrap();
    let mut unread = 0;
    for (number, name) in names.iter().enumerate() {
        let mut client = gateway.connect(name);
        assert_eq!(client.user, *name);
        let mut frames = client.take_held();
        frames.retain(is_push);
        let ids = frames
            .iter()
            .map(|frame| frame["id"].as_str().expect("an id").to_owned());
        let (found, expected) = (ids.collect::<BTreeSet<_>>(), truth.unread(number));
        assert_eq!(found, expected, "{name}");
        unread += found.len();
        client.close();
    }
    let (attempts, messages) = (USERS * ATTEMPTS, truth.messages.len());
    println!(
        "{attempts} attempts, {messages} messages, {unread} unread, {} acknowledged, {} leaks",
        truth.acked.len(),
        leaks.len()
    );
    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
}
