//! Whether a gateway may do at the broker what it will do there, shown by doing it with a queue that
//! goes with the connection.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use mio::{Evented, Poll, PollOpt, Ready, Token};
use parking_lot::Mutex;

use super::Report;
use crate::broker::amqp::{
    AmqpConnection, AmqpError, Argument, ExchangeKind, Opener, Result, Stream, Wrap,
};
use crate::broker::topology::{DEAD_LETTER_EXCHANGE, DEAD_LETTER_QUEUE, declare_shared};
use crate::broker::{DIRECT_EXCHANGE, Endpoint, TOPIC_EXCHANGE};
use crate::config::Config;
use crate::threads::StopSignal;
#[cfg(feature = "tls")]
use crate::tls;

/// How long the broker may take to say goodbye.
const CLOSE: Duration = Duration::from_secs(3);
/// A queue that outlives its connection goes after this at the latest, should this process be killed.
const EXPIRES: (&str, Argument) = ("x-expires", Argument::Number(60_000));
/// Nobody publishes with this key.
const NO_KEY: &str = "check";
/// What RabbitMQ's virtual hosts may have for a default.
const QUEUE_TYPES: [&str; 3] = ["classic", "quorum", "stream"];

pub fn check(config: &Config, report: &mut Report<impl Write>) {
    let url = &config.broker.url;
    let endpoint = match Endpoint::parse(url) {
        Ok(endpoint) => endpoint,
        Err(error) => return report.failed("broker", format_args!("mend broker.url: {error}")),
    };
    let (address, user) = (endpoint.address(), endpoint.user.clone());
    let vhost = endpoint.vhost.clone();
    let gateway_id = &config.gateway.id;
    let name = format!("check of gateway {gateway_id}");
    #[cfg(feature = "tls")]
    let wrap = match tls::to_broker(&endpoint, &config.broker.ca) {
        Ok(wrap) => wrap,
        Err(error) => return report.failed("broker", error),
    };
    #[cfg(not(feature = "tls"))]
    let wrap = None;
    let heard = Heard::default();
    let wrap = overhear(wrap, &heard);
    let mut opener = Opener::new(endpoint, name, config.broker.heartbeat, Some(wrap));
    let mut connection = match opener.open(&StopSignal::never()) {
        Ok(connection) => connection,
        Err(error) => {
            let (why, cure) = match error {
                AmqpError::NotListening(why) => {
                    (why, "start RabbitMQ there, or mend broker.url".into())
                }
                AmqpError::Refused(_) | AmqpError::InUse(_) => {
                    let cure = format!(
                        "mend user, password and virtual host in broker.url, or add them \
                         (rabbitmqctl add_user, add_vhost, set_permissions -p {vhost} {user})"
                    );
                    (error.to_string(), cure)
                }
                AmqpError::Lost(why) => {
                    let cure = "look at the address in broker.url, what is in between, and the \
                                broker's log";
                    (why, cure.into())
                }
            };
            return report.failed(format_args!("broker at {address}: {why}"), cure);
        }
    };
    let version = version(&heard.lock()).unwrap_or_else(|| "of unknown version".into());
    report.ok(format_args!(
        "broker at {address}: RabbitMQ {version}, logged in as {user} to virtual host {vhost}"
    ));
    let trial = Trial {
        queue: format!("queue.gateway.{gateway_id}.check-{}", std::process::id()),
        prefetch: config.broker.prefetch,
        permission: format!("rabbitmqctl set_permissions -p {vhost} {user} '.*' '.*' '.*'"),
    };
    trial.default_queue_type(&mut connection, report);
    trial.permissions(&mut connection, report);
    // What was found is told already.
    let _ = connection.close(CLOSE);
}

struct Trial {
    /// Named as the gateway's own are: what this one may be, those may be.
    queue: String,
    prefetch: u16,
    /// What grants all that is needed.
    permission: String,
}

impl Trial {
    /// The gateway's queues are classic ones whatever the default is; who makes others by hand may
    /// want to know.
    fn default_queue_type(&self, connection: &mut AmqpConnection, report: &mut Report<impl Write>) {
        match self.find_default_type(connection) {
            Ok(name) => report.ok(format_args!(
                "broker: the default queue type is {name}; the gateway's own queues are classic"
            )),
            Err(reason) => report.lacking(
                format_args!("broker: the default queue type is not known: {reason}"),
                &self.permission,
            ),
        }
    }

