//! A blocking WebSocket client: requests and their answers, pushes in the order they came, how the
//! connection ended.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use std::{fmt, io};

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::client::ClientHandshake;
use tungstenite::http::{HeaderValue, Response, StatusCode};
use tungstenite::{Error, HandshakeError, Message, WebSocket};

use super::asyncapi::{Exchange, check_refusal, is_free};
use super::stream::Stream;
use super::{DEADLINE, Gateway};

/// One connection of one user.
pub struct Client {
    socket: WebSocket<Stream>,
    /// Holds what comes against `proto/client.asyncapi.yaml`.
    exchange: Exchange,
    /// Frames that came while another one was waited for, oldest first.
    held: VecDeque<Value>,
    requests: u64,
    pub user: String,
    /// The `connected` frame.
    pub hello: Value,
}

/// What a connection brings next.
#[derive(Debug)]
pub enum Event {
    Frame(Value),
    End(Ended),
    /// Nothing within the deadline.
    Nothing,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With a Close frame.
    Closed { code: u16, reason: String },
    /// Without one.
    Cut,
}

/// A connect that was answered with something other than 101.
#[derive(Debug)]
pub struct Refused {
    pub status: u16,
    pub body: String,
}

impl Client {
    /// Connects, and reads `connected`.
    pub fn connect(gateway: &Gateway, token: &str) -> Self {
        Self::try_connect(gateway.addr, &gateway.path, token)
            .unwrap_or_else(|refused| panic!("refused with {refused:?}"))
    }

    /// As [`connect`](Self::connect), with the token in the query.
    pub fn connect_by_query(gateway: &Gateway, token: &str) -> Self {
        Self::open(
            gateway.addr,
            &format!("{}?token={token}", gateway.path),
            None,
        )
        .unwrap_or_else(|refused| panic!("refused with {refused:?}"))
    }

    pub fn try_connect(addr: SocketAddr, path: &str, token: &str) -> Result<Self, Refused> {
        Self::open(addr, path, Some(token))
    }

    /// Connects where there may be no gateway, or one that is about to go: `None` then.
    pub fn try_reach(addr: SocketAddr, path: &str, token: &str) -> Option<Self> {
        let stream = TcpStream::connect_timeout(&addr, DEADLINE).ok()?;
        let socket = Self::upgrade(stream, addr, path, Some(token)).ok()?;
        Self::greeted(socket)
    }

    /// Connects where there may be no gateway, or one that does not answer within `patience`: an
    /// error of `None` then.
    pub fn attempt(
        addr: SocketAddr,
        path: &str,
        token: &str,
        patience: Duration,
    ) -> Result<Self, Option<Refused>> {
        let stream = TcpStream::connect_timeout(&addr, patience).map_err(|_| None)?;
        let end = Instant::now() + patience;
        match Self::upgrade_within(patience, stream, addr, path, Some(token)) {
            Ok(socket) => {
                let left = end.saturating_duration_since(Instant::now());
                Self::greeted_within(left, socket).ok_or(None)
            }
            Err(HandshakeError::Failure(Error::Http(answer))) => Err(Some(refused(addr, &answer))),
            Err(_) => Err(None),
        }
    }

    fn open(addr: SocketAddr, path: &str, bearer: Option<&str>) -> Result<Self, Refused> {
        let stream = TcpStream::connect_timeout(&addr, DEADLINE)
            .unwrap_or_else(|error| panic!("{addr} is not reached: {error}"));
        match Self::upgrade(stream, addr, path, bearer) {
            Ok(socket) => Ok(Self::greeted(socket).expect("the first frame is `connected`")),
            Err(HandshakeError::Failure(Error::Http(answer))) => Err(refused(addr, &answer)),
            Err(error) => panic!("the handshake with {addr} fails: {error}"),
        }
    }

    #[expect(clippy::result_large_err, reason = "tungstenite's own")]
    fn upgrade(
        stream: TcpStream,
        addr: SocketAddr,
        path: &str,
        bearer: Option<&str>,
    ) -> Result<WebSocket<Stream>, HandshakeError<ClientHandshake<Stream>>> {
        Self::upgrade_within(DEADLINE, stream, addr, path, bearer)
    }

