//! RabbitMQ through amiquip, which is named in this folder alone, so that it can be replaced. What
//! amiquip 0.4.2 would let happen, and this wrapper does not: an `open`, `close` or drop that hangs
//! on a broker that stalls, a connection without heartbeats, an error that shows the password, a
//! delivery that ends the connection.
//!
//! A [`AmqpConnection`] is one connection, a [`Channel`] one channel of it. Calls that wait for the broker
//! have no timeout of their own: they end after two heartbeats without a sign of life, or at once
//! when the link is cut.

mod channel;
mod connection;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
#[cfg(feature = "check")]
mod inspect;
#[cfg(feature = "reference")]
mod publish;
mod sanitize;
mod socket;

pub use self::channel::{AmqpDelivery, Argument, Channel, Consumer, ExchangeKind};
pub use self::connection::{AmqpConnection, Opener};
pub use self::error::{AmqpError, Result, lost, no_thread};
#[cfg(feature = "reference")]
pub use self::publish::{Alarm, Confirms, Outcome};
pub use self::socket::{AbortHandle, Stream, Wrap};
