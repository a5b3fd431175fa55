//! A gateway with many users dies and returns: the broker deletes its queues with a binding for each
//! of them, and binds them all again. What does that cost those who publish meanwhile?

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{Confirm, ConfirmSmoother};
use crossbeam::channel::Receiver;
use prost::Message as _;
use ws_gateway::services::proto::Message;

use super::figures::rounded;
use super::{Drill, Figures};
use crate::support::amqp::Amqp;
use crate::support::broker::Broker;
use crate::support::client::is_push;
use crate::support::ledger::Ledger;
use crate::support::raw::Raw;
use crate::support::wait::wait_until_within;
use crate::support::{Client, Cluster, DEADLINE, Event, Gateway, Settings};

pub const DRILLS: &[Drill] = &[Drill {
    name: "broker-rebinds",
    about: "a gateway with 10,000 users is killed and started again; a publisher's confirms meanwhile",
    run: || rebinds(10_000, Duration::from_secs(10)),
}];

/// The services' publisher takes a broker that owes confirms and sends none for so long to be gone.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// For all users to come back, on a machine that does other things as well.
const RETURN: Duration = Duration::from_secs(300);
/// Between two publications.
const PACE: Duration = Duration::from_millis(10);
/// Who connect at the same time.
const WORKERS: usize = 8;
/// The publications are for her, on the gateway that stays.
const WATCHER: &str = "watcher";
/// The id of the last publication; the others have numbers.
const LAST: &str = "last";

/// A gateway with `users` users is killed and started again. `calm`: how long the publisher is watched
/// before, and after all is as it was.
pub fn rebinds(users: usize, calm: Duration) -> Figures {
    let names: Vec<String> = (0..users).map(|number| format!("user{number}")).collect();
    let settings = Settings::new()
        .users(names.iter().map(String::as_str).chain([WATCHER]))
        .set("limits.max_connections", users as i64)
        .set("limits.max_connections_per_ip", users as i64)
        // Clients that do not read are left alone.
        .set("session.ping_interval", "1h")
        .set("session.idle_timeout", "2h")
        .set("log.level", "info");
    let mut cluster = Cluster::on(Broker::private(), &settings, 2);
    let mut watcher = cluster.connect(1, WATCHER);
    let connected = all_bound(&cluster.gateways[0], &names);
    settle(&cluster);

    let (over, ledger) = (AtomicBool::new(false), Ledger::default());
    let began = Instant::now();
    let (confirms, gone, back, bound, settled) = thread::scope(|scope| {
        let (over, ledger, url) = (&over, &ledger, cluster.url.clone());
        let reader = scope.spawn(move || read_to_the_last(&mut watcher, ledger));
        let publisher = scope.spawn(move || publish_until(over, ledger, &url, began));
        thread::sleep(calm);
        let gone = began.elapsed();
        cluster.gateways[0].kill();
        drop(connected);
        cluster.start_again(0);
        cluster.gateways[0].wait_ready();
        let back = began.elapsed();
        let _connected = all_bound(&cluster.gateways[0], &names);
        let bound = began.elapsed();
        settle(&cluster);
        let settled = began.elapsed();
        thread::sleep(calm);
        over.store(true, Ordering::SeqCst);
        let confirms = publisher.join().expect("a publisher");
        reader.join().expect("a reader");
        (confirms, gone, back, bound, settled)
    });

    let mut figures = Figures::of(ledger.report());
    figures.demand_unnoticed();
    let longest = confirms
        .iter()
        .map(|(_, took)| *took)
        .max()
        .unwrap_or_default();
    figures.demand(
        longest < CONFIRM_TIMEOUT,
        "no publisher takes the broker to be gone",
    );
    let [away, bind] = [back - gone, bound - back].map(rounded);
    figures.note(format!(
        "ready again {away} after the kill; {users} users bound {bind} later"
    ));
    for (phase, from, to) in [
        ("before", Duration::ZERO, gone),
        ("queues deleted", gone, back),
        ("users bound", back, bound),
        ("all that follows", bound, settled),
        ("after", settled, Duration::MAX),
    ] {
        let within = confirms.iter().filter(|(at, _)| (from..to).contains(at));
        figures.note(format!(
            "confirms, {phase}: {}",
            latencies(within.map(|(_, took)| *took))
        ));
    }
    figures
}

