//! The stream under AMQP, polled as amiquip polls it, over a socket in memory that takes and brings as
//! little as it likes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;
use std::sync::Arc;

use rustls::{ClientConnection, ServerConnection};

use super::TlsStream;
use crate::tls::client::{Trust, client_config, server_name};
use crate::tls::support::certificates::{Authority, Identity, path, self_signed};
use crate::tls::support::server;

/// The system's socket: non-blocking.
#[derive(Default)]
struct Socket {
    incoming: VecDeque<u8>,
    /// The peer writes no more.
    has_ended: bool,
    outgoing: VecDeque<u8>,
    /// How much of `outgoing` there may be.
    room: usize,
}

#[derive(Clone, Default)]
struct Handle(Rc<RefCell<Socket>>);

impl Read for Handle {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut socket = self.0.borrow_mut();
        match socket.incoming.read(into)? {
            0 if !socket.has_ended => Err(ErrorKind::WouldBlock.into()),
            read => Ok(read),
        }
    }
}

impl Write for Handle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut socket = self.0.borrow_mut();
        let taken = bytes.len().min(socket.room - socket.outgoing.len());
        if taken == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        socket.outgoing.extend(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client and its server.
struct Pair {
    socket: Handle,
    client: TlsStream<Handle>,
    server: ServerConnection,
    /// What the server has decrypted.
    arrived: Vec<u8>,
    /// What amiquip has to write, and has read.
    outbuf: Vec<u8>,
    inbox: Vec<u8>,
    /// What the client is polled for besides reading.
    polls_writable: bool,
}

impl Pair {
    /// `room`: of the client's socket, in bytes.
    fn new(trust: &Trust, name: &str, identity: &Identity, room: usize) -> Self {
        let socket = Handle::default();
        socket.0.borrow_mut().room = room;
        let config = Arc::new(client_config(Arc::clone(&trust.roots)));
        let session = ClientConnection::new(config, server_name(name).unwrap()).unwrap();
        Self {
            client: TlsStream::new(socket.clone(), session, trust.clone()),
            socket,
            server: server(identity, rustls::ALL_VERSIONS),
            arrived: Vec::new(),
            outbuf: Vec::new(),
            inbox: Vec::new(),
            polls_writable: true,
        }
    }

    /// What amiquip does with events of its socket, and what it polls for from then on.
    fn poll(&mut self, is_writable: bool, is_readable: bool) -> io::Result<()> {
        let had_to_write = !self.outbuf.is_empty();
        if is_writable {
            self.write()?;
        }
        if is_readable {
            self.read()?;
        }
        if !self.outbuf.is_empty() {
            self.polls_writable = true;
        } else if had_to_write {
            self.polls_writable = self.client.wants_write();
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.outbuf.is_empty() {
            match self.client.write(&self.outbuf) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                written => _ = self.outbuf.drain(..written?),
            }
        }
        Ok(())
    }

    /// To the end, as whoever polls edge-triggered does.
    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; 1000];
        loop {
            match self.client.read(&mut chunk) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                read => self.inbox.extend(&chunk[..read?]),
            }
        }
    }

    /// Carries at most `step` bytes to the server, and as many back; the client hears of its socket
    /// only when something changed there. False: nothing did.
    fn step(&mut self, step: usize) -> io::Result<bool> {
        let (mut socket, is_full) = (self.socket.0.borrow_mut(), |socket: &Socket| {
            socket.outgoing.len() == socket.room
        });
        let was_full = is_full(&socket);
        let count = step.min(socket.outgoing.len());
        let out: Vec<u8> = socket.outgoing.drain(..count).collect();
        let mut rest = &out[..];
        while !rest.is_empty() {
            self.server.read_tls(&mut rest)?;
            let processed = self.server.process_new_packets();
            processed.map_err(io::Error::other)?;
            match self.server.reader().read_to_end(&mut self.arrived) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                outcome => _ = outcome?,
            }
        }
        let before = socket.incoming.len();
        if before < step {
            let mut ciphertext = Vec::new();
            while ciphertext.len() < step && self.server.wants_write() {
                self.server.write_tls(&mut Slice(&mut ciphertext, step))?;
            }
            socket.incoming.extend(ciphertext);
        }
        let is_readable = socket.incoming.len() > before;
        let is_writable = self.polls_writable && was_full && !is_full(&socket);
        drop(socket);
        // Polled for anew, a socket with room is writable at once.
        let is_writable = is_writable || self.polls_writable && !self.outbuf.is_empty();
        if is_writable || is_readable {
            self.poll(is_writable, is_readable)?;
        }
        let has_written = !self.socket.0.borrow().outgoing.is_empty();
        Ok(count > 0 || is_readable || has_written)
    }

    /// Until nothing moves any more.
    fn settle(&mut self, step: usize) -> io::Result<()> {
        self.poll(true, false)?;
        while self.step(step)? {}
        Ok(())
    }
}

