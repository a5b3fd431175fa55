//! The chat page in a real browser: two people in two tabs; what it does when the gateway, the network
//! or the services go away; and each rehearsal.

use std::env;
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use crate::chat;
use crate::foreign_pages::{EVIL, site};
use crate::live_page::assert_legible;
use crate::support::admin::Admin;
use crate::support::browser::{Browser, ENTER, ESCAPE, TAB, Tab};
use crate::support::link::Link;
use crate::support::process::Signal;
use crate::support::{Client, Gateway, Settings, pictures, wait_until, watchdog};

fn settings() -> Settings {
    chat::settings().set("limits.rate", 1000)
}

/// Settings under which a gateway that is started again knows what the one before knew.
fn lasting() -> Settings {
    let database = watchdog::directory("database").join("chat.db");
    settings().set("embedded.database", database.display().to_string())
}

fn url(host: &str, addr: SocketAddr) -> String {
    // The suite once more, with TLS on the client listener.
    let scheme = env::var_os("IT_TLS").map_or("http", |_| "https");
    format!("{scheme}://{host}:{}/", addr.port())
}

/// Somebody, with the page in a tab of their own.
struct Person<'b> {
    browser: &'b Browser,
    tab: Tab,
}

impl<'b> Person<'b> {
    fn arrives(browser: &'b Browser, addr: SocketAddr) -> Self {
        let tab = browser.new_tab();
        browser.set_viewport(1280, 800);
        browser.open(&url("127.0.0.1", addr));
        Self { browser, tab }
    }

    fn signs_in(browser: &'b Browser, addr: SocketAddr, user: &str) -> Self {
        let person = Self::arrives(browser, addr);
        person.picks("#samples button", user);
        person.wait_for(CONNECTED);
        person
    }

    fn run(&self, script: &str) -> Value {
        self.browser.switch_to(&self.tab);
        self.browser.run(&format!("{HELPERS}{script}"))
    }

    fn get(&self, expression: &str) -> Value {
        self.run(&format!("return {expression};"))
    }

    fn wait_for(&self, expression: &str) {
        let looked = |what: &str| self.get(&format!("Boolean({what})")) == true;
        let news = "document.getElementById('news-text').textContent";
        let mut looks = 0;
        wait_until(format!("on the page: {expression}"), || {
            looks += 1;
            if looks % 200 == 0 {
                println!("{looks} looks for {expression}: {}", self.get(news));
            }
            looked(expression)
        });
    }

    /// Clicks what has this text among the elements of a selector.
    fn picks(&self, selector: &str, text: &str) {
        let found = format!(
            "[...document.querySelectorAll('{selector}')].find(it => it.textContent.includes('{text}'))"
        );
        self.wait_for(&found);
        self.run(&format!("({found}).click();"));
    }

    fn opens(&self, conversation: &str) {
        self.run(&format!("entry('{conversation}').firstChild.click();"));
        self.wait_for("current.isFresh");
    }

    /// By keyboard.
    fn says(&self, text: &str) {
        self.run("document.getElementById('text').focus();");
        self.browser.type_keys(&format!("{text}{ENTER}"));
        self.wait_for(&format!("bubbles().includes('{text}')"));
    }

    fn rehearses(&self, index: usize, what: &str) {
        let button = format!("document.querySelectorAll('[data-what={what}]')[{index}]");
        self.run(&format!("scheduled.length = 0; {button}.click();"));
    }
}

const CONNECTED: &str = "document.body.dataset.state === 'connected'";
const ENDED: &str = "document.body.dataset.state === 'ended'";

/// What scripts may use. `scheduled`: in how many milliseconds the page means to connect again.
const HELPERS: &str = "
    const entry = name => [...document.querySelectorAll('#conversations li')]
      .find(it => it.querySelector('b').textContent === name);
    const unread = name => Number(entry(name).querySelector('.unread').textContent);
    const isOnline = name => entry(name).querySelector('.dot').classList.contains('online');
    const bubbles = () => [...document.querySelectorAll('#messages .bubble > :first-child')]
      .map(it => it.textContent);
    const waiting = () => document.querySelectorAll('#messages .waiting').length;
    const frames = text => [...document.querySelectorAll('#wire li')]
      .map(it => it.textContent).filter(it => it.includes(text));
    const news = () => document.getElementById('news-text').textContent;
    if (!window.scheduled) {
      window.scheduled = [];
      const original = window.setTimeout;
      window.setTimeout = (act, ms) => {
        if (act === connect) scheduled.push(ms);
        return original(act, ms);
      };
    }
