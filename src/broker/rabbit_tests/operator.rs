//! What an operator does to the exchanges and queues behind a gateway's back.

use super::*;
use crate::broker::amqp::ExchangeKind;

/// Often, so that no test waits for it.
const LOOK: Duration = Duration::from_millis(100);

fn watching(url: &str) -> Side {
    watching_as(url, "g")
}

fn watching_as(url: &str, gateway_id: &str) -> Side {
    let side = side_with(Settings {
        gateway_id: gateway_id.into(),
        exchange_poll_interval: LOOK,
        ..settings(url)
    });
    side.comes_up();
    side
}

/// A virtual host where a queue that does not say otherwise is a quorum queue.
fn quorum_by_default(broker: &Broker, name: &str) -> String {
    broker.rabbitmqctl(&["add_vhost", name, "--default-queue-type", "quorum"]);
    broker.rabbitmqctl(&["set_permissions", "-p", name, "guest", ".*", ".*", ".*"]);
    let url = broker.vhost();
    format!("{}/{name}", url.rsplit_once('/').unwrap().0)
}

fn quorum(link: &mut AmqpConnection, queue: &str) {
    let arguments = [("x-queue-type", Argument::Text("quorum"))];
    let channel = link.channel().unwrap();
    channel.declare_queue(queue, &arguments).unwrap();
}

/// Messages for bob and for his group arrive.
fn is_reached(side: &Side, bob: &mut Client, url: &str) {
    are_reached(&mut [(side, bob)], url);
}

fn are_reached(bobs: &mut [(&Side, &mut Client)], url: &str) {
    let mut publisher = publisher(url);
    for (side, _) in &*bobs {
        side.users.set("team", &["bob"]);
    }
    for (id, exchange, key) in [
        (1, DIRECT_EXCHANGE, "user.bob"),
        (2, TOPIC_EXCHANGE, "group.team"),
    ] {
        let batch = [publication(&format!("m{id}"), exchange, key)];
        publisher.publish(&batch).unwrap();
        for (_, bob) in &mut *bobs {
            receives(bob, id..=id);
        }
    }
}

/// Also when another gateway, or a publisher, has declared it again before the next look.
#[test]
fn an_exchange_that_is_deleted_is_noticed_even_when_it_is_back_at_once() {
    for (exchange, kind) in [
        (DIRECT_EXCHANGE, ExchangeKind::Direct),
        (TOPIC_EXCHANGE, ExchangeKind::Topic),
    ] {
        for comes_back in [false, true] {
            let url = Broker::shared().vhost();
            let side = watching(&url);
            let mut bob = side.join("bob");
            let mut link = open(&url);
            let channel = link.channel().unwrap();
            channel.delete_exchange(exchange).unwrap();
            if comes_back {
                channel.declare_exchange(exchange, kind.clone()).unwrap();
            }
            bob.is_caught_up();
            side.comes_up();
            is_reached(&side, &mut bob, &url);
            side.stop();
        }
    }
}

/// Each notices for itself, whoever is the first to declare it again.
#[test]
fn every_gateway_notices_a_deleted_exchange() {
    let url = Broker::shared().vhost();
    let sides = ["g", "h"].map(|id| watching_as(&url, id));
    let mut users = sides.each_ref().map(|side| side.join("bob"));
    let mut link = open(&url);
    let channel = link.channel().unwrap();
    channel.delete_exchange(DIRECT_EXCHANGE).unwrap();
    let kind = ExchangeKind::Direct;
    channel.declare_exchange(DIRECT_EXCHANGE, kind).unwrap();
    for (side, bob) in sides.iter().zip(&users) {
        bob.is_caught_up();
        side.comes_up();
    }
    are_reached(&mut sides.iter().zip(&mut users).collect::<Vec<_>>(), &url);
    sides.into_iter().for_each(Side::stop);
}

#[test]
fn what_carries_no_live_messages_is_declared_again_and_nobody_notices() {
    let url = Broker::shared().vhost();
    let side = watching(&url);
    let mut bob = side.join("bob");
    let (amqp, mut link) = (Amqp::open(&url), open(&url));
    let channel = link.channel().unwrap();
    channel.delete_exchange(DEAD_LETTER_EXCHANGE).unwrap();
    amqp.delete_queue(DEAD_LETTER_QUEUE);
    let queue = "queue.gateway.g.group";
    channel.unbind(queue, TOPIC_EXCHANGE, "group.#").unwrap();
    // Each look declares the exchange first, and binds last.
    wait_until("all is there again", || {
        let bindings = ["-p", vhost_of(&url), "list_bindings", "destination_name"];
        let bound = Broker::shared().rabbitmqctl(&bindings);
        // To the default exchange each queue is bound as well.
        [DEAD_LETTER_QUEUE, queue]
            .iter()
            .all(|queue| bound.lines().filter(|line| line == queue).count() == 2)
    });
    let mut junk = to_bob(0..1);
    junk[0].body = b"junk".to_vec();
    publisher(&url).publish(&junk).unwrap();
    wait_until("a dead letter", || amqp.ready(DEAD_LETTER_QUEUE) == 1);
    is_reached(&side, &mut bob, &url);
    assert!(!bob.takes_catch_up(), "nothing was started over");
    side.stop();
}

