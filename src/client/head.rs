//! A request's head and the response to it, on a client's socket: the one read before a deadline,
//! however slowly bytes drip in; the other sent whole to whoever takes it in time.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::transport::Socket;
use crate::http::{self, Head, HttpResponse, parse_head};

/// How long a client may take to receive a response.
pub(super) const RECEIVE_WITHIN: Duration = Duration::from_secs(10);
/// How long it may go on sending then: cutting it off at once would reset the connection, and the
/// response might be lost.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads a head from `socket` into `bytes`, to be complete before `deadline`. `None`: the client is
/// gone, and nobody is to be answered. `on_progress`: the transport has had an answer for the client.
pub(super) fn read_head<'b>(
    socket: &Socket,
    deadline: Instant,
    bytes: &'b mut Vec<u8>,
    on_progress: impl Fn(),
) -> http::Result<Option<Head<'b>>> {
    while let Ok(None) = parse_head(bytes) {
        let read = read_some(socket, bytes, &on_progress)?;
        if !is_open(&read) {
            return Ok(None);
        }
        let mut more = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
        let is_all = matches!(&read, Err(error) if error.kind() == ErrorKind::WouldBlock);
        if is_all && !wait_until(Some(deadline), &mut more) || Instant::now() >= deadline {
            let response = HttpResponse::timed_out("The request head did not come in time");
            return Err(response.fit(bytes));
        }
    }
    // Once more, now that the bytes stay as they are: it takes about a microsecond.
    parse_head(bytes)
}

/// One read that does not block, into `bytes` behind what they hold. Answers how much came; 0 is the end.
/// What came may be refused before it is a head.
pub(super) fn read_some(
    socket: &Socket,
    bytes: &mut Vec<u8>,
    on_progress: impl Fn(),
) -> http::Result<io::Result<usize>> {
    let mut chunk = [0; 1024];
    let read = socket.read(&mut chunk, false);
    if socket.has_output() {
        // Nobody else sends yet. What fails here, the next read finds.
        let _ = socket.send(&[], false);
        on_progress();
    }
    if let Err(error) = &read
        && error.kind() == ErrorKind::InvalidData
    {
        return Err(HttpResponse::bad_request(&error.to_string()).because("bad_preamble"));
    }
    Ok(read.inspect(|&length| bytes.extend(&chunk[..length])))
}

/// Sends `response`, reads what the client still sends for a moment, and ends the connection. A
/// client that does not take it by `deadline` is cut off.
pub(super) fn send(socket: &Socket, response: &HttpResponse, deadline: Instant) {
    let mut responder = Responder::new(socket, deadline);
    responder.unsent = response.bytes().into();
    while responder.goes_on(Instant::now()) {
        wait_until(Some(responder.deadline), &mut [responder.awaited()]);
    }
}

/// Waits until one of `sockets` is ready, and answers whether one is, or may be: a failed poll is news
/// that the next call explains. `None`: for ever.
pub(super) fn wait_until(deadline: Option<Instant>, sockets: &mut [PollFd<'_>]) -> bool {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    poll(sockets, left.as_ref()) != Ok(0)
}

/// Sends a response without blocking, and then reads for [`LINGER_TIMEOUT`] what the client still sends,
/// or until it closes its end.
pub(super) struct Responder {
    pub socket: Socket,
    /// When it is over, however far it is.
    pub deadline: Instant,
    /// Empty as long as there is no response.
    pub unsent: Bytes,
}

impl Responder {
    pub fn new(socket: &Socket, deadline: Instant) -> Self {
        Self {
            socket: Arc::clone(socket),
            deadline,
            unsent: Bytes::new(),
        }
    }

    /// What [`Self::goes_on`] waits for; as long as there is no response, for the request.
    pub fn awaited(&self) -> PollFd<'_> {
        let sent = self.unsent.is_empty();
        let flags = if sent { PollFlags::IN } else { PollFlags::OUT };
        PollFd::from_borrowed_fd(self.socket.as_fd(), flags)
    }

    /// Goes on as far as the socket lets it. False when it is over.
    pub fn goes_on(&mut self, now: Instant) -> bool {
        is_open(&self.advance(now)) && now < self.deadline
    }

    fn advance(&mut self, now: Instant) -> io::Result<usize> {
        while !self.unsent.is_empty() {
            let sent = match self.socket.send(&self.unsent, false) {
                // The transport has come to nothing: there is nobody to be told.
                Err(error) if error.kind() == ErrorKind::NotConnected => self.unsent.len(),
                sent => sent?,
            };
            self.unsent.advance(sent);
            if self.unsent.is_empty() {
                self.socket.shutdown(Shutdown::Write);
                self.deadline = now + LINGER_TIMEOUT;
            }
        }
        self.socket.read(&mut [0; 1024], false)
    }
}