";

/// What is unread for a user, from their oldest to their newest.
fn unread(gateway: &Gateway, user: &str) -> u64 {
    let mut client = gateway.connect_cold(user);
    let count = client.expect("offline_complete")["count"].as_u64();
    client.close();
    count.expect("a number")
}

/// The contents of what two users have said, as the service has them.
fn said(client: &mut Client, peer: &str) -> Vec<String> {
    let history = client.request("get_history", json!({ "user_id": peer, "limit": 100 }));
    let messages = history["messages"].as_array().expect("a list");
    let contents = messages
        .iter()
        .map(|it| it["content"].as_str().expect("a text").to_owned());
    contents.collect()
}

#[test]
fn two_pages_chat_with_one_another_and_in_a_group() {
    let gateway = Gateway::start(&settings());
    let mut earlier = gateway.connect("alice");
    for number in 0..70 {
        earlier.send_message("bob", &format!("old {number}"));
    }
    earlier.close();
    let browser = Browser::start();
    let alice = Person::signs_in(&browser, gateway.addr, "alice");
    alice.wait_for("!isOnline('bob')");
    let bob = Person::signs_in(&browser, gateway.addr, "bob");
    alice.wait_for("isOnline('bob')");
    bob.wait_for("isOnline('alice')");

    // What was not on the screen is unread, for other devices as well.
    bob.wait_for("unread('alice') === 70 && document.title.startsWith('(70)')");
    bob.opens("carol");
    assert_eq!(unread(&gateway, "bob"), 70);
    bob.opens("alice");
    bob.wait_for("unread('alice') === 0 && bubbles().length === 70");
    wait_until("what was shown is acknowledged", || {
        unread(&gateway, "bob") == 0
    });
    let acks = bob
        .get("frames('\"ack\"').length")
        .as_u64()
        .expect("a number");
    assert!(acks <= 3, "many with one request: {acks}");

    // The newest first, and older ones when they are looked for.
    alice.opens("bob");
    alice.wait_for("bubbles().length === 30 && bubbles().at(-1) === 'old 69'");
    assert_eq!(alice.get("atEnd()"), true);
    for count in [60, 70] {
        alice.run("document.getElementById('history').scrollTop = 0;");
        alice.wait_for(&format!("bubbles().length === {count}"));
        assert_eq!(
            alice.get("document.getElementById('history').scrollTop > 0"),
            true
        );
    }
    let expected: Vec<String> = (0..70).map(|number| format!("old {number}")).collect();
    assert_eq!(alice.get("bubbles()"), json!(expected));

    // Whoever reads older ones is not carried away, and has not read what comes meanwhile.
    alice.run("document.getElementById('history').scrollTop = 500;");
    bob.says("Hello Alice");
    bob.wait_for("waiting() === 0 && document.querySelector('#messages li:last-child .meta').textContent.includes('✓')");
    alice.wait_for("unread('bob') === 1 && !document.getElementById('to-end').hidden");
    alice.run("document.getElementById('to-end').click();");
    alice.wait_for("unread('bob') === 0 && atEnd()");

    alice.opens("team");
    alice.says("Good morning");
    bob.wait_for("unread('team') === 1");
    bob.opens("team");
    bob.wait_for("document.querySelector('#messages .from').textContent === 'alice'");
    bob.says("Good morning, Alice");
    alice.wait_for("bubbles().at(-1) === 'Good morning, Alice'");
    alice.wait_for("bubbles().length === 2 && waiting() === 0");

    // The frames as they are, but for the token.
    let frames = bob.get("frames('').join()");
    let frames = frames.as_str().expect("a text");
    for part in [
        r#"{"type":"connected","connection_id":""#,
        r#"{"type":"ack","request_id":""#,
    ] {
        assert!(frames.contains(part), "{frames}");
    }
    assert!(!frames.contains("bob-token"), "{frames}");

    // Nobody asks, or returns, when all others do.
    let first_pings = "Array.from({ length: 50 }, () => {
        const original = window.setTimeout;
        let after;
        window.setTimeout = (_, ms) => { after = ms; };
        keepAlive(1000);
        window.setTimeout = original;
        return after;
      })";
    let returns = "Array.from({ length: 50 }, () => jittered(1e9, 2000) - 1000)";
    for spread in [first_pings, returns] {
        let spread = bob.get(spread);
        let spread = spread.as_array().expect("a list").iter();
        let spread: Vec<f64> = spread.map(|it| it.as_f64().expect("a number")).collect();
        assert!(
            spread.iter().all(|ms| (0.0..=1000.0).contains(ms)),
            "{spread:?}"
        );
        let within = |from, to| spread.iter().any(|ms| (from..to).contains(ms));
        assert!(within(0.0, 300.0) && within(700.0, 1000.0), "{spread:?}");
    }

    // What no frame holds is not sent: it would close the connection again and again.
    let before = bob.get("connectionId");
    bob.run("write(current, 'x'.repeat(70_000));");
    bob.wait_for("document.querySelector('.failure:not([hidden])')?.textContent.includes('longer than 65536 bytes')");
    bob.run("document.querySelector('.failure button').click();");
    bob.wait_for("drafts.length === 0 && waiting() === 0");
    assert_eq!(bob.get("connectionId"), before);

    bob.run("document.getElementById('leave').click();");
    alice.wait_for("!isOnline('bob')");
    bob.wait_for("!document.getElementById('door').hidden && !sessionStorage.getItem('token')");
}