#[test]
fn a_gateway_leaves_nothing_behind() {
    let url = Broker::shared().vhost();
    watching(&url).stop();
    let exchanges = ["-p", vhost_of(&url), "list_exchanges", "name"];
    let left = Broker::shared().rabbitmqctl(&exchanges);
    assert!(
        left.contains(DIRECT_EXCHANGE) && !left.contains("queue.gateway"),
        "{left}"
    );
}

/// Without the right to write to the exchanges there are no markers, and a missing exchange is
/// noticed all the same.
#[test]
fn a_gateway_that_may_not_bind_markers_still_looks() {
    let broker = Broker::shared();
    let url = broker.vhost();
    let mut publisher = publisher(&url);
    publisher.publish(&to_bob(0..1)).unwrap();
    let user = format!("user-of-{}", vhost_of(&url));
    broker.rabbitmqctl(&["add_user", &user, "secret"]);
    let write = r"^(queue\..*|im\.dead-letter)$";
    let rights = [
        "set_permissions",
        "-p",
        vhost_of(&url),
        &user,
        ".*",
        write,
        ".*",
    ];
    broker.rabbitmqctl(&rights);
    let restricted = url.replace("guest:guest", &format!("{user}:secret"));
    let side = watching(&restricted);
    let mut bob = side.join("bob");
    let mut link = open(&url);
    link.channel()
        .unwrap()
        .delete_exchange(TOPIC_EXCHANGE)
        .unwrap();
    bob.is_caught_up();
    side.comes_up();
    is_reached(&side, &mut bob, &url);
    side.stop();
}

#[test]
fn where_quorum_is_the_default_the_queues_are_classic() {
    let broker = Broker::shared();
    let url = quorum_by_default(&broker, "quorum-by-default");
    for _ in 0..2 {
        let side = watching(&url);
        let mut bob = side.join("bob");
        is_reached(&side, &mut bob, &url);
        let types = broker.rabbitmqctl(&["-p", vhost_of(&url), "list_queues", "type"]);
        assert_eq!(types.matches("classic").count(), 4, "{types}");
        side.stop();
    }
    // A crash leaves them, and they are made afresh.
    Topology::declare(&mut open(&url), "g", false).unwrap();
    watching(&url).stop();
}

#[test]
fn a_queue_of_another_type_is_named_with_the_way_out() {
    let url = Broker::shared().vhost();
    let queue = "queue.gateway.g.group";
    let told = |reason: &str| reason.contains(queue) && reason.contains("delete it");
    quorum(&mut open(&url), queue);
    let side = side(&url);
    let reason = side.fatal.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(told(&reason), "{reason}");
    assert!(told(&side.supervisor.state().get().unwrap_err()));
    side.stop();

    // Somebody does as told, and the gateway starts.
    Amqp::open(&url).delete_queue(queue);
    watching(&url).stop();
}

#[test]
fn a_queue_of_another_type_that_is_found_on_the_return_is_no_reason_to_give_up() {
    let url = Broker::shared().vhost();
    let queue = "queue.gateway.g.group";
    let side = side_with(Settings {
        // Time to replace the queue.
        retry_first: Duration::from_secs(4),
        ..settings(&url)
    });
    side.comes_up();
    let mut bob = side.join("bob");
    let amqp = Amqp::open(&url);
    amqp.delete_queue(queue);
    quorum(&mut open(&url), queue);
    wait_until("it is named", || {
        let told = |reason: String| reason.contains(queue) && reason.contains("delete it");
        side.supervisor.state().get().is_err_and(told)
    });
    amqp.delete_queue(queue);
    side.comes_up();
    bob.is_caught_up();
    is_reached(&side, &mut bob, &url);
    assert!(side.fatal.is_empty());
    side.stop();
}

/// It is shared, and what it holds is somebody's: an older version's is kept, whatever its type.
#[test]
fn a_dead_letter_queue_of_any_type_is_kept() {
    let broker = Broker::shared();
    let classic = broker.vhost();
    let without_type = [("x-max-length", Argument::Number(10_000))];
    let urls = [classic, quorum_by_default(&broker, "old-dead-letters")];
    for url in urls {
        let mut link = open(&url);
        let channel = link.channel().unwrap();
        channel
            .declare_queue(DEAD_LETTER_QUEUE, &without_type)
            .unwrap();
        let side = watching(&url);
        let mut bob = side.join("bob");
        let mut junk = to_bob(0..1);
        junk[0].body = b"junk".to_vec();
        publisher(&url).publish(&junk).unwrap();
        let amqp = Amqp::open(&url);
        wait_until("a dead letter", || amqp.ready(DEAD_LETTER_QUEUE) == 1);
        is_reached(&side, &mut bob, &url);
        side.stop();
    }
}

/// They have no `x-queue-type`.
#[test]
fn the_queues_of_an_older_version_are_made_afresh() {
    let url = Broker::shared().vhost();
    let mut link = open(&url);
    let channel = link.channel().unwrap();
    let day = Argument::Number(86_400_000);
    for queue in Queue::ALL {
        let name = format!("queue.gateway.g.{}", queue.name());
        channel.declare_queue(&name, &[("x-expires", day)]).unwrap();
    }
    let side = watching(&url);
    let mut bob = side.join("bob");
    is_reached(&side, &mut bob, &url);
    side.stop();
}
