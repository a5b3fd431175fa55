//! 5,000 messages among 50 users on two gateways: none is lost, none is out of order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{ids, is_push};
use crate::support::ledger::Ledger;
use crate::support::random::Random;
use crate::support::{Client, Cluster, Event, Settings};

const USERS: usize = 50;
const MESSAGES: usize = 5_000;
/// Change it to try another course of events.
const SEED: u64 = 0x5eed_0001;
/// From the last `message_sent` to the last push.
const SETTLE: Duration = Duration::from_secs(60);

/// A device, its client, and all that was pushed to it.
struct Device {
    name: String,
    client: Client,
    pushed: Vec<serde_json::Value>,
}

#[test]
fn every_message_arrives_on_every_device_in_the_order_published() {
    let users: Vec<String> = (0..USERS)
        .map(|number| format!("user{number:02}"))
        .collect();
    let settings = Settings::new()
        .users(users.iter().map(String::as_str))
        .set("limits.rate", 100_000)
        .set("limits.burst", 100_000)
        .set("log.level", "info");
    let cluster = Cluster::start(&settings);
    let ledger = Arc::new(Ledger::default());

    // All are there before the first one sends: copies are for devices that are connected.
    let mut devices = Vec::new();
    for user in &users {
        for gateway in 0..2 {
            let name = format!("{user}/{gateway}");
            ledger.device(&name, user);
            devices.push(Device {
                name,
                client: cluster.connect(gateway, user),
                pushed: Vec::new(),
            });
        }
    }
    let plans = plans(&users);
    let sending = Arc::new(AtomicUsize::new(USERS));
    let mut threads = Vec::new();
    for (number, device) in devices.into_iter().enumerate() {
        // One device of each user sends, so that the order in which a pair's messages are
        // committed is known; half of them send at each gateway.
        let (user, gateway) = (number / 2, number % 2);
        let sends = gateway == user % 2;
        let plan = if sends {
            plans[user].clone()
        } else {
            Vec::new()
        };
        let (ledger, sending) = (Arc::clone(&ledger), Arc::clone(&sending));
        threads.push(thread::spawn(move || device.live(&plan, &ledger, &sending)));
    }
    let mut devices: Vec<Device> = threads
        .into_iter()
        .map(|thread| thread.join().expect("a device lives through it"))
        .collect();

    let report = ledger.report();
    println!("{report}");
    assert_eq!(report.committed, MESSAGES);
    assert_eq!(
        (&report.lost, &report.missing),
        (&vec![], &vec![]),
        "{report}"
    );
    assert_eq!(
        (&report.disordered, &report.stray),
        (&vec![], &vec![]),
        "{report}"
    );
    assert_eq!(
        report.duplicated, 0,
        "nothing failed, so nothing came twice"
    );
    for device in &mut devices {
        device.check_copies(&ledger);
        device.check_against_history(&users);
    }
}

impl Device {
    /// Sends what is planned and reads what comes, until all that it must get is there.
    fn live(mut self, plan: &[String], ledger: &Ledger, sending: &AtomicUsize) -> Self {
        for (number, to) in plan.iter().enumerate() {
            let id = self
                .client
                .send_message(to, &format!("{} {number}", self.name));
            ledger.committed(&self.client.user.clone(), &[to], &id);
        }
        if !plan.is_empty() {
            sending.fetch_sub(1, Ordering::Relaxed);
        }
        while sending.load(Ordering::Relaxed) > 0 {
            self.read_until(ledger, |_| true, Duration::from_millis(100));
        }
        let mut expected = ledger.expected(&self.client.user);
        for push in &self.pushed {
            expected.remove(push["id"].as_str().expect("an id"));
        }
        if !expected.is_empty() {
            let complete = move |id: &str| {
                expected.remove(id);
                expected.is_empty()
            };
            self.read_until(ledger, complete, SETTLE);
        }
        // What is doubled would come before the pong.
        for push in self
            .client
            .frames_until_pong()
            .iter()
            .filter(|frame| is_push(frame))
        {
            ledger.received(&self.name, push["id"].as_str().expect("an id"));
        }
        self
    }

    /// Reads until `complete` says so, or nothing comes for `quiet`.
    fn read_until(
        &mut self,
        ledger: &Ledger,
        mut complete: impl FnMut(&str) -> bool,
        quiet: Duration,
    ) {
        let start = Instant::now();
        while start.elapsed() < SETTLE {
            match self.client.next_event(quiet) {
                Event::Frame(frame) if is_push(&frame) => {
                    let id = frame["id"].as_str().expect("an id").to_owned();
                    ledger.received(&self.name, &id);
                    self.pushed.push(frame);
                    if complete(&id) {
                        return;
                    }
                }
                Event::Frame(_) => {}
                Event::Nothing => return,
                Event::End(ended) => panic!("{} ended: {ended:?}", self.name),
            }
        }
    }

    /// The sender's own devices, the sending one among them, get their copy too.
    fn check_copies(&self, ledger: &Ledger) {
        let got: BTreeSet<String> = ids(&self.pushed).into_iter().collect();
        assert_eq!(got, ledger.expected(&self.client.user), "{}", self.name);
    }

    /// The Message Service's own order is what a device saw, conversation by conversation.
    fn check_against_history(&mut self, users: &[String]) {
        let user = self.client.user.clone();
        for peer in users.iter().filter(|peer| **peer > user) {
            let of_pair = |push: &&serde_json::Value| {
                let (from, to) = (push["from_user_id"].as_str(), push["to_user_id"].as_str());
                from == Some(peer.as_str()) || to == Some(peer.as_str())
            };
            let seen: Vec<_> = self.pushed.iter().filter(of_pair).cloned().collect();
            let answer = self
                .client
                .request("get_history", json!({"user_id": peer, "limit": 100}));
            assert_eq!(answer["has_more"], false, "{answer}");
            let published = answer["messages"].as_array().expect("messages");
            assert_eq!(
                ids(&seen),
                ids(published),
                "{user} and {peer} on {}",
                self.name
            );
        }
    }
}

/// For each user, whom they send to, one after the other.
fn plans(users: &[String]) -> Vec<Vec<String>> {
    let mut random = Random(SEED);
    let mut plans = vec![Vec::new(); users.len()];
    for _ in 0..MESSAGES {
        let from = random.below(users.len());
        let to = (from + 1 + random.below(users.len() - 1)) % users.len();
        plans[from].push(users[to].clone());
    }
    plans
}
