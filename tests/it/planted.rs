//! Defects that are planted in a gateway (the feature `planted`), as clients and operators meet them: so
//! much of each that it is certain to be there when a checker is tried on it.

use std::path::PathBuf;

use serde_json::{Value, json};
use toml::Table;

use crate::chat;
use crate::support::asyncapi;
use crate::support::broker::Broker;
use crate::support::client::{ids, is_push};
use crate::support::cluster::remote;
use crate::support::process::{Process, Signal};
use crate::support::settings::token_of;
use crate::support::{Client, Gateway, Services, Settings, wait_until};

fn settings() -> Settings {
    let settings = chat::settings().set("limits.rate", 1000);
    settings.set("limits.burst", 1000)
}

fn launch(defect: &str, settings: &Settings) -> (Process, PathBuf) {
    Gateway::launch(settings, &[("PLANTED_DEFECT", defect)])
}

/// A gateway with this defect, which has warned of it.
fn start_with(defect: &str, settings: &Settings) -> Gateway {
    let (process, directory) = launch(defect, settings);
    let gateway = Gateway::listening(process, directory);
    gateway.stderr_line(&format!("A defect is planted: {defect}"));
    // Else an answer that comes twice would be found at once.
    asyncapi::set_free(gateway.addr, true);
    gateway
}

fn start(defect: &str) -> Gateway {
    start_with(defect, &settings())
}

fn acted(gateway: &Gateway) -> f64 {
    gateway.admin.metric("gateway_planted_total")
}

/// Messages from alice to bob, by their ids, and what both are pushed meanwhile.
fn exchange(gateway: &Gateway) -> (Vec<String>, [Vec<Value>; 2]) {
    let (mut alice, bob) = (gateway.connect("alice"), gateway.connect("bob"));
    let sent: Vec<String> = (0..39)
        .map(|number| alice.send_message("bob", &format!("this is {number}")))
        .collect();
    let pushed = [alice, bob].map(|mut client| {
        let mut pushed = client.messages_until(&sent[38]);
        let rest = client.frames_until_pong().into_iter();
        pushed.extend(rest.filter(is_push));
        pushed
    });
    (sent, pushed)
}

#[test]
fn a_defect_that_is_none_ends_the_start() {
    let (mut process, _directory) = launch("loses-everything", &settings());
    assert_ne!(process.exit_code(), 0);
    let error = process.stderr();
    assert!(
        error.contains("PLANTED_DEFECT") && error.contains("keeps-route"),
        "{error}"
    );
}

#[test]
fn without_a_defect_all_is_as_ever() {
    let gateway = Gateway::start(&settings());
    let (sent, pushed) = exchange(&gateway);
    assert_eq!(pushed.map(|pushed| ids(&pushed)), [sent.clone(), sent]);
    assert_eq!(acted(&gateway), 0.0);
}

#[test]
fn a_live_push_does_not_come_and_is_unread_still() {
    let gateway = start("loses-live");
    let (sent, [_, bob]) = exchange(&gateway);
    let mut left = sent.clone();
    left.remove(19);
    assert_eq!(ids(&bob), left);
    let unread = gateway.connect("bob").take_held();
    assert_eq!(ids(&unread), sent);
}

#[test]
fn a_message_is_invented_or_altered() {
    for defect in ["invents", "alters"] {
        let gateway = start(defect);
        let (sent, pushed) = exchange(&gateway);
        let mut wrong = 0;
        for mut pushed in pushed {
            let is_altered = |push: &Value| {
                push["content"]
                    .as_str()
                    .is_some_and(|it| it.ends_with("(altered)"))
            };
            wrong += pushed.iter().filter(|push| is_altered(push)).count();
            let before = pushed.len();
            pushed.retain(|push| sent.iter().any(|id| push["id"] == id.as_str()));
            wrong += before - pushed.len();
            assert_eq!(ids(&pushed), sent, "{defect}");
        }
        assert_eq!(wrong, 3, "{defect}");
        assert_eq!(acted(&gateway), 3.0, "{defect}");
    }
}

#[test]
fn messages_of_one_pair_come_in_the_wrong_order() {
    let gateway = start("disorders");
    let (mut sent, [alice, bob]) = exchange(&gateway);
    assert_eq!(ids(&alice), sent);
    sent.swap(19, 20);
    assert_eq!(ids(&bob), sent);
}

