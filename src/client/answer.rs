//! An HTTP answer that is no upgrade: an error of the protocol, or a page.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::head::{MAX_HEAD, MAX_HEADERS};
use super::protocol::error_json;
use crate::services::ErrorCode;

/// How long a client may take to receive an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a refused client may go on sending: cutting it off at once would reset the connection,
/// and the answer might be lost.
const LINGER: Duration = Duration::from_secs(1);

/// An answer that ends its connection.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    status: u16,
    refusal: bool,
    /// Further header fields, each with its line end.
    headers: String,
    /// What `Content-Length` says. A HEAD is told the length of a body that it does not get.
    length: usize,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16, refusal: bool, headers: String, body: Vec<u8>) -> Self {
        Self {
            status,
            refusal,
            headers,
            length: body.len(),
            body,
        }
    }

    /// An error, with the same JSON object as an error frame.
    pub fn error(status: u16, code: ErrorCode, message: &str) -> Self {
        let further = match status {
            401 => "WWW-Authenticate: Bearer\r\n",
            426 => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            429 | 503 => "Retry-After: 1\r\n",
            _ => "",
        };
        let headers = format!("Content-Type: application/json\r\n{further}");
        Self::new(status, true, headers, error_json(None, code, message))
    }

    pub fn bad_request(message: &str) -> Self {
        Self::error(400, ErrorCode::InvalidMessage, message)
    }

    /// `methods`, separated by commas, are the ones that this path knows.
    pub fn wrong_method(methods: &str) -> Self {
        let message = format!("Only {methods} is allowed here");
        let mut answer = Self::error(405, ErrorCode::InvalidMessage, &message);
        answer.allow(methods);
        answer
    }

    pub fn unavailable(message: &str) -> Self {
        Self::error(503, ErrorCode::ServiceUnavailable, message)
    }

    pub fn too_many(message: &str) -> Self {
        Self::error(429, ErrorCode::RateLimited, message)
    }

    pub fn too_large() -> Self {
        let message = format!("The head is over {MAX_HEAD} bytes or {MAX_HEADERS} header fields");
        Self::error(431, ErrorCode::InvalidMessage, &message)
    }

    /// A body that is no error, and that no one may keep.
    pub fn page(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers = format!("Content-Type: {content_type}\r\nCache-Control: no-store\r\n");
        Self::new(status, false, headers, body.into())
    }

    /// The answer to OPTIONS, where there is a page.
    pub fn options(status: u16, methods: &str) -> Self {
        let mut answer = Self::new(status, false, String::new(), Vec::new());
        answer.allow(methods);
        answer
    }

    fn allow(&mut self, methods: &str) {
        self.headers += &format!("Allow: {methods}\r\n");
    }

    /// The same for HEAD: all but the body (RFC 9110, section 9.3.2).
    pub fn without_body(mut self) -> Self {
        self.body.clear();
        self
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// Whether it turns a client away; a page does not, whatever its status.
    pub fn is_refusal(&self) -> bool {
        self.refusal
    }

    /// The whole answer as it goes out.
    pub fn bytes(&self) -> Vec<u8> {
        let Self {
            status,
            headers,
            length,
            body,
            ..
        } = self;
        let mut bytes = format!(
            "HTTP/1.1 {status} {}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n",
            reason_phrase(*status),
        )
        .into_bytes();
        bytes.extend(body);
        bytes
    }

    /// Sends the answer, reads what the client still sends for a moment, and ends the connection.
    /// A client that does not take it within [`PATIENCE`] is cut off.
    pub fn send(&self, socket: &TcpStream) {
        self.send_before(socket, Instant::now() + PATIENCE);
    }

    fn send_before(&self, socket: &TcpStream, deadline: Instant) {
        // Whoever is gone, or takes nothing, needs no more of it.
        if write_before(socket, &self.bytes(), deadline).is_err() {
            return;
        }
        let _ = socket.shutdown(Shutdown::Write);
        let deadline = Instant::now() + LINGER;
        let mut bytes = [0; 1024];
        while let Ok(1..) = read_before(socket, &mut bytes, deadline) {}
    }
}

fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        _ => "Service Unavailable",
    }
}

/// One read that ends at `deadline` at the latest, with a timeout error.
pub(super) fn read_before(
    mut socket: &TcpStream,
    into: &mut [u8],
    deadline: Instant,
) -> io::Result<usize> {
    loop {
        socket.set_read_timeout(Some(time_left(deadline)?))?;
        match socket.read(into) {
            // A wait with a timeout ends so when the process is stopped and goes on (signal(7)).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Writes all of `bytes` by `deadline`, or fails.
fn write_before(mut socket: &TcpStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        // A timeout holds for one call, and a call that wrote something begins another.
        socket.set_write_timeout(Some(time_left(deadline)?))?;
        match socket.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("an address"));
        (client.expect("a client"), listener.accept().expect("it").0)
    }

    /// More than the system's buffers hold.
    fn large() -> Answer {
        Answer::page(200, "text/plain", vec![b'x'; 64 << 20])
    }

    #[test]
    fn a_client_that_reads_gets_a_page_of_any_size_whole() {
        let (mut client, socket) = pair();
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).map(|_| bytes)
        });
        large().send(&socket);
        drop(socket);
        let bytes = reader.join().unwrap().expect("no reset");
        assert_eq!(bytes, large().bytes());
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_off_in_time() {
        let (_client, socket) = pair();
        let start = Instant::now();
        let patience = Duration::from_millis(200);
        large().send_before(&socket, start + patience);
        let took = start.elapsed();
        assert!(took >= patience && took < patience * 10, "{took:?}");
    }

    /// Also one that takes a little now and then.
    #[test]
    fn a_client_that_dawdles_is_cut_off_in_time() {
        let (mut client, socket) = pair();
        let reader = thread::spawn(move || {
            let mut bytes = [0; 64 << 10];
            while let Ok(1..) = client.read(&mut bytes) {
                // The pace of a slow reader, not a wait for anything.
                thread::sleep(Duration::from_millis(5));
            }
        });
        let start = Instant::now();
        large().send_before(&socket, start + Duration::from_millis(300));
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "{:?}",
            start.elapsed()
        );
        drop(socket);
        reader.join().unwrap();
    }

    #[test]
    fn head_and_options_bring_no_body() {
        let text = |answer: Answer| String::from_utf8(answer.bytes()).unwrap();
        let page = Answer::page(200, "text/plain", "hello");
        assert!(text(page.clone()).ends_with("\r\n\r\nhello"));
        let head = text(page.without_body());
        assert!(head.ends_with("\r\n\r\n"), "{head}");
        assert!(head.contains("Content-Length: 5\r\n"), "{head}");
        let options = text(Answer::options(503, "GET, HEAD"));
        assert!(options.contains("Content-Length: 0\r\n"), "{options}");
        assert!(options.contains("Allow: GET, HEAD\r\n"), "{options}");
        let error = Answer::wrong_method("GET");
        let length = error.body.len();
        assert!(length > 0);
        let head = text(error.without_body());
        assert!(
            head.contains(&format!("Content-Length: {length}\r\n")),
            "{head}"
        );
        assert!(head.contains("Allow: GET\r\n"), "{head}");
    }
}
