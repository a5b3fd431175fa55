//! The in-process bus of embedded mode: three bounded queues instead of RabbitMQ's, with the same
//! bindings, the same three consumer threads and the same [`Deliver`].
//!
//! What it holds ends with the process. Nothing is lost by that: it is unread in the Message
//! Service.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, select};
use log::{error, info, warn};

use super::backoff::Backoff;
use super::deliver::{Deliver, Hand, Taken};
use super::quit::{Quit, Quitter};
use super::{
    DIRECT_EXCHANGE, Delivery, Publication, PublishError, Publisher, Queue, TOPIC_EXCHANGE,
};

/// Publications that wait for a consumer, per queue.
const CAPACITY: usize = 4_096;
/// As many as the AMQP consumers enqueue before they write.
const BATCH: usize = 250;
/// How long publishing waits for room in a queue.
const PUBLISH_WITHIN: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// The queues and their consumer threads.
pub struct LocalBus {
    queues: [Sender<Publication>; 3],
    ends: [Receiver<Publication>; 3],
    quit: Quit,
    quitter: Quitter,
    threads: Vec<JoinHandle<()>>,
}

impl LocalBus {
    /// Queues that nobody consumes from yet: the services that publish come first.
    pub fn new() -> Self {
        let (quitter, quit) = Quit::pair();
        let [
            (single, from_single),
            (group, from_group),
            (presence, from_presence),
        ] = Queue::ALL.map(|_| bounded(CAPACITY));
        Self {
            queues: [single, group, presence],
            ends: [from_single, from_group, from_presence],
            quit,
            quitter,
            threads: Vec::new(),
        }
    }

    /// Starts the consumer threads.
    pub fn start(mut self, deliver: &Arc<Deliver>) -> io::Result<Self> {
        for (queue, publications) in Queue::ALL.into_iter().zip(&self.ends) {
            let publications = publications.clone();
            let consumer = Consumer {
                queue,
                publications,
                hand: deliver.hand(queue),
                quit: self.quit.clone(),
            };
            let name = format!("consume-{}", queue.name());
            self.threads.push(
                thread::Builder::new()
                    .name(name)
                    .spawn(move || consumer.run())?,
            );
        }
        Ok(self)
    }

    pub fn publisher(&self) -> LocalPublisher {
        LocalPublisher {
            queues: self.queues.clone(),
            quit: self.quit.clone(),
        }
    }

    /// Takes no more publications, delivers those that wait, and joins the threads.
    pub fn stop(self) {
        drop(self.quitter);
        for thread in self.threads {
            if thread.join().is_err() {
                error!("a consumer of the in-process bus panicked");
            }
        }
    }
}

/// Publishes on the bus. Confirmed means: in the queue.
pub struct LocalPublisher {
    queues: [Sender<Publication>; 3],
    quit: Quit,
}

impl Publisher for LocalPublisher {
    fn publish(&mut self, batch: &[Publication]) -> Result<(), PublishError> {
        for publication in batch {
            if self.quit.is_given() {
                return Err(PublishError("the in-process bus has stopped".into()));
            }
            // What no queue is bound for is dropped, as RabbitMQ does.
            let Some(queue) = bound_queue(&publication.exchange, &publication.routing_key) else {
                continue;
            };
            self.queues[queue as usize]
                .send_timeout(publication.clone(), PUBLISH_WITHIN)
                .map_err(|_| PublishError(format!("the {} queue is full", queue.name())))?;
        }
        Ok(())
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

struct Consumer {
    queue: Queue,
    publications: Receiver<Publication>,
    hand: Hand,
    quit: Quit,
}

impl Consumer {
    fn run(mut self) {
        loop {
            select! {
                recv(self.publications) -> first => match first {
                    Ok(first) => self.batch(first),
                    Err(_) => return,
                },
                recv(self.quit.signal()) -> _ => break,
            }
        }
        while let Ok(first) = self.publications.try_recv() {
            self.batch(first);
        }
    }

    /// Enqueues this publication and what waits behind it, and then writes once.
    fn batch(&mut self, first: Publication) {
        self.deliver(&first);
        for next in self.publications.clone().try_iter().take(BATCH - 1) {
            self.deliver(&next);
        }
        self.hand.flush();
    }

    fn deliver(&mut self, publication: &Publication) {
        let delivery = Delivery {
            routing_key: &publication.routing_key,
            kind: &publication.kind,
            body: &publication.body,
        };
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        loop {
            match self.hand.take(&delivery) {
                Taken::Done => return,
                Taken::DeadLetter(reason) => {
                    return warn!("dead letter queue={} reason={reason:?}", self.queue.name());
                }
                Taken::Later(error) => {
                    info!("waiting for the User Service error={error}");
                    self.hand.flush();
                    if self.quit.within(backoff.next()) {
                        return;
                    }
                }
            }
        }
    }
}
