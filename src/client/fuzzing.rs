//! Properties of what clients send and are sent, for [`fuzzing`](crate::fuzzing); and a connection
//! whose client is a piece of memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::address::{Peer, client_address};
use super::close::CloseReason;
use super::connection::Connection;
use super::frame::Frame;
use super::gate::DeliveryGate;
use super::handshake::Accepted;
use super::outbox::Outbox;
use super::request::{Body, Request};
use super::socket::{FrameReader, Incoming};
use super::token::Identity;
use super::transport::Transport;
use crate::config::{Listen, load};
use crate::fuzzing::{Input, pieces};
use crate::http::parse_head;
use crate::ids::{ConnectionId, UserId};
use crate::services::ErrorCode;

/// A client that has sent certain bytes, which come piece by piece, and is gone then; and that takes
/// all that it is sent.
pub(crate) struct MemorySocket {
    pieces: Mutex<VecDeque<Vec<u8>>>,
    taken: Mutex<Vec<u8>>,
}

/// A transport has a descriptor. Nobody uses this one.
static DESCRIPTOR: LazyLock<File> =
    LazyLock::new(|| File::open("/dev/null").expect("/dev/null is there"));

impl MemorySocket {
    fn new<'p>(pieces: impl Iterator<Item = &'p [u8]>) -> Arc<Self> {
        let pieces = pieces.filter(|piece| !piece.is_empty());
        Arc::new(Self {
            pieces: Mutex::new(pieces.map(<[u8]>::to_vec).collect()),
            taken: Mutex::default(),
        })
    }

    /// The payloads of the frames that the client was sent since the last call, all of them text.
    pub fn texts(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.taken.lock());
        let mut rest = &bytes[..];
        std::iter::from_fn(|| (!rest.is_empty()).then(|| text_frame(&mut rest))).collect()
    }
}

impl AsFd for MemorySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        DESCRIPTOR.as_fd()
    }
}

impl Transport for MemorySocket {
    fn read(&self, into: &mut [u8], _: bool) -> io::Result<usize> {
        let mut pieces = self.pieces.lock();
        let Some(piece) = pieces.front_mut() else {
            return Ok(0);
        };
        let count = into.len().min(piece.len());
        into[..count].copy_from_slice(&piece[..count]);
        piece.drain(..count);
        if piece.is_empty() {
            pieces.pop_front();
        }
        Ok(count)
    }

    fn send(&self, bytes: &[u8], _: bool) -> io::Result<usize> {
        self.taken.lock().extend(bytes);
        Ok(bytes.len())
    }

    fn set_write_timeout(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn shutdown(&self, _: Shutdown) {}

    fn in_flight(&self) -> u64 {
        0
    }

    fn has_bytes(&self) -> bool {
        !self.pieces.lock().is_empty()
    }
}

/// A connection of `user` that is live, and its client.
pub(crate) fn connection(user: &str) -> (Arc<Connection>, Arc<MemorySocket>) {
    let socket = MemorySocket::new([].into_iter());
    let outbox = Outbox::new(socket.clone(), Frame::raw(b""), 1_024, 1 << 20);
    let accepted = Accepted {
        identity: Identity {
            user: UserId::new(user).expect("an id"),
            expires_at: 0,
        },
        token: "token".into(),
        switching: String::new(),
    };
    let gate = DeliveryGate::new(1_024, 1 << 20);
    gate.routed();
    gate.take_request();
    gate.finish(true);
    let peer = Peer::Socket(Ipv4Addr::LOCALHOST.into());
    let connection = Connection::new(ConnectionId::random(), &accepted, peer, outbox, gate);
    connection.outbox.write_behind([]);
    (Arc::new(connection), socket)
}

/// Splits an unmasked text frame off: its header is as short as can be.
fn text_frame(rest: &mut &[u8]) -> String {
    let mut take = |count: usize| rest.split_off(..count).expect("a frame that is whole");
    assert_eq!(take(1), [0x81], "the whole of a text message");
    let length = match take(1)[0] {
        127 => u64::from_be_bytes(take(8).try_into().expect("8 bytes")) as usize,
        126 => usize::from(u16::from_be_bytes(take(2).try_into().expect("2 bytes"))),
        short => usize::from(short),
    };
    let payload = take(length);
    String::from_utf8(payload.to_vec()).expect("UTF-8")
}

/// Whatever the payload, its frame is one, with a header as short as can be; a control frame's payload
/// is cut where that ends.
pub fn frame(input: &[u8]) {
    // Long ones, too, without as long an input.
    let (times, payload) = input.split_first().unwrap_or((&0, &[]));
    let payload = payload.repeat(1 + usize::from(times % 64));
    let header = match payload.len() {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    };
    let frame = Frame::text(|bytes| bytes.extend(&payload));
    assert_eq!(frame.len(), header + payload.len());
    if let Ok(text) = str::from_utf8(&payload) {
        let batch = Frame::batch([&frame, &frame].into_iter());
        assert_eq!((batch.count(), batch.len()), (2, 2 * frame.len()));
        let mut rest = batch.bytes();
        assert_eq!(text_frame(&mut rest), text);
        assert_eq!(text_frame(&mut rest), text);
        assert!(rest.is_empty());

        let close = Frame::close(4_001, text);
        let reason = str::from_utf8(&close.bytes()[4..]).expect("cut between characters");
        assert_eq!(close.bytes()[..2], [0x88, close.len() as u8 - 2]);
        assert!(close.len() <= 2 + 125 && text.starts_with(reason));
        assert!(
            reason == text || reason.len() > 125 - 2 - 4,
            "cut too early"
        );
    }
    let pong = Frame::pong(&payload);
    assert_eq!(pong.bytes()[2..], payload[..payload.len().min(125)]);
}

/// What a frame reader has made of something.
#[derive(Debug, PartialEq)]
enum Event {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    End(CloseReason),
}

/// In bytes.
const MAX_MESSAGE: usize = 1 << 10;

fn events<'p>(pieces: impl Iterator<Item = &'p [u8]>) -> (Vec<Event>, u64) {
    let mut reader = FrameReader::new(MemorySocket::new(pieces), MAX_MESSAGE);
    let mut events = Vec::new();
    loop {
        events.push(match reader.read() {
            Ok(Incoming::Text(text)) => Event::Text(text.to_string()),
            Ok(Incoming::Binary(bytes)) => Event::Binary(bytes.into()),
            Ok(Incoming::Ping(payload)) => Event::Ping(payload),
            Ok(Incoming::Pong) => Event::Pong,
            Err(reason) => {
                events.push(Event::End(reason));
                return (events, reader.received());
            }
        });
    }
}