#[test]
fn who_was_offline_or_lost_the_gateway_returns_and_drafts_are_sent_once() {
    let settings = lasting().set("session.ping_interval", "1s");
    let mut gateway = Gateway::start(&settings);
    let addr = gateway.addr;
    let browser = Browser::start();
    let link = Link::to(addr);
    let alice = Person::signs_in(&browser, addr, "alice");
    let bob = Person::signs_in(&browser, link.addr, "bob");
    alice.opens("bob");
    bob.opens("alice");

    // The network of one of them goes away and returns.
    link.cut();
    bob.wait_for("document.body.dataset.state === 'waiting' && news().includes('was lost')");
    alice.wait_for("!isOnline('bob')");
    alice.says("Where are you?");
    alice.says("Well, later.");
    bob.says("I have no network");
    assert_eq!(bob.get("waiting()"), 1);
    link.mend();
    // The browser tells when the network is back.
    bob.run("dispatchEvent(new Event('online'));");
    assert_ne!(bob.get("document.body.dataset.state"), "waiting");
    bob.wait_for(CONNECTED);
    bob.wait_for("news().endsWith('It is back, and 2 unread came first.')");
    bob.wait_for("bubbles().length === 3 && waiting() === 0");
    alice.wait_for("bubbles().at(-1) === 'I have no network'");

    // An answer is lost, and with it the copy: the request is repeated, and the message one.
    link.mute();
    bob.says("Do you read me?");
    alice.wait_for("bubbles().at(-1) === 'Do you read me?'");
    assert_eq!(bob.get("waiting()"), 1);
    link.cut();
    link.mend();
    bob.wait_for("waiting() === 0 && bubbles().at(-1) === 'Do you read me?'");
    let repeated =
        "frames('\"type\":\"send_message\"').filter(it => it.includes('read me')).length";
    assert_eq!(bob.get(repeated), 2);
    alice.says("Yes, once.");
    bob.wait_for("bubbles().at(-1) === 'Yes, once.'");
    alice.wait_for("waiting() === 0");

    // The gateway dies, and returns at the same place.
    gateway.kill();
    for person in [&alice, &bob] {
        person.wait_for("document.body.dataset.state === 'waiting'");
    }
    alice.says("one");
    bob.says("two");
    alice.says("three");
    assert_eq!(alice.get("waiting()"), 2);
    let gateway = Gateway::start_at(addr, &settings);
    for person in [&alice, &bob] {
        person.wait_for(CONNECTED);
        person.wait_for("waiting() === 0 && bubbles().length === 8");
    }
    // It is told to stop, and tells them when to come back.
    for person in [&alice, &bob] {
        person.wait_for("failures === 0");
    }
    assert_eq!(gateway.stop(), 0);
    for person in [&alice, &bob] {
        person.wait_for("frames('Closed: 1012').length === 1");
        let close = person.get("JSON.parse(frames('Closed: 1012')[0].slice(13))");
        assert_eq!(
            person.get(
                "scheduled.includes(JSON.parse(frames('Closed: 1012')[0].slice(13)).after_ms)"
            ),
            true,
            "{close}"
        );
    }
    let gateway = Gateway::start_at(addr, &settings);
    for person in [&alice, &bob] {
        person.wait_for(CONNECTED);
    }
    let mut told = said(&mut gateway.connect("carol"), "alice");
    assert_eq!(told, [""; 0]);
    told = said(&mut gateway.connect("alice"), "bob");
    let first = [
        "Where are you?",
        "Well, later.",
        "I have no network",
        "Do you read me?",
        "Yes, once.",
    ];
    assert_eq!(told[..5], first);
    // Of one writer in order, and each once.
    let mut later = told[5..].to_vec();
    later.retain(|text| text != "two");
    assert_eq!((told.len(), later), (8, vec!["one".into(), "three".into()]));

    // It stands still: nobody says so, but a ping stays unanswered.
    gateway.signal(Signal::STOP);
    alice.wait_for("news().includes('the connection is dead')");
    gateway.signal(Signal::CONT);
    alice.wait_for(CONNECTED);
    bob.wait_for(CONNECTED);

    // An operator ends it: nobody returns by himself.
    bob.run("scheduled.length = 0;");
    gateway.admin.post("/users/bob/disconnect");
    bob.wait_for(ENDED);
    bob.wait_for("news().includes('4005') && news().includes('An operator ended the connection.')");
    alice.wait_for("!isOnline('bob')");
    assert_eq!(bob.get("[scheduled.length, socket]"), json!([0, null]));
    bob.run("document.getElementById('return').click();");
    bob.wait_for(CONNECTED);

    // Whoever was never let in is told why.
    let nobody = Person::arrives(&browser, addr);
    nobody.run("document.getElementById('token').focus();");
    browser.type_keys(&format!("nobody{ENTER}"));
    nobody.wait_for("document.getElementById('refusal').textContent.includes('401')");
    nobody.wait_for("!document.getElementById('door').hidden");
}