    /// `patience` is with each read.
    #[expect(clippy::result_large_err, reason = "tungstenite's own")]
    fn upgrade_within(
        patience: Duration,
        stream: TcpStream,
        addr: SocketAddr,
        path: &str,
        bearer: Option<&str>,
    ) -> Result<WebSocket<Stream>, HandshakeError<ClientHandshake<Stream>>> {
        let mut request = format!("ws://{addr}{path}")
            .into_client_request()
            .expect("a URL");
        if let Some(token) = bearer {
            let value = HeaderValue::from_str(&format!("Bearer {token}")).expect("a header value");
            request.headers_mut().insert("Authorization", value);
        }
        stream.set_nodelay(true).expect("a socket option");
        stream
            .set_read_timeout(Some(patience))
            .expect("a socket option");
        stream
            .set_write_timeout(Some(patience))
            .expect("a socket option");
        tungstenite::client(request, Stream::over(stream)).map(|(socket, _)| socket)
    }

    /// Reads `connected`; `None` when something else comes.
    fn greeted(socket: WebSocket<Stream>) -> Option<Self> {
        Self::greeted_within(DEADLINE, socket)
    }

    fn greeted_within(patience: Duration, socket: WebSocket<Stream>) -> Option<Self> {
        let (held, requests) = (VecDeque::new(), 0);
        let peer = socket.get_ref().peer_addr();
        let mut client = Self {
            exchange: peer.map_or_else(|_| Exchange::default(), Exchange::with),
            socket,
            held,
            requests,
            user: String::new(),
            hello: Value::Null,
        };
        let Event::Frame(hello) = client.read(patience) else {
            return None;
        };
        assert_eq!(hello["type"], "connected", "the first frame: {hello}");
        client.user = hello["user_id"].as_str().expect("a user id").to_owned();
        client.hello = hello;
        Some(client)
    }

    /// Sends `text` as it is.
    pub fn send_text(&mut self, text: impl Into<String>) {
        self.try_send_text(text.into()).expect("the gateway reads");
    }

    fn try_send_text(&mut self, text: String) -> tungstenite::Result<()> {
        self.exchange.sent(&text);
        self.socket.send(Message::text(text))
    }

    pub fn send(&mut self, frame: &Value) {
        self.send_text(frame.to_string());
    }

    /// Sends a request, and returns its answer, whatever it is; other frames are held.
    pub fn request(&mut self, kind: &str, data: Value) -> Value {
        let id = self.send_request(kind, data);
        self.answer(&id)
    }

    /// Sends a request, and returns its `request_id`.
    pub fn send_request(&mut self, kind: &str, data: Value) -> String {
        self.try_send_request(kind, data)
            .expect("the gateway reads")
    }

    /// As [`send_request`](Self::send_request); `None` when the connection has ended.
    pub fn try_send_request(&mut self, kind: &str, data: Value) -> Option<String> {
        self.requests += 1;
        let id = format!("{}-{}", self.user, self.requests);
        let request = json!({"type": kind, "request_id": id, "data": data});
        let sent = self.try_send_text(request.to_string());
        sent.is_ok().then_some(id)
    }

    /// The answer to the request with this id.
    pub fn answer(&mut self, request_id: &str) -> Value {
        self.expect_that(&format!("the answer to {request_id}"), |frame| {
            frame["request_id"] == request_id
        })
    }

    /// Sends a message and returns its id.
    pub fn send_message(&mut self, to: &str, content: &str) -> String {
        sent(self.request(
            "send_message",
            json!({"to_user_id": to, "content": content}),
        ))
    }

    /// Sends a message to a group and returns its id.
    pub fn send_group_message(&mut self, group: &str, content: &str) -> String {
        sent(self.request(
            "send_group_message",
            json!({"group_id": group, "content": content}),
        ))
    }

    pub fn ack<S: AsRef<str>>(&mut self, ids: &[S]) {
        let ids: Vec<&str> = ids.iter().map(AsRef::as_ref).collect();
        let answer = self.request("ack", json!({"message_ids": ids}));
        assert_eq!(answer["type"], "acked", "{answer}");
    }