/// Whatever bytes come, and in what pieces: frames within the limits, and then a reason to end.
pub fn frames(input: &[u8]) {
    let (sizes, bytes) = input.split_at(input.len().min(4));
    let (whole, received) = events([bytes].into_iter());
    assert!(received <= bytes.len() as u64);
    let mut payload = 0;
    for event in &whole {
        payload += match event {
            Event::Text(text) => {
                assert!(text.len() <= MAX_MESSAGE);
                text.len()
            }
            Event::Binary(bytes) => {
                assert!(bytes.len() <= MAX_MESSAGE);
                bytes.len()
            }
            Event::Ping(bytes) => {
                assert!(bytes.len() <= 125);
                bytes.len()
            }
            Event::Pong | Event::End(_) => 0,
        };
    }
    assert!(payload <= bytes.len() && whole.len() <= bytes.len() / 2 + 1);
    // Of fragments that lead nowhere, the bytes are counted after each read.
    let too_large = Some(&Event::End(CloseReason::TooLarge));
    let (split, _) = events(pieces(bytes, sizes));
    if whole.last() != too_large && split.last() != too_large {
        assert_eq!(split, whole, "in pieces");
    }
    // Nobody is kept by what comes behind the end.
    let mut reader = FrameReader::new(MemorySocket::new(pieces(bytes, sizes)), MAX_MESSAGE);
    reader.discard();
}

/// A client's frame (RFC 6455, section 5.2).
fn client_frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ ..126 => frame.push(0x80 | short as u8),
        long => {
            frame.push(0x80 | 126);
            frame.extend((long as u16).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}

/// Messages, in fragments and with control frames between them, come as they were, whatever the
/// pieces.
pub fn valid_frames(input: &[u8]) {
    let mut input = Input(input);
    let (sizes, mask) = (input.take(4).to_vec(), [0; 4].map(|_| input.byte()));
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    let control = |input: &mut Input<'_>, expected: &mut Vec<Event>| {
        let length = usize::from(input.byte() % 126);
        let payload = input.take(length).to_vec();
        if length % 2 == 0 {
            expected.push(Event::Ping(payload.clone()));
            client_frame(0x89, &payload, mask)
        } else {
            expected.push(Event::Pong);
            client_frame(0x8A, &payload, mask)
        }
    };
    while !input.is_empty() {
        match input.byte() % 4 {
            0 => bytes.extend(control(&mut input, &mut expected)),
            fragments => {
                let length = usize::from(input.byte()) * 3;
                let mut text = String::from_utf8_lossy(input.take(length)).into_owned();
                text.truncate(text.floor_char_boundary(MAX_MESSAGE));
                let size = (text.len() / usize::from(fragments)).max(1);
                // In the middle of a character, too.
                let mut parts: Vec<_> = text.as_bytes().chunks(size).collect();
                if parts.is_empty() {
                    parts.push(&[]);
                }
                let last = parts.len() - 1;
                for (place, part) in parts.into_iter().enumerate() {
                    let opcode = u8::from(place == 0);
                    let fin = if place == last { 0x80 } else { 0 };
                    bytes.extend(client_frame(fin | opcode, part, mask));
                    if place < last && input.byte() % 2 == 0 {
                        bytes.extend(control(&mut input, &mut expected));
                    }
                }
                expected.push(Event::Text(text));
            }
        }
    }
    bytes.extend(client_frame(0x88, &1000_u16.to_be_bytes(), mask));
    expected.push(Event::End(CloseReason::ClientClosed(Some(1000))));
    let (events, _) = events(pieces(&bytes, &sizes));
    assert_eq!(events, expected);
}

