//! A raw TCP socket: HTTP heads and WebSocket frames byte by byte, also such as no client library
//! would send.

use std::io::ErrorKind::{Interrupted, WouldBlock};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use serde_json::Value;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

use super::DEADLINE;
use super::asyncapi::{Exchange, check_http_error};
use super::stream::Stream;

pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xA;
/// The bit of a frame's first byte that says: the message ends here.
pub const FIN: u8 = 0x80;

/// The key and its answer of RFC 6455, section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// More than any test has a gateway take, in bytes.
const LONGEST: usize = 16 << 20;

/// One connection.
pub struct Raw {
    stream: Stream,
    /// Read and not yet consumed.
    buffer: Vec<u8>,
    /// From the upgrade on: holds what comes against `proto/client.asyncapi.yaml`.
    exchange: Option<Exchange>,
    /// Reads what is sent, as the gateway does, for as long as it is well-formed.
    sent: Option<WebSocket<Sent>>,
    /// Others may send, too.
    is_shared: AtomicBool,
}

/// What a [`Raw`] has sent and its reader has not read yet.
struct Sent(Vec<u8>);

impl Read for Sent {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = into.len().min(self.0.len());
        if length == 0 {
            return Err(WouldBlock.into());
        }
        into[..length].copy_from_slice(&self.0[..length]);
        self.0.drain(..length);
        Ok(length)
    }
}

impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

