//! What is needed of MQTT 3.1.1: its control packets, with QoS 0 alone.

use super::{Next, Said};

// The first byte of each kind of packet, with the flags that are used here: section 2.2.
const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;
const PINGREQ: u8 = 0xC0;
const PINGRESP: u8 = 0xD0;

/// What stands first in `bytes`; `None` as long as it is not whole.
pub fn next(bytes: &[u8]) -> Next<'_> {
    let (&first, rest) = bytes.split_first()?;
    // Seven bits in each byte, the lowest first; the last one has no eighth bit.
    let digits = rest.iter().take(4).position(|byte| byte & 0x80 == 0)? + 1;
    let add = |length: usize, byte: &u8| length << 7 | usize::from(byte & 0x7F);
    let length = rest[..digits].iter().rev().fold(0, add);
    let body = rest.get(digits..digits + length)?;
    let said = match (first, body) {
        (PUBLISH, [high, low, rest @ ..]) => {
            let topic = usize::from(u16::from_be_bytes([*high, *low]));
            rest.get(topic..).map_or(Said::Error, Said::Message)
        }
        (CONNACK, [_, 0]) => Said::Other,
        (SUBACK, [_, _, 0]) | (PINGRESP, _) => Said::Done,
        _ => Said::Error,
    };
    Some((said, 1 + digits + length))
}

/// A session that ends with its connection, which may be idle for ever.
pub fn connect(client_id: &str) -> Vec<u8> {
    const LEVEL: u8 = 4;
    const CLEAN_SESSION: u8 = 2;
    const NO_KEEP_ALIVE: [u8; 2] = [0; 2];
    control(
        CONNECT,
        &[
            &string("MQTT"),
            &[LEVEL, CLEAN_SESSION],
            &NO_KEEP_ALIVE,
            &string(client_id),
        ],
    )
}

/// To one topic.
pub fn subscribe(topic: &str) -> Vec<u8> {
    const QOS: u8 = 0;
    const PACKET_ID: [u8; 2] = [0, 1];
    control(SUBSCRIBE, &[&PACKET_ID, &string(topic), &[QOS]])
}

/// To a topic.
pub fn publish(topic: &str, payload: &[u8]) -> Vec<u8> {
    control(PUBLISH, &[&string(topic), payload])
}

/// Answered once all before it is taken.
pub fn ping() -> Vec<u8> {
    control(PINGREQ, &[])
}

/// A control packet of these parts.
fn control(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut length = parts.iter().map(|part| part.len()).sum::<usize>();
    let mut bytes = vec![first];
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    parts.iter().for_each(|part| bytes.extend(*part));
    bytes
}

/// MQTT's strings have their length before them.
fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u16).to_be_bytes().to_vec();
    bytes.extend(text.bytes());
    bytes
}
