//! The reference services' way to RabbitMQ: publishes on a connection of its own, since a broker
//! in alarm blocks whoever publishes, and believes in nothing but confirms.

use std::time::{Duration, Instant};

use log::info;

use super::amqp::{Alarm, AmqpError, Channel, Confirms, Link, Opener};
use super::endpoint::Endpoint;
use super::quit::Quit;
use super::{Publication, PublishError, Publisher, topology};

const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Connects when there is something to publish, and again after an error.
pub struct AmqpPublisher {
    address: String,
    opener: Opener,
    timeout: Duration,
    line: Option<Line>,
}

impl AmqpPublisher {
    /// `timeout`: how long a batch may take to be confirmed; opening a connection comes on top.
    pub fn new(endpoint: Endpoint, heartbeat: Duration, timeout: Duration) -> Self {
        Self {
            address: endpoint.address(),
            opener: Opener::new(endpoint, "ws-gateway services".into(), heartbeat),
            timeout,
            line: None,
        }
    }

    fn open(&mut self) -> Result<Line, AmqpError> {
        let mut link = self.opener.open(&Quit::never())?;
        let alarm = link.alarm()?;
        let channel = topology::declare_shared(&mut link)?;
        let confirms = channel.confirms()?;
        info!("Publisher connected: address={}", self.address);
        Ok(Line {
            alarm,
            confirms,
            unconfirmed: 0,
            link: Some(link),
            channel,
        })
    }
}

impl Publisher for AmqpPublisher {
    fn publish(&mut self, batch: &[Publication]) -> Result<(), PublishError> {
        let failed = |error: AmqpError| PublishError(error.to_string());
        let mut line = match self.line.take() {
            Some(line) => line,
            None => self.open().map_err(failed)?,
        };
        let outcome = line.publish(batch, Instant::now() + self.timeout);
        if outcome.is_ok() || line.alarm.is_active() {
            // A connection that an alarm blocks is kept: a new one would be blocked as well, and
            // the broker would have each one's messages to take when the alarm is over.
            self.line = Some(line);
        }
        outcome.map_err(failed)
    }
}

/// An open connection, and how many publications on it wait to be confirmed.
struct Line {
    alarm: Alarm,
    confirms: Confirms,
    unconfirmed: u64,
    /// `None` once it is closed.
    link: Option<Link>,
    channel: Channel,
}

impl Line {
    fn publish(&mut self, batch: &[Publication], deadline: Instant) -> Result<(), AmqpError> {
        // What an alarm held up before. It is published anew by the caller's wish, and so twice.
        self.settle(deadline)?;
        for publication in batch {
            self.channel.publish(publication)?;
            self.unconfirmed += 1;
        }
        self.settle(deadline)
    }

    fn settle(&mut self, deadline: Instant) -> Result<(), AmqpError> {
        while self.unconfirmed > 0 {
            match self.confirms.next(deadline)? {
                Some(confirmed) => self.unconfirmed = self.unconfirmed.saturating_sub(confirmed),
                None if self.alarm.is_active() => {
                    return Err(AmqpError::Lost(
                        "the broker is in alarm and takes nothing".into(),
                    ));
                }
                None => return Err(AmqpError::Lost("not confirmed in time".into())),
            }
        }
        Ok(())
    }
}

impl Drop for Line {
    /// The link goes before the channel, whose drop would wait for the broker. One that owes
    /// confirms is cut.
    fn drop(&mut self) {
        if let Some(link) = self.link.take()
            && self.unconfirmed == 0
        {
            // It was in order; how it ends no longer matters.
            let _ = link.close(CLOSE_WITHIN);
        }
    }
}