/// Takes no more than so much.
struct Slice<'a>(&'a mut Vec<u8>, usize);

impl Write for Slice<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.1 - self.0.len());
        self.0.extend(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Scene {
    trust: Trust,
    identity: Identity,
}

impl Scene {
    fn new() -> Self {
        let authority = Authority::new("the tests' authority");
        Self {
            trust: Trust::load("broker.ca", &path(authority.file())).unwrap(),
            identity: authority.sign(&["mq.example"]),
        }
    }

    fn pair(&self, room: usize) -> Pair {
        Pair::new(&self.trust, "mq.example", &self.identity, room)
    }

    /// Past the handshake.
    fn connected(&self, room: usize) -> Pair {
        let mut pair = self.pair(room);
        pair.outbuf = b"AMQP".to_vec();
        pair.settle(usize::MAX).unwrap();
        assert_eq!(pair.arrived, b"AMQP");
        pair.arrived.clear();
        pair
    }
}

/// Bytes that tell where they come from.
fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at % 251) as u8).collect()
}

#[test]
fn everything_arrives_whole_however_little_the_socket_takes_and_brings() {
    let scene = Scene::new();
    for (room, step, count) in [
        (1, 1, 3_000),
        (1, usize::MAX, 3_000),
        (usize::MAX, 1, 20_000),
        (7, 13, 20_000),
        (1_000, 4_096, 300_000),
        (20_000, 20_000, 1 << 20),
        (usize::MAX, usize::MAX, 3 << 20),
    ] {
        for version in rustls::ALL_VERSIONS {
            let mut pair = scene.pair(room);
            pair.server = server(&scene.identity, &[version]);
            let data = pattern(count);
            pair.outbuf = data.clone();
            pair.server.set_buffer_limit(None);
            pair.server.writer().write_all(&data).unwrap();
            pair.settle(step).unwrap();
            assert!(pair.arrived == data, "{room}, {step}: to the server");
            assert!(pair.inbox == data, "{room}, {step}: to the client");
            assert!(!pair.client.wants_write(), "{room}, {step}");
        }
    }
}

#[test]
fn one_event_is_enough_for_all_records_that_came() {
    let mut pair = Scene::new().connected(usize::MAX);
    pair.server.set_buffer_limit(None);
    let mut ciphertext = Vec::new();
    for size in (1..500).chain([40_000, 1]) {
        pair.server.writer().write_all(&pattern(size)).unwrap();
        while pair.server.wants_write() {
            pair.server.write_tls(&mut ciphertext).unwrap();
        }
    }
    let whole: Vec<u8> = (1..500).chain([40_000, 1]).flat_map(pattern).collect();
    // Some of it, to the middle of a record; and all that is left.
    let (first, rest) = ciphertext.split_at(30_001);
    pair.socket.0.borrow_mut().incoming.extend(first);
    pair.poll(false, true).unwrap();
    assert!(whole.starts_with(&pair.inbox) && pair.inbox.len() > 20_000);
    pair.socket.0.borrow_mut().incoming.extend(rest);
    pair.poll(false, true).unwrap();
    assert!(pair.inbox == whole);
}

