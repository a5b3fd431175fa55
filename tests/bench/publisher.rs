//! Publishes chat messages to RabbitMQ, as the Message Service would: persistent, confirmed.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{
    AmqpProperties, Auth, Channel, Confirm, ConfirmSmoother, Connection, ConnectionOptions,
    ConnectionTuning, Publish, QueueDeleteOptions,
};
use crossbeam::channel::Receiver;
use prost::Message as _;
use ws_gateway::broker::{DIRECT_EXCHANGE, KIND_MESSAGE, TOPIC_EXCHANGE};
use ws_gateway::services::proto::Message;

use crate::clock;
use crate::session::GROUP;
use crate::support::DEADLINE;

/// The sender of all messages; not connected, so that all copies are pushes to others.
const SENDER: &str = "publisher";
/// Of all messages, in Unix seconds.
const TIMESTAMP: i64 = 1_700_000_000;

/// What a gateway pushes for a message to [`GROUP`].
pub fn message(number: u64, content: &str) -> String {
    format!(
        r#"{{"type":"group_message","id":"m{number:09}","group_id":"{GROUP}","from_user_id":"{SENDER}","content":"{content}","message_type":"text","timestamp":{TIMESTAMP}}}"#
    )
}

/// Whom a message is for.
#[derive(Clone, Copy)]
pub enum To<'a> {
    Group(&'a str),
    /// The user with this number.
    User(usize),
}

pub struct Publisher {
    channel: Channel,
    confirms: Receiver<Confirm>,
    in_order: ConfirmSmoother,
    unconfirmed: usize,
    published: u64,
    /// Dropped after the channel; closes.
    _connection: Connection,
}

impl Publisher {
    /// `url`: of a virtual host, as the tests' broker gives it.
    pub fn open(url: &str) -> Self {
        let (_, rest) = url.split_once('@').expect("a login in the URL");
        let (addr, vhost) = rest.split_once('/').expect("a virtual host in the URL");
        let stream = TcpStream::connect(addr).expect("the broker answers");
        // Without it a message would wait for the acknowledgement of the one before.
        stream.set_nodelay(true).expect("a socket");
        let stream = mio::net::TcpStream::from_stream(stream).expect("a socket");
        let options = ConnectionOptions::<Auth>::default().virtual_host(vhost);
        let tuning = ConnectionTuning::default().buffered_writes_high_water(usize::MAX);
        let mut connection =
            Connection::insecure_open_stream(stream, options, tuning).expect("the broker answers");
        let channel = connection.open_channel(None).expect("a channel");
        let confirms = channel.listen_for_publisher_confirms().expect("confirms");
        channel.enable_publisher_confirms().expect("confirms");
        Self {
            channel,
            confirms,
            in_order: ConfirmSmoother::new(),
            unconfirmed: 0,
            published: 0,
            _connection: connection,
        }
    }

    /// Publishes without waiting; the content says when.
    pub fn publish(&mut self, to: To<'_>, size: usize) {
        self.published += 1;
        let mut message = Message {
            id: format!("m{:09}", self.published),
            from_user_id: SENDER.into(),
            content: clock::content(clock::now(), size),
            message_type: "text".into(),
            timestamp: TIMESTAMP,
            ..Message::default()
        };
        let (exchange, key) = match to {
            To::Group(group) => {
                message.group_id = group.into();
                (TOPIC_EXCHANGE, format!("group.{group}"))
            }
            To::User(number) => {
                message.to_user_id = format!("u{number}");
                (DIRECT_EXCHANGE, format!("user.u{number}"))
            }
        };
        let properties = AmqpProperties::default()
            .with_delivery_mode(2)
            .with_type_(KIND_MESSAGE.into());
        let body = message.encode_to_vec();
        let publish = Publish::with_properties(&body, key, properties);
        self.channel
            .basic_publish(exchange, publish)
            .expect("the broker reads");
        self.unconfirmed += 1;
    }

    /// Waits until the broker has confirmed everything.
    pub fn settle(&mut self) {
        while self.unconfirmed > 0 {
            let confirm = self
                .confirms
                .recv_timeout(DEADLINE)
                .expect("the broker confirms");
            for confirm in self.in_order.process(confirm) {
                assert!(matches!(confirm, Confirm::Ack(_)), "{confirm:?}");
                self.unconfirmed -= 1;
            }
        }
    }

    /// Publishes a message for each of `to`, `rate` a second, each at its own moment whatever
    /// became of the one before.
    pub fn paced<'a>(&mut self, to: impl Iterator<Item = To<'a>>, rate: f64, size: usize) {
        let start = Instant::now();
        for (number, to) in to.enumerate() {
            let due = start + Duration::from_secs_f64(number as f64 / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            self.publish(to, size);
        }
        self.settle();
    }

    /// Deletes the queues of a gateway or peer that was killed.
    pub fn delete_queues(&self, id: &str) {
        for name in ["single", "group", "presence"] {
            let options = QueueDeleteOptions {
                if_unused: false,
                if_empty: false,
            };
            self.channel
                .queue_delete(format!("queue.gateway.{id}.{name}"), options)
                .expect("the broker deletes");
        }
    }
}
