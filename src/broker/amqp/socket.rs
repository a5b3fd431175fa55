//! The TCP socket under an AMQP connection, in the form that amiquip polls: without Nagle's delay,
//! to be cut from any thread, and on guard against a broker that offers no heartbeats and against
//! frames that amiquip cannot parse. What AMQP's bytes go through may be TLS, as an edge brings it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;

use amiquip::IoStream;
use mio::net::TcpStream;
use mio::{Evented, Poll, PollOpt, Ready, Token};
use parking_lot::Mutex;
use scopeguard::ScopeGuard;

use super::sanitize::Frames;

/// What AMQP's bytes go through: the TCP socket, or what an edge puts around it. It is polled
/// edge-triggered: a read ends in `WouldBlock` only when nothing is left on this side of the system's
/// socket. And a write ends in `WouldBlock` until the system's socket has taken all of what it was
/// given, or as much as it says; it is repeated with the same bytes then, and perhaps more behind them.
pub trait Stream: Read + Write + Evented + Send {}
impl<S: Read + Write + Evented + Send> Stream for S {}

/// Puts it around a socket that is about to connect.
pub type Wrap = Arc<dyn Fn(TcpStream) -> io::Result<Box<dyn Stream>> + Send + Sync>;

/// The reading and writing end, owned by amiquip's I/O thread.
pub struct Socket {
    stream: Box<dyn Stream>,
    frames: Frames,
    abort_handle: AbortHandle,
}

/// How far a connection has come that is being opened.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    #[default]
    LookingUp,
    Connecting,
    /// Somebody listens: what fails now fails at the other addresses too.
    Connected,
    /// The broker judges the login.
    LoggingIn,
    Tuned,
    /// It has ended, or ends before it begins to connect.
    Cut,
}

/// Ends a connection at once, whatever its peer does, also while it is being opened: the I/O thread
/// reads its end, and every call that waits for the broker fails.
#[derive(Debug, Default, Clone)]
pub struct AbortHandle(Arc<Mutex<Progress>>);

#[derive(Debug, Default)]
struct Progress {
    stage: Stage,
    socket: Option<TcpStream>,
}

impl AbortHandle {
    pub fn abort(&self) {
        let mut progress = self.0.lock();
        progress.stage = Stage::Cut;
        let socket = progress.socket.take();
        drop(progress);
        // An error says that the socket has ended already.
        let _ = socket.map(|socket| socket.shutdown(Shutdown::Both));
    }

    pub fn stage(&self) -> Stage {
        self.0.lock().stage
    }

    fn has_come_to(&self, stage: Stage) {
        let mut progress = self.0.lock();
        progress.stage = progress.stage.max(stage);
    }

    /// From now on this socket is cut; an error when it is too late.
    fn is_to_cut(&self, socket: TcpStream) -> io::Result<()> {
        let mut progress = self.0.lock();
        if progress.stage == Stage::Cut {
            return Err(io::Error::other("too late"));
        }
        progress.stage = Stage::Connecting;
        progress.socket = Some(socket);
        Ok(())
    }
}

/// Cuts when it is dropped.
pub type CutOnDrop = ScopeGuard<AbortHandle, fn(AbortHandle)>;

impl Socket {
    /// Begins to connect; `abort` ends it, and knows how far it has come.
    pub fn connect(at: &SocketAddr, wrap: &Wrap, abort: &AbortHandle) -> io::Result<Self> {
        let stream = TcpStream::connect(at)?;
        stream.set_nodelay(true)?;
        abort.is_to_cut(stream.try_clone()?)?;
        Ok(Self {
            stream: wrap(stream)?,
            frames: Frames::default(),
            abort_handle: abort.clone(),
        })
    }
}

/// What the client comes to by writing this (AMQP 0-9-1, sections 1.4 and 2.3.5). The handshake goes
/// in lockstep, so each of its frames is the first thing in its write.
///
/// Refuses to agree to no heartbeat at all: amiquip would, and then a broker that stalls or a cable
/// that is pulled would never be noticed.
fn leads_to(frame: &[u8]) -> io::Result<Stage> {
    // The class and the method; and in tune-ok, behind the largest channel and frame, the heartbeat.
    match (frame.get(7..11), frame.get(17..19)) {
        // connection.start-ok: user and password.
        (Some([0, 10, 0, 11]), _) => Ok(Stage::LoggingIn),
        // connection.tune-ok: what both agree to.
        (Some([0, 10, 0, 31]), Some([0, 0])) => {
            Err(io::Error::other("the broker has heartbeats switched off"))
        }
        (Some([0, 10, 0, 31]), Some(_)) => Ok(Stage::Tuned),
        _ => Ok(Stage::Connected),
    }
}

impl IoStream for Socket {}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.abort_handle.stage() >= Stage::Tuned {
            return self.stream.write(bytes);
        }
        let stage = leads_to(bytes)?;
        let written = self.stream.write(bytes);
        match written.as_ref().map_err(io::Error::kind) {
            Ok(_) => self.abort_handle.has_come_to(stage),
            // TLS shakes hands first.
            Err(ErrorKind::WouldBlock) => self.abort_handle.has_come_to(Stage::Connected),
            Err(_) => {}
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.frames.read(&mut self.stream, into)
    }
}

impl Evented for Socket {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_is_read_from_its_frames_alone() {
        let mut frame = vec![
            1, 0, 0, 0, 0, 0, 12, 0, 10, 0, 31, 7, 255, 0, 2, 0, 0, 0, 10, 0xCE,
        ];
        assert_eq!(leads_to(&frame).unwrap(), Stage::Tuned);
        frame[18] = 0;
        let error = leads_to(&frame).unwrap_err();
        assert!(error.to_string().contains("heartbeats"), "{error}");
        assert_eq!(leads_to(b"AMQP\0\0\x09\x01").unwrap(), Stage::Connected);
        assert_eq!(leads_to(&frame[..12]).unwrap(), Stage::Connected);
        frame[10] = 11;
        assert_eq!(leads_to(&frame).unwrap(), Stage::LoggingIn);
    }
}
