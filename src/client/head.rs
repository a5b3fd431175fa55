//! The HTTP request head: read with limits and one deadline for the whole of it, however slowly
//! bytes drip in; and the answers that are no upgrade.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::protocol::error_json;
use crate::services::ErrorCode;

/// The longest head, in bytes.
pub(super) const MAX_HEAD: usize = 8 << 10;
/// The most header fields.
const MAX_HEADERS: usize = 64;
/// How long a refused client may go on sending: cutting it off at once would reset the connection,
/// and the answer might be lost.
const LINGER: Duration = Duration::from_secs(1);

/// A request head (RFC 9112, section 3), as it stands in the bytes that it was read from.
#[derive(Debug)]
pub(super) struct Head<'b> {
    pub method: &'b str,
    pub path: &'b str,
    /// What follows the `?`, empty when nothing does.
    pub query: &'b str,
    headers: Vec<(&'b str, &'b str)>,
    /// What the client sent right behind the head.
    pub early: &'b [u8],
}

impl<'b> Head<'b> {
    /// The value of a header field; several fields of one name are joined by commas.
    pub fn header(&self, name: &str) -> Option<Cow<'b, str>> {
        let mut values = self
            .headers
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| *value);
        let first = Cow::Borrowed(values.next()?);
        Some(values.fold(first, |all, value| Cow::Owned(format!("{all}, {value}"))))
    }

    /// Whether a comma-separated header field lists `token`, in any case.
    pub fn lists(&self, name: &str, token: &str) -> bool {
        let value = self.header(name).unwrap_or_default();
        value
            .split(',')
            .any(|item| item.trim().eq_ignore_ascii_case(token))
    }
}

/// Why there is no head.
#[derive(Debug)]
pub(super) enum HeadError {
    /// The client is gone: nobody is to be answered.
    Gone,
    /// Answer this.
    Answer(Answer),
}

/// An HTTP answer that is no upgrade: an error of section 4, or a plain page.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    status: u16,
    refusal: bool,
    content_type: &'static str,
    /// Further header fields, each with its line end.
    headers: String,
    body: Vec<u8>,
}

impl Answer {
    /// An error, with the same JSON object as an error frame.
    pub fn error(status: u16, code: ErrorCode, message: &str) -> Self {
        let headers = match status {
            401 => "WWW-Authenticate: Bearer\r\n",
            405 => "Allow: GET\r\n",
            426 => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            429 | 503 => "Retry-After: 1\r\n",
            _ => "",
        };
        Self {
            status,
            refusal: true,
            content_type: "application/json",
            headers: headers.into(),
            body: error_json(None, code, message),
        }
    }