#[test]
fn a_message_reaches_carol_whose_it_is_not() {
    let gateway = start("misdelivers");
    let mut carol = gateway.connect("carol");
    let (sent, pushed) = exchange(&gateway);
    assert_eq!(
        pushed.map(|pushed| ids(&pushed)),
        [sent.clone(), sent.clone()]
    );
    let before = carol.frames_until_pong();
    let mut astray = [before, carol.frames_until_pong()].concat();
    astray.retain(is_push);
    assert!(!astray.is_empty());
    assert!(
        ids(&astray).iter().all(|id| sent.contains(id)),
        "{astray:?}"
    );
    assert_eq!(acted(&gateway), astray.len() as f64);
}

/// A gateway where bob has three unread messages, and these.
fn with_unread(defect: &str) -> (Gateway, Vec<String>) {
    let gateway = start(defect);
    let mut alice = gateway.connect("alice");
    let sent = ["1", "2", "3"].map(|content| alice.send_message("bob", content));
    (gateway, sent.into())
}

#[test]
fn an_unread_message_is_lost_for_good() {
    let (gateway, sent) = with_unread("loses-unread");
    let unread = [(); 4].map(|()| ids(&gateway.connect("bob").take_held()));
    let left = vec![sent[0].clone(), sent[2].clone()];
    assert_eq!(unread, [sent.clone(), sent, left.clone(), left]);
}

#[test]
fn an_unread_message_comes_behind_offline_complete() {
    let (gateway, sent) = with_unread("unread-later");
    for late in [0, 0, 1] {
        let mut bob = gateway.connect("bob");
        let first = bob.take_held();
        let mut then = bob.frames_until_pong();
        then.retain(is_push);
        assert_eq!(then.len(), late);
        assert_eq!(ids(&[first, then].concat()), sent);
    }
}

#[test]
fn an_answer_comes_twice_or_never() {
    for (defect, times) in [("answers-twice", 2), ("answers-nothing", 0)] {
        let gateway = start(defect);
        let mut alice = gateway.connect("alice");
        let asked: Vec<_> = (0..21)
            .map(|_| alice.send_request("ping", Value::Null))
            .collect();
        alice.answer(&asked[20]);
        let heard = alice.take_held();
        for (number, id) in asked[..20].iter().enumerate() {
            let count = heard
                .iter()
                .filter(|frame| frame["request_id"] == id.as_str())
                .count();
            assert_eq!(
                count,
                if number == 19 { times } else { 1 },
                "{defect}: {id}"
            );
        }
        alice.send_message("bob", "it goes on");
    }
}

#[test]
fn a_message_is_claimed_that_was_never_committed() {
    let gateway = start("claims-commit");
    let mut alice = gateway.connect("alice");
    let mut claimed: Vec<_> = (0..20).map(|_| alice.send_message("bob", "hi")).collect();
    let unread = gateway.connect("bob").take_held();
    claimed.truncate(19);
    assert_eq!(ids(&unread), claimed);
}

#[test]
fn a_history_lacks_a_message_in_its_middle() {
    let (gateway, all) = with_unread("cuts-history");
    let mut bob = gateway.connect("bob");
    let mut history = || {
        let answer = bob.request("get_history", json!({"user_id": "alice"}));
        ids(answer["messages"].as_array().expect("messages"))
    };
    let cut = vec![all[0].clone(), all[2].clone()];
    assert_eq!([(); 3].map(|()| history()), [all.clone(), all, cut]);
}

#[test]
fn a_connection_ends_with_1011() {
    let gateway = start("closes-without-cause");
    let (mut alice, mut bob) = (gateway.connect("alice"), gateway.connect("bob"));
    (0..19).for_each(|_| drop(alice.send_message("bob", "hi")));
    alice.send_request(
        "send_message",
        json!({"to_user_id": "bob", "content": "hi"}),
    );
    alice.expect_close(1011);
    bob.frames_until_pong();
}

#[test]
fn a_session_that_is_revoked_stays_let_in() {
    let mut settings = settings();
    let gateway = start_with("ignores-revocation", &settings);
    let mut first = gateway.connect("bob");
    let mut second = gateway.connect("bob");
    settings.remove_token(&token_of("bob"));
    settings.write(&gateway.directory);
    gateway.signal(Signal::HUP);
    first.expect_close(4005);
    // Both were told by the same thread.
    let id = gateway.connect("alice").send_message("bob", "still there?");
    second.expect_message(&id);
    assert_eq!(acted(&gateway), 1.0);
    let newcomer = Client::try_connect(gateway.addr, &gateway.path, &token_of("bob"));
    assert!(newcomer.is_err(), "the token is gone");
}

