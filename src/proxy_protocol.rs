//! The PROXY protocol: a proxy that passes bytes on, and so cannot add a header field, says at the
//! connection's beginning who its client is. An edge: a [`Transport`] around the socket of a proxy that
//! is trusted, which takes the [`header`] off before anybody else reads.

pub mod header;

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;

use crate::client::address::Peer;
use crate::client::transport::{Opener, Socket, Transport};
use crate::config::Listen;
use crate::logging::log_limited;
use header::{Broken, parse};

/// What one read of the socket takes at most, while the header is awaited.
const CHUNK: usize = 1 << 10;

/// Expects a header on the sockets of `inner` that come from `listen.trusted_proxies`, if
/// `listen.proxy_protocol` says so. From everybody else none is expected, and none believed.
pub fn opener(inner: Opener, listen: &Listen) -> Opener {
    if !listen.proxy_protocol {
        return inner;
    }
    let trusted = listen.trusted_proxies.clone();
    Box::new(move |socket, peer| {
        let socket = inner(socket, peer);
        if peer.is_among(&trusted) {
            Arc::new(Proxied::new(socket, peer))
        } else {
            socket
        }
    })
}

/// A socket on which a header comes first.
struct Proxied {
    socket: Socket,
    /// The proxy.
    peer: Peer,
    client: OnceLock<IpAddr>,
    received: Mutex<Received>,
    /// Nothing is kept here any more: reads are the socket's own.
    is_past: AtomicBool,
}

/// What was read of the socket and not handed on.
struct Received {
    stage: Stage,
    bytes: BytesMut,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// They are what has come of the header.
    Awaited,
    /// They came behind it.
    Whole,
    /// There was none: nothing is handed on.
    Broken,
}

impl Proxied {
    fn new(socket: Socket, peer: Peer) -> Self {
        Self {
            socket,
            peer,
            client: OnceLock::new(),
            received: Mutex::new(Received {
                stage: Stage::Awaited,
                bytes: BytesMut::new(),
            }),
            is_past: AtomicBool::new(false),
        }
    }

    /// What came behind the header into `into`. Nothing has: read again.
    fn hand_on(&self, received: &mut Received, into: &mut [u8]) -> io::Result<usize> {
        let length = received.bytes.len().min(into.len());
        into[..length].copy_from_slice(&received.bytes.split_to(length));
        if received.bytes.is_empty() {
            received.bytes = BytesMut::new();
            self.is_past.store(true, Ordering::Release);
        }
        if length == 0 {
            Err(ErrorKind::Interrupted.into())
        } else {
            Ok(length)
        }
    }

    /// Takes what was read, and hands on what is behind the header, once that is whole.
    fn receive(&self, chunk: &[u8], into: &mut [u8]) -> io::Result<usize> {
        let mut received = self.received.lock();
        if received.stage == Stage::Broken {
            return Err(ErrorKind::Interrupted.into());
        }
        received.bytes.extend_from_slice(chunk);
        match parse(&received.bytes) {
            Ok(None) => Err(ErrorKind::Interrupted.into()),
            Ok(Some(header)) => {
                received.stage = Stage::Whole;
                drop(received.bytes.split_to(header.length));
                header.client.map(|client| self.client.set(client));
                self.hand_on(&mut received, into)
            }
            Err(broken) => {
                received.stage = Stage::Broken;
                received.bytes = BytesMut::new();
                drop(received);
                Err(self.refuse(broken))
            }
        }
    }

    fn refuse(&self, broken: Broken) -> io::Error {
        let proxy = self.peer.address();
        log_limited!(
            warn,
            "PROXY header not understood: peer={proxy}, error={broken}; \
             have the proxy send one, or take it out of listen.trusted_proxies"
        );
        let message = format!("A proxy has to send a PROXY header first: {broken}");
        io::Error::new(ErrorKind::InvalidData, message)
    }
}

