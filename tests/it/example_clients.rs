//! The two clients of the chapter on the protocol, as they are written there, between two gateways with
//! RabbitMQ and the services as processes, while one after the other fails: nothing is lost, each
//! message is handed over once, and in order.

use std::thread;
use std::time::{Duration, Instant};

use toml::Table;

use crate::support::broker::Broker;
use crate::support::client::is_push;
use crate::support::example::Example;
use crate::support::example::Language::{self, JavaScript, Python};
use crate::support::ledger::Ledger;
use crate::support::process::Signal;
use crate::support::settings::token_of;
use crate::support::wait::wait_until_within;
use crate::support::wire::{Way, Wire};
use crate::support::{Cluster, DEADLINE, Gateway, Settings, wait_until};

/// Who writes to whom.
const PAIRS: [(&str, &str); 4] = [
    ("alice", "bob"),
    ("bob", "alice"),
    ("carol", "dave"),
    ("dave", "carol"),
];
/// So many of each, between one fault and the next.
const STEP: usize = 10;
/// A client waits 4 s at most between its first tries, is limited to 20 requests a second, and finds
/// a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn settings() -> Settings {
    // The clients trust no certificate of the tests' own.
    Settings::new()
        .set("tls", Table::new())
        .users(["alice", "bob", "carol", "dave"])
        // What is dead is to be noticed soon.
        .set("session.ping_interval", "1s")
        .set("log.level", "info")
}

fn url(gateway: &Gateway) -> String {
    format!("ws://{}{}", gateway.addr, gateway.path)
}

/// Four clients, and the account of their messages.
struct Conversation {
    clients: Vec<(&'static str, Example)>,
    ledger: Ledger,
    /// How many each has been told to send.
    said: usize,
    /// How many have been committed.
    committed: usize,
}

impl Conversation {
    fn start(clients: [(&'static str, Language, &str); 4]) -> Self {
        let ledger = Ledger::default();
        let start = |(user, language, url): (&'static str, _, &str)| {
            ledger.device(user, user);
            (user, Example::start(language, &[url, &token_of(user)]))
        };
        Self {
            clients: clients.map(start).into(),
            ledger,
            said: 0,
            committed: 0,
        }
    }

    /// Has each send some more.
    fn say(&mut self) {
        for number in self.said..self.said + STEP {
            for (from, to) in PAIRS {
                let client = self.clients.iter_mut().find(|(user, _)| *user == from);
                let (_, client) = client.expect("one of the four");
                client.say(to, &format!("{from} {number}"));
            }
        }
        self.said += STEP;
    }

    /// Enters what they handed over meanwhile.
    fn take(&mut self) {
        for (user, client) in &mut self.clients {
            assert!(client.process.is_running(), "{user} has given up");
            for frame in client.handed_over() {
                let id = frame["id"]
                    .as_str()
                    .unwrap_or_else(|| panic!("{user} got {frame}"));
                if is_push(&frame) {
                    self.ledger.received(user, id);
                } else {
                    let pair = PAIRS.iter().find(|(from, _)| from == user);
                    let (_, to) = pair.expect("one of the four");
                    self.ledger.committed(user, &[to], id);
                    self.committed += 1;
                }
            }
        }
    }

    /// Waits until all that they were told to send is committed, and has been handed over.
    fn settle(&mut self, after: &str) {
        let began = Instant::now();
        loop {
            self.take();
            let is_sent = self.committed == self.said * PAIRS.len();
            if is_sent && PAIRS.iter().all(|(user, _)| self.ledger.has_all(user)) {
                return;
            }
            let (committed, report) = (self.committed, self.ledger.report());
            assert!(
                began.elapsed() < PATIENCE,
                "after {after}: {committed} of {} are committed; {report}",
                self.said * PAIRS.len()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn nothing_is_lost_and_each_message_is_handed_over_once_whatever_fails() {
    let mut cluster = Cluster::on(Broker::private(), &settings(), 2);
    let wire = Wire::to(cluster.gateways[1].addr);
    let [g0, behind_wire] = [
        url(&cluster.gateways[0]),
        format!("ws://{}{}", wire.addr, cluster.gateways[1].path),
    ];
    let mut talk = Conversation::start([
        ("alice", JavaScript, &g0),
        ("bob", Python, &behind_wire),
        ("carol", Python, &g0),
        ("dave", JavaScript, &behind_wire),
    ]);
    talk.say();
    talk.settle("nothing");

    talk.say();
    cluster.gateways[0].kill();
    talk.say();
    cluster.start_again(0);
    talk.settle("a gateway was killed");

    talk.say();
    cluster.broker.kill9();
    talk.say();
    cluster.broker.restart();
    talk.settle("the broker was killed");

    for _ in 0..3 {
        let before = wire.connections();
        talk.say();
        wire.cut();
        wait_until_within(PATIENCE, "both are back", || {
            talk.take();
            wire.connections() >= before + 2
        });
    }
    talk.settle("connections were cut");

    // Nobody says that they are dead: what is sent is taken, and nothing ever comes.
    for way in [Way::FromBroker, Way::ToBroker] {
        let before = wire.connections();
        wire.hold(way);
        talk.say();
        wait_until_within(PATIENCE, "both have noticed", || {
            talk.take();
            wire.connections() >= before + 2
        });
        wire.cut();
        talk.settle("connections were half-open");
    }

    talk.say();
    cluster.services.kill();
    talk.say();
    cluster.services.start_again();
    talk.settle("the services were killed");

    talk.say();
    cluster.gateways[1].signal(Signal::TERM);
    assert_eq!(cluster.gateways[1].exit_code(), 0);
    talk.say();
    cluster.start_again(1);
    talk.settle("a gateway was stopped");

    let report = talk.ledger.report();
    println!("{report}");
    assert_eq!(report.committed, PAIRS.len() * talk.said);
    assert_eq!((report.lost, report.missing), (vec![], vec![]));
    assert_eq!((report.disordered, report.stray), (vec![], vec![]));
    assert_eq!(report.duplicated, 0);
    // What is acknowledged does not come again.
    for (user, _) in PAIRS {
        wait_until(format!("all of {user}'s is acknowledged"), || {
            let mut device = cluster.gateways[0].connect(user);
            !device.take_held().iter().any(is_push)
        });
    }
}

/// Those who are told not to come back end, and say why.
#[test]
fn a_client_that_an_operator_disconnects_stays_away() {
    let gateway = Gateway::start(&settings());
    for language in [JavaScript, Python] {
        let mut client = Example::start(language, &[&url(&gateway), "alice-token"]);
        client.say("alice", "I am here");
        wait_until("it is", || !client.handed_over().is_empty());
        let answer = gateway.admin.post("/users/alice/disconnect");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(client.process.exit_code_within(DEADLINE), 1);
        let said = client.process.stderr();
        assert!(said.contains("closed for good: 4005"), "{said}");
    }
}