#[test]
fn a_write_blocks_until_the_socket_has_taken_it_and_is_repeated_once() {
    let mut pair = Scene::new().connected(100);
    let would_block = |written: io::Result<usize>| written.unwrap_err().kind();
    let data = pattern(1_000);
    let mut attempts = 0;
    let written = loop {
        match pair.client.write(&data) {
            Ok(written) => break written,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert_eq!(would_block(pair.client.write(&data)), ErrorKind::WouldBlock);
        assert!(pair.arrived.is_empty(), "a record is decrypted as a whole");
        attempts += 1;
        assert!(pair.step(usize::MAX).unwrap());
    };
    assert_eq!(written, data.len());
    assert!(attempts >= 10, "100 bytes at a time: {attempts}");
    pair.step(usize::MAX).unwrap();
    assert!(pair.arrived == data, "once");
}

#[test]
fn a_key_update_is_answered_once_there_is_something_to_write() {
    let mut pair = Scene::new().connected(usize::MAX);
    pair.socket.0.borrow_mut().room = 0;
    pair.server.refresh_traffic_keys().unwrap();
    pair.server.writer().write_all(b"with new keys").unwrap();
    while pair.step(usize::MAX).unwrap() {}
    assert_eq!(pair.inbox, b"with new keys");
    assert!(!pair.client.wants_write(), "nobody would come for it");
    pair.outbuf = b"heartbeat".to_vec();
    pair.poll(true, false).unwrap();
    assert!(!pair.outbuf.is_empty(), "the socket is full");
    pair.socket.0.borrow_mut().room = usize::MAX;
    pair.settle(usize::MAX).unwrap();
    assert_eq!(pair.arrived, b"heartbeat");
}

#[test]
fn each_side_takes_leave_of_the_other() {
    let scene = Scene::new();
    let mut pair = scene.connected(usize::MAX);
    pair.server.writer().write_all(b"last").unwrap();
    pair.server.send_close_notify();
    let ended = pair.settle(usize::MAX).unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::UnexpectedEof, "as a socket's end");
    assert_eq!(pair.inbox, b"last");

    let pair = scene.connected(usize::MAX);
    let Pair {
        client,
        socket,
        mut server,
        ..
    } = pair;
    drop(client);
    let goodbye: Vec<u8> = socket.0.borrow_mut().outgoing.drain(..).collect();
    server.read_tls(&mut &goodbye[..]).unwrap();
    let state = server.process_new_packets().unwrap();
    assert!(state.peer_has_closed());
}

#[test]
fn an_end_without_a_goodbye_is_the_end_of_a_socket() {
    let mut pair = Scene::new().connected(usize::MAX);
    pair.server.writer().write_all(b"last").unwrap();
    pair.step(usize::MAX).unwrap();
    pair.socket.0.borrow_mut().has_ended = true;
    let ended = pair.poll(false, true).unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::UnexpectedEof);
    assert_eq!(pair.inbox, b"last");
}

#[test]
fn an_end_in_the_middle_of_the_handshake_is_told() {
    let scene = Scene::new();
    for steps in 0..3 {
        let mut pair = scene.pair(usize::MAX);
        pair.outbuf = b"AMQP".to_vec();
        pair.poll(true, false).unwrap();
        for _ in 0..steps {
            pair.step(300).unwrap();
        }
        pair.socket.0.borrow_mut().has_ended = true;
        let error = pair.poll(false, true).unwrap_err().to_string();
        assert!(error.contains("in place of TLS"), "{steps}: {error}");
        assert_eq!(pair.outbuf, b"AMQP", "nothing went in the clear");
    }
}

#[test]
fn a_server_without_tls_is_told() {
    for answer in [
        &b"AMQP\0\0\x09\x01"[..],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ] {
        let mut pair = Scene::new().pair(usize::MAX);
        pair.outbuf = b"AMQP".to_vec();
        pair.poll(true, false).unwrap();
        pair.socket.0.borrow_mut().incoming.extend(answer);
        let error = pair.poll(false, true).unwrap_err().to_string();
        assert!(error.contains("does not speak TLS at this port"), "{error}");
    }
}

