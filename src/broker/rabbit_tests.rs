//! The broker side against a real RabbitMQ, and what it does to it: kill, stop, delete, refuse.
// They publish as the reference services do.
#![cfg(feature = "reference")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, unbounded};
use prost::Message as _;

use super::amqp::{AmqpConnection, AmqpError, Argument, Opener};
use super::source::DeliverySource as _;
use super::support::amqp::Amqp;
use super::support::broker::Broker;
use super::support::wait::{wait_until, wait_until_within};
use super::support::wire::Wire;
use super::topology::{DEAD_LETTER_EXCHANGE, DEAD_LETTER_QUEUE, Topology};
use super::*;
use crate::client::Route;
use crate::client::close::CloseReason;
use crate::client::fixture::Client;
use crate::config::Config;
use crate::ids::UserId;
use crate::metrics::Metrics;
use crate::reference::AmqpPublisher;
use crate::reference::publisher::{Outcome, Publication, PublishError, Publisher as _};
use crate::registry::Registry;
use crate::services::ErrorCode;
use crate::services::fake::FakeServices;
use crate::services::proto::Message;
use crate::threads::StopSignal;
use crate::threads::fan_out::FanOut;

/// What an operator does.
mod operator;

const HEARTBEAT: Duration = Duration::from_secs(1);
const PREFETCH: u16 = 64;
/// Shorter than a gateway's: 200 reconnects in half a minute.
const RETRY_FIRST: Duration = Duration::from_millis(20);

/// A gateway's broker side.
struct Side {
    registry: Arc<Registry>,
    users: Arc<FakeServices>,
    deliver: Arc<DeliveryContext>,
    routes: Arc<Routes>,
    owned: Receiver<()>,
    fatal: Receiver<String>,
    supervisor: Supervisor,
}

fn settings(url: &str) -> Settings {
    let mut config = Config::default();
    config.gateway.id = "g".into();
    config.broker.url = url.into();
    config.broker.heartbeat = HEARTBEAT;
    config.broker.prefetch = PREFETCH;
    Settings {
        retry_first: RETRY_FIRST,
        ..Settings::new(&config, opener(url))
    }
}

fn opener(url: &str) -> Opener {
    let endpoint = Endpoint::parse(url).unwrap();
    Opener::new(endpoint, "test".into(), HEARTBEAT, None)
}

fn side(url: &str) -> Side {
    side_with(settings(url))
}

fn side_with(settings: Settings) -> Side {
    let (users, registry) = (
        Arc::new(FakeServices::default()),
        Arc::new(Registry::default()),
    );
    let metrics = Arc::new(Metrics::new(&[]));
    let deliver = Arc::new(DeliveryContext {
        registry: Arc::clone(&registry),
        services: Arc::clone(&users) as _,
        metrics: Arc::clone(&metrics),
        groups: Groups::new(Duration::from_secs(3_600)).into(),
        fan_out: FanOut::start(),
    });
    let routes = Arc::new(Routes::new(Arc::clone(&registry), metrics));
    let (tell, owned) = unbounded();
    let (dies, fatal) = unbounded();
    let on_owned = move || tell.send(()).unwrap();
    let for_broker = Arc::clone(&routes);
    let delivering = Arc::clone(&deliver);
    let supervisor = Supervisor::start(settings, delivering, for_broker, &dies, on_owned).unwrap();
    Side {
        registry,
        users,
        deliver,
        routes,
        owned,
        fatal,
        supervisor,
    }
}

impl Side {
    fn up(url: &str) -> Self {
        let side = side(url);
        side.comes_up();
        assert_eq!(side.owned.try_recv(), Ok(()));
        side
    }

    fn is_up(&self) -> bool {
        self.supervisor.state().get().is_ok()
    }

    fn comes_up(&self) {
        wait_until("the broker is up", || self.is_up());
    }

    fn goes_down(&self) -> String {
        wait_until("the broker is down", || !self.is_up());
        self.supervisor.state().get().unwrap_err()
    }

    /// Connects and waits for the route and for the catch-up that follows.
    fn join(&self, user: &str) -> Client {
        let client = Client::join(&self.registry, user);
        self.is_routed(user);
        client.is_caught_up();
        client
    }

    fn is_routed(&self, user: &str) {
        let user = UserId::new(user).unwrap();
        wait_until("a route", || self.routes.want(&user) == Route::Bound);
    }

    fn stop(self) {
        let began = Instant::now();
        Box::new(self.supervisor).stop(began + Duration::from_secs(5));
        assert!(
            began.elapsed() < Duration::from_secs(6),
            "{:?}",
            began.elapsed()
        );
    }
}

