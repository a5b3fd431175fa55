//! RabbitMQ: the topology of a gateway, and a consumer task for each of its three queues.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties, Consumer, ExchangeKind, Result};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use ws_gateway::broker::topology::{DEAD_LETTER_EXCHANGE, DEAD_LETTER_QUEUE};
use ws_gateway::broker::{DIRECT_EXCHANGE, Queue, TOPIC_EXCHANGE};

use super::Failure;
use super::deliver::Deliver;
use super::registry::Registry;
use super::services::Services;

const PREFETCH: u16 = 512;
/// A quarter: the broker sends on while the acknowledgement is under way.
const ACK_AT: usize = 128;
/// How long a delivery may wait for its acknowledgement, which then goes for many.
const ACK_WITHIN: Duration = Duration::from_millis(50);
const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

pub struct Broker {
    connection: Connection,
    control: Channel,
    gateway_id: String,
}

impl Broker {
    /// Connects, and declares the gateway's queues afresh.
    pub async fn connect(url: &str, gateway_id: &str) -> Result<Self> {
        let separator = if url.contains('?') { '&' } else { '?' };
        let url = format!("{url}{separator}heartbeat=10");
        let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
        let broker = Self {
            control: connection.create_channel().await?,
            connection,
            gateway_id: gateway_id.into(),
        };
        broker.delete_queues(true).await?;
        broker.declare().await?;
        Ok(broker)
    }

    pub async fn channel(&self) -> Result<Channel> {
        self.connection.create_channel().await
    }

    pub fn queue(&self, queue: Queue) -> ShortString {
        format!("queue.gateway.{}.{}", self.gateway_id, queue.name()).into()
    }

    pub async fn delete_queues(&self, if_unused: bool) -> Result<()> {
        for queue in Queue::ALL {
            let options = QueueDeleteOptions {
                if_unused,
                ..QueueDeleteOptions::default()
            };
            self.control
                .queue_delete(self.queue(queue), options)
                .await?;
        }
        Ok(())
    }

    async fn declare(&self) -> Result<()> {
        for (exchange, kind) in [
            (DIRECT_EXCHANGE, ExchangeKind::Direct),
            (TOPIC_EXCHANGE, ExchangeKind::Topic),
            (DEAD_LETTER_EXCHANGE, ExchangeKind::Fanout),
        ] {
            let options = ExchangeDeclareOptions {
                durable: true,
                ..ExchangeDeclareOptions::default()
            };
            self.control
                .exchange_declare(exchange.into(), kind, options, FieldTable::default())
                .await?;
        }
        let bound = [("x-max-length", AMQPValue::LongLongInt(10_000))];
        self.declare_queue(DEAD_LETTER_QUEUE.into(), bound).await?;
        self.bind(DEAD_LETTER_QUEUE.into(), DEAD_LETTER_EXCHANGE, "")
            .await?;
        let ttl = |ms| ("x-message-ttl", AMQPValue::LongLongInt(ms));
        let expires = || ("x-expires", AMQPValue::LongLongInt(DAY_MS));
        let dead_letters = || {
            let exchange = AMQPValue::LongString(DEAD_LETTER_EXCHANGE.into());
            ("x-dead-letter-exchange", exchange)
        };
        for queue in [Queue::Single, Queue::Group] {
            let arguments = [ttl(DAY_MS), expires(), dead_letters()];
            self.declare_queue(self.queue(queue), arguments).await?;
        }
        let presence = self.queue(Queue::Presence);
        self.declare_queue(presence, [ttl(60_000), expires()])
            .await?;
        self.bind(self.queue(Queue::Group), TOPIC_EXCHANGE, "group.#")
            .await?;
        self.bind(self.queue(Queue::Presence), TOPIC_EXCHANGE, "presence.#")
            .await
    }

    async fn declare_queue(
        &self,
        name: ShortString,
        arguments: impl IntoIterator<Item = (&str, AMQPValue)>,
    ) -> Result<()> {
        let mut table = FieldTable::default();
        for (key, value) in arguments {
            table.insert(key.into(), value);
        }
        let options = QueueDeclareOptions::durable();
        self.control
            .queue_declare(name, options, table)
            .await
            .map(drop)
    }

    async fn bind(&self, queue: ShortString, exchange: &str, key: &str) -> Result<()> {
        let (exchange, options) = (exchange.into(), QueueBindOptions::default());
        self.control
            .queue_bind(queue, exchange, key.into(), options, FieldTable::default())
            .await
    }

    /// Starts a consumer task for each queue. One that ends tells `failed` why.
    pub async fn consume(
        &self,
        registry: &Arc<Registry>,
        services: &Services,
        failed: &mpsc::Sender<Failure>,
    ) -> Result<()> {
        for queue in Queue::ALL {
            let channel = self.channel().await?;
            channel
                .basic_qos(PREFETCH, BasicQosOptions::default())
                .await?;
            let options = BasicConsumeOptions {
                exclusive: true,
                ..BasicConsumeOptions::default()
            };
            let (name, tag) = (self.queue(queue), queue.name().into());
            let consumer = channel
                .basic_consume(name, tag, options, FieldTable::default())
                .await?;
            let deliver = Deliver::new(queue, Arc::clone(registry), services.clone());
            let failed = failed.clone();
            tokio::spawn(async move {
                if let Err(error) = run(&channel, consumer, deliver).await {
                    let _ = failed.send(error).await;
                }
            });
        }
        Ok(())
    }
}

/// Delivers and acknowledges, until the channel is lost.
async fn run(
    channel: &Channel,
    mut consumer: Consumer,
    mut deliver: Deliver,
) -> std::result::Result<(), Failure> {
    let mut unacked = 0;
    let mut last: Option<(u64, Instant)> = None;
    loop {
        let next = match last {
            Some((_, due)) => timeout_at(due, consumer.next()).await.ok(),
            None => Some(consumer.next().await),
        };
        if let Some(delivery) = next {
            let delivery = delivery.ok_or("the consumer was cancelled")??;
            let tag = delivery.delivery_tag;
            if deliver.take(&delivery).await.is_ok() {
                let due = last.map_or_else(|| Instant::now() + ACK_WITHIN, |(_, due)| due);
                last = Some((tag, due));
                unacked += 1;
            } else {
                reject(channel, last.take(), &delivery).await?;
                unacked = 0;
            }
        }
        if let Some((tag, due)) = last
            && (unacked >= ACK_AT || Instant::now() >= due)
        {
            channel.basic_ack(tag, MULTIPLE).await?;
            (last, unacked) = (None, 0);
        }
    }
}

const MULTIPLE: BasicAckOptions = BasicAckOptions { multiple: true };

/// First what came before it is acknowledged, since that would come to cover this.
async fn reject(
    channel: &Channel,
    before: Option<(u64, Instant)>,
    garbage: &Delivery,
) -> Result<()> {
    if let Some((tag, _)) = before {
        channel.basic_ack(tag, MULTIPLE).await?;
    }
    let options = BasicRejectOptions { requeue: false };
    channel.basic_reject(garbage.delivery_tag, options).await
}
