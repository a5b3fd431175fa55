//! The TCP socket under an AMQP connection, in the form that amiquip polls: without Nagle's delay,
//! to be cut from any thread, and on guard against a broker that offers no heartbeats.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::time::Instant;

use mio::{Evented, Poll, PollOpt, Ready, Token};

/// The reading and writing end, owned by amiquip's I/O thread.
pub struct Socket {
    stream: mio::net::TcpStream,
    tuned: bool,
}

/// Ends a [`Socket`] at once, whatever its peer does: the I/O thread reads its end, and every call
/// that waits for the broker fails.
#[derive(Debug)]
pub struct Cutter(TcpStream);

impl Cutter {
    pub fn cut(&self) {
        // An error says that the socket has ended already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Connects to the first address of `host:port` that accepts, by `deadline`.
pub fn connect(address: &str, deadline: Instant) -> io::Result<(Socket, Cutter)> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                let cutter = Cutter(stream.try_clone()?);
                let stream = mio::net::TcpStream::from_stream(stream)?;
                return Ok((
                    Socket {
                        stream,
                        tuned: false,
                    },
                    cutter,
                ));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The heartbeat, in seconds, that the start of a `connection.tune-ok` frame agrees to (AMQP
/// 0-9-1, sections 2.3.5 and 1.4.2.6).
fn agreed_heartbeat(frame: &[u8]) -> Option<u16> {
    match frame {
        // A method frame on channel 0, its size; class connection, method tune-ok; the largest
        // channel and frame, and then the heartbeat.
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
        ] => Some(u16::from_be_bytes([high, low])),
        _ => None,
    }
}

impl Write for Socket {
    /// Refuses to agree to no heartbeat at all: amiquip would, and then a broker that stalls or a
    /// cable that is pulled would never be noticed. The handshake goes in lockstep, so a tune-ok
    /// is always the first thing in its write.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.tuned
            && let Some(heartbeat) = agreed_heartbeat(bytes)
        {
            if heartbeat == 0 {
                return Err(io::Error::other("the broker has heartbeats switched off"));
            }
            self.tuned = true;
        }
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.read(into)
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
    fn the_heartbeat_is_read_from_a_tune_ok_alone() {
        let mut frame = vec![
            1, 0, 0, 0, 0, 0, 12, 0, 10, 0, 31, 7, 255, 0, 2, 0, 0, 0, 10, 0xCE,
        ];
        assert_eq!(agreed_heartbeat(&frame), Some(10));
        frame[18] = 0;
        assert_eq!(agreed_heartbeat(&frame), Some(0));
        assert_eq!(agreed_heartbeat(b"AMQP\0\0\x09\x01"), None);
        assert_eq!(agreed_heartbeat(&frame[..12]), None);
    }
}
