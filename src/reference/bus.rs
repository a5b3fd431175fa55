//! The in-process bus of embedded mode: three bounded queues instead of RabbitMQ's, with the same
//! bindings, the same three consumer threads and the same [`DeliveryContext`].
//!
//! What it holds ends with the process. Nothing is lost by that: it is unread in the Message
//! Service.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use log::warn;

use super::publisher::{Outcome, Publication, PublishError, Publisher};
use crate::broker::deliver::{Deliverer, DeliveryContext};
use crate::broker::{DIRECT_EXCHANGE, Delivery, Queue, TOPIC_EXCHANGE};
use crate::threads::{Fatal, StopGuard, StopSignal, Worker};

/// Publications that wait for a consumer, per queue.
const CAPACITY: usize = 4_096;
/// As many as the AMQP consumers enqueue before they write.
const BATCH: usize = 250;

/// The queues and their consumer threads.
pub struct LocalBus {
    queues: [Sender<Publication>; 3],
    ends: [Receiver<Publication>; 3],
    /// Given, it takes no more publications.
    closed: StopSignal,
    open: StopGuard,
    consumers: Vec<Worker>,
}

impl LocalBus {
    /// Queues that nobody consumes from yet: the services that publish come first.
    pub fn new() -> Self {
        let (open, closed) = StopSignal::pair();
        let [
            (single, from_single),
            (group, from_group),
            (presence, from_presence),
        ] = Queue::ALL.map(|_| bounded(CAPACITY));
        Self {
            queues: [single, group, presence],
            ends: [from_single, from_group, from_presence],
            closed,
            open,
            consumers: Vec::new(),
        }
    }

    /// Starts the consumer threads. `fatal` is told if one of them cannot go on.
    pub fn start(mut self, deliver: &Arc<DeliveryContext>, fatal: &Fatal) -> io::Result<Self> {
        for (queue, publications) in Queue::ALL.into_iter().zip(&self.ends) {
            let (publications, closed) = (publications.clone(), self.closed.clone());
            let deliver = Arc::clone(deliver);
            let consume = move |_: &StopSignal| {
                let consumer = Consumer {
                    queue,
                    publications: &publications,
                    deliverer: deliver.deliverer(queue),
                };
                consumer.run(&closed);
            };
            let name = format!("consume-{}", queue.name());
            self.consumers.push(Worker::start(&name, fatal, consume)?);
        }
        Ok(self)
    }

    pub fn publisher(&self) -> LocalPublisher {
        LocalPublisher {
            queues: self.queues.clone(),
            closed: self.closed.clone(),
            outcomes: Vec::new(),
        }
    }

    /// Takes no more publications, delivers those that wait, and joins the threads.
    pub fn stop(self, deadline: Instant) {
        drop(self.open);
        for consumer in self.consumers {
            consumer.stop(deadline);
        }
    }
}

/// Publishes on the bus. Published means: in the queue.
pub struct LocalPublisher {
    queues: [Sender<Publication>; 3],
    closed: StopSignal,
    outcomes: Vec<(u64, Outcome)>,
}

impl Publisher for LocalPublisher {
    fn publish(&mut self, ticket: u64, publication: &Publication) -> Result<(), PublishError> {
        if self.closed.is_given() {
            return Err(PublishError("the in-process bus has stopped".into()));
        }
        let outcome = match bound_queue(&publication.exchange, &publication.routing_key) {
            // What no queue is bound for is dropped, as RabbitMQ does.
            None => Outcome::Published,
            // A consumer may wait for the User Service: the other queues do not wait for it.
            Some(queue) => match self.queues[queue as usize].try_send(publication.clone()) {
                Ok(()) => Outcome::Published,
                Err(_) => Outcome::Refused,
            },
        };
        self.outcomes.push((ticket, outcome));
        Ok(())
    }

