//! One of the client's connections: a non-blocking socket, its handshake, and the frames it brings,
//! or the messages in them.

use std::io::{self, ErrorKind};
use std::mem;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with};
use rustls::ClientConfig;

use super::stream::{ROOM, Stream};
use crate::protocol::{Protocol, Said};

const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// What a gateway says once it serves a user; put in where a server of another protocol does so.
const SERVED: &[u8] = br#"{"type":"offline_complete"}"#;

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Connecting,
    Upgrading,
    Open,
    Closed,
}

pub struct Connection {
    stream: Stream,
    protocol: Protocol,
    number: usize,
    pub phase: Phase,
    /// The beginning of a frame whose end has not come yet.
    rest: Vec<u8>,
    /// The same of what a protocol takes for a stream of bytes.
    inner_rest: Vec<u8>,
    /// The HTTP status of the answer, once it came.
    pub status: u16,
    /// The code of a Close frame.
    pub close_code: Option<u16>,
    /// `offline_complete` came.
    pub complete: bool,
    /// Pushes since the last `expect`.
    pub received: u32,
    /// When the request was sent whose answer is waited for.
    pub asked_at: Option<u64>,
    /// Requests that are still to be sent, this one included.
    pub left: u64,
}

impl Connection {
    /// Begins to connect the client with this number, with TLS if there is a configuration for it.
    pub fn open(
        addr: SocketAddr,
        protocol: Protocol,
        number: usize,
        tls: Option<&Arc<ClientConfig>>,
    ) -> io::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            flags,
            Some(ipproto::TCP),
        )?;
        match connect(&socket, &addr) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self {
            stream: Stream::new(socket.into(), tls),
            protocol,
            number,
            phase: Phase::Connecting,
            rest: Vec::new(),
            inner_rest: Vec::new(),
            status: 0,
            close_code: None,
            complete: false,
            received: 0,
            asked_at: None,
            left: 0,
        })
    }

    pub fn socket(&self) -> &TcpStream {
        self.stream.socket()
    }

    /// Asks for the upgrade, once the socket is connected.
    pub fn upgrade(&mut self) {
        self.phase = Phase::Upgrading;
        let request = self.protocol.upgrade(self.number);
        self.write(request.as_bytes());
    }

    /// Sends a text frame. Masked with zeros, which a server unmasks like any others.
    pub fn send(&mut self, payload: &[u8]) {
        self.frame(TEXT, payload);
    }

    fn frame(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            length @ 0..=125 => frame.push(0x80 | length as u8),
            length => {
                frame.push(0x80 | 126);
                frame.extend((length as u16).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.write(&frame);
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).is_err() {
            self.phase = Phase::Closed;
        }
    }

    /// Reads what is there, once, and calls `on_message` with each message, or with what stands for
    /// what is no message.
    pub fn read(&mut self, buffer: &mut [u8], mut on_message: impl FnMut(&mut Self, &[u8])) {
        let kept = self.rest.len();
        if buffer.len() < kept + ROOM {
            self.phase = Phase::Closed;
            return;
        }
        buffer[..kept].copy_from_slice(&self.rest);
        self.rest.clear();
        let end = match self.stream.read(&mut buffer[kept..]) {
            Ok(0) => {
                self.phase = Phase::Closed;
                return;
            }
            Ok(count) => kept + count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => kept,
            Err(_) => {
                self.phase = Phase::Closed;
                return;
            }
        };
        let mut bytes = &buffer[..end];
        if self.phase == Phase::Upgrading {
            bytes = self.answered(bytes);
            if self.phase == Phase::Open {
                self.subscribe(&mut on_message);
            }
        }
        while self.phase == Phase::Open
            && let Some((opcode, payload, length)) = frame(bytes)
        {
            bytes = &bytes[length..];
            match opcode {
                TEXT | BINARY if self.protocol.is_stream() => self.take(payload, &mut on_message),
                TEXT => on_message(self, payload),
                PING => self.frame(PONG, payload),
                CLOSE => {
                    let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    self.close_code = code.or(Some(1005));
                    self.phase = Phase::Closed;
                }
                _ => {}
            }
        }
        self.rest.extend_from_slice(bytes);
    }

    /// Asks for messages, where being connected is not enough.
    fn subscribe(&mut self, on_message: &mut impl FnMut(&mut Self, &[u8])) {
        match self.protocol {
            Protocol::Gateway => {}
            Protocol::Nchan => on_message(self, SERVED),
            Protocol::Nats | Protocol::Mqtt => {
                self.frame(BINARY, &self.protocol.subscribe(self.number));
            }
        }
    }

    /// Takes what is whole off a stream of bytes that goes on with these.
    fn take(&mut self, bytes: &[u8], on_message: &mut impl FnMut(&mut Self, &[u8])) {
        let mut joined = mem::take(&mut self.inner_rest);
        let mut bytes = if joined.is_empty() {
            bytes
        } else {
            joined.extend_from_slice(bytes);
            &joined
        };
        while let Some((said, length)) = self.protocol.next(bytes) {
            match said {
                Said::Message(message) => on_message(self, message),
                Said::Done => on_message(self, SERVED),
                Said::Ping => self.frame(BINARY, Protocol::PONG),
                Said::Error => {
                    eprintln!("refused: {:?}", String::from_utf8_lossy(bytes));
                    self.phase = Phase::Closed;
                    return;
                }
                Said::Other => {}
            }
            bytes = &bytes[length..];
        }
        self.inner_rest.extend_from_slice(bytes);
    }

    /// Takes the HTTP answer off `bytes`, if it is whole.
    fn answered<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            return bytes;
        };
        let status = bytes
            .get(9..12)
            .and_then(|code| std::str::from_utf8(code).ok());
        self.status = status.and_then(|code| code.parse().ok()).unwrap_or(0);
        self.phase = if self.status == 101 {
            Phase::Open
        } else {
            Phase::Closed
        };
        &bytes[end + 4..]
    }
}

/// The first frame of `bytes`, if it is whole: opcode, payload, and length on the wire.
fn frame(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (head, length) = match second {
        126 => (
            4,
            usize::from(u16::from_be_bytes(*bytes[2..].first_chunk()?)),
        ),
        127 => (10, u64::from_be_bytes(*bytes[2..].first_chunk()?) as usize),
        length => (2, usize::from(length)),
    };
    let payload = bytes.get(head..head + length)?;
    Some((first & 0xF, payload, head + length))
}