/// What is rehearsed, with which code and reason it ends, and within which milliseconds a client is to
/// come back, if it is.
const CLOSES: [(&str, u16, &str, Option<[u64; 2]>); 13] = [
    ("protocol_error", 1002, "protocol error", None),
    (
        "binary_frame",
        1003,
        "binary frames are not supported",
        None,
    ),
    ("not_utf8", 1007, "not UTF-8", None),
    ("too_large", 1009, "message too large", None),
    (
        "internal_error",
        1011,
        "internal error",
        Some([1_000, 5_000]),
    ),
    (
        "shutdown",
        1012,
        "the gateway is shutting down",
        Some([2_000, 2_000]),
    ),
    ("slow_consumer", 4001, "slow consumer", Some([0, 1_000])),
    ("idle", 4002, "idle", Some([0, 1_000])),
    ("token_expired", 4003, "token expired", Some([0, 1_000])),
    ("replaced", 4004, "replaced by a newer connection", None),
    ("disconnected", 4005, "disconnected by an operator", None),
    ("session_revoked", 4005, "session revoked", None),
    (
        "rate_exceeded",
        4006,
        "request rate exceeded",
        Some([5_000, 10_000]),
    ),
];

/// And says so in words; the other page of the same user notices nothing.
#[test]
fn each_close_that_is_rehearsed_ends_as_the_protocol_says() {
    let gateway = Gateway::start(&settings());
    let browser = Browser::start();
    let bystander = Person::signs_in(&browser, gateway.addr, "alice");
    let other = bystander.get("connectionId");
    let alice = Person::signs_in(&browser, gateway.addr, "alice");
    let menu =
        "[...document.querySelectorAll('#rehearse-closes button')].map(it => it.dataset.what)";
    let all: Vec<&str> = CLOSES.iter().map(|(what, ..)| *what).collect();
    assert_eq!(alice.get(menu), json!(all));
    for (what, code, words, returns) in CLOSES {
        let before = alice.get("connectionId");
        alice.rehearses(0, what);
        alice.wait_for(&format!(
            "news().startsWith('Closed with {code}, “{words}”')"
        ));
        let close = alice.get(&format!(
            "JSON.parse(frames('Closed: {code}').at(-1).slice(13))"
        ));
        assert_eq!(
            (&close["reason"], &close["reconnect"]),
            (&json!(words), &json!(returns.is_some()))
        );
        match returns {
            Some([from, to]) => {
                let after = close["after_ms"].as_u64().expect("a number");
                assert!((from..=to).contains(&after), "{close}");
                assert_eq!(alice.get("scheduled[0]"), after, "{close}");
                alice.wait_for("news().endsWith('It is back.')");
            }
            None => {
                alice.wait_for(ENDED);
                assert_eq!(
                    alice.get("[scheduled.length, socket]"),
                    json!([0, null]),
                    "{what}"
                );
                assert_eq!(alice.get("news().includes('Nor does this page')"), true);
                alice.run("document.getElementById('return').click();");
            }
        }
        alice.wait_for(CONNECTED);
        assert_ne!(alice.get("connectionId"), before);
    }
    assert_eq!(bystander.get("connectionId"), other);
}

