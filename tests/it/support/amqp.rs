//! The broker from the outside: publishes any body, and looks into queues.

use amiquip::{
    AmqpProperties, Channel, Confirm, Connection, ExchangeDeclareOptions, ExchangeType, Publish,
    QueueDeclareOptions,
};
use crossbeam::channel::Receiver;

use super::DEADLINE;

/// A connection and a channel of the test's own.
pub struct Amqp {
    channel: Channel,
    confirms: Receiver<Confirm>,
    /// Dropped after the channel; closes.
    _connection: Connection,
}

/// A message taken from a queue.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    pub exchange: String,
    pub routing_key: String,
    pub body: Vec<u8>,
}

impl Amqp {
    pub fn open(url: &str) -> Self {
        let mut connection = Connection::insecure_open(url).expect("the broker answers");
        let channel = connection.open_channel(None).expect("a channel");
        channel
            .enable_publisher_confirms()
            .expect("a channel that confirms");
        let confirms = channel.listen_for_publisher_confirms().expect("confirms");
        Self {
            channel,
            confirms,
            _connection: connection,
        }
    }

    /// Publishes, and returns once the broker has confirmed it. The exchange must exist.
    pub fn publish(&self, exchange: &str, key: &str, kind: &str, body: impl AsRef<[u8]>) {
        self.publish_ahead(exchange, key, kind, body);
        let confirm = self
            .confirms
            .recv_timeout(DEADLINE)
            .expect("the broker confirms");
        assert!(matches!(confirm, Confirm::Ack(_)), "{confirm:?}");
    }

    /// Publishes, and waits for nothing: the confirms come by [`Self::confirms`].
    pub fn publish_ahead(&self, exchange: &str, key: &str, kind: &str, body: impl AsRef<[u8]>) {
        let mut properties = AmqpProperties::default().with_delivery_mode(2);
        if !kind.is_empty() {
            properties = properties.with_type_(kind.into());
        }
        let publish = Publish::with_properties(body.as_ref(), key, properties);
        self.channel
            .basic_publish(exchange, publish)
            .expect("the broker reads");
    }

    /// The broker's answers to what is published, counted from 1 in the order of that.
    pub fn confirms(&self) -> Receiver<Confirm> {
        self.confirms.clone()
    }

    /// Takes the oldest message off a queue.
    pub fn take(&self, queue: &str) -> Option<Taken> {
        let got = self
            .channel
            .basic_get(queue, true)
            .expect("a queue to get from")?;
        Some(Taken {
            exchange: got.delivery.exchange,
            routing_key: got.delivery.routing_key,
            body: got.delivery.body,
        })
    }

    /// Messages that are ready in a queue.
    pub fn ready(&self, queue: &str) -> u32 {
        let queue = self
            .channel
            .queue_declare_passive(queue)
            .expect("a queue that exists");
        queue
            .declared_message_count()
            .expect("an answer with a count")
    }

    /// Whether a queue exists. When it does not, the broker closes this channel.
    pub fn exists(&self, queue: &str) -> bool {
        self.channel.queue_declare_passive(queue).is_ok()
    }

    /// Deletes a queue, whoever consumes from it.
    pub fn delete_queue(&self, queue: &str) {
        let options = amiquip::QueueDeleteOptions {
            if_unused: false,
            if_empty: false,
        };
        self.channel
            .queue_delete(queue, options)
            .expect("a queue to delete");
    }

    pub fn bind(&self, queue: &str, exchange: &str, key: &str) {
        let arguments = amiquip::FieldTable::new();
        let bound = self.channel.queue_bind(queue, exchange, key, arguments);
        bound.expect("a queue and an exchange that exist");
    }

    /// Declares a queue that is not what the gateway expects under that name.
    pub fn declare_queue(&self, queue: &str, options: QueueDeclareOptions) {
        self.channel
            .queue_declare(queue, options)
            .expect("a queue that can be declared");
    }

    /// Declares an exchange that is not what the gateway expects under that name.
    pub fn declare_exchange(&self, exchange: &str, kind: ExchangeType) {
        let options = ExchangeDeclareOptions::default();
        let declared = self.channel.exchange_declare(kind, exchange, options);
        declared.expect("an exchange that can be declared");
    }
}
