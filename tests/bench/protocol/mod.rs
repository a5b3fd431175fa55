//! What is spoken with a server: how its WebSocket clients ask for messages, what these look like
//! among the bytes that come, and how messages are published to servers that have no broker.
//!
//! | protocol | subscribers | publishers |
//! | --- | --- | --- |
//! | `gateway` | a JSON message in each text frame | by RabbitMQ: [`crate::publisher`] |
//! | `nats` | NATS, a stream of bytes in binary frames | NATS over TCP |
//! | `mqtt` | MQTT 3.1.1 with QoS 0, a stream of bytes in binary frames | the same over TCP |
//! | `nchan` | a message in each text frame | HTTP/1.1, a POST for each |

mod mqtt;
mod nats;
mod publishing;

use std::fmt;
use std::str::FromStr;

use crate::session::GROUP;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// This project's, which the peer and the raw limit speak too.
    Gateway,
    Nats,
    Mqtt,
    Nchan,
}

/// What a server says to a client or to a publisher.
#[derive(Debug, PartialEq, Eq)]
pub enum Said<'a> {
    Message(&'a [u8]),
    /// What was asked for is done: a subscription, or all that was published so far.
    Done,
    /// It wants to be answered with [`Protocol::PONG`].
    Ping,
    /// It refuses to go on.
    Error,
    /// Nothing that matters here.
    Other,
}

/// What the server says first, and how many bytes that takes.
type Next<'a> = Option<(Said<'a>, usize)>;

impl Protocol {
    /// To a server of NATS; nobody else pings here outside of WebSocket.
    pub const PONG: &[u8] = b"PONG\r\n";

    const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Nats => "nats",
            Self::Mqtt => "mqtt",
            Self::Nchan => "nchan",
        }
    }

    /// The request for the upgrade of the client with this number.
    pub fn upgrade(self, number: usize) -> String {
        let target = match self {
            Self::Gateway => format!("/ws?token=u{number}-token"),
            Self::Nats => "/".into(),
            Self::Mqtt => "/mqtt".into(),
            Self::Nchan => "/subscribe".into(),
        };
        let subprotocol = match self {
            Self::Mqtt => "Sec-WebSocket-Protocol: mqtt\r\n",
            _ => "",
        };
        format!(
            "GET {target} HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n{subprotocol}\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
    }

    /// What the client sends once it is connected, so that it gets the messages of [`GROUP`].
    pub fn subscribe(self, number: usize) -> Vec<u8> {
        match self {
            Self::Gateway | Self::Nchan => Vec::new(),
            // The PONG comes once the subscription is made.
            Self::Nats => format!("{}SUB {GROUP} 1\r\nPING\r\n", nats::CONNECT).into_bytes(),
            Self::Mqtt => {
                let connect = mqtt::connect(&format!("client-{number}"));
                [connect, mqtt::subscribe(GROUP)].concat()
            }
        }
    }

    /// Whether messages lie in a stream of bytes, wherever its frames begin and end.
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Nats | Self::Mqtt)
    }

    /// What stands first in `bytes`, of a subscriber's stream; `None` as long as it is not whole.
    pub fn next(self, bytes: &[u8]) -> Next<'_> {
        match self {
            Self::Nats => nats::next(bytes),
            Self::Mqtt => mqtt::next(bytes),
            Self::Gateway | Self::Nchan => unreachable!("each frame is a message"),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::Gateway, Self::Nats, Self::Mqtt, Self::Nchan]
            .into_iter()
            .find(|protocol| protocol.name() == name)
            .ok_or_else(|| format!("no such protocol: {name}"))
    }
}