    /// AMQP shows no queue's type, but a queue can be declared again only as it is. Exclusive ones are
    /// always classic, so this one is not.
    fn find_default_type(&self, connection: &mut AmqpConnection) -> Result<&'static str> {
        let queue = format!("{}-type", self.queue);
        connection.channel()?.declare_queue(&queue, &[EXPIRES])?;
        let mut found = Ok("unknown to this version");
        for name in QUEUE_TYPES {
            let typed = [EXPIRES, ("x-queue-type", Argument::Text(name))];
            match connection.channel()?.declare_queue(&queue, &typed) {
                Err(AmqpError::Refused(_)) => {}
                declared => {
                    found = declared.map(|()| name);
                    break;
                }
            }
        }
        connection.channel()?.delete_queue(&queue)?;
        found
    }

    fn permissions(&self, connection: &mut AmqpConnection, report: &mut Report<impl Write>) {
        let (queue, prefetch) = (&self.queue, self.prefetch);
        let declare = |connection: &mut AmqpConnection| {
            let channel = connection.channel()?;
            channel.declare_temporary_queue(queue, DEAD_LETTER_EXCHANGE)
        };
        let found = declare(connection);
        // Without it, what follows would fail for a reason of no interest.
        if !self.tell("a queue may be declared", found, report) {
            return;
        }
        let exchanges = [
            (DIRECT_EXCHANGE, ExchangeKind::Direct),
            (TOPIC_EXCHANGE, ExchangeKind::Topic),
            (DEAD_LETTER_EXCHANGE, ExchangeKind::Fanout),
        ];
        let mut all_there = true;
        for (exchange, kind) in exchanges {
            let found = self.bind(connection, exchange, kind);
            all_there &= matches!(found, Ok(true));
            match found {
                Ok(false) => report.ok(format_args!(
                    "broker: exchange {exchange} is not there yet, and the gateway will declare it"
                )),
                found => {
                    let what = format!("exchange {exchange} is as it must be, and may be bound to");
                    self.tell(&what, found.map(drop), report);
                }
            }
        }
        if all_there {
            let found = dead_letters(connection);
            self.tell("dead letters may be kept", found, report);
        }
        let consume = |connection: &mut AmqpConnection| {
            let channel = connection.channel()?;
            channel.consume(queue, prefetch).map(drop)
        };
        self.tell("a queue may be consumed from", consume(connection), report);
    }

    /// Binds the queue, if the exchange is there: nothing is made that stays.
    fn bind(
        &self,
        connection: &mut AmqpConnection,
        exchange: &str,
        kind: ExchangeKind,
    ) -> Result<bool> {
        if connection.channel()?.expect_exchange(exchange).is_err() {
            // If the connection itself is gone, so is the next channel.
            return connection.channel().map(|_| false);
        }
        let channel = connection.channel()?;
        channel.declare_exchange(exchange, kind)?;
        channel.bind(&self.queue, exchange, NO_KEY)?;
        Ok(true)
    }

    /// Whether it may be done.
    fn tell(&self, what: &str, found: Result<()>, report: &mut Report<impl Write>) -> bool {
        let Err(error) = found else {
            report.ok(format_args!("broker: {what}"));
            return true;
        };
        let cure = match &error {
            AmqpError::Refused(reason) if reason.contains("delete it") => "then start the gateway",
            AmqpError::Refused(_) => &self.permission,
            _ => "look into the broker's log",
        };
        report.failed(format_args!("broker: {error}"), cure);
        false
    }
}

/// Declares again what gateways share, where all of it is there.
fn dead_letters(connection: &mut AmqpConnection) -> Result<()> {
    let is_there = connection
        .channel()?
        .expect_queue(DEAD_LETTER_QUEUE)
        .is_ok();
    if is_there {
        declare_shared(connection)?;
    }
    Ok(())
}

/// Listens in on what the broker says first: the version that it gives itself stands among the server's
/// properties in `connection.start`, which the gateway does not let amiquip see.
struct Overhearing {
    stream: Box<dyn Stream>,
    heard: Heard,
}

/// Of the first bytes, so many.
type Heard = Arc<Mutex<Vec<u8>>>;
const HEARD: usize = 8 << 10;

/// Puts it around what is around the socket otherwise.
fn overhear(wrap: Option<Wrap>, heard: &Heard) -> Wrap {
    let heard = Arc::clone(heard);
    Arc::new(move |socket| {
        let stream = match &wrap {
            Some(wrap) => wrap(socket)?,
            None => Box::new(socket),
        };
        let heard = Arc::clone(&heard);
        Ok(Box::new(Overhearing { stream, heard }))
    })
}

/// What `connection.start` says of the version, if it does.
fn version(heard: &[u8]) -> Option<String> {
    /// A short string, and the type of its value: a long string.
    const NAME: &[u8] = b"\x07versionS";
    let place = heard.windows(NAME.len()).position(|it| it == NAME)?;
    let (size, value) = heard[place + NAME.len()..].split_first_chunk()?;
    let text = value.get(..u32::from_be_bytes(*size) as usize)?;
    String::from_utf8(text.into()).ok()
}

impl Read for Overhearing {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(into)?;
        let mut heard = self.heard.lock();
        let room = HEARD - heard.len();
        heard.extend(&into[..read.min(room)]);
        Ok(read)
    }
}

impl Write for Overhearing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Evented for Overhearing {
    fn register(&self, p: &Poll, t: Token, interest: Ready, how: PollOpt) -> io::Result<()> {
        self.stream.register(p, t, interest, how)
    }

    fn reregister(&self, p: &Poll, t: Token, interest: Ready, how: PollOpt) -> io::Result<()> {
        self.stream.reregister(p, t, interest, how)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.stream.deregister(poll)
    }
}