    pub fn bad_request(message: &str) -> Self {
        Self::error(400, ErrorCode::InvalidMessage, message)
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
    pub fn page(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        let headers = "Cache-Control: no-store\r\n".into();
        Self {
            status,
            refusal: false,
            content_type,
            headers,
            body: body.into(),
        }
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// Whether it turns a client away; a page does not, whatever its status.
    pub fn is_refusal(&self) -> bool {
        self.refusal
    }

    /// The whole answer, for one write.
    pub fn bytes(&self) -> Vec<u8> {
        let Self {
            status,
            content_type,
            headers,
            body,
            ..
        } = self;
        let mut bytes = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
             Connection: close\r\n{headers}\r\n",
            reason_phrase(*status),
            body.len()
        )
        .into_bytes();
        bytes.extend(body);
        bytes
    }

    /// Sends the answer, reads what the client still sends for a moment, and ends the connection.
    pub fn send(&self, mut socket: &TcpStream) {
        // Whoever is gone needs no answer, so errors end this early and are no matter.
        let _ = socket.write_all(&self.bytes());
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

/// Reads a head from `socket` into `bytes`, to be complete before `deadline`.
pub(super) fn read_head<'b>(
    socket: &TcpStream,
    deadline: Instant,
    bytes: &'b mut Vec<u8>,
) -> Result<Head<'b>, HeadError> {
    while parse_head(bytes).map_err(HeadError::Answer)?.is_none() {
        let mut chunk = [0; 1024];
        match read_before(socket, &mut chunk, deadline) {
            Ok(0) => return Err(HeadError::Gone),
            Ok(read) => bytes.extend(&chunk[..read]),
            Err(error) if is_timeout(&error) => {
                let message = "The request head did not come in time";
                return Err(HeadError::Answer(Answer::error(
                    408,
                    ErrorCode::DeadlineExceeded,
                    message,
                )));
            }
            Err(_) => return Err(HeadError::Gone),
        }
    }
    // Once more, now that the bytes stay as they are: it takes about a microsecond.
    let head = parse_head(bytes).map_err(HeadError::Answer)?;
    head.ok_or(HeadError::Gone)
}

/// One read that ends at `deadline` at the latest, with a timeout error.
fn read_before(mut socket: &TcpStream, into: &mut [u8], deadline: Instant) -> io::Result<usize> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    socket.set_read_timeout(Some(left))?;
    socket.read(into)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// The head in `bytes`, or `None` while it is not complete.
pub(super) fn parse_head(bytes: &[u8]) -> Result<Option<Head<'_>>, Answer> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length > MAX_HEAD => {
            return Err(Answer::too_large());
        }
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() > MAX_HEAD => return Err(Answer::too_large()),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Answer::too_large()),
        Err(error) => {
            return Err(Answer::bad_request(&format!(
                "Not an HTTP request: {error}"
            )));
        }
    };
    if request.version != Some(1) {
        return Err(Answer::bad_request("HTTP/1.1 is required"));
    }
    let target = request.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = Vec::with_capacity(MAX_HEADERS);
    for field in request.headers.iter() {
        let value = std::str::from_utf8(field.value)
            .map_err(|_| Answer::bad_request(&format!("{}: not UTF-8", field.name)))?;
        headers.push((field.name, value.trim()));
    }
    Ok(Some(Head {
        method: request.method.unwrap_or_default(),
        path,
        query,
        headers,
        early: &bytes[length..],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(head: &str) -> u16 {
        parse_head(head.as_bytes()).expect_err("refused").status()
    }

    #[test]
    fn a_head_is_parsed_once_it_is_complete() {
        let text = "GET /ws?token=a HTTP/1.1\r\nHost: x\r\nconnection: keep-alive\r\nConnection: Upgrade\r\n\r\nmore";
        for end in 0..text.len() - 4 {
            assert!(
                parse_head(&text.as_bytes()[..end])
                    .expect("no error")
                    .is_none(),
                "{end}"
            );
        }
        let head = parse_head(text.as_bytes())
            .expect("no error")
            .expect("complete");
        assert_eq!((head.path, head.query), ("/ws", "token=a"));
        assert!(head.lists("Connection", "upgrade"));
        assert_eq!(head.early, b"more");
    }

    #[test]
    fn limits_are_8_kib_and_64_header_fields() {
        let fields = |count: usize| "a: b\r\n".repeat(count);
        assert_eq!(
            status(&format!("GET / HTTP/1.1\r\n{}\r\n", fields(65))),
            431
        );
        assert!(parse_head(format!("GET / HTTP/1.1\r\n{}\r\n", fields(64)).as_bytes()).is_ok());
        assert_eq!(
            status(&format!("GET / HTTP/1.1\r\na: {}", "x".repeat(MAX_HEAD))),
            431
        );
    }

    #[test]
    fn what_is_no_http_1_1_is_a_bad_request() {
        for head in [
            "GET / HTTP/1.0\r\n\r\n",
            "\u{16}\u{3}\u{1}",
            "GET  /\r\n\r\n",
            "G\u{0}T / HTTP/1.1\r\n",
        ] {
            assert_eq!(status(head), 400, "{head:?}");
        }
    }
}
