//! The reference services' way to RabbitMQ: publishes on a connection of its own, since a broker
//! in alarm blocks whoever publishes, and believes in nothing but confirms.

use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use log::{info, warn};

use super::publisher::{Outcome, Publication, PublishError, Publisher};
use crate::broker::amqp::{Alarm, AmqpConnection, AmqpError, Channel, Confirms, Opener};
use crate::broker::topology;
use crate::threads::StopSignal;

const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Connects when there is something to publish, and again after an error.
pub struct AmqpPublisher {
    opener: Opener,
    timeout: Duration,
    line: Option<PublisherConnection>,
}

impl AmqpPublisher {
    /// `timeout`: how long the broker may owe confirms and send none, save in an alarm.
    pub fn new(opener: Opener, timeout: Duration) -> Self {
        Self {
            opener,
            timeout,
            line: None,
        }
    }

    fn open(&mut self) -> Result<PublisherConnection, AmqpError> {
        let mut link = self.opener.open(&StopSignal::never())?;
        let alarm = link.alarm()?;
        let channel = topology::declare_shared(&mut link)?;
        let confirms = channel.confirms()?;
        info!("Publisher connected: address={}", self.opener.address());
        Ok(PublisherConnection {
            alarm,
            alarmed: false,
            confirms,
            heard: Instant::now(),
            link: Some(link),
            channel,
        })
    }

    /// A line that erred is left: another one is opened when it is needed.
    fn on_line<T>(
        &mut self,
        act: impl FnOnce(&mut PublisherConnection, Duration) -> Result<T, AmqpError>,
    ) -> Result<T, PublishError> {
        let line = match self.line.take() {
            Some(line) => Ok(line),
            None => self.open(),
        };
        let outcome = line.and_then(|mut line| {
            let outcome = act(&mut line, self.timeout)?;
            self.line = Some(line);
            Ok(outcome)
        });
        outcome.map_err(|error| PublishError(error.to_string()))
    }
}

impl Publisher for AmqpPublisher {
    fn publish(&mut self, ticket: u64, publication: &Publication) -> Result<(), PublishError> {
        self.on_line(|line, _| line.publish(ticket, publication))
    }

    fn outcomes(
        &mut self,
        deadline: Instant,
        wake: &Receiver<()>,
    ) -> Result<Vec<(u64, Outcome)>, PublishError> {
        if self.line.is_none() {
            // Whichever it is that ends the wait.
            let _ = wake.recv_deadline(deadline);
            return Ok(Vec::new());
        }
        self.on_line(|line, timeout| line.outcomes(deadline, wake, timeout))
    }
}

/// An open connection.
struct PublisherConnection {
    alarm: Alarm,
    /// The alarm that is on has been told of.
    alarmed: bool,
    confirms: Confirms<u64>,
    /// When the broker last answered, or began to owe an answer.
    heard: Instant,
    /// `None` once it is closed.
    link: Option<AmqpConnection>,
    channel: Channel,
}

impl PublisherConnection {
    fn publish(&mut self, ticket: u64, publication: &Publication) -> Result<(), AmqpError> {
        if self.confirms.is_empty() {
            self.heard = Instant::now();
        }
        let Publication {
            exchange,
            routing_key,
            kind,
            body,
        } = publication;
        self.channel.publish(exchange, routing_key, kind, body)?;
        self.confirms.expect(ticket);
        Ok(())
    }

    fn outcomes(
        &mut self,
        deadline: Instant,
        wake: &Receiver<()>,
        timeout: Duration,
    ) -> Result<Vec<(u64, Outcome)>, AmqpError> {
        let until = match self.confirms.is_empty() {
            true => deadline,
            false => deadline.min(self.heard + timeout),
        };
        let settled = self.confirms.next(until, wake)?;
        let now = Instant::now();
        if !settled.is_empty() {
            self.heard = now;
            if std::mem::take(&mut self.alarmed) {
                info!("The broker takes publications again");
            }
        } else if !self.confirms.is_empty() && now >= self.heard + timeout {
            self.bear_silence(now)?;
        }
        Ok(settled)
    }

    /// A connection that an alarm blocks is kept, with all that is on it: a new one would be
    /// blocked as well, and everything would be published twice.
    fn bear_silence(&mut self, now: Instant) -> Result<(), AmqpError> {
        if !self.alarm.is_active() {
            return Err(AmqpError::Lost("not confirmed in time".into()));
        }
        if !std::mem::replace(&mut self.alarmed, true) {
            warn!("The broker is in alarm and takes no publications");
        }
        self.heard = now;
        Ok(())
    }
}

impl Drop for PublisherConnection {
    /// The link goes before the channel, whose drop would wait for the broker. One that owes
    /// confirms is cut.
    fn drop(&mut self) {
        if let Some(link) = self.link.take()
            && self.confirms.is_empty()
        {
            // It was in order; how it ends no longer matters.
            let _ = link.close(CLOSE_WITHIN);
        }
    }
}