/// What a client that trusts `authority` says of a server.
fn refused(authority: &Authority, name: &str, identity: &Identity) -> String {
    let trust = Trust::load("broker.ca", &path(authority.file())).unwrap();
    let mut pair = Pair::new(&trust, name, identity, usize::MAX);
    pair.outbuf = b"AMQP".to_vec();
    let error = pair.settle(usize::MAX).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert!(pair.arrived.is_empty());
    // And the server is told.
    let alert: Vec<u8> = pair.socket.0.borrow_mut().outgoing.drain(..).collect();
    let mut rest = &alert[..];
    let mut told = Ok(());
    while !rest.is_empty() && told.is_ok() {
        pair.server.read_tls(&mut rest).unwrap();
        told = pair.server.process_new_packets().map(drop);
    }
    assert!(
        matches!(told, Err(rustls::Error::AlertReceived(_))),
        "{told:?}"
    );
    error.to_string()
}

#[test]
fn what_is_wrong_with_a_certificate_is_told() {
    let (authority, other) = (Authority::new("ours"), Authority::new("theirs"));
    let wrong_host = refused(&authority, "mq.example", &authority.sign(&["a.example"]));
    assert_eq!(
        wrong_host,
        "the server's certificate is for a.example, not for mq.example"
    );
    let names = [
        "a.example",
        "b.example",
        "10.0.0.1",
        "d.example",
        "e.example",
    ];
    let many = refused(&authority, "127.0.0.1", &authority.sign(&names));
    assert!(
        many.contains("for a.example, b.example, 10.0.0.1 and 2 more, not for 127.0.0.1"),
        "{many}"
    );
    let nobody = refused(&authority, "mq.example", &authority.sign(&[]));
    assert!(nobody.contains("no name at all"), "{nobody}");

    let expired = refused(&authority, "h", &authority.sign_expired(&["h"]));
    assert!(
        expired.contains("expired on 2020-12-31 00:00:00 UTC; it is 20"),
        "{expired}"
    );
    let premature = refused(&authority, "h", &authority.sign_premature(&["h"]));
    assert!(
        premature.contains("not valid before 2090-01-01 00:00:00 UTC"),
        "{premature}"
    );

    for unknown in [self_signed(&["h"]), other.sign(&["h"])] {
        let told = refused(&authority, "h", &unknown);
        assert!(
            told.contains("self-signed, or by an authority that is not among"),
            "{told}"
        );
        assert!(
            told.contains("broker.ca") && told.contains("ca.pem"),
            "{told}"
        );
    }
    let namesake = Authority::new("ours").sign(&["h"]);
    let told = refused(&authority, "h", &namesake);
    assert!(
        told.contains("not by the authority that it names"),
        "{told}"
    );
    let itself = authority.sign_with(&["h"], |params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    let told = refused(&authority, "h", &itself);
    assert!(told.contains("CA:TRUE"), "{told}");
}

/// Its file is named in place of an authority's.
#[test]
fn a_self_signed_certificate_may_vouch_for_itself() {
    let identity = self_signed(&["h"]);
    let trust = Trust::load("broker.ca", &path(&identity.cert)).unwrap();
    let mut pair = Pair::new(&trust, "h", &identity, usize::MAX);
    pair.outbuf = b"AMQP".to_vec();
    pair.settle(usize::MAX).unwrap();
    assert_eq!(pair.arrived, b"AMQP");
}

#[test]
fn a_file_that_vouches_for_nobody_is_refused_with_its_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let file = directory.path().join(name);
        std::fs::write(&file, text).unwrap();
        path(file)
    };
    let key = path(Authority::new("a").sign(&["h"]).key);
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (ca, why) in [
        (path(directory.path().join("none")), "cannot be read"),
        (path(directory.path()), "cannot be read"),
        (file("empty", ""), "no certificate"),
        (file("text", "hello"), "no certificate"),
        (key, "no certificate"),
        (file("broken", broken), "broken"),
        (file("cut", "-----BEGIN CERTIFICATE-----\nAAAA\n"), "no PEM"),
        (file("garbage", &broken.replace("AAAA", "?!")), "no PEM"),
    ] {
        let error = Trust::load("broker.ca", &ca).err().expect(&ca);
        assert!(error.starts_with("broker.ca: "), "{error}");
        assert!(error.contains(&ca) && error.contains(why), "{why}: {error}");
    }
}
