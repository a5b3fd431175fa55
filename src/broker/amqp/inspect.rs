//! What `ws-gateway check --connect` asks of the broker, and the gateway itself does not.

use amiquip::{AmqpValue, FieldTable, QueueDeclareOptions, QueueDeleteOptions};

use super::channel::Channel;
use super::error::{Result, during};

impl Channel {
    /// Declares a queue that is this connection's alone and goes with it.
    pub fn declare_temporary_queue(&self, name: &str, dead_letter_exchange: &str) -> Result<()> {
        let mut arguments = FieldTable::new();
        let exchange = AmqpValue::LongString(dead_letter_exchange.into());
        arguments.insert("x-dead-letter-exchange".into(), exchange);
        let options = QueueDeclareOptions {
            exclusive: true,
            auto_delete: true,
            arguments,
            ..Default::default()
        };
        let declared = self.0.queue_declare(name, options).map(drop);
        declared.map_err(during(format_args!("declaring queue {name}")))
    }

    /// `Lost` when there is no such queue, which closes the channel.
    pub fn expect_queue(&self, name: &str) -> Result<()> {
        let expected = self.0.queue_declare_passive(name).map(drop);
        expected.map_err(during(format_args!("looking for queue {name}")))
    }

    /// Deletes the queue, if there is one, whoever uses it.
    pub fn delete_queue(&self, name: &str) -> Result<()> {
        let deleted = self.0.queue_delete(name, QueueDeleteOptions::default());
        let deleted = deleted.map(drop);
        deleted.map_err(during(format_args!("deleting queue {name}")))
    }
}