impl AsFd for Proxied {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Transport for Proxied {
    fn read(&self, into: &mut [u8], may_block: bool) -> io::Result<usize> {
        if self.is_past.load(Ordering::Acquire) {
            return self.socket.read(into, may_block);
        }
        let mut received = self.received.lock();
        if received.stage == Stage::Whole {
            return self.hand_on(&mut received, into);
        }
        // Nobody else reads meanwhile.
        drop(received);
        let mut chunk = [0; CHUNK];
        match self.socket.read(&mut chunk, may_block)? {
            0 => Ok(0),
            length => self.receive(&chunk[..length], into),
        }
    }

    fn send(&self, bytes: &[u8], may_block: bool) -> io::Result<usize> {
        self.socket.send(bytes, may_block)
    }

    fn has_output(&self) -> bool {
        self.socket.has_output()
    }

    fn begun(&self) -> usize {
        self.socket.begun()
    }

    fn client(&self) -> Option<Peer> {
        let named = self.client.get().copied().map(Peer::ProxyProtocol);
        named.or_else(|| self.socket.client())
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_write_timeout(timeout)
    }

    fn shutdown(&self, how: Shutdown) {
        self.socket.shutdown(how);
    }

    fn in_flight(&self) -> u64 {
        self.socket.in_flight()
    }

    fn has_bytes(&self) -> bool {
        let keeps_some = || {
            let received = self.received.lock();
            received.stage == Stage::Whole && !received.bytes.is_empty()
        };
        !self.is_past.load(Ordering::Acquire) && keeps_some() || self.socket.has_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::fs::File;

    use super::*;

    /// A socket on which each read brings one of these, and in between nothing; then the end.
    struct Script {
        file: File,
        reads: Mutex<VecDeque<Vec<u8>>>,
        is_next: AtomicBool,
        count: Mutex<usize>,
    }

    impl AsFd for Script {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.file.as_fd()
        }
    }

    impl Transport for Script {
        fn read(&self, into: &mut [u8], _may_block: bool) -> io::Result<usize> {
            *self.count.lock() += 1;
            if !self.is_next.fetch_not(Ordering::SeqCst) {
                return Err(ErrorKind::WouldBlock.into());
            }
            let mut reads = self.reads.lock();
            let Some(mut bytes) = reads.pop_front() else {
                return Ok(0);
            };
            let rest = bytes.split_off(bytes.len().min(into.len()));
            if !rest.is_empty() {
                reads.push_front(rest);
            }
            into[..bytes.len()].copy_from_slice(&bytes);
            Ok(bytes.len())
        }
        fn send(&self, bytes: &[u8], _may_block: bool) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn set_write_timeout(&self, _timeout: Option<Duration>) -> io::Result<()> {
            Ok(())
        }
        fn shutdown(&self, _how: Shutdown) {}
    }

    fn proxied(reads: &[&[u8]]) -> (Arc<Script>, Proxied) {
        let script = Arc::new(Script {
            file: File::open("/dev/null").expect("a file"),
            reads: Mutex::new(reads.iter().map(|bytes| bytes.to_vec()).collect()),
            is_next: AtomicBool::new(true),
            count: Mutex::new(0),
        });
        let proxy = Peer::Socket([10, 0, 0, 1].into());
        (Arc::clone(&script), Proxied::new(script, proxy))
    }

    /// All that comes, read so many bytes at a time; and the errors that were more than "read again".
    fn read_all(reads: &[&[u8]], size: usize) -> (Vec<u8>, Vec<io::Error>, Option<Peer>) {
        let (script, proxied) = proxied(reads);
        let (mut all, mut errors, mut into) = (Vec::new(), Vec::new(), vec![0; size]);
        loop {
            let before = *script.count.lock();
            let keeps = proxied.has_bytes();
            let read = proxied.read(&mut into, false);
            let count = *script.count.lock() - before;
            assert!(count <= 1, "{count} reads of the socket");
            assert_eq!(keeps, count == 0, "what is kept is no longer in the socket");
            match read {
                Ok(0) => return (all, errors, proxied.client()),
                Ok(length) => all.extend(&into[..length]),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted | ErrorKind::WouldBlock => {}
                    _ => errors.push(error),
                },
            }
        }
    }

