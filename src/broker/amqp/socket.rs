//! The TCP socket under an AMQP connection, in the form that amiquip polls: without Nagle's delay,
//! to be cut from any thread, and on guard against a broker that offers no heartbeats and against
//! frames that amiquip cannot parse.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mio::net::TcpStream;
use mio::{Evented, Poll, PollOpt, Ready, Token};

use super::open::Stage;
use super::sanitize::Frames;

/// The reading and writing end, owned by amiquip's I/O thread.
pub struct Socket {
    stream: TcpStream,
    frames: Frames,
    tuned: bool,
    stage: Arc<Stage>,
}

/// Ends a connection at once, whatever its peer does: the I/O thread reads its end, and every call
/// that waits for the broker fails.
#[derive(Debug)]
pub struct Cutter(TcpStream);

impl Cutter {
    pub fn cut(&self) {
        // An error says that the socket has ended already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Socket {
    /// Begins to connect to `address`; `stage` tells how far it has come.
    pub fn connect(address: &SocketAddr, stage: &Arc<Stage>) -> io::Result<(Self, Cutter)> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let cutter = Cutter(stream.try_clone()?);
        let socket = Self {
            stream,
            frames: Frames::default(),
            tuned: false,
            stage: Arc::clone(stage),
        };
        Ok((socket, cutter))
    }
}

/// What the client's side of the AMQP handshake says (AMQP 0-9-1, sections 1.4 and 2.3.5).
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// `connection.start-ok`: user and password.
    Login,
    /// `connection.tune-ok`: what both agree to; the heartbeat is in seconds.
    Tuned { heartbeat: u16 },
}

/// Reads the start of a frame: a method frame on channel 0, its size; the class and the method.
fn said(frame: &[u8]) -> Option<Said> {
    match frame {
        [1, 0, 0, _, _, _, _, 0, 10, 0, 11, ..] => Some(Said::Login),
        // The largest channel and frame, and then the heartbeat.
        &[
            1,
            0,
            0,
            _,
            _,
            _,
            _,
            0,
            10,
            0,
            31,
            _,
            _,
            _,
            _,
            _,
            _,
            high,
            low,
            ..,
        ] => Some(Said::Tuned {
            heartbeat: u16::from_be_bytes([high, low]),
        }),
        _ => None,
    }
}

impl Write for Socket {
    /// Refuses to agree to no heartbeat at all: amiquip would, and then a broker that stalls or a
    /// cable that is pulled would never be noticed. The handshake goes in lockstep, so each of its
    /// frames is the first thing in its write.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.tuned
            && let Some(said) = said(bytes)
        {
            if said == (Said::Tuned { heartbeat: 0 }) {
                return Err(io::Error::other("the broker has heartbeats switched off"));
            }
            self.tuned = said != Said::Login;
            self.stage.at_login.store(!self.tuned, Ordering::SeqCst);
        }
        let written = self.stream.write(bytes)?;
        self.stage.connected.store(true, Ordering::SeqCst);
        Ok(written)
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
        Evented::deregister(&self.stream, poll)
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
        assert_eq!(said(&frame), Some(Said::Tuned { heartbeat: 10 }));
        frame[18] = 0;
        assert_eq!(said(&frame), Some(Said::Tuned { heartbeat: 0 }));
        assert_eq!(said(b"AMQP\0\0\x09\x01"), None);
        assert_eq!(said(&frame[..12]), None);
        frame[10] = 11;
        assert_eq!(said(&frame), Some(Said::Login));
    }
}
