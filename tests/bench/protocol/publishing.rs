//! The publishers' half of the protocols of those servers that have no broker.

use super::{Next, Protocol, Said, mqtt, nats};
use crate::session::GROUP;

impl Protocol {
    /// What a publisher sends first.
    pub fn introduce(self) -> Vec<u8> {
        match self {
            Self::Nats => nats::CONNECT.into(),
            Self::Mqtt => mqtt::connect("publisher"),
            Self::Gateway | Self::Nchan => Vec::new(),
        }
    }

    /// Writes what publishes a message to [`GROUP`].
    pub fn publish(self, payload: &str, bytes: &mut Vec<u8>) {
        match self {
            Self::Nats => {
                bytes.extend(format!("PUB {GROUP} {}\r\n{payload}\r\n", payload.len()).bytes());
            }
            Self::Mqtt => {
                bytes.extend(mqtt::publish(GROUP, payload.as_bytes()));
            }
            Self::Nchan => bytes.extend(
                format!(
                    "POST /publish HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n\
                     Content-Length: {}\r\n\r\n{payload}",
                    payload.len()
                )
                .bytes(),
            ),
            Self::Gateway => unreachable!("it is published to by its broker"),
        }
    }

    /// What has the server say [`Said::Done`] once it has taken all before; empty where it does so
    /// for each message.
    pub fn settle(self) -> Vec<u8> {
        match self {
            Self::Nats => b"PING\r\n".into(),
            Self::Mqtt => mqtt::ping(),
            Self::Gateway | Self::Nchan => Vec::new(),
        }
    }

    /// What stands first in `bytes`, which answer a publisher; `None` as long as it is not whole.
    pub fn next_answer(self, bytes: &[u8]) -> Next<'_> {
        match self {
            Self::Nchan => http_next(bytes),
            _ => self.next(bytes),
        }
    }
}

/// Of the answers to POST requests.
fn http_next(bytes: &[u8]) -> Next<'_> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut answer = httparse::Response::new(&mut headers);
    let Ok(parsed) = answer.parse(bytes) else {
        return Some((Said::Error, bytes.len()));
    };
    let httparse::Status::Complete(head) = parsed else {
        return None;
    };
    let status = answer.code.unwrap_or(0);
    let is_length = |header: &&httparse::Header| header.name.eq_ignore_ascii_case("content-length");
    let length = headers.iter().find(is_length);
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
    // Without one, it would end with the connection.
    let Some(length) = length.map(|length: usize| head + length) else {
        return Some((Said::Error, bytes.len()));
    };
    let said = match status {
        200..=299 => Said::Done,
        _ => Said::Error,
    };
    (bytes.len() >= length).then_some((said, length))
}
