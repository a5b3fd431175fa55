//! The system has no more to give: descriptors, threads, memory. Whoever is connected does not
//! notice, newcomers are told 503, and it is over when the shortage is.

use std::cell::RefCell;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::broker::Broker;
use crate::support::gateway::binary;
use crate::support::hog;
use crate::support::process::Process;
use crate::support::raw::Raw;
use crate::support::settings::token_of;
use crate::support::wait::wait_until_within;
use crate::support::{Client, Cluster, Gateway, Settings, wait_until, watchdog};

/// From relief to the first newcomer who is let in.
const RECOVERY: Duration = Duration::from_secs(1);
/// How long the processor is watched, and what it may do in that time: another core's worth of
/// nothing, apart from timers.
const WATCH: Duration = Duration::from_secs(1);
const AT_REST: Duration = Duration::from_millis(150);

fn settings() -> Settings {
    Settings::new()
        .users(["alice", "bob", "carol"])
        .set("limits.max_connections_per_user", 50)
        .set("limits.rate", 1000)
        .set("log.level", "info")
}

/// Sets the soft limit of `resource` to what `limit` says until relief.
fn shortage_of(gateway: &Gateway, resource: &str, spare: usize, limit: fn(&Gateway) -> u64) {
    let usual = RefCell::new(String::new());
    let begin = || *usual.borrow_mut() = gateway.limit(resource, &limit(gateway).to_string());
    let relief = || drop(gateway.limit(resource, &usual.borrow()));
    shortage(gateway, resource, spare, begin, relief);
}

/// Has a shortage begin once two clients talk, and shows what must hold until there is relief. Up
/// to `spare` newcomers may be let in before: the C library keeps the stacks of threads that ended.
fn shortage(
    gateway: &Gateway,
    resource: &str,
    spare: usize,
    begin: impl FnOnce(),
    relief: impl FnOnce(),
) {
    let mut alice = gateway.connect("alice");
    let mut bob = gateway.connect("bob");
    let mut talk = || {
        for _ in 0..5 {
            let id = alice.send_message("bob", "still here?");
            bob.expect_message(&id);
            bob.ack(&[&id]);
        }
    };
    talk();
    let before = gateway.settled(2);

    begin();
    let newcomer = || Client::try_connect(gateway.addr, &gateway.path, &token_of("carol"));
    let let_in: Vec<Client> = std::iter::from_fn(|| newcomer().ok())
        .take(spare + 1)
        .collect();
    assert!(let_in.len() <= spare, "there is no shortage");
    for _ in 0..5 {
        let refused = newcomer().err().map(|refused| refused.status);
        assert_eq!(refused, Some(503));
    }
    talk();
    // Newcomers at once: each is answered.
    let mut newcomers: Vec<Raw> = (0..10).map(|_| gateway.raw()).collect();
    for newcomer in &mut newcomers {
        assert_eq!(
            newcomer.try_upgrade(&gateway.path, "carol-token").status,
            503
        );
        newcomer.finish_sending();
    }
    drop(newcomers);
    let used = gateway.processor_time();
    thread::sleep(WATCH);
    let used = gateway.processor_time() - used;
    assert!(used <= AT_REST, "{used:?} within {WATCH:?}");
    talk();

    relief();
    let relief = Instant::now();
    wait_until_within(RECOVERY, "newcomers are let in again", || {
        newcomer().is_ok()
    });
    println!(
        "{resource}: {} let in before the first 503, {used:?} of processor time in {WATCH:?}, \
         the next one let in {:?} after relief",
        let_in.len(),
        relief.elapsed()
    );
    talk();
    drop(let_in);
    let after = gateway.settled(2);
    assert_eq!(
        (after.threads, after.descriptors),
        (before.threads, before.descriptors)
    );
}

#[test]
fn without_descriptors_newcomers_are_503_and_nobody_else_notices() {
    let gateway = Gateway::start(&settings());
    gateway.settled(0);
    let (_, gaps) = gateway.descriptors_at_most();
    shortage_of(&gateway, "nofile", gaps, |gateway| {
        gateway.descriptors_at_most().0
    });
    assert_eq!(gateway.stop(), 0);
}

/// Leaves no descriptor, and has newcomers come until one is refused. Answers the usual limit, and who was
/// let in.
fn use_up_descriptors(gateway: &Gateway) -> (String, Vec<Client>) {
    let (limit, gaps) = gateway.descriptors_at_most();
    let usual = gateway.limit("nofile", &limit.to_string());
    let mut let_in = Vec::new();
    loop {
        match Client::try_connect(gateway.addr, &gateway.path, &token_of("carol")) {
            Ok(client) => let_in.push(client),
            Err(refused) => {
                assert_eq!(refused.status, 503);
                return (usual, let_in);
            }
        }
        assert!(let_in.len() <= gaps, "there is no shortage");
    }
}

