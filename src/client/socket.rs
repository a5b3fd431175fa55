//! The read side of a connection: the one place that knows tungstenite.
//!
//! tungstenite answers pings and closes by writing from inside `read()`. Here writes belong to the
//! outbox, so the stream below it discards them, and the session sends Pong and Close itself. Every
//! error is final: tungstenite sends no Close frame for one and would stay usable.

use std::io::{self, Read, Write};

use tungstenite::error::{CapacityError, Error, ProtocolError};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Bytes, Message, Utf8Bytes, WebSocket};

use super::close::CloseReason;
use super::transport::{Socket, Transport};

/// Ample for a chat message; a longer one takes several reads. It is each connection's own, and
/// tungstenite's default is 128 KiB.
const READ_BUFFER: usize = 512;

/// Of a client's ping or pong: opcode, length, mask.
const CONTROL_HEADER: usize = 6;

/// A frame from the client that concerns the session.
pub(super) enum Incoming {
    Text(Utf8Bytes),
    Binary(Bytes),
    /// To be answered by a Pong with the same payload.
    Ping(Vec<u8>),
    Pong,
}

/// Reads frames; blocks as long as none comes.
pub(super) struct FrameReader {
    websocket: WebSocket<ReadSide>,
    /// What follows is no frame: tungstenite, asked again, would take it for one.
    is_broken: bool,
}

/// The socket for reading only.
struct ReadSide {
    socket: Socket,
    /// Bytes read since the beginning.
    received: u64,
    /// Bytes read since the last message, pings and pongs apart. tungstenite gathers fragments without
    /// a limit on their number, so that empty ones would never end.
    since_message: usize,
    limit: usize,
}

impl FrameReader {
    pub fn new(socket: Socket, max_message_size: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .max_message_size(Some(max_message_size))
            .max_frame_size(Some(max_message_size));
        let stream = ReadSide {
            socket,
            received: 0,
            since_message: 0,
            limit: max_message_size * 2 + READ_BUFFER,
        };
        let websocket = WebSocket::from_raw_socket(stream, Role::Server, Some(config));
        Self {
            websocket,
            is_broken: false,
        }
    }

    /// How many bytes came.
    pub fn received(&self) -> u64 {
        self.websocket.get_ref().received
    }

    /// The next frame, or why there will be none.
    pub fn read(&mut self) -> Result<Incoming, CloseReason> {
        let read = self.websocket.read();
        self.is_broken = read.is_err();
        let message = read.map_err(reason)?;
        // A ping may be between two fragments, and is no part of their message.
        let is_control = message.is_ping() || message.is_pong();
        let own = is_control.then(|| CONTROL_HEADER + message.len());
        let since_message = &mut self.websocket.get_mut().since_message;
        *since_message = since_message.saturating_sub(own.unwrap_or(usize::MAX));
        match message {
            Message::Text(text) => Ok(Incoming::Text(text)),
            Message::Ping(payload) => Ok(Incoming::Ping(payload.into())),
            // A `Frame` is only ever written, never read.
            Message::Pong(_) | Message::Frame(_) => Ok(Incoming::Pong),
            Message::Binary(bytes) => Ok(Incoming::Binary(bytes)),
            Message::Close(close) => Err(CloseReason::ClientClosed(close.map(|it| it.code.into()))),
        }
    }

    /// Reads and drops what still comes, until the client's Close frame or its end of the socket,
    /// or until the socket is cut.
    pub fn discard(&mut self) {
        while !self.is_broken {
            match self.websocket.read() {
                Err(Error::ConnectionClosed) => return,
                read => self.is_broken = read.is_err(),
            }
        }
        // What follows a broken frame is no frame, and a flood, which all counts, no goodbye.
        let socket = &*self.websocket.get_ref().socket;
        let mut bytes = [0; 1024];
        while matches!(read(socket, &mut bytes), Ok(1..)) {}
    }
}

fn reason(error: Error) -> CloseReason {
    match error {
        Error::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => CloseReason::TooLarge,
        Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            CloseReason::ProtocolError(error.to_string())
        }
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
        | Error::Io(_)
        | Error::ConnectionClosed
        | Error::AlreadyClosed => CloseReason::Vanished,
        Error::Utf8(_) => CloseReason::NotUtf8,
        Error::Capacity(CapacityError::MessageTooLong { .. }) => CloseReason::TooLarge,
        Error::Protocol(error) => CloseReason::ProtocolError(error.to_string()),
        error => CloseReason::ProtocolError(error.to_string()),
    }
}

/// Reads until there are bytes for us: those of the transport's own are none.
fn read(socket: &dyn Transport, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.read(into, true) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

impl Read for ReadSide {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since_message > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let read = read(&*self.socket, buffer)?;
        self.since_message += read;
        self.received += read as u64;
        Ok(read)
    }
}

impl Write for ReadSide {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The value of `Sec-WebSocket-Accept` for a client's key (RFC 6455, section 4.2.2).
pub(super) fn accept_key(key: &str) -> String {
    tungstenite::handshake::derive_accept_key(key.as_bytes())
}
