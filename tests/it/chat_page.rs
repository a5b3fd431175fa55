//! The chat page in a real browser: two people in two tabs; what it does when the gateway, the network
//! or the services go away; and each rehearsal.

use std::env;

use serde_json::{Value, json};

use crate::chat;
use crate::foreign_pages::{EVIL, site};
use crate::live_page::assert_legible;
use crate::support::browser::{Browser, ENTER, ESCAPE, TAB, Tab};
use crate::support::process::Signal;
use crate::support::raw::head;
use crate::support::{Client, Gateway, Settings, pictures, wait_until, watchdog};

fn settings() -> Settings {
    chat::settings().set("limits.rate", 1000)
}

/// Settings under which a gateway that is started again knows what the one before knew.
fn lasting() -> Settings {
    let database = watchdog::directory("database").join("chat.db");
    settings().set("embedded.database", database.display().to_string())
}

fn url(host: &str, gateway: &Gateway) -> String {
    // The suite once more, with TLS on the client listener.
    let scheme = env::var_os("IT_TLS").map_or("http", |_| "https");
    format!("{scheme}://{host}:{}/", gateway.addr.port())
}

/// Somebody, with the page in a tab of their own.
struct Person<'b> {
    browser: &'b Browser,
    tab: Tab,
}

impl<'b> Person<'b> {
    fn arrives(browser: &'b Browser, gateway: &Gateway) -> Self {
        let tab = browser.new_tab();
        browser.set_viewport(1280, 800);
        browser.open(&url("127.0.0.1", gateway));
        Self { browser, tab }
    }

    fn signs_in(browser: &'b Browser, gateway: &Gateway, user: &str) -> Self {
        let person = Self::arrives(browser, gateway);
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
    let alice = Person::signs_in(&browser, &gateway, "alice");
    alice.wait_for("!isOnline('bob')");
    let bob = Person::signs_in(&browser, &gateway, "bob");
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
    let alice = Person::signs_in(&browser, &gateway, "alice");
    let bob = Person::signs_in(&browser, &gateway, "bob");
    alice.opens("bob");
    bob.opens("alice");

    // The network of one of them goes away and returns.
    let network = |offline: bool| {
        browser.switch_to(&bob.tab);
        let limits = json!({ "offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1 });
        browser.devtools("Network.emulateNetworkConditions", &limits);
    };
    network(true);
    bob.wait_for("document.getElementById('state-text').textContent.includes('Connecting again') || news().includes('lost') || document.body.dataset.state === 'waiting'");
    alice.wait_for("!isOnline('bob')");
    alice.says("Where are you?");
    alice.says("Well, later.");
    bob.says("I have no network");
    assert_eq!(bob.get("waiting()"), 1);
    network(false);
    bob.wait_for(CONNECTED);
    bob.wait_for("news().startsWith('2 unread messages')");
    bob.wait_for("bubbles().length === 3 && waiting() === 0");
    alice.wait_for("bubbles().at(-1) === 'I have no network'");

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
        person.wait_for("waiting() === 0 && bubbles().length === 6");
    }
    // It is told to stop, and tells them when to come back.
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
    assert_eq!(
        told[..3],
        ["Where are you?", "Well, later.", "I have no network"]
    );
    // Of one writer in order, and each once.
    let mut later = told[3..].to_vec();
    later.retain(|text| text != "two");
    assert_eq!((told.len(), later), (6, vec!["one".into(), "three".into()]));

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
    let nobody = Person::arrives(&browser, &gateway);
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
    let bystander = Person::signs_in(&browser, &gateway, "alice");
    let other = bystander.get("connectionId");
    let alice = Person::signs_in(&browser, &gateway, "alice");
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
    let alice = Person::signs_in(&browser, &gateway, "alice");
    alice.opens("bob");
    let mut bob = gateway.connect("bob");
    let id = bob.send_message("alice", "Once");
    alice.wait_for("bubbles().length === 1");
    wait_until("it is acknowledged", || unread(&gateway, "alice") == 0);

    // The same id twice: dropped, and acknowledged once more.
    alice.run("document.getElementById('clear').click();");
    alice.rehearses(0, "duplicate");
    alice.wait_for("news().startsWith('The same message came twice.')");
    alice.wait_for("frames('Dropped: this id has come before').length === 1");
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