/// The one newcomer who comes just when there is room again is let in, not refused.
#[test]
fn the_first_newcomer_after_relief_is_let_in() {
    let gateway = Gateway::start(&settings());
    gateway.settled(0);
    let (usual, let_in) = use_up_descriptors(&gateway);
    gateway.limit("nofile", &usual);
    gateway.connect("carol");
    drop(let_in);
}

#[test]
fn a_gateway_without_descriptors_stops_as_ever() {
    for relief in [true, false] {
        let gateway = Gateway::start(&settings());
        let mut alice = gateway.connect("alice");
        gateway.settled(1);
        let (usual, mut let_in) = use_up_descriptors(&gateway);
        if relief {
            gateway.limit("nofile", &usual);
        }
        let mut clients = vec![&mut alice];
        clients.extend(&mut let_in);
        gateway.stop_with_clients(&mut clients);
    }
}

/// The gateway takes fewer connections than are configured: so many that there is a descriptor for
/// each, and for everything else at its most.
#[test]
fn with_few_descriptors_those_beyond_are_503_and_it_never_runs_out() {
    const LIMIT: usize = 700;
    let embedded = settings();
    let remote = Cluster::on(Broker::shared(), &embedded, 1);
    for settings in [embedded.clone(), remote.settings("few")] {
        let settings = settings.set("limits.max_connections_per_user", 10_000);
        let directory = watchdog::directory("gateway");
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={LIMIT}:{LIMIT}"));
        command.arg(binary().get_program()).arg("--config");
        command
            .arg(settings.write(&directory))
            .current_dir(&directory);
        let gateway = Gateway::listening(Process::start("the gateway", &mut command), directory);
        gateway.wait_ready();
        let lowered = gateway.stderr_line("limits.max_connections lowered");
        assert!(lowered.contains("because=RLIMIT_NOFILE"), "{lowered}");
        let room = lowered
            .split("to=")
            .nth(1)
            .and_then(|text| text.split(',').next());
        let room: usize = room.and_then(|room| room.parse().ok()).expect("a number");
        let overhead = gateway.held().descriptors;

        let mut clients: Vec<Client> = (0..room).map(|_| gateway.connect_cold("alice")).collect();
        // More than the refuser takes, all silent: each is cut, or waits for its end.
        let _silent: Vec<Raw> = (0..400).map(|_| gateway.raw()).collect();
        wait_until("one is refused with an answer", || {
            let mut newcomer = gateway.raw();
            // Cut, as long as the refuser has no room.
            let sent = newcomer.try_send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
            sent.is_ok() && newcomer.has_answer()
        });
        let held = gateway.held().descriptors;
        assert!(held <= LIMIT, "{held}");
        wait_until("the silent ones are over", || {
            gateway.held().descriptors <= room + overhead
        });
        let refused = gateway.raw().try_upgrade(&gateway.path, "bob-token");
        assert_eq!(refused.status, 503);
        let first = &mut clients[0];
        let id = first.send_message("bob", "still here?");
        first.expect_message(&id);
        let log = gateway.stderr();
        assert!(!log.contains("Accept failed"), "{log}");
        println!("{room} connections, {overhead} for everything else, of {LIMIT}");
        drop(clients);
        assert_eq!(gateway.stop(), 0);
    }
}

#[test]
fn without_memory_for_stacks_newcomers_are_503_and_nobody_else_notices() {
    /// Less than a stack.
    const LEFT: u64 = 128 << 10;
    let gateway = Gateway::start(&settings());
    shortage_of(&gateway, "as", 10, |gateway| gateway.address_space() + LEFT);
    assert_eq!(gateway.stop(), 0);
}

#[test]
fn without_threads_newcomers_are_503_and_nobody_else_notices() {
    let gateway = Gateway::start_unprivileged(&settings());
    shortage_of(&gateway, "nproc", 0, |_| 1);
    assert_eq!(gateway.stop(), 0);
}

/// As many as a thread takes and one more are left, so that it fails at its stack, at the guard page
/// below that, or at what it allocates.
#[test]
fn without_memory_mappings_newcomers_are_503_and_nobody_else_notices() {
    for left in [0, 2, 4] {
        let library = hog::library(left).display().to_string();
        let (process, directory) = Gateway::launch(&settings(), &[("LD_PRELOAD", &library)]);
        let gateway = Gateway::listening(process, directory);
        let (begin, relief) = (|| hog::take(&gateway), || hog::give_back(&gateway));
        shortage(&gateway, "mappings", 10, begin, relief);
        assert_eq!(gateway.stop(), 0);
    }
}