fn publication(id: &str, exchange: &str, key: &str) -> Publication {
    published(&message(id, key), exchange, key)
}

/// For the user or the group that the routing key names.
fn message(id: &str, key: &str) -> Message {
    Message {
        id: id.into(),
        from_user_id: "alice".into(),
        to_user_id: key.strip_prefix("user.").unwrap_or("nobody").into(),
        group_id: key.strip_prefix("group.").unwrap_or_default().into(),
        ..Message::default()
    }
}

fn published(message: &Message, exchange: &str, key: &str) -> Publication {
    Publication {
        exchange: exchange.into(),
        routing_key: key.into(),
        kind: KIND_MESSAGE.into(),
        body: message.encode_to_vec(),
    }
}

fn vhost_of(url: &str) -> &str {
    url.rsplit_once('/').unwrap().1
}

fn to_bob(ids: impl IntoIterator<Item = u32>) -> Vec<Publication> {
    let one = |id| publication(&format!("m{id}"), DIRECT_EXCHANGE, "user.bob");
    ids.into_iter().map(one).collect()
}

/// How long the broker may owe a confirm.
const CONFIRM_WITHIN: Duration = Duration::from_secs(2);

/// Publishes batches, all of a batch at once.
struct Batches(AmqpPublisher);

fn publisher(url: &str) -> Batches {
    Batches(AmqpPublisher::new(opener(url), CONFIRM_WITHIN))
}

impl Batches {
    /// Returns once all are published; an error is the publisher's, or that it took too long.
    fn publish(&mut self, batch: &[Publication]) -> Result<(), PublishError> {
        let outcomes = self.outcomes(batch)?;
        assert!(
            outcomes
                .iter()
                .all(|outcome| *outcome == Outcome::Published)
        );
        Ok(())
    }

    fn outcomes(&mut self, batch: &[Publication]) -> Result<Vec<Outcome>, PublishError> {
        for (ticket, publication) in (0..).zip(batch) {
            self.0.publish(ticket, publication)?;
        }
        self.answers(batch.len())
    }

    /// The answers to the last `count` publications, in the order of these.
    fn answers(&mut self, count: usize) -> Result<Vec<Outcome>, PublishError> {
        let (deadline, never) = (
            Instant::now() + 2 * CONFIRM_WITHIN,
            crossbeam::channel::never(),
        );
        let mut outcomes = vec![None; count];
        while outcomes.contains(&None) {
            if Instant::now() >= deadline {
                return Err(PublishError("no answer".into()));
            }
            for (ticket, outcome) in self.0.outcomes(deadline, &never)? {
                assert_eq!(outcomes[ticket as usize].replace(outcome), None);
            }
        }
        Ok(outcomes.into_iter().flatten().collect())
    }
}