#[test]
fn what_services_do_is_rehearsed_and_ends_as_the_protocol_says() {
    let gateway = Gateway::start(&settings());
    let browser = Browser::start();
    let alice = Person::signs_in(&browser, gateway.addr, "alice");
    alice.opens("bob");
    let mut bob = gateway.connect("bob");
    let id = bob.send_message("alice", "Once");
    alice.wait_for("bubbles().length === 1");
    wait_until("it is acknowledged", || unread(&gateway, "alice") == 0);

    // The same id twice: dropped, and acknowledged once more.
    alice.run("document.getElementById('clear').click();");
    alice.rehearses(0, "duplicate");
    alice.wait_for("news().startsWith('The same message came twice.')");
    alice.wait_for("frames('This id has come before').length === 1");
    alice.wait_for("frames('\"acked\"').length === 1");
    assert_eq!(
        alice.get(&format!(
            "frames('{id}').filter(it => it.includes('\"ack\"')).length"
        )),
        1
    );
    assert_eq!(alice.get("bubbles()"), json!(["Once"]));

    // The services pause: what is written waits, and comes once, in order. For others they do not.
    alice.rehearses(0, "pause");
    alice.wait_for("news().includes('SERVICE_UNAVAILABLE')");
    alice.says("first");
    alice.wait_for("frames('\"code\":\"SERVICE_UNAVAILABLE\"').length > 1 && waiting() === 1");
    alice.says("second");
    bob.send_message("alice", "I can");
    let mut other_device = gateway.connect("alice");
    assert!(said(&mut other_device, "bob").contains(&"I can".to_owned()));
    other_device.close();
    alice.wait_for("news().startsWith('The services answer again')");
    alice.wait_for("waiting() === 0");
    assert_eq!(
        said(&mut bob, "alice"),
        ["Once", "I can", "first", "second"]
    );

    // A reload keeps what waits, and who it was.
    alice.rehearses(0, "pause");
    alice.wait_for("news().includes('SERVICE_UNAVAILABLE')");
    alice.says("third");
    alice.run(
        "document.getElementById('text').value = 'half a'; remember('half a'); location.reload();",
    );
    alice.wait_for(CONNECTED);
    alice.opens("bob");
    alice.wait_for("waiting() === 0 && bubbles().at(-1) === 'third'");
    assert_eq!(alice.get("document.getElementById('text').value"), "half a");
    assert_eq!(
        said(&mut bob, "alice")
            .iter()
            .filter(|text| *text == "third")
            .count(),
        1
    );

    // A token that is refreshed in time; and one that is not.
    let before = alice.get("connectionId");
    alice.rehearses(0, "expiry");
    alice.wait_for("news().startsWith('Refreshed in time')");
    assert_eq!(alice.get("frames('\"token_refreshed\"').length"), 2);
    assert_eq!(alice.get("connectionId"), before);
    alice.rehearses(1, "expiry");
    alice.wait_for("news().startsWith('Closed with 4003, “token expired”')");
    alice.wait_for("news().endsWith('It is back.')");
    assert_ne!(alice.get("connectionId"), before);
}

/// The connection's id is known to others, by some accident.
struct Leaked {
    gateway: Gateway,
    alice: Client,
    id: String,
}

impl Leaked {
    fn new() -> Self {
        let gateway = Gateway::start(&settings());
        let alice = gateway.connect("alice");
        let id = alice.connection_id().to_owned();
        Self { gateway, alice, id }
    }