    /// Sends a request that must fail, and checks the code; returns the error's message.
    pub fn expect_error(&mut self, kind: &str, data: Value, code: &str) -> String {
        let answer = self.request(kind, data);
        error_message(&answer, code)
    }

    /// The next frame of this type; frames of other types are held.
    pub fn expect(&mut self, kind: &str) -> Value {
        self.expect_that(kind, |frame| frame["type"] == kind)
    }

    /// The next frame that `is_it`; others are held.
    pub fn expect_that(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        if let Some(place) = self.held.iter().position(&is_it) {
            return self.held.remove(place).expect("it is there");
        }
        let end = Instant::now() + DEADLINE;
        loop {
            match self.read(end.saturating_duration_since(Instant::now())) {
                Event::Frame(frame) if is_it(&frame) => return frame,
                Event::Frame(frame) => self.held.push_back(frame),
                other => panic!("{self} waits for {what}: {other:?}; held: {:?}", self.held),
            }
        }
    }

    /// The push of the message with this id; what comes before it is held.
    pub fn expect_message(&mut self, id: &str) -> Value {
        self.expect_that(&format!("message {id}"), |frame| {
            is_push(frame) && frame["id"] == id
        })
    }

    pub fn expect_presence(&mut self, user: &str, status: &str) -> Value {
        self.expect_that(&format!("{user} {status}"), |frame| {
            frame["type"] == "presence" && frame["user_id"] == user && frame["status"] == status
        })
    }

    /// Whether this comes before the deadline; other frames are held.
    pub fn tries_presence(&mut self, user: &str, status: &str, deadline: Duration) -> bool {
        let is_it = |frame: &Value| {
            frame["type"] == "presence" && frame["user_id"] == user && frame["status"] == status
        };
        if let Some(place) = self.held.iter().position(is_it) {
            self.held.remove(place);
            return true;
        }
        let end = Instant::now() + deadline;
        loop {
            match self.read(end.saturating_duration_since(Instant::now())) {
                Event::Frame(frame) if is_it(&frame) => return true,
                Event::Frame(frame) => self.held.push_back(frame),
                Event::Nothing | Event::End(_) => return false,
            }
        }
    }

    /// The next frame, whatever it is.
    pub fn next(&mut self) -> Value {
        match self.next_event(DEADLINE) {
            Event::Frame(frame) => frame,
            other => panic!("{self} waits for a frame: {other:?}"),
        }
    }

    /// Whether bytes wait to be read.
    pub fn has_something(&self) -> bool {
        let socket = self.socket.get_ref();
        socket.set_nonblocking(true).expect("a socket option");
        let peeked = socket.peek(&mut [0]);
        socket.set_nonblocking(false).expect("a socket option");
        matches!(peeked, Ok(1..))
    }

    /// What comes next, held frames first.
    pub fn next_event(&mut self, deadline: Duration) -> Event {
        self.held
            .pop_front()
            .map_or_else(|| self.read(deadline), Event::Frame)
    }

    /// The frames held and not yet asked for, up to the answer to a `ping`: the fence. What is
    /// not among them was not queued for this client before the ping was.
    pub fn frames_until_pong(&mut self) -> Vec<Value> {
        let pong = self.request("ping", Value::Null);
        assert_eq!(pong["type"], "pong", "{pong}");
        self.held.drain(..).collect()
    }

    /// As [`frames_until_pong`](Self::frames_until_pong); `None` when the connection has ended.
    pub fn try_frames_until_pong(&mut self) -> Option<Vec<Value>> {
        let id = self.try_send_request("ping", Value::Null)?;
        loop {
            match self.read(DEADLINE) {
                Event::Frame(frame) if frame["request_id"] == id.as_str() => break,
                Event::Frame(frame) => self.held.push_back(frame),
                Event::End(_) => return None,
                Event::Nothing => panic!("{self} has no pong; held: {:?}", self.held),
            }
        }
        Some(self.take_held())
    }

    /// The frames held and not yet asked for.
    pub fn take_held(&mut self) -> Vec<Value> {
        self.held.drain(..).collect()
    }

