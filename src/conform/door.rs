//! Where clients come in: one upgrade request at a time, read before it is decided what becomes of it.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use tungstenite::handshake::derive_accept_key;

use crate::http::{self, Head, HttpResponse, parse_head};

const PROTOCOL: &str = "im.v1";
/// How long a request head may take, and an answer to it.
const HEAD_WITHIN: Duration = Duration::from_secs(2);

pub struct Door(TcpListener);

/// Somebody who has asked for an upgrade, and waits.
pub struct Arrival {
    pub at: Instant,
    pub token: Option<String>,
    /// The subprotocols that are offered, the token's among them.
    pub offered: Vec<String>,
    key: String,
    stream: TcpStream,
    /// What was sent behind the head.
    early: Vec<u8>,
}

impl Door {
    pub fn new(listener: TcpListener) -> Self {
        Self(listener)
    }

    /// The next upgrade request that comes until then. What is none is answered, and passed over.
    pub fn arrival(&self, until: Instant) -> Option<Arrival> {
        while is_readable(&self.0, until) {
            let Ok((stream, _)) = self.0.accept() else {
                continue;
            };
            let at = Instant::now();
            // Else it went away, or was none: the next one.
            if let Ok(Some(arrival)) = Arrival::read(stream, at) {
                return Some(arrival);
            }
        }
        None
    }
}

fn is_readable(socket: &impl std::os::fd::AsFd, until: Instant) -> bool {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let mut sockets = [PollFd::new(socket, PollFlags::IN)];
        match poll(&mut sockets, timeout.as_ref()) {
            Ok(0) => return false,
            Ok(_) => return true,
            // A signal.
            Err(_) => {}
        }
    }
}

impl Arrival {
    fn read(mut stream: TcpStream, at: Instant) -> io::Result<Option<Self>> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(HEAD_WITHIN))?;
        stream.set_write_timeout(Some(HEAD_WITHIN))?;
        let (mut bytes, mut chunk) = (Vec::new(), [0; 1024]);
        let length = loop {
            match parse_head(&bytes) {
                Ok(Some(head)) => break head.length,
                Ok(None) => {}
                Err(response) => return stream.write_all(&response.bytes()).map(|()| None),
            }
            let read = stream.read(&mut chunk)?;
            if read == 0 {
                return Ok(None);
            }
            bytes.extend(&chunk[..read]);
        };
        let early = bytes.split_off(length);
        let head = parse_head(&bytes).ok().flatten();
        match head.map(|head| asked(&head)) {
            Some(Ok((key, token, offered))) => Ok(Some(Self {
                at,
                token,
                offered,
                key,
                stream,
                early,
            })),
            Some(Err(response)) => stream.write_all(&response.bytes()).map(|()| None),
            None => Ok(None),
        }
    }

    /// Whether it sends something before it was answered, for so long.
    pub fn is_early(&self, patience: Duration) -> bool {
        !self.early.is_empty() || is_readable(&self.stream, Instant::now() + patience)
    }

    /// Answers with 101: the socket, and what was read of it already.
    pub fn admit(mut self) -> io::Result<(TcpStream, Vec<u8>)> {
        let chosen = self.offered.iter().any(|offered| offered == PROTOCOL);
        let protocol = match chosen {
            true => format!("Sec-WebSocket-Protocol: {PROTOCOL}\r\n"),
            false => String::new(),
        };
        let accept = derive_accept_key(self.key.as_bytes());
        let switching = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n{protocol}\r\n"
        );
        self.stream.write_all(switching.as_bytes())?;
        Ok((self.stream, self.early))
    }

    /// Answers with an HTTP error.
    pub fn refuse(mut self, response: &HttpResponse) {
        // Whoever is gone needs no answer.
        let _ = self.stream.write_all(&response.bytes());
    }

    /// Ends its connection without an answer.
    pub fn cut(self) {
        cut(self.stream);
    }
}

/// Ends a connection with a reset: no Close frame, no FIN.
pub fn cut(stream: TcpStream) {
    // If it cannot be set, the end is a FIN.
    let _ = sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
}

/// The key, the token and the subprotocols of an upgrade request.
fn asked(head: &Head<'_>) -> http::Result<(String, Option<String>, Vec<String>)> {
    let key = head.websocket_key()?.to_owned();
    let token = match head.bearer_token()? {
        Some(token) => Some(token.to_owned()),
        None => head.bearer_protocol()?.or_else(|| head.parameter("token")),
    };
    let offered = head.items("Sec-WebSocket-Protocol")?;
    let offered = offered.into_iter().map(str::to_owned).collect();
    Ok((key, token, offered))
}