    fn assert_unharmed(&mut self) {
        assert_eq!(self.alice.request("ping", Value::Null)["type"], "pong");
        let log = self.gateway.stderr();
        assert!(!log.contains("Rehearsed"), "{log}");
    }
}

#[test]
fn a_rehearsal_is_for_whoever_knows_the_connection_and_asks_for_this_host() {
    let mut leaked = Leaked::new();
    let id = leaked.id.clone();
    let (other, longer) = ("0".repeat(32), format!("{id}0"));
    // As an operator asks the other listener.
    let ask = |gateway: &Gateway, method: &str, what: &str, headers: &[(&str, &str)]| {
        Admin::at(gateway.addr).ask(method, &format!("/rehearse?what={what}"), headers)
    };
    let named = |id| ("X-Gateway-Connection", id);
    for (method, what, headers, status) in [
        ("POST", "idle", vec![], 403),
        ("POST", "idle", vec![named("")], 404),
        ("POST", "idle", vec![named(&id[..12])], 404),
        ("POST", "idle", vec![named(&other)], 404),
        ("POST", "idle", vec![named(&longer)], 404),
        ("POST", "idle", vec![named("ééééééé")], 404),
        ("POST", "idle", vec![named(&id), named(&id)], 400),
        ("POST", "vanished", vec![named(&id)], 400),
        ("POST", "client_closed", vec![named(&id)], 400),
        ("POST", "", vec![named(&id)], 400),
        ("POST", "idle", vec![named(&id), ("Host", EVIL)], 421),
        ("GET", "idle", vec![named(&id)], 405),
        ("HEAD", "idle", vec![named(&id)], 405),
        ("PUT", "idle", vec![named(&id)], 405),
        ("OPTIONS", "idle", vec![named(&id)], 200),
    ] {
        let response = ask(&leaked.gateway, method, what, &headers);
        assert_eq!(response.status, status, "{method} {what} {headers:?}");
        // No page of another site may send the header field.
        assert_eq!(response.header("access-control-allow-origin"), None);
        let methods = (method != "POST").then_some("POST, OPTIONS");
        assert_eq!(response.header("allow"), methods, "{method}");
    }
    leaked.assert_unharmed();
    let done = ask(&leaked.gateway, "POST", "idle", &[named(&id)]);
    assert_eq!(done.status, 200, "{done:?}");
    leaked.alice.expect_close(4002);
    // Where there is no page nothing is rehearsed.
    let without = Gateway::start(&settings().set("embedded.page", false));
    let mut bob = without.connect("bob");
    let id = bob.connection_id().to_owned();
    assert_eq!(ask(&without, "POST", "idle", &[named(&id)]).status, 405);
    assert_eq!(ask(&without, "GET", "idle", &[named(&id)]).status, 404);
    assert_eq!(bob.request("ping", Value::Null)["type"], "pong");
}

/// Neither by what a page can send to others, nor by a name that was made to point here.
#[test]
fn a_page_elsewhere_cannot_rehearse() {
    let mut leaked = Leaked::new();
    let addr = leaked.gateway.addr;
    let browser = Browser::start_with(&[(EVIL, Ipv4Addr::LOCALHOST.into())]);
    let (id, target) = (leaked.id.clone(), url("127.0.0.1", addr));
    let known = format!("const id = '{id}', url = '{target}rehearse?what=idle';");
    let attempts = "
        const named = { 'X-Gateway-Connection': id };
        const attempt = options => fetch(url, { method: 'POST', ...options })
          .then(answer => answer.type === 'opaque' ? 'opaque' : 'read: ' + answer.status, error => error.name);
        const form = enctype => new Promise(done => {
          const frame = document.createElement('iframe');
          frame.name = enctype;
          const form = document.createElement('form');
          Object.assign(form, { method: 'post', enctype, action: url, target: enctype });
          const field = document.createElement('input');
          Object.assign(field, { name: 'X-Gateway-Connection', value: id });
          form.append(field);
          document.body.append(frame, form);
          frame.onload = () => done('loaded');
          form.submit();
        });
        navigator.sendBeacon(url, new Blob(['{}'], { type: 'text/plain' }));
        return Promise.all([
          attempt({ headers: named }), attempt({ headers: named, credentials: 'include' }),
          attempt({ headers: named, mode: 'no-cors' }), attempt({ mode: 'no-cors' }),
          form('text/plain'), form('application/x-www-form-urlencoded'),
        ]);
    ";
    browser.open(&format!("http://{EVIL}:{}/", site().port()));
    let came = browser.run(&format!("{known}{attempts}"));
    assert_eq!(
        came,
        json!([
            "TypeError",
            "TypeError",
            "opaque",
            "opaque",
            "loaded",
            "loaded"
        ])
    );
    leaked.assert_unharmed();

    // The very request of the page itself, by its own origin.
    let own = "return fetch('/rehearse?what=idle', { method: 'POST', headers: { 'X-Gateway-Connection': id } })
        .then(answer => answer.status);";
    browser.open(&url(EVIL, addr));
    assert_eq!(browser.run("return location.hostname;"), EVIL);
    assert_eq!(browser.run(&format!("{known}{own}")), 421);
    leaked.assert_unharmed();
    browser.open(&target);
    assert_eq!(browser.run(&format!("{known}{own}")), 200);
    leaked.alice.expect_close(4002);
}