/// A WebSocket frame from the gateway.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub fin: bool,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Raw {
    pub fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&addr, DEADLINE)
            .unwrap_or_else(|error| panic!("{addr} is not reached: {error}"));
        Self::over(stream)
    }

    /// From this address of the loopback.
    pub fn connect_from(from: IpAddr, to: SocketAddr) -> Self {
        // Not to be inherited by the processes that other tests start meanwhile.
        let flags = SocketFlags::CLOEXEC;
        let family = if from.is_ipv6() {
            AddressFamily::INET6
        } else {
            AddressFamily::INET
        };
        let socket = socket_with(family, SocketType::STREAM, flags, None).expect("a socket");
        rustix::net::bind(&socket, &SocketAddr::new(from, 0)).expect("of the loopback");
        rustix::net::connect(&socket, &to).expect("the gateway listens");
        Self::over(TcpStream::from(socket))
    }

    /// Over a socket that is connected.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a socket option");
        stream
            .set_write_timeout(Some(DEADLINE))
            .expect("a socket option");
        Self {
            stream: Stream::over(stream),
            buffer: Vec::new(),
            exchange: None,
            sent: None,
            is_shared: AtomicBool::new(false),
        }
    }

    /// What it speaks is another protocol than the gateway's.
    pub fn unchecked(mut self) -> Self {
        self.exchange = None;
        self
    }

    fn upgraded(&mut self) {
        // What is announced is reserved.
        let config = WebSocketConfig::default()
            .max_message_size(Some(LONGEST))
            .max_frame_size(Some(LONGEST));
        let reader = WebSocket::from_raw_socket(Sent(Vec::new()), Role::Server, Some(config));
        let peer = self.stream.peer_addr();
        let exchange = peer.map_or_else(|_| Exchange::default(), Exchange::with);
        (self.exchange, self.sent) = (Some(exchange), Some(reader));
    }

    /// Notes the messages in what is sent.
    fn note_sent(&mut self, bytes: &[u8]) {
        let (Some(exchange), Some(reader)) = (&mut self.exchange, &mut self.sent) else {
            return;
        };
        reader.get_mut().0.extend(bytes);
        loop {
            match reader.read() {
                Ok(Message::Text(text)) => exchange.sent(&text),
                Ok(Message::Close(close)) => {
                    exchange.sent_close(close.map(|close| close.code.into()));
                }
                Ok(Message::Binary(_)) => break,
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
                Err(tungstenite::Error::Io(error)) if error.kind() == WouldBlock => return,
                Err(_) => break,
            }
        }
        // The gateway ends the connection, and reads on until then.
        self.sent = None;
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the gateway reads");
    }

    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.note_sent(bytes.as_ref());
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends a GET with these headers besides Host, and returns the answer.
    pub fn get_with(&mut self, path: &str, headers: &[(&str, &str)]) -> Response {
        self.send(head("GET", path, headers));
        self.response()
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.get_with(path, &[])
    }

    /// Sends a complete upgrade with this token, and returns the answer.
    pub fn try_upgrade(&mut self, path: &str, token: &str) -> Response {
        let bearer = format!("Bearer {token}");
        let mut headers = UPGRADE.to_vec();
        headers.push(("Authorization", &bearer));
        self.get_with(path, &headers)
    }

    /// Upgrades, and reads `connected`, which it returns.
    pub fn upgrade(&mut self, path: &str, token: &str) -> Value {
        let response = self.try_upgrade(path, token);
        assert_eq!(response.status, 101, "{response:?}");
        assert_eq!(
            response.header("sec-websocket-accept"),
            Some(ACCEPT),
            "{response:?}"
        );
        let connected = self.json();
        assert_eq!(connected["type"], "connected", "{connected}");
        connected
    }

    /// Reads an HTTP answer; its body is as long as Content-Length says.
    pub fn response(&mut self) -> Response {
        let mut response = self.response_head();
        if response.header("transfer-encoding") == Some("chunked") {
            response.body = self.chunks();
            return response;
        }
        let length = response
            .header("content-length")
            .map_or(0, |text| text.parse().expect("a number"));
        response.body = String::from_utf8(self.exactly(length)).expect("a UTF-8 body");
        // Reports of what is not ready have neither.
        let is_error = |body: &Value| body.get("type").or(body.get("code")).is_some();
        let is_json = response.header("content-type") == Some("application/json");
        if response.status >= 400 && is_json && length > 0 && is_error(&response.json()) {
            check_http_error(&response.body);
        }
        response
    }

    /// Reads a chunked body (RFC 9112, section 7.1) without trailers.
    fn chunks(&mut self) -> String {
        let mut body = Vec::new();
        loop {
            let size = self.line();
            let size = usize::from_str_radix(&size, 16).expect("a chunk's size");
            body.extend(self.exactly(size));
            assert_eq!(self.line(), "");
            if size == 0 {
                return String::from_utf8(body).expect("a UTF-8 body");
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.extend(self.exactly(1));
        }
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    /// Reads an HTTP answer and the rest of the stream, whatever Content-Length says.
    pub fn response_to_the_end(&mut self) -> (Response, Vec<u8>) {
        let response = self.response_head();
        self.expect_end();
        (response, std::mem::take(&mut self.buffer))
    }

    fn response_head(&mut self) -> Response {
        let end = loop {
            if let Some(place) = self
                .buffer
                .windows(4)
                .position(|bytes| bytes == b"\r\n\r\n")
            {
                break place + 4;
            }
            assert!(
                self.fill(),
                "no whole head: {:?}",
                String::from_utf8_lossy(&self.buffer)
            );
        };
        let head = String::from_utf8(self.take(end)).expect("an ASCII head");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
        let status = status.and_then(|rest| rest.split(' ').next()?.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
        if status == Some(101) {
            self.upgraded();
        }
        Response {
            status: status.unwrap_or_else(|| panic!("no status line: {head}")),
            headers: headers.collect(),
            body: String::new(),
        }
    }

    /// Sends one masked frame. `first` is its first byte: FIN, reserved bits, opcode.
    pub fn frame(&mut self, first: u8, payload: impl AsRef<[u8]>) {
        self.send(frame(first, payload.as_ref()));
    }

    pub fn text(&mut self, text: impl AsRef<[u8]>) {
        self.frame(FIN | TEXT, text);
    }

    /// The next frame, which is one that a server without extensions may send; `None` when the
    /// connection ended first.
    pub fn try_read_frame(&mut self) -> Option<Frame> {
        while self.buffer.len() < 2 {
            if !self.fill() {
                return None;
            }
        }
        let start = self.exactly(2);
        let opcode = start[0] & 0x0f;
        assert_eq!(start[0] & 0x70, 0, "no extension was agreed upon");
        assert!(
            matches!(opcode, CONTINUATION..=BINARY | CLOSE..=PONG),
            "opcode {opcode}"
        );
        assert_eq!(start[1] & 0x80, 0, "a server's frames are not masked");
        let length = match start[1] {
            126 => usize::from(u16::from_be_bytes(
                self.exactly(2).try_into().expect("2 bytes"),
            )),
            127 => u64::from_be_bytes(self.exactly(8).try_into().expect("8 bytes")) as usize,
            short => usize::from(short),
        };
        let shortest = announce(start[0], length as u64)[1] & 0x7f;
        assert_eq!(start[1], shortest, "{length} bytes in the shortest form");
        let fin = start[0] & FIN != 0;
        let is_control_frame = opcode >= CLOSE;
        assert!(!is_control_frame || (fin && length <= 125), "whole, short");
        let payload = self.exactly(length);
        let frame = Frame {
            fin,
            opcode,
            payload,
        };
        self.check(&frame);
        Some(frame)
    }

    /// Panics unless it is one that the gateway may send.
    fn check(&mut self, frame: &Frame) {
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        if self.is_shared.load(Ordering::Relaxed) {
            exchange.lose_track();
        }
        let text = |bytes| str::from_utf8(bytes).expect("UTF-8");
        match (frame.opcode, frame.payload.split_first_chunk()) {
            (TEXT, _) => _ = exchange.received(text(&frame.payload)),
            (CLOSE, Some((code, reason))) => {
                exchange.ended(u16::from_be_bytes(*code), text(reason));
            }
            (PING | PONG, _) => assert!(frame.fin),
            _ => panic!("not of this protocol: {frame:?}"),
        }
    }

    /// Reads once, and answers the frames that are whole by then; `None` when the connection ended.
    pub fn read_some(&mut self) -> Option<Vec<Frame>> {
        self.fill().then(|| self.whole_frames())
    }

    /// As [`Self::read_some`], so many bytes at most, and waits for them only a moment.
    pub fn read_up_to(&mut self, most: usize) -> Option<Vec<Frame>> {
        let moment = Some(Duration::from_millis(50));
        self.stream.set_read_timeout(moment).expect("an option");
        let mut bytes = vec![0; most];
        match self.stream.read(&mut bytes) {
            Ok(0) => return None,
            Ok(read) => self.buffer.extend(&bytes[..read]),
            Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => {}
            Err(_) => return None,
        }
        Some(self.whole_frames())
    }

    /// Takes the frames that are read whole.
    fn whole_frames(&mut self) -> Vec<Frame> {
        let whole = |buffer: &[u8]| {
            let (&[_, short], rest) = buffer.split_first_chunk()?;
            let (length, rest) = match short {
                126 => {
                    let (length, rest) = rest.split_first_chunk()?;
                    (u64::from(u16::from_be_bytes(*length)), rest)
                }
                127 => {
                    let (length, rest) = rest.split_first_chunk()?;
                    (u64::from_be_bytes(*length), rest)
                }
                short => (u64::from(short), rest),
            };
            (rest.len() as u64 >= length).then_some(())
        };
        let mut frames = Vec::new();
        while whole(&self.buffer).is_some() {
            frames.extend(self.try_read_frame());
        }
        frames
    }

    pub fn read_frame(&mut self) -> Frame {
        self.try_read_frame()
            .expect("a frame before the connection ends")
    }

    /// The next text frame as JSON; pings and pongs are passed over.
    pub fn json(&mut self) -> Value {
        loop {
            let frame = self.read_frame();
            match frame.opcode {
                TEXT => return serde_json::from_slice(&frame.payload).expect("JSON"),
                PING | PONG => {}
                _ => panic!("waits for a text frame: {frame:?}"),
            }
        }
    }

    /// The next text frame that `is_it`.
    pub fn json_that(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let value = self.json();
            if is_it(&value) {
                return value;
            }
        }
    }

    /// Reads up to a Close frame and returns its code, 1005 when it has none; `None` when the
    /// connection ends without one.
    pub fn close_code(&mut self) -> Option<u16> {
        let close =
            std::iter::from_fn(|| self.try_read_frame()).find(|frame| frame.opcode == CLOSE)?;
        let code = close
            .payload
            .first_chunk()
            .map(|code| u16::from_be_bytes(*code));
        assert!(
            str::from_utf8(close.payload.get(2..).unwrap_or_default()).is_ok(),
            "{close:?}"
        );
        Some(code.unwrap_or(1005))
    }

    /// Reads up to a Close with this code and then to the end of the stream.
    pub fn expect_close(&mut self, code: u16) {
        assert_eq!(self.close_code(), Some(code));
        self.expect_end();
    }

    /// Reads up to the end of the stream, by FIN or reset.
    pub fn expect_end(&mut self) {
        while self.fill() {}
    }

    /// Whether anything comes before the end.
    pub fn has_answer(&mut self) -> bool {
        self.fill()
    }

    /// No more is sent; reading goes on.
    pub fn finish_sending(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Cuts the connection with a reset: no Close, no FIN.
    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&*self.stream, Some(Duration::ZERO))
            .expect("option");
    }

    /// The socket, which others may send by.
    pub fn stream(&self) -> &TcpStream {
        self.is_shared.store(true, Ordering::Relaxed);
        &self.stream
    }

    /// The socket; what was read and not consumed is forgotten.
    pub fn into_stream(self) -> TcpStream {
        self.stream.into_tcp()
    }

    fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            assert!(
                self.fill(),
                "the connection ends after {} of {length} bytes",
                self.buffer.len()
            );
        }
        self.take(length)
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(length);
        std::mem::replace(&mut self.buffer, rest)
    }

    /// Reads what is there; `false` at the end of the stream.
    fn fill(&mut self) -> bool {
        let mut bytes = [0; 16 * 1024];
        let start = Instant::now();
        self.stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a socket option");
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(length) => {
                self.buffer.extend_from_slice(&bytes[..length]);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.fill(),
            Err(error) => panic!("nothing to read for {:?}: {error}", start.elapsed()),
        }
    }
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON body: {self:?}"))
    }
}

/// The headers of an upgrade, without Host and token.
pub const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", KEY),
];

/// A request head.
pub fn head(method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: gateway.test\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head + "\r\n"
}

/// One masked frame.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = announce(first, payload.len() as u64);
    bytes.extend(MASK);
    bytes.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    bytes
}

/// The start of a masked frame up to its length, in the shortest form.
pub fn announce(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..126 => bytes.push(0x80 | length as u8),
        126..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes
}
