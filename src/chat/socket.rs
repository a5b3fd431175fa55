//! The connection: frames over a socket that one thread owns and polls.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message, WebSocket};

#[cfg(feature = "tls")]
use crate::tls::ToGateway;

/// How long the other end may take to say goodbye.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);

/// Below the frames; non-blocking once it is connected.
pub(super) enum Stream {
    Plain {
        tcp: TcpStream,
        /// It took no more at the last write.
        is_full: bool,
    },
    #[cfg(feature = "tls")]
    Tls(Box<ToGateway>),
}

impl Stream {
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain { tcp, .. } => tcp,
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.get_ref(),
        }
    }

    fn wants_write(&self) -> bool {
        match self {
            Self::Plain { is_full, .. } => *is_full,
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.wants_write(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain { tcp, .. } => tcp.read(into),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain { tcp, is_full } => {
                let written = tcp.write(bytes);
                *is_full = matches!(&written, Err(error) if error.kind() == ErrorKind::WouldBlock);
                written
            }
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain { tcp, .. } => tcp.flush(),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// What came.
pub(super) enum Incoming {
    Text(String),
    /// Answered by tungstenite, with the next read or write.
    Ping,
    /// A pong, or a binary frame, of which this protocol has none.
    Other,
    /// 1005 where the Close frame has no code.
    Closed {
        code: u16,
        reason: String,
    },
    /// Without a Close frame, and why.
    Cut(String),
}

pub(super) struct Socket {
    websocket: WebSocket<Stream>,
}

impl Socket {
    /// `websocket`: past its handshake, over a socket that blocks.
    pub fn new(websocket: WebSocket<Stream>) -> io::Result<Self> {
        websocket.get_ref().tcp().set_nonblocking(true)?;
        Ok(Self { websocket })
    }

    /// The next frame; `None`: none that is whole has come.
    pub fn read(&mut self) -> Option<Incoming> {
        Some(match self.websocket.read() {
            Ok(Message::Text(text)) => Incoming::Text(text.as_str().into()),
            Ok(Message::Ping(_)) => Incoming::Ping,
            Ok(Message::Close(frame)) => {
                // The answer, if there is room for it.
                let _ = self.websocket.flush();
                let code = frame.as_ref().map_or(1005, |frame| frame.code.into());
                let reason = frame.map_or_else(String::new, |frame| frame.reason.as_str().into());
                Incoming::Closed { code, reason }
            }
            Ok(_) => Incoming::Other,
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => Incoming::Cut(error.to_string()),
        })
    }

    /// Sends, or has it wait for room. An error ends the connection; reading says why.
    pub fn send(&mut self, text: String) -> Result<(), Error> {
        self.websocket.write(Message::text(text))?;
        self.flush()
    }

    /// Sends what waits for room.
    pub fn flush(&mut self) -> Result<(), Error> {
        match self.websocket.flush() {
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            outcome => outcome,
        }
    }

    /// What to poll for.
    pub fn interest(&self) -> PollFlags {
        match self.websocket.get_ref().wants_write() {
            true => PollFlags::IN | PollFlags::OUT,
            false => PollFlags::IN,
        }
    }

    /// Says goodbye, and waits until the other end has as well, though not for long: what was sent
    /// before is read by then.
    pub fn close(mut self) {
        let (code, reason) = (CloseCode::Normal, "".into());
        let _ = self.websocket.close(Some(CloseFrame { code, reason }));
        let deadline = Instant::now() + GOODBYE_WITHIN;
        loop {
            // It is also what writes.
            match self.websocket.read() {
                Ok(_) => continue,
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).ok().filter(|_| !left.is_zero());
            let interest = self.interest();
            let mut polled = [PollFd::new(&self, interest)];
            let Some(left) = left else { return };
            let _ = poll(&mut polled, Some(&left));
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.websocket.get_ref().tcp().as_fd()
    }
}