    /// The pushed messages up to the one with id `fence`, that one included, in order.
    pub fn messages_until(&mut self, fence: &str) -> Vec<Value> {
        let last = self.expect_message(fence);
        let (mut messages, rest) = self.held.drain(..).partition::<Vec<_>, _>(is_push);
        self.held.extend(rest);
        messages.push(last);
        messages
    }

    /// Reads up to the end of the connection; fails when that is not a Close with `code`.
    pub fn expect_close(&mut self, code: u16) -> String {
        match self.end() {
            Ended::Closed {
                code: found,
                reason,
            } if found == code => reason,
            other => panic!("{self} waits for close code {code}: {other:?}"),
        }
    }

    /// Reads up to the end of the connection; frames on the way are held.
    pub fn end(&mut self) -> Ended {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.read(end.saturating_duration_since(Instant::now())) {
                Event::Frame(frame) => self.held.push_back(frame),
                Event::End(ended) => return ended,
                Event::Nothing => panic!("{self} waits for the end; held: {:?}", self.held),
            }
        }
    }

    /// Closes with 1000 and waits for the echo.
    pub fn close(mut self) {
        self.exchange.sent_close(None);
        self.socket.close(None).expect("a close can be sent");
        let ended = self.end();
        assert!(
            matches!(ended, Ended::Closed { .. }),
            "{self} closes: {ended:?}"
        );
    }

    /// Cuts the connection with a reset: no Close, no FIN.
    pub fn reset(self) {
        let socket = &**self.socket.get_ref();
        rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO)).expect("an option");
    }

    pub fn connection_id(&self) -> &str {
        self.hello["connection_id"]
            .as_str()
            .expect("a connection id")
    }

    fn read(&mut self, deadline: Duration) -> Event {
        let end = Instant::now() + deadline;
        loop {
            let left = end
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            self.socket
                .get_ref()
                .set_read_timeout(Some(left))
                .expect("a socket option");
            match self.socket.read() {
                Ok(Message::Text(text)) => return Event::Frame(self.exchange.received(&text)),
                Ok(Message::Close(close)) => {
                    // The echo is written by one more read or flush.
                    let _ = self.socket.flush();
                    let (code, reason) = close.map_or((1005, String::new()), |close| {
                        (close.code.into(), close.reason.to_string())
                    });
                    self.exchange.ended(code, &reason);
                    return Event::End(Ended::Closed { code, reason });
                }
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Ok(Message::Binary(_)) => panic!("{self} got a binary frame"),
                Err(Error::Io(error)) if is_timeout(&error) => {
                    if Instant::now() >= end {
                        return Event::Nothing;
                    }
                }
                Err(_) => return Event::End(Ended::Cut),
            }
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.user, self.hello["gateway_id"])
    }
}

/// Whether a frame is a chat message.
pub fn is_push(frame: &Value) -> bool {
    frame["type"] == "message" || frame["type"] == "group_message"
}

/// The id in a `message_sent`.
pub fn sent(answer: Value) -> String {
    assert_eq!(answer["type"], "message_sent", "{answer}");
    answer["id"].as_str().expect("a message id").to_owned()
}

/// Checks that `answer` is an error with this code, and returns its message.
pub fn error_message(answer: &Value, code: &str) -> String {
    assert_eq!(answer["type"], "error", "{answer}");
    assert_eq!(answer["code"], code, "{answer}");
    assert!(answer["timestamp"].is_i64(), "{answer}");
    let message = answer["message"].as_str().expect("a message");
    assert!(!message.is_empty(), "{answer}");
    message.to_owned()
}

/// The ids of messages, in their order.
pub fn ids(messages: &[Value]) -> Vec<String> {
    messages
        .iter()
        .map(|message| message["id"].as_str().expect("an id").to_owned())
        .collect()
}

fn refused(addr: SocketAddr, answer: &Response<Option<Vec<u8>>>) -> Refused {
    assert_ne!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    let body: String = answer
        .body()
        .as_deref()
        .map(String::from_utf8_lossy)
        .unwrap_or_default()
        .into();
    let status = answer.status().as_u16();
    if !is_free(addr) {
        check_refusal(status, &body);
    }
    Refused { status, body }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
