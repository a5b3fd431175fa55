//! What is left of a gateway that has stopped: nothing. In this process, so that its threads can be
//! looked for beside those of the tests.

use std::fs;

use serde_json::Value;
use ws_gateway::config;
use ws_gateway::gateway;

use crate::chat;
use crate::support::broker::Broker;
use crate::support::raw::Raw;
use crate::support::settings::token_of;
use crate::support::{Client, Cluster, GATEWAY_THREADS, Settings, wait_until, watchdog};

/// How the names of a gateway's threads begin.
const THREADS: [&str; 15] = [
    "admin", "accept", "refuser", "r-", "w-", "consume-", "fan-out-", "broker", "routes",
    "presence", "probe", "grpc", "ref", "amqp", "etcd",
];

/// The threads of this process that are a gateway's.
fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names
        .map(|name| name.trim_end().to_owned())
        .filter(|name| THREADS.iter().any(|start| name.starts_with(start)))
        .collect()
}

/// Starts a gateway here, has clients come and go, stops it while some are there.
fn come_and_go(settings: &Settings) {
    let nobody = vec!["http://127.0.0.1:1"];
    let settings = settings.clone().set("discovery.endpoints", nobody);
    let file = settings.write(&watchdog::directory("here"));
    let config = config::load(Some(&file), None).expect("a configuration");
    let path = config.listen.path.clone();
    let (fatal, died) = crossbeam::channel::unbounded();
    let gateway = gateway::Gateway::start(config, &fatal).expect("it starts");
    let url = gateway.url();
    let addr = url.trim_start_matches("ws://").trim_end_matches(&path);
    let addr = addr.parse().expect("an address");
    wait_until("it is ready", || {
        Raw::connect(addr).get("/readyz").status == 200
    });
    let mut alice = Client::try_connect(addr, &path, &token_of("alice")).expect("she is let in");
    let bob = Client::try_connect(addr, &path, &token_of("bob")).expect("he is let in");
    alice.send_message("bob", "hello");
    alice.request("ping", Value::Null);
    bob.close();
    // One that waits for its head, and one that is refused.
    let _silent = Raw::connect(addr);
    assert_eq!(Raw::connect(addr).get("/nowhere").status, 404);
    for name in [
        "accept", "refuser", "presence", "probe", "grpc", "r-", "w-", "consume-", "etcd",
    ] {
        let runs = threads().iter().any(|thread| thread.starts_with(name));
        assert!(runs, "{name} runs: {:?}", threads());
    }
    gateway.stop();
    assert_eq!(died.try_recv().ok(), None);
}

/// One after the other, since the names are the same.
#[test]
fn a_gateway_that_has_stopped_leaves_no_thread() {
    let _alone = GATEWAY_THREADS.write();
    assert!(threads().is_empty(), "{:?}", threads());
    come_and_go(&chat::settings());
    assert!(threads().is_empty(), "embedded: {:?}", threads());
    let users = Settings::new().users(["alice", "bob"]);
    let cluster = Cluster::on(Broker::shared(), &users, 1);
    come_and_go(&cluster.settings("here"));
    assert!(threads().is_empty(), "remote: {:?}", threads());
}