    const LINE: &[u8] = b"PROXY TCP4 203.0.113.7 10.0.0.1 5678 443\r\n";
    const REQUEST: &[u8] = b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n";

    #[test]
    fn wherever_reads_part_the_header_is_taken_off_and_the_rest_is_whole() {
        let binary =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0e\xcb\0\x71\x07\x0a\0\0\x01\x12\x34\x01\xbb\x04\0";
        let client = Some(Peer::ProxyProtocol([203, 0, 113, 7].into()));
        for header in [LINE, binary] {
            let all = [header, REQUEST].concat();
            for first in 0..all.len() {
                for size in [1, 7, 1024] {
                    let (one, other) = all.split_at(first);
                    let reads = [one, other];
                    let reads = if first == 0 { &reads[1..] } else { &reads };
                    let (read, errors, named) = read_all(reads, size);
                    assert_eq!(read, REQUEST, "{first}, {size}");
                    assert!(errors.is_empty());
                    assert_eq!(named, client);
                }
            }
            let bytes: Vec<&[u8]> = all.chunks(1).collect();
            assert_eq!(read_all(&bytes, 1024).0, REQUEST);
        }
        let large = [
            b"\r\n\r\n\0\r\nQUIT\n\x20\0\x0f\xf0",
            &[0; 0xff0][..],
            REQUEST,
        ]
        .concat();
        let (read, errors, named) = read_all(&[&large], 1024);
        assert_eq!((&read[..], errors.len(), named), (REQUEST, 0, None));
    }

    #[test]
    fn a_proxys_own_connection_has_its_own_address() {
        for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
            let (read, errors, named) = read_all(&[header, REQUEST], 1024);
            assert_eq!((&read[..], errors.len(), named), (REQUEST, 0, None));
        }
    }

    #[test]
    fn without_a_header_nothing_is_handed_on_and_the_error_comes_once() {
        let broken = [b"PROXY TCP4 1.2.3.4\r\n", REQUEST].concat();
        for bytes in [REQUEST, &broken] {
            let (read, errors, named) = read_all(&[bytes, LINE, REQUEST], 1024);
            assert_eq!((&read[..], named), (&b""[..], None));
            let [error] = &errors[..] else {
                panic!("{errors:?}");
            };
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            assert!(error.to_string().contains("PROXY header"), "{error}");
        }
    }

    #[test]
    fn a_header_that_ends_early_is_the_end() {
        for end in 0..LINE.len() {
            let reads = [&LINE[..end]];
            let (read, errors, named) = read_all(if end == 0 { &[] } else { &reads }, 1024);
            assert_eq!((read.len(), errors.len(), named), (0, 0, None), "{end}");
        }
    }

    #[test]
    fn a_header_is_expected_from_trusted_proxies_alone() {
        use crate::client::transport::plain;
        use std::net::{TcpListener, TcpStream};

        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let accepted = |open: &Opener, from: [u8; 4]| {
            let mut client = TcpStream::connect(listener.local_addr().expect("it")).expect("it");
            io::Write::write_all(&mut client, LINE).expect("sent");
            let socket = listener.accept().expect("a client").0;
            let socket = open(socket, Peer::Socket(from.into()));
            let read = socket.read(&mut [0; 1024], true);
            (read.map_err(|error| error.kind()), socket.client())
        };
        let text = "[listen]\ntrusted_proxies = [\"10.0.0.0/8\"]\nproxy_protocol = ";
        let opener = |value: &str| {
            let config = crate::config::load::parse("test", &format!("{text}{value}"), [], None);
            opener(plain(), &config.expect("valid").listen)
        };
        let client = Peer::ProxyProtocol([203, 0, 113, 7].into());
        let on = opener("true");
        assert_eq!(
            accepted(&on, [10, 1, 2, 3]),
            (Err(ErrorKind::Interrupted), Some(client))
        );
        assert_eq!(accepted(&on, [11, 1, 2, 3]), (Ok(LINE.len()), None));
        assert_eq!(
            accepted(&opener("false"), [10, 1, 2, 3]),
            (Ok(LINE.len()), None)
        );
    }
}