/// In this order; what the broker delivers again, because it had no acknowledgement, is passed over.
fn receives(client: &mut Client, ids: impl IntoIterator<Item = u32>) {
    for id in ids {
        let frame = loop {
            let frame = client.next();
            let is_older = |older| frame.contains(&format!(r#""id":"m{older}""#));
            if !(0..id).any(is_older) {
                break frame;
            }
        };
        assert!(
            frame.contains(&format!(r#""id":"m{id}""#)),
            "instead of m{id}: {frame}"
        );
    }
}

fn open(url: &str) -> AmqpConnection {
    opener(url).open(&StopSignal::never()).unwrap()
}

#[test]
fn what_is_published_arrives_in_order_and_is_acknowledged() {
    let url = Broker::shared().vhost();
    let side = Side::up(&url);
    let mut bob = side.join("bob");
    publisher(&url).publish(&to_bob(0..1_000)).unwrap();
    receives(&mut bob, 0..1_000);
    // Stopping acknowledges and deletes: nothing is left to see.
    side.stop();
    let mut link = open(&url);
    let error = link
        .channel()
        .unwrap()
        .bind("queue.gateway.g.single", DIRECT_EXCHANGE, "k");
    assert!(matches!(error, Err(AmqpError::Lost(text)) if text.contains("NOT_FOUND")));
}

#[test]
fn an_acknowledged_part_of_a_batch_does_not_come_again() {
    let url = Broker::shared().vhost();
    let side = Side::up(&url);
    let mut bob = side.join("bob");
    publisher(&url).publish(&to_bob(0..3)).unwrap();
    receives(&mut bob, 0..3);
    let unacked = |url: &str| {
        let columns = ["list_queues", "--no-table-headers", "name", "messages"];
        Broker::shared().rabbitmqctl(&[&["-p", vhost_of(url)], &columns[..]].concat())
    };
    wait_until("all is acknowledged", || {
        unacked(&url).contains("g.single\t0")
    });
    side.stop();
}

#[test]
fn dead_letters_are_set_aside_once_and_the_queue_moves_on() {
    let url = Broker::shared().vhost();
    let side = Side::up(&url);
    let mut bob = side.join("bob");
    let mut batch = to_bob(0..4);
    batch[1].body = b"junk".to_vec();
    batch[2].kind = "unknown".into();
    publisher(&url).publish(&batch).unwrap();
    receives(&mut bob, [0, 3]);
    let amqp = Amqp::open(&url);
    wait_until("two dead letters", || amqp.ready(DEAD_LETTER_QUEUE) == 2);
    assert_eq!(amqp.take(DEAD_LETTER_QUEUE).unwrap().body, b"junk");
    side.stop();
}

#[test]
fn a_missing_user_service_holds_up_groups_alone() {
    let url = Broker::shared().vhost();
    let side = Side::up(&url);
    let mut bob = side.join("bob");
    side.users.fail(ErrorCode::ServiceUnavailable);
    side.users.set("team", &["bob"]);
    let mut publisher = publisher(&url);
    publisher
        .publish(&[publication("m1", TOPIC_EXCHANGE, "group.team")])
        .unwrap();
    publisher.publish(&to_bob(2..3)).unwrap();
    receives(&mut bob, 2..3);
    wait_until("it is asked for again", || side.users.calls() > 1);
    side.users.fail(None);
    receives(&mut bob, 1..2);
    side.stop();
}

/// What a consumer takes at a time is written before there is more of it than a send queue holds.
#[test]
fn long_messages_that_have_piled_up_leave_room_in_the_queues() {
    let broker = Broker::shared();
    let url = broker.vhost();
    let side = Side::up(&url);
    let mut bob = side.join("bob");
    // In turns, so that no group's messages are written by themselves: they wait for the flush.
    let groups = ["even", "odd"];
    groups
        .iter()
        .for_each(|group| side.users.set(group, &["bob"]));
    let long = |id: u32| {
        let key = format!("group.{}", groups[id as usize % 2]);
        let message = Message {
            content: "x".repeat(40 << 10),
            ..message(&format!("m{id}"), &key)
        };
        published(&message, TOPIC_EXCHANGE, &key)
    };
    let mut publisher = publisher(&url);
    publisher.publish(&[long(0), long(1)]).unwrap();
    receives(&mut bob, 0..2);

    // As its writer thread does.
    let connection = Arc::clone(&bob.connection);
    let writer = thread::spawn(move || {
        while connection.outbox.closing().is_none() {
            connection.outbox.flush_blocking();
            thread::yield_now();
        }
    });
    let held_up = side.deliver.groups.lock();
    let count = u32::from(PREFETCH);
    publisher
        .publish(&Vec::from_iter((2..count).map(long)))
        .unwrap();
    wait_until("all of it is sent to the consumer", || {
        let column = ["list_queues", "--no-table-headers", "messages_ready"];
        let waiting = broker.rabbitmqctl(&[&["-p", vhost_of(&url)], &column[..]].concat());
        waiting.split_whitespace().all(|count| count == "0")
    });
    drop(held_up);
    receives(&mut bob, 2..count);
    assert!(!bob.takes_catch_up(), "it fell back to its inbox");
    side.stop();
    bob.connection.close(CloseReason::Shutdown(Duration::ZERO));
    writer.join().unwrap();
}

#[test]
fn stopping_while_the_user_service_is_missing_is_quick() {
    let url = Broker::shared().vhost();
    let side = Side::up(&url);
    side.users.fail(ErrorCode::ServiceUnavailable);
    publisher(&url)
        .publish(&[publication("m1", TOPIC_EXCHANGE, "group.team")])
        .unwrap();
    wait_until("it is asked for again", || side.users.calls() > 1);
    side.stop();
}

#[test]
fn a_user_who_left_is_unbound_and_many_are_bound_in_bursts() {
    let url = Broker::shared().vhost();
    let side = Side::up(&url);
    let users: Vec<_> = (0..600)
        .map(|n| UserId::new(&format!("u{n}")).unwrap())
        .collect();
    let bob = side.join("bob");
    for user in &users {
        side.routes.want(user);
    }
    wait_until_within(Duration::from_secs(60), "all are bound", || {
        users
            .iter()
            .all(|user| side.routes.want(user) == Route::Bound)
    });
    bob.leave(&side.registry);
    side.routes.release(bob.connection.user());
    let vhost = url.rsplit_once('/').unwrap().1;
    let bindings = ["-p", vhost, "list_bindings", "routing_key"];
    wait_until("bob is unbound", || {
        let keys = Broker::shared().rabbitmqctl(&bindings);
        !keys.lines().any(|key| key == "user.bob") && keys.lines().any(|key| key == "user.u599")
    });
    side.stop();
}

#[test]
fn a_second_gateway_with_the_same_id_gives_up_and_the_first_goes_on() {
    let url = Broker::shared().vhost();
    let first = Side::up(&url);
    let mut bob = first.join("bob");
    let second = side(&url);
    let reason = second.fatal.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(reason.contains("gateway.id \"g\""), "{reason}");
    assert!(!second.is_up());
    second.stop();
    publisher(&url).publish(&to_bob(0..1)).unwrap();
    receives(&mut bob, 0..1);
    first.stop();
}

#[test]
fn wrong_arguments_are_fatal_at_start_and_named() {
    let url = Broker::shared().vhost();
    let mut link = open(&url);
    let channel = link.channel().unwrap();
    channel
        .declare_queue(DEAD_LETTER_QUEUE, &[("x-max-length", Argument::Number(1))])
        .unwrap();
    let side = side(&url);
    let reason = side.fatal.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(
        reason.contains(DEAD_LETTER_QUEUE) && reason.contains("x-max-length"),
        "{reason}"
    );
    side.stop();
}

#[test]
fn queues_that_a_crash_left_are_made_afresh() {
    let url = Broker::shared().vhost();
    {
        let mut link = open(&url);
        Topology::declare(&mut link, "g", false).unwrap();
        let channel = link.channel().unwrap();
        let key = "user.elsewhere";
        channel
            .bind("queue.gateway.g.single", DIRECT_EXCHANGE, key)
            .unwrap();
    }
    let side = Side::up(&url);
    let vhost = url.rsplit_once('/').unwrap().1;
    let keys = Broker::shared().rabbitmqctl(&["-p", vhost, "list_bindings", "routing_key"]);
    assert!(!keys.contains("user.elsewhere"), "{keys}");
    side.stop();
}

#[test]
fn a_deleted_queue_is_declared_again() {
    let url = Broker::shared().vhost();
    let side = Side::up(&url);
    let mut bob = side.join("bob");
    Amqp::open(&url).delete_queue("queue.gateway.g.presence");
    assert!(side.goes_down().contains("deleted"));
    side.comes_up();
    side.is_routed("bob");
    bob.is_caught_up();
    publisher(&url).publish(&to_bob(0..1)).unwrap();
    receives(&mut bob, 0..1);
    side.stop();
}

#[test]
fn a_refused_login_is_no_reason_to_give_up_and_shows_no_password() {
    let url = Broker::shared()
        .vhost()
        .replace("guest:guest", "guest:hush");
    let side = side(&url);
    wait_until("the login is refused", || {
        side.supervisor
            .state()
            .get()
            .unwrap_err()
            .contains("password")
    });
    assert!(!side.supervisor.state().get().unwrap_err().contains("hush"));
    assert!(side.owned.is_empty() && side.fatal.is_empty());
    side.stop();
}

/// Nobody catches up here: what a wrong acknowledgement took from the queue would be missing.
#[test]
fn nothing_is_lost_over_200_reconnects_in_a_row_under_flow() {
    let broker = Broker::shared();
    let url = broker.vhost();
    let wire = Wire::to(broker.addr);
    let side = Side::up(&wire.url(&url));
    let mut bob = side.join("bob");
    let flowing = Arc::new(AtomicBool::new(true));
    let flow = {
        let (flowing, mut publisher) = (Arc::clone(&flowing), publisher(&url));
        thread::spawn(move || {
            let mut next = 0;
            while flowing.load(Ordering::SeqCst) {
                publisher.publish(&to_bob(next..next + 5)).unwrap();
                next += 5;
            }
            publisher.publish(&to_bob([u32::MAX])).unwrap();
            (0..next).collect::<BTreeSet<_>>()
        })
    };
    let reader = thread::spawn(move || {
        let mut received = BTreeSet::new();
        loop {
            let frame = bob.next();
            let id = frame
                .split(r#""id":"m"#)
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            match id.unwrap().parse().unwrap() {
                u32::MAX => return received,
                id => received.insert(id),
            };
        }
    });
    for _ in 0..200 {
        let connections = wire.connections();
        wire.cut();
        wait_until("a new connection", || wire.connections() > connections);
        side.comes_up();
    }
    flowing.store(false, Ordering::SeqCst);
    let published = flow.join().unwrap();
    assert!(published == reader.join().unwrap());
    side.stop();
}

#[test]
fn a_broker_that_is_killed_and_restarted_is_found_again() {
    let broker = Broker::private();
    let url = broker.vhost();
    let side = Side::up(&url);
    let mut bob = side.join("bob");
    let mut publisher = publisher(&url);
    publisher.publish(&to_bob(0..10)).unwrap();
    receives(&mut bob, 0..10);

    broker.kill9();
    side.goes_down();
    assert_eq!(side.routes.want(bob.connection.user()), Route::Away);
    assert!(publisher.publish(&to_bob(10..11)).is_err());
    let alice = Client::join(&side.registry, "alice");
    broker.restart();
    let answered = Instant::now();
    side.comes_up();
    side.is_routed("bob");
    assert!(
        answered.elapsed() < Duration::from_secs(5),
        "{:?}",
        answered.elapsed()
    );
    side.is_routed("alice");
    bob.is_caught_up();
    alice.is_caught_up();
    publisher.publish(&to_bob(10..20)).unwrap();
    receives(&mut bob, 10..20);
    side.stop();
}

#[test]
fn a_broker_that_stalls_is_noticed_and_left_in_time() {
    let broker = Broker::private();
    let url = broker.vhost();
    let side = Side::up(&url);
    let _bob = side.join("bob");
    broker.stop_signal();
    let stalled = Instant::now();
    side.goes_down();
    assert!(
        stalled.elapsed() < 2 * HEARTBEAT + Duration::from_secs(2),
        "{:?}",
        stalled.elapsed()
    );
    broker.cont_signal();
    side.comes_up();
    broker.stop_signal();
    side.stop();
    broker.cont_signal();
}

/// What is on its way stays so, on the same connection, and arrives once.
#[test]
fn an_alarm_holds_a_publisher_up_and_costs_the_consumers_nothing() {
    let broker = Broker::private();
    let url = broker.vhost();
    let side = Side::up(&url);
    let mut bob = side.join("bob");
    let mut publisher = publisher(&url);
    publisher.publish(&to_bob(0..1)).unwrap();
    broker.memory_alarm(true);
    let error = publisher.outcomes(&to_bob(1..3)).unwrap_err();
    assert_eq!(error.0, "no answer");
    assert!(side.is_up());
    broker.memory_alarm(false);
    assert_eq!(publisher.answers(2).unwrap(), [Outcome::Published; 2]);
    publisher.publish(&to_bob(3..4)).unwrap();
    receives(&mut bob, 0..4);
    side.stop();
}

/// amiquip's own bookkeeping took a nack for an ack when an ack of several came after it.
#[test]
fn what_a_full_queue_refuses_is_told_and_nothing_else() {
    let url = Broker::shared().vhost();
    let mut publisher = publisher(&url);
    publisher.publish(&to_bob(0..1)).unwrap();
    let mut link = open(&url);
    let channel = link.channel().unwrap();
    let full = [
        ("x-max-length", Argument::Number(5)),
        ("x-overflow", Argument::Text("reject-publish")),
    ];
    for (queue, arguments) in [("bob", &full[..]), ("alice", &[])] {
        channel.declare_queue(queue, arguments).unwrap();
        let key = format!("user.{queue}");
        channel.bind(queue, DIRECT_EXCHANGE, &key).unwrap();
    }
    for round in 0..20 {
        let one = |id| {
            let key = ["user.alice", "user.bob"][(id % 2) as usize];
            publication(&format!("m{id}"), DIRECT_EXCHANGE, key)
        };
        let outcomes = publisher.outcomes(&(0..200).map(one).collect::<Vec<_>>());
        let outcomes = outcomes.unwrap();
        let published = |rest| {
            let of_key = outcomes.iter().skip(rest).step_by(2);
            of_key.filter(|o| **o == Outcome::Published).count()
        };
        let fits = if round == 0 { 5 } else { 0 };
        assert_eq!((published(0), published(1)), (100, fits), "round {round}");
    }
    let amqp = Amqp::open(&url);
    assert_eq!((amqp.ready("bob"), amqp.ready("alice")), (5, 2_000));
}

#[test]
fn publishing_declares_what_it_needs() {
    let url = Broker::shared().vhost();
    publisher(&url).publish(&to_bob(0..1)).unwrap();
    let amqp = Amqp::open(&url);
    amqp.publish(DEAD_LETTER_EXCHANGE, "", "", b"x");
    assert_eq!(amqp.ready(DEAD_LETTER_QUEUE), 1);
}