/// A text is no request, with a reason that a client may be told; or it is one, and is the same one
/// when it is written anew.
pub fn request(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    let user = UserId::new("alice").expect("an id");
    let request = Request::parse(text, &user);
    assert!(request.id.as_ref().is_none_or(|id| id.len() <= 64));
    match &request.body {
        Ok(body) => {
            let again = json(request.id.as_deref(), body).to_string();
            let again = Request::parse(&again, &user);
            assert_eq!(format!("{again:?}"), format!("{request:?}"));
        }
        Err(error) => {
            assert!(!error.message.is_empty());
            let codes = [ErrorCode::InvalidMessage, ErrorCode::UnknownMessageType];
            assert!(codes.contains(&error.code), "{error:?}");
        }
    }
}

fn json(id: Option<&str>, body: &Body) -> Value {
    let data = match body {
        Body::SendMessage(message) => json!({
            "to_user_id": message.to_user_id,
            "content": message.content,
            "message_type": message.message_type,
            "client_message_id": message.client_message_id,
        }),
        Body::SendGroupMessage(message) => json!({
            "group_id": message.group_id,
            "content": message.content,
            "message_type": message.message_type,
            "client_message_id": message.client_message_id,
        }),
        Body::GetHistory(page) => json!({
            "user_id": page.peer_id,
            "before_id": page.before_id,
            "limit": page.limit,
        }),
        Body::GetGroupHistory(page) => json!({
            "group_id": page.group_id,
            "before_id": page.before_id,
            "limit": page.limit,
        }),
        Body::Ack(ack) => json!({ "message_ids": ack.message_ids }),
        Body::RefreshToken(token) => json!({ "token": token }),
        Body::Ping => Value::Null,
    };
    let kind: &'static str = body.into();
    json!({ "type": kind, "request_id": id, "data": data })
}

/// The proxies that are trusted.
static LISTEN: LazyLock<Listen> = LazyLock::new(|| {
    // The services of embedded mode are an edge, and may not be there.
    let text = "[listen]\ntrusted_proxies = [\"10.0.0.0/8\", \"2001:db8:ffff::/48\"]\n\
                [backend]\nmode = \"remote\"";
    load::parse("fuzzing", text, [], None)
        .expect("valid")
        .listen
});

/// Who a request is from whose `X-Forwarded-For` has this value, behind a trusted proxy; `None`: it is
/// no request, or more than one line of it.
fn forwarded_for(value: &[u8]) -> Option<Peer> {
    if value.contains(&b'\r') || value.contains(&b'\n') {
        return None;
    }
    let (before, after) = (
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: ",
        b"\r\n\r\n",
    );
    let head = [before, value, after].concat();
    let head = parse_head(&head).ok()??;
    let peer = Peer::Socket(Ipv4Addr::new(10, 0, 0, 1).into());
    Some(client_address(&head, peer, &LISTEN))
}

/// Whatever a client writes there: once a proxy has added somebody who is not trusted, nothing of it
/// counts; and where that is said by nobody, it is the last who is trusted.
pub fn x_forwarded_for(input: &[u8]) {
    let middle = input.iter().position(|&byte| byte == b'|');
    let (forged, added) = input.split_at(middle.unwrap_or(0));
    let added = added.strip_prefix(b"|").unwrap_or(added);
    let Some(client) = forwarded_for(added) else {
        return;
    };
    let trusted = &LISTEN.trusted_proxies;
    if client.is_among(trusted) {
        return;
    }
    assert!(
        matches!(client, Peer::XForwardedFor(_)),
        "the proxy is trusted"
    );
    if let Some(other) = forwarded_for(&[forged, b", ", added].concat()) {
        assert_eq!(other, client, "forged");
    }
    // Written by another proxy in the usual way, it is the same.
    let address: IpAddr = client.address();
    assert_eq!(forwarded_for(address.to_string().as_bytes()), Some(client));
}