    fn outcomes(
        &mut self,
        deadline: Instant,
        wake: &Receiver<()>,
    ) -> Result<Vec<(u64, Outcome)>, PublishError> {
        if self.outcomes.is_empty() {
            // Whichever it is that ends the wait.
            let _ = wake.recv_deadline(deadline);
        }
        Ok(std::mem::take(&mut self.outcomes))
    }
}

/// The bindings: every user's, all groups, all presence.
fn bound_queue(exchange: &str, key: &str) -> Option<Queue> {
    let (word, _) = key.split_once('.')?;
    match (exchange, word) {
        (DIRECT_EXCHANGE, "user") => Some(Queue::Single),
        (TOPIC_EXCHANGE, "group") => Some(Queue::Group),
        (TOPIC_EXCHANGE, "presence") => Some(Queue::Presence),
        _ => None,
    }
}

struct Consumer<'a> {
    queue: Queue,
    publications: &'a Receiver<Publication>,
    deliverer: Deliverer,
}

impl Consumer<'_> {
    fn run(mut self, closed: &StopSignal) {
        while !closed.is_given() {
            self.deliverer
                .wait(self.publications, closed, Duration::MAX);
            self.batch();
        }
        while self.batch() {}
    }

    /// Enqueues what waits, and then writes once. Answers whether there may be more.
    fn batch(&mut self) -> bool {
        let mut count = 0;
        for publication in self.publications.try_iter().take(BATCH) {
            self.deliver(&publication);
            count += 1;
        }
        self.deliverer.flush();
        count == BATCH
    }

    fn deliver(&mut self, publication: &Publication) {
        let delivery = Delivery {
            routing_key: &publication.routing_key,
            kind: &publication.kind,
            body: &publication.body,
        };
        if let Err(reason) = self.deliverer.enqueue(&delivery) {
            warn!("Dead letter: queue={}, reason={reason}", self.queue.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::broker::KIND_GROUP_MEMBERS_CHANGED;
    use crate::client::fixture::Client;
    use crate::registry::Registry;
    use crate::services::ErrorCode;
    use crate::services::fake::FakeServices;
    use crate::services::proto::Message;

    fn publication(id: &str, exchange: &str, key: &str) -> Publication {
        let group_id = key.strip_prefix("group.").unwrap_or_default().into();
        let message = Message {
            id: id.into(),
            from_user_id: "alice".into(),
            to_user_id: "bob".into(),
            group_id,
            ..Message::default()
        };
        Publication {
            exchange: exchange.into(),
            routing_key: key.into(),
            kind: String::new(),
            body: message.encode_to_vec(),
        }
    }

    fn bus() -> (LocalBus, Arc<Registry>, Arc<FakeServices>) {
        let (users, registry) = (
            Arc::new(FakeServices::default()),
            Arc::new(Registry::default()),
        );
        users.set("team", &["bob"]);
        let deliver = DeliveryContext {
            registry: Arc::clone(&registry),
            services: Arc::clone(&users) as _,
            metrics: Arc::new(crate::metrics::Metrics::new(&[])),
            groups: crate::broker::Groups::new(Duration::from_secs(60)).into(),
            fan_out: crate::threads::fan_out::FanOut::start(),
        };
        (
            LocalBus::new()
                .start(&Arc::new(deliver), &crossbeam::channel::unbounded().0)
                .unwrap(),
            registry,
            users,
        )
    }

    fn publish(publisher: &mut LocalPublisher, batch: &[Publication]) -> Vec<Outcome> {
        for (ticket, publication) in (0..).zip(batch) {
            publisher.publish(ticket, publication).unwrap();
        }
        let never = crossbeam::channel::never();
        let outcomes = publisher.outcomes(Instant::now(), &never).unwrap();
        let (tickets, outcomes): (Vec<u64>, Vec<_>) = outcomes.into_iter().unzip();
        assert!(tickets.into_iter().eq(0..batch.len() as u64));
        outcomes
    }

    #[test]
    fn a_full_queue_refuses_and_the_others_do_not_wait() {
        let bus = LocalBus::new();
        let mut publisher = bus.publisher();
        let group: Vec<_> = (0..CAPACITY + 2)
            .map(|number| publication(&format!("m{number}"), TOPIC_EXCHANGE, "group.team"))
            .collect();
        let outcomes = publish(&mut publisher, &group);
        assert_eq!(outcomes[..CAPACITY], [Outcome::Published; CAPACITY]);
        assert_eq!(outcomes[CAPACITY..], [Outcome::Refused; 2]);
        let to_bob = publication("m", DIRECT_EXCHANGE, "user.bob");
        assert_eq!(publish(&mut publisher, &[to_bob]), [Outcome::Published]);
    }

    #[test]
    fn publications_arrive_in_order_and_what_nobody_is_bound_for_is_dropped() {
        let (bus, registry, _users) = bus();
        let mut bob = Client::join(&registry, "bob");
        let mut batch: Vec<_> = (0..300)
            .map(|number| publication(&format!("m{number}"), DIRECT_EXCHANGE, "user.bob"))
            .collect();
        batch.insert(0, publication("lost", DIRECT_EXCHANGE, "elsewhere.bob"));
        batch.insert(0, publication("lost", TOPIC_EXCHANGE, "user.bob"));
        let mut publisher = bus.publisher();
        assert_eq!(publish(&mut publisher, &batch), [Outcome::Published; 302]);
        for number in 0..300 {
            assert!(bob.next().contains(&format!(r#""id":"m{number}""#)));
        }
        bus.stop(Instant::now() + Duration::from_secs(20));
        assert!(publisher.publish(0, &batch[0]).is_err());
    }

    #[test]
    fn dead_letters_are_passed_by_and_a_missing_user_service_waited_for() {
        let (bus, registry, users) = bus();
        let mut bob = Client::join(&registry, "bob");
        users.fail(ErrorCode::ServiceUnavailable);
        let junk = Publication {
            kind: KIND_GROUP_MEMBERS_CHANGED.into(),
            ..publication("junk", TOPIC_EXCHANGE, "group.other")
        };
        let message = publication("m1", TOPIC_EXCHANGE, "group.team");
        let to_bob = publication("m2", DIRECT_EXCHANGE, "user.bob");
        publish(&mut bus.publisher(), &[junk, message, to_bob]);
        assert!(bob.next().contains("m2"), "the other queues run on");
        users.fail(None);
        assert!(bob.next().contains("m1"));
        bus.stop(Instant::now() + Duration::from_secs(20));
    }

    #[test]
    fn a_group_whose_members_are_not_to_be_had_holds_up_no_other() {
        let (bus, registry, users) = bus();
        let mut bob = Client::join(&registry, "bob");
        users.set("slow", &["bob"]);
        users.slow_group("slow");
        users.set("bad", &["bob"]);
        users.fail_group("bad", ErrorCode::Internal);
        for (id, group) in [("m1", "slow"), ("m2", "bad"), ("m3", "team")] {
            let message = publication(id, TOPIC_EXCHANGE, &format!("group.{group}"));
            publish(&mut bus.publisher(), &[message]);
        }
        assert!(bob.next().contains("m3"));
        users.answer();
        assert!(bob.next().contains("m1"), "the answer wakes the consumer");
        users.fail_group("bad", None);
        assert!(bob.next().contains("m2"), "it is asked for again");
        bus.stop(Instant::now() + Duration::from_secs(20));
    }

    #[test]
    fn stopping_delivers_what_is_queued() {
        let (bus, registry, _users) = bus();
        let mut bob = Client::join(&registry, "bob");
        let batch: Vec<_> = (0..50)
            .map(|number| publication(&format!("m{number}"), DIRECT_EXCHANGE, "user.bob"))
            .collect();
        publish(&mut bus.publisher(), &batch);
        bus.stop(Instant::now() + Duration::from_secs(20));
        for _ in 0..50 {
            assert!(!bob.next().is_empty());
        }
    }
}