/// Whether more is to come of a socket, after this read or send that did not block.
pub(super) fn is_open(outcome: &io::Result<usize>) -> bool {
    match outcome {
        Ok(bytes) => *bytes > 0,
        Err(error) => [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::{mem, thread};

    use parking_lot::Mutex;

    use super::super::transport::Transport;
    use super::*;

    fn pair() -> (TcpStream, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("an address"));
        let socket = listener.accept().expect("it").0;
        (client.expect("a client"), Arc::new(socket))
    }

    /// More than the system's buffers hold.
    fn large() -> HttpResponse {
        HttpResponse::page(200, "text/plain", vec![b'x'; 64 << 20])
    }

    #[test]
    fn a_client_that_reads_gets_a_page_of_any_size_whole() {
        let (mut client, socket) = pair();
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).map(|_| bytes)
        });
        send(&socket, &large(), Instant::now() + RECEIVE_WITHIN);
        drop(socket);
        let bytes = reader.join().unwrap().expect("no reset");
        assert_eq!(bytes, large().bytes());
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_off_in_time() {
        let (_client, socket) = pair();
        let start = Instant::now();
        let patience = Duration::from_millis(200);
        send(&socket, &large(), start + patience);
        let took = start.elapsed();
        assert!(took >= patience && took < patience * 10, "{took:?}");
    }

    /// Also one that takes a little now and then.
    #[test]
    fn a_client_that_dawdles_is_cut_off_in_time() {
        let (mut client, socket) = pair();
        let reader = thread::spawn(move || {
            let mut bytes = [0; 64 << 10];
            while let Ok(1..) = Read::read(&mut client, &mut bytes) {
                // The pace of a slow reader, not a wait for anything.
                thread::sleep(Duration::from_millis(5));
            }
        });
        let start = Instant::now();
        send(&socket, &large(), start + Duration::from_millis(300));
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "{:?}",
            start.elapsed()
        );
        drop(socket);
        reader.join().unwrap();
    }

    /// Greets whoever has sent it a byte, as TLS would, and only then hands on what is sent.
    struct Greeter {
        socket: TcpStream,
        met: AtomicBool,
        owes: AtomicBool,
    }

    impl AsFd for Greeter {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.socket.as_fd()
        }
    }

    impl Transport for Greeter {
        fn read(&self, into: &mut [u8], may_block: bool) -> io::Result<usize> {
            if self.met.load(SeqCst) {
                return self.socket.read(into, may_block);
            }
            self.socket.read(&mut [0], may_block)?;
            self.met.store(true, SeqCst);
            self.owes.store(true, SeqCst);
            Err(ErrorKind::Interrupted.into())
        }
        fn send(&self, bytes: &[u8], may_block: bool) -> io::Result<usize> {
            if self.owes.swap(false, SeqCst) {
                self.socket.send(b"hello", true)?;
            }
            self.socket.send(bytes, may_block)
        }
        fn has_output(&self) -> bool {
            self.owes.load(SeqCst)
        }
        fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
            self.socket.set_write_timeout(timeout)
        }
        fn shutdown(&self, how: Shutdown) {
            Transport::shutdown(&self.socket, how);
        }
    }

    #[test]
    fn what_a_transport_has_to_say_itself_is_said_before_the_head() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut client = TcpStream::connect(listener.local_addr().expect("it")).expect("a client");
        let socket: Socket = Arc::new(Greeter {
            socket: listener.accept().expect("it").0,
            met: AtomicBool::new(false),
            owes: AtomicBool::new(false),
        });
        let client = thread::spawn(move || {
            client.write_all(b"?").unwrap();
            client.read_exact(&mut [0; 5]).unwrap();
            client
                .write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
                .unwrap();
        });
        let mut bytes = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        let head = read_head(&socket, deadline, &mut bytes, || {}).expect("no error");
        assert_eq!(head.expect("a head").path, "/a");
        client.join().unwrap();
    }

    /// Takes all that came, and hands it on with the next read.
    struct Keeper {
        socket: TcpStream,
        kept: Mutex<Vec<u8>>,
    }

    impl AsFd for Keeper {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.socket.as_fd()
        }
    }

    impl Transport for Keeper {
        fn read(&self, into: &mut [u8], may_block: bool) -> io::Result<usize> {
            let kept = mem::take(&mut *self.kept.lock());
            if !kept.is_empty() {
                into[..kept.len()].copy_from_slice(&kept);
                return Ok(kept.len());
            }
            let read = self.socket.read(into, may_block)?;
            self.kept.lock().extend(&into[..read]);
            Err(ErrorKind::Interrupted.into())
        }
        fn send(&self, bytes: &[u8], may_block: bool) -> io::Result<usize> {
            self.socket.send(bytes, may_block)
        }
        fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
            self.socket.set_write_timeout(timeout)
        }
        fn shutdown(&self, how: Shutdown) {
            Transport::shutdown(&self.socket, how);
        }
    }

    #[test]
    fn what_a_transport_keeps_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut client = TcpStream::connect(listener.local_addr().expect("it")).expect("a client");
        let socket: Socket = Arc::new(Keeper {
            socket: listener.accept().expect("it").0,
            kept: Mutex::default(),
        });
        let sent = client.write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
        sent.unwrap();
        let mut bytes = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(5);
        let head = read_head(&socket, deadline, &mut bytes, || {}).expect("no error");
        assert_eq!(head.expect("a head").path, "/a");
    }
}