#[test]
fn a_connection_outlives_its_token() {
    let mut settings = settings();
    let short: Table = "user = \"bob\"\nexpires_in = \"3s\""
        .parse()
        .expect("a table");
    settings.put_token(&token_of("bob"), short);
    let gateway = start_with("ignores-expiry", &settings);
    let [mut first, mut second, mut third] = [(); 3].map(|()| gateway.connect("bob"));
    first.expect_close(4003);
    second.expect_close(4003);
    let reconnect = || Client::try_connect(gateway.addr, &gateway.path, &token_of("bob"));
    wait_until("the token has expired", || reconnect().is_err());
    let id = gateway.connect("alice").send_message("bob", "still there?");
    third.expect_message(&id);
}

/// Five users who come and go.
const VISITORS: [&str; 5] = ["member1", "member2", "member3", "member4", "member5"];

fn visit(gateway: &Gateway) {
    (VISITORS.iter()).for_each(|user| gateway.connect(user).close());
}

#[test]
fn nobody_is_told_that_one_of_them_has_gone() {
    let gateway = start("forgets-offline");
    let mut watcher = gateway.connect("member0");
    visit(&gateway);
    wait_until("one is forgotten", || acted(&gateway) == 1.0);
    // Whoever comes now is announced behind what was told before.
    gateway.connect("member6").close();
    watcher.expect_presence("member6", "offline");
    let told = watcher.frames_until_pong();
    let gone = told
        .iter()
        .filter(|frame| frame["status"] == "offline")
        .count();
    assert_eq!(gone, 4, "{told:?}");
}

#[test]
fn a_thread_a_descriptor_or_a_connection_leaks() {
    for (defect, leaked) in [
        ("leaks-thread", (1, 0, 0.0)),
        ("leaks-descriptor", (0, 1, 0.0)),
        // With its socket.
        ("leaks-connection", (0, 1, 1.0)),
    ] {
        let gateway = start(defect);
        // So that all threads are there that stay.
        gateway.connect("alice").close();
        let before = gateway.settled(0);
        (0..4).for_each(|_| gateway.connect("alice").close());
        let after = gateway.settled(0);
        let threads = after.threads - before.threads;
        let descriptors = after.descriptors - before.descriptors;
        let connections = gateway.admin.metric("gateway_connections");
        assert_eq!((threads, descriptors, connections), leaked, "{defect}");
        assert_eq!(gateway.stop(), 0, "{defect}");
    }
}

#[test]
fn a_route_stays_on_the_broker() {
    let broker = Broker::shared();
    let url = broker.vhost();
    let services = Services::start(&settings(), &url);
    let settings = remote(&settings(), &services.url(), &url).set("gateway.id", "g0");
    let gateway = start_with("keeps-route", &settings);
    gateway.wait_ready();
    visit(&gateway);
    let vhost = url.rsplit('/').next().expect("a virtual host");
    let list = [
        "-p",
        vhost,
        "list_bindings",
        "--no-table-headers",
        "routing_key",
    ];
    let routes = || {
        let keys = broker.rabbitmqctl(&list);
        let routes = keys.lines().filter(|key| key.starts_with("user."));
        routes.map(str::to_owned).collect::<Vec<_>>()
    };
    wait_until("all but one are gone", || routes().len() == 1);
    assert_eq!(acted(&gateway), 1.0);
}

#[test]
fn a_gateway_that_lost_its_broker_is_never_ready_again() {
    let broker = Broker::private();
    let url = broker.vhost();
    let services = Services::start(&settings(), &url);
    let settings = remote(&settings(), &services.url(), &url);
    let gateway = start_with("stays-unready", &settings);
    gateway.wait_ready();
    broker.kill9();
    wait_until("it is not ready", || !gateway.is_ready());
    broker.restart();
    wait_until("the broker is back", || {
        gateway.admin.metric("gateway_broker_up") == 1.0
    });
    let answer = gateway.get("/readyz");
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("a planted defect"), "{}", answer.body);
}