/// By keyboard alone, with a screen reader, on a phone, by night.
#[test]
fn everybody_can_use_the_page() {
    let gateway = Gateway::start(&settings());
    let browser = Browser::start();
    let alice = Person::arrives(&browser, gateway.addr);
    let named = |what: &str| {
        let names =
            browser.accessible_names("button, input, textarea, nav, section, aside, [role]");
        for (html, name) in &names {
            assert!(
                !name.trim().is_empty()
                    || html.contains("role=\"status\"")
                    || html.contains("role=\"alert\""),
                "{what}: {html}"
            );
        }
        assert!(names.len() > 4, "{what}: {names:?}");
    };
    // Tab goes on until this is what has the focus, and is seen to have it.
    let tab_to = |wanted: &str| {
        for _ in 0..60 {
            browser.type_keys(TAB);
            let focus = "document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle !== 'none'";
            assert_eq!(alice.get(focus), true, "{wanted}: the focus is seen");
            if alice.get(&format!("Boolean(document.activeElement.{wanted})")) == true {
                return;
            }
        }
        panic!("Tab never reaches {wanted}");
    };
    named("the door");
    tab_to("textContent.includes('alice')");
    browser.type_keys(ENTER);
    alice.wait_for(CONNECTED);
    tab_to("textContent.includes('bob')");
    browser.type_keys(ENTER);
    alice.wait_for("current?.isFresh && document.activeElement.id === 'text'");
    browser.type_keys(&format!("By keyboard{ENTER}"));
    alice.wait_for("waiting() === 0 && bubbles().length === 1");
    tab_to("id === 'show-frames'");
    browser.type_keys(ENTER);
    alice.wait_for("document.activeElement.ariaExpanded === 'true' && document.getElementById('frames').checkVisibility()");
    named("chat and frames");
    tab_to("id === 'rehearse'");
    browser.type_keys(ENTER);
    alice.wait_for("document.getElementById('menu').matches(':popover-open')");
    named("the menu");
    browser.type_keys(TAB);
    alice.wait_for("document.activeElement.dataset.what === 'duplicate'");
    browser.type_keys(ESCAPE);
    alice.wait_for("!document.getElementById('menu').matches(':popover-open') && document.activeElement.id === 'rehearse'");
    browser.type_keys(ENTER);
    tab_to("dataset.what === 'replaced'");
    browser.type_keys(ENTER);
    alice.wait_for(ENDED);
    named("an end");
    alice.says("While away");
    alice.wait_for("waiting() === 1");
    for scheme in ["light", "dark"] {
        browser.set_scheme(scheme);
        assert_legible(&browser, &format!("{scheme}, an end"), 20);
    }
    tab_to("id === 'return'");
    browser.type_keys(ENTER);
    alice.wait_for(CONNECTED);
    alice.wait_for("waiting() === 0 && document.activeElement.id === 'rehearse'");
    alice.run("write(current, 'x'.repeat(70_000));");
    alice.wait_for("document.querySelector('.failure:not([hidden])')");
    tab_to("id === 'whom'");
    browser.type_keys(&format!("zoë{ENTER}"));
    alice.wait_for("document.getElementById('title').textContent === 'zoë'");

    let scripts = alice.get("performance.getEntriesByType('resource').filter(it => !it.name.startsWith(location.origin) && !it.name.startsWith('data:')).length");
    assert_eq!(scripts, 0, "nothing comes from elsewhere");
    alice.run("tell('A notice that is long enough for two lines on a phone, and perhaps for three of them.');");
    for (width, height) in [(1280, 800), (360, 640)] {
        browser.set_viewport(width, height);
        for view in ["chat", "list"] {
            alice.run(&format!("document.body.dataset.view = '{view}';"));
            for menu in ["hide", "show"] {
                alice.run(&format!("document.getElementById('menu').{menu}Popover();"));
                alice.wait_for("document.documentElement.scrollWidth <= innerWidth");
                alice.wait_for("[...document.querySelectorAll('button')].filter(it => it.checkVisibility()).every(it => it.getBoundingClientRect().right <= innerWidth)");
                for scheme in ["light", "dark"] {
                    browser.set_scheme(scheme);
                    assert_legible(&browser, &format!("{scheme} {width} {view} {menu}"), 8);
                }
            }
        }
        let panes =
            "['list', 'chat'].filter(id => document.getElementById(id).checkVisibility()).length";
        assert_eq!(alice.get(panes), if width == 360 { 1 } else { 2 });
    }
    alice.run("document.getElementById('menu').hidePopover(); leave();");
    assert_legible(&browser, "the door by night", 5);
    alice.wait_for("document.documentElement.scrollWidth <= innerWidth");
}

