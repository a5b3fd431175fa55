//! A publisher that respects no more of AMQP than the broker makes it: any bytes as names, any bytes
//! as properties. (amiquip's strings are UTF-8.)

use std::io::{Read, Write};
use std::net::TcpStream;

use super::DEADLINE;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// RabbitMQ's own, which its configuration here does not change.
const FRAME_MAX: usize = 131_072;

/// The flag of each property, by name.
pub const CONTENT_TYPE: u16 = 1 << 15;
pub const CONTENT_ENCODING: u16 = 1 << 14;
pub const HEADERS: u16 = 1 << 13;
pub const PRIORITY: u16 = 1 << 11;
pub const CORRELATION_ID: u16 = 1 << 10;
pub const REPLY_TO: u16 = 1 << 9;
pub const EXPIRATION: u16 = 1 << 8;
pub const MESSAGE_ID: u16 = 1 << 7;
pub const TIMESTAMP: u16 = 1 << 6;
pub const TYPE: u16 = 1 << 5;
pub const USER_ID: u16 = 1 << 4;
pub const APP_ID: u16 = 1 << 3;
pub const CLUSTER_ID: u16 = 1 << 2;

/// Properties: which, and the value of each, encoded.
pub type Properties = Vec<(u16, Vec<u8>)>;

/// A short string.
pub fn short(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    let length = u8::try_from(bytes.len()).expect("a short string");
    [&[length], bytes].concat()
}

/// A long string, or the content of a table or an array behind its length.
pub fn long(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

/// A connection with one channel that confirms.
pub struct RawAmqp {
    stream: TcpStream,
}

impl RawAmqp {
    /// `url`: of the form that the tests' broker gives.
    pub fn open(url: &str) -> Self {
        let (_, rest) = url.split_once('@').expect("a user in the URL");
        let (addr, vhost) = rest.split_once('/').expect("a virtual host in the URL");
        let stream = TcpStream::connect(addr).expect("the broker listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let mut raw = Self { stream };
        raw.write(b"AMQP\0\0\x09\x01");
        raw.expect(0, [10, 10]);
        let login = [
            long(b""),
            short("PLAIN"),
            long("\0guest\0guest"),
            short("en_US"),
        ];
        raw.method(0, [10, 11], &login.concat());
        // As many channels and as large frames as the broker offers, and no heartbeats.
        let mut tune = raw.expect(0, [10, 30]);
        tune[6..].fill(0);
        raw.method(0, [10, 31], &tune);
        raw.method(0, [10, 40], &[short(vhost), vec![0, 0]].concat());
        raw.expect(0, [10, 41]);
        raw.ask([20, 10], &short(""), [20, 11]);
        raw.ask([85, 10], &[0], [85, 11]);
        raw
    }

    /// Publishes, and returns once the broker has confirmed it.
    pub fn publish(
        &mut self,
        exchange: &[u8],
        key: &[u8],
        properties: &[(u16, Vec<u8>)],
        body: &[u8],
    ) {
        let publish = [vec![0, 0], short(exchange), short(key), vec![0]];
        self.method(1, [60, 40], &publish.concat());
        let flags = properties.iter().fold(0, |all, (flag, _)| all | flag);
        let mut sorted: Vec<_> = properties.iter().collect();
        // In a list the highest flag's value comes first.
        sorted.sort_by_key(|(flag, _)| std::cmp::Reverse(*flag));
        let mut header = vec![0, 60, 0, 0];
        header.extend((body.len() as u64).to_be_bytes());
        header.extend(flags.to_be_bytes());
        header.extend(sorted.iter().flat_map(|(_, value)| value));
        self.frame(HEADER, 1, &header);
        for piece in body.chunks(FRAME_MAX - 8) {
            self.frame(BODY, 1, piece);
        }
        self.expect(1, [60, 80]);
    }

    pub fn declare_exchange(&mut self, name: &[u8], kind: &str) {
        let declare = [vec![0, 0], short(name), short(kind), vec![0], long(b"")];
        self.ask([40, 10], &declare.concat(), [40, 11]);
    }

    pub fn bind(&mut self, queue: &str, exchange: &[u8], key: &[u8]) {
        let names = [short(queue), short(exchange), short(key)].concat();
        let bind = [vec![0, 0], names, vec![0], long(b"")];
        self.ask([50, 20], &bind.concat(), [50, 21]);
    }

    /// Takes the oldest message off a queue: its routing key and its body.
    pub fn take(&mut self, queue: &str) -> Option<(Vec<u8>, Vec<u8>)> {
        const NO_ACK: u8 = 1;
        let get = [vec![0, 0], short(queue), vec![NO_ACK]].concat();
        self.method(1, [60, 70], &get);
        let (_, _, got) = self.read();
        if got[..4] == [0, 60, 0, 72] {
            return None;
        }
        // Behind class, method, delivery tag and the flag of a redelivery: exchange and key.
        let names = &got[13..];
        let key = &names[1 + usize::from(names[0])..];
        let key = key[1..1 + usize::from(key[0])].to_vec();
        let (_, _, header) = self.read();
        let size = u64::from_be_bytes(header[4..12].try_into().expect("8 bytes"));
        let mut body = Vec::new();
        while (body.len() as u64) < size {
            body.extend(self.read().2);
        }
        Some((key, body))
    }

    fn ask(&mut self, method: [u8; 2], arguments: &[u8], answer: [u8; 2]) {
        self.method(1, method, arguments);
        self.expect(1, answer);
    }

    fn method(&mut self, channel: u8, [class, method]: [u8; 2], arguments: &[u8]) {
        let payload = [&[0, class, 0, method], arguments].concat();
        self.frame(METHOD, channel, &payload);
    }

    fn frame(&mut self, kind: u8, channel: u8, payload: &[u8]) {
        self.write(&[&[kind, 0, channel], &long(payload)[..], &[0xCE]].concat());
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the broker reads");
    }

    /// The arguments of the method that must come next.
    fn expect(&mut self, channel: u8, [class, method]: [u8; 2]) -> Vec<u8> {
        let (kind, on, payload) = self.read();
        let expected = kind == METHOD && on == channel && payload[..4] == [0, class, 0, method];
        let told = String::from_utf8_lossy(&payload);
        assert!(expected, "instead of {class}.{method}: {payload:?} {told}");
        payload[4..].to_vec()
    }

    /// The next frame's kind, channel and payload, heartbeats passed over.
    fn read(&mut self) -> (u8, u8, Vec<u8>) {
        loop {
            let mut head = [0; 7];
            self.stream
                .read_exact(&mut head)
                .expect("the broker answers");
            let [kind, _, channel, size @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes(size) as usize + 1];
            self.stream.read_exact(&mut payload).expect("a whole frame");
            payload.pop();
            if kind != HEARTBEAT {
                return (kind, channel, payload);
            }
        }
    }
}