/// Connects all of them, and returns once each one's route is bound.
fn all_bound(gateway: &Gateway, users: &[String]) -> Vec<Raw> {
    let next = AtomicUsize::new(0);
    let connect = || -> Vec<Raw> {
        let turns = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        let mine = turns.map_while(|turn| users.get(turn));
        mine.map(|user| gateway.raw_session(user)).collect()
    };
    let connected = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(connect)).collect();
        let connected = workers
            .into_iter()
            .map(|worker| worker.join().expect("connects"));
        connected.flatten().collect()
    });
    // The sketch lets nobody in who is not bound.
    let is_bound = |gateway: &Gateway| {
        gateway.admin.metric("gateway_route_seconds_count") >= users.len() as f64
    };
    wait_until_within(RETURN, "all users are bound", || {
        gateway.is_sketch || is_bound(gateway)
    });
    connected
}

/// A publication's confirm: when that was published, since the beginning, and how long it took.
type Confirmed = (Duration, Duration);

/// Returns once the processes have next to nothing to do: who is online is told, tokens are validated
/// once more, nothing unread is looked for.
pub fn settle(cluster: &Cluster) {
    let busy = |cluster: &Cluster| -> Duration {
        let gateways = cluster
            .gateways
            .iter()
            .map(|gateway| gateway.processor_time());
        gateways.sum::<Duration>() + cluster.services.processor_time()
    };
    let (mut looked, mut before) = (Instant::now(), busy(cluster));
    wait_until_within(RETURN, "the processes settle", || {
        let span = looked.elapsed();
        let is_due = span >= Duration::from_secs(1);
        let used = is_due.then(|| busy(cluster) - before);
        if let Some(used) = used {
            (looked, before) = (Instant::now(), before + used);
        }
        used.is_some_and(|used| used < span / 10)
    });
}

/// Publishes at a pace until it is `over`, whatever is confirmed by then, as the services do.
fn publish_until(over: &AtomicBool, ledger: &Ledger, url: &str, began: Instant) -> Vec<Confirmed> {
    let amqp = Amqp::open(url);
    let (published, times) = crossbeam::channel::unbounded();
    let confirms = amqp.confirms();
    thread::scope(|scope| {
        let confirmed = scope.spawn(|| confirmed(&confirms, times, began));
        let mut is_last = false;
        for number in 0.. {
            if is_last {
                break;
            }
            thread::sleep((PACE * number).saturating_sub(began.elapsed()));
            is_last = over.load(Ordering::SeqCst);
            let message = Message {
                id: if is_last {
                    LAST.into()
                } else {
                    number.to_string()
                },
                from_user_id: "publisher".into(),
                to_user_id: WATCHER.into(),
                content: "hello".into(),
                message_type: "text".into(),
                ..Message::default()
            };
            ledger.committed("publisher", &[WATCHER], &message.id);
            published.send(began.elapsed()).expect("a reader");
            let (key, body) = (format!("user.{WATCHER}"), message.encode_to_vec());
            amqp.publish_ahead("im.direct", &key, "message", body);
        }
        drop(published);
        confirmed.join().expect("all is confirmed")
    })
}

/// Each publication with its confirm, once the last is confirmed.
fn confirmed(
    confirms: &Receiver<Confirm>,
    published: Receiver<Duration>,
    began: Instant,
) -> Vec<Confirmed> {
    let (mut in_order, mut waiting) = (ConfirmSmoother::new(), VecDeque::new());
    let confirmed = published.into_iter().map(|at| {
        while waiting.is_empty() {
            let confirm = confirms.recv_timeout(RETURN);
            waiting.extend(in_order.process(confirm.expect("the broker confirms")));
        }
        let confirm = waiting.pop_front();
        assert!(matches!(confirm, Some(Confirm::Ack(_))), "{confirm:?}");
        (at, began.elapsed() - at)
    });
    confirmed.collect()
}

/// Has the ledger know what comes, in its order, up to the last.
fn read_to_the_last(watcher: &mut Client, ledger: &Ledger) {
    ledger.device(WATCHER, WATCHER);
    loop {
        match watcher.next_event(CONFIRM_TIMEOUT + DEADLINE) {
            Event::Frame(frame) if is_push(&frame) => {
                let id = frame["id"].as_str().expect("an id");
                ledger.received(WATCHER, id);
                if id == LAST {
                    return;
                }
            }
            Event::Frame(_) => {}
            // What did not come is missing.
            Event::Nothing | Event::End(_) => return,
        }
    }
}

fn latencies(times: impl Iterator<Item = Duration>) -> String {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    let Some(longest) = times.last() else {
        return "none".into();
    };
    let at = |share: f64| rounded(times[(times.len() as f64 * share) as usize]);
    let (p50, p99, longest) = (at(0.5), at(0.99), rounded(*longest));
    format!(
        "{} of them, p50 {p50}, p99 {p99}, longest {longest}",
        times.len()
    )
}