/// Those of the README: the chat page in the middle of a conversation, and the live page of the admin
/// listener with some traffic on it.
#[test]
fn the_pictures_of_the_readme_can_be_taken() {
    const FURTHER: [&str; 7] = ["dave", "erin", "frank", "grace", "heidi", "ivan", "judy"];
    let settings = settings().users(FURTHER).set("gateway.id", "gateway-1");
    let gateway = Gateway::start(&settings);
    gateway.wait_ready();
    let browser = Browser::start();
    let alice = Person::signs_in(&browser, gateway.addr, "alice");
    let mut bob = gateway.connect("bob");
    let mut carol = gateway.connect("carol");
    alice.opens("bob");
    alice.run("document.getElementById('show-frames').click();");
    carol.send_group_message("team", "Coffee at ten?");
    bob.send_message(
        "alice",
        "Morning! I have pulled the plug of the broker, just to see.",
    );
    alice.wait_for("bubbles().length === 1 && unread('team') === 1");
    alice.says("And? Nobody here has noticed anything.");
    bob.send_message(
        "alice",
        "That is what I wanted to hear. It has been back for a minute.",
    );
    bob.send_message("alice", "Shall we kill the gateway next?");
    alice.wait_for("bubbles().length === 4");
    alice.says("Go on. What I write meanwhile waits, and is sent once.");
    carol.send_message("alice", "May I watch?");
    alice.wait_for("bubbles().length === 5 && waiting() === 0 && unread('carol') === 1");
    alice.wait_for("frames('\"acked\"').length > 0");
    pictures::take(&browser, "chat", 1280, 760);

    browser.open(&format!("http://{}/", gateway.admin.addr));
    alice
        .browser
        .wait_for("document.getElementById('ready').textContent === 'ready'");
    let rounds = if pictures::is_recorded() { 120 } else { 3 };
    let mut further = FURTHER.iter().map(|user| gateway.connect(user));
    let mut members = Vec::new();
    for round in 0..rounds {
        if round % 18 == 1 {
            members.extend(further.next());
        }
        for number in 0..8 + 7 * (round / 9 % 4) {
            let (from, to) = match number % 3 {
                0 => (&mut bob, "carol"),
                _ => (&mut carol, "bob"),
            };
            from.send_message(to, "hello");
        }
        match round % 50 {
            2 => assert!(Client::try_connect(gateway.addr, &gateway.path, "wrong").is_err()),
            20 => gateway.connect("alice").close(),
            40 => {
                let user = FURTHER[round / 50];
                gateway.admin.post(&format!("/users/{user}/disconnect"));
                members.remove(0).expect_close(4005);
            }
            _ => {}
        }
        browser.run("return round();");
    }
    browser.wait_for("document.getElementById('refused').textContent.includes('unauthenticated')");
    pictures::take(&browser, "admin", 1280, 1420);
}
