//! TLS between a client that is rustls' own and a [`TlsSocket`], over a socket that takes what it likes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::crypto::ring as provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, RootCertStore, ServerConfig,
    SupportedProtocolVersion, version,
};

use super::super::handshakes::{Handshakes, Pool};
use super::{MAX_FRUITLESS, TlsSocket};
use crate::client::transport::{Socket, Transport};
use crate::tls::support::issued;

const DEADLINE: Duration = Duration::from_secs(60);

/// A socket that takes a few bytes, or none at all, whatever room it has.
struct Stingy {
    socket: TcpStream,
    turn: AtomicUsize,
}

impl AsFd for Stingy {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Transport for Stingy {
    fn read(&self, into: &mut [u8], may_block: bool) -> io::Result<usize> {
        let turn = self.turn.fetch_add(7, Relaxed);
        let length = into.len().min(1 + turn % 2_000);
        self.socket.read(&mut into[..length], may_block)
    }

    fn send(&self, bytes: &[u8], may_block: bool) -> io::Result<usize> {
        let turn = self.turn.fetch_add(1, Relaxed);
        if turn.is_multiple_of(5) {
            return Err(ErrorKind::WouldBlock.into());
        }
        let length = bytes.len().min(1 + turn * 31 % 40_000);
        self.socket.send(&bytes[..length], may_block)
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        TcpStream::set_write_timeout(&self.socket, timeout)
    }

    fn shutdown(&self, how: Shutdown) {
        Transport::shutdown(&self.socket, how);
    }
}

/// One client and its socket here. `only`: the version that the client speaks.
fn pair(only: &'static SupportedProtocolVersion, stingy: bool) -> (Client, TlsSocket) {
    let issued = issued(2090);
    let provider = Arc::new(provider::default_provider());
    let cert = CertificateDer::from_pem_slice(issued.cert.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let server = server.with_safe_default_protocol_versions().unwrap();
    let server = server
        .with_no_client_auth()
        .with_single_cert(vec![cert], key);
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(issued.root.as_bytes()).unwrap();
    roots.add(root).unwrap();
    let client = ClientConfig::builder_with_provider(provider);
    let client = client.with_protocol_versions(&[only]).unwrap();
    let mut client = client.with_root_certificates(roots).with_no_client_auth();
    client.enable_secret_extraction = true;

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    let name = "localhost".try_into().unwrap();
    let tls = ClientConnection::new(Arc::new(client), name).unwrap();
    let socket = listener.accept().unwrap().0;
    let socket: Socket = match stingy {
        true => Arc::new(Stingy {
            socket,
            turn: AtomicUsize::new(1),
        }),
        false => Arc::new(socket),
    };
    let (handshakes, mut pool) = Handshakes::new();
    pool.start(&crossbeam::channel::unbounded().0).unwrap();
    let socket = TlsSocket::new(socket, Arc::new(server.unwrap()), handshakes);
    (
        Client {
            stream,
            tls,
            _pool: pool,
        },
        socket,
    )
}

struct Client {
    stream: TcpStream,
    tls: ClientConnection,
    _pool: Pool,
}

impl Client {
    /// Sends what it has to send, and reads once if nothing is decrypted. Answers how much came.
    fn step(&mut self, into: &mut [u8]) -> usize {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.stream).unwrap();
        }
        match self.tls.reader().read(into) {
            Ok(read) => return read,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        self.tls.read_tls(&mut self.stream).unwrap();
        self.tls.process_new_packets().unwrap();
        match self.tls.reader().read(into) {
            Ok(read) => read,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                0
            }
        }
    }

    fn shake_hands(&mut self) {
        while self.tls.is_handshaking() {
            assert_eq!(self.step(&mut [0]), 0);
        }
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.stream).unwrap();
        }
    }

    fn read_exact(&mut self, mut into: &mut [u8]) {
        while !into.is_empty() {
            let read = self.step(into);
            into = &mut into[read..];
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.tls.writer().write_all(bytes).unwrap();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.stream).unwrap();
        }
    }
}

/// As a connection's threads read: what TLS has to say itself goes out first.
fn read(socket: &TlsSocket, into: &mut [u8]) -> io::Result<usize> {
    loop {
        let read = socket.read(into, true);
        while socket.has_output() {
            match socket.send(&[], true) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        match read {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// As a connection's head is read, byte for byte.
fn first_byte(socket: &TlsSocket) -> u8 {
    let mut byte = [0];
    assert_eq!(read(socket, &mut byte).unwrap(), 1);
    byte[0]
}

/// As an outbox sends: a retry begins with the same bytes.
fn send_all(socket: &TlsSocket, mut bytes: &[u8]) {
    let mut turn = 0;
    while !bytes.is_empty() {
        turn += 1;
        // What is passed on grows meanwhile.
        let some = &bytes[..bytes.len().min(socket.begun().max(turn * 977 % 100_000))];
        match socket.send(some, turn % 3 == 0) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// The byte at a place of a stream that repeats only after long.
fn pattern(place: usize) -> u8 {
    (place ^ (place >> 8) ^ (place >> 17)) as u8
}

fn patterned(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(pattern).collect()
}

/// Both threads of a connection at full rate, with keys that change all the time.
fn both_ways(only: &'static SupportedProtocolVersion, volume: usize) {
    let (mut client, socket) = pair(only, true);
    let socket = &socket;
    let updates = only.version == rustls::ProtocolVersion::TLSv1_3;
    thread::scope(|threads| {
        let reader = threads.spawn(move || {
            assert_eq!(first_byte(socket), pattern(0));
            threads.spawn(move || send_all(socket, &patterned(0, volume)));
            let (mut place, mut into) = (1, [0; 512]);
            while place < volume {
                let read = match socket.read(&mut into, true) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    read => read.unwrap(),
                };
                assert_ne!(read, 0, "the end after {place}");
                assert!(into[..read].iter().copied().eq(patterned(place, read)));
                place += read;
            }
        });
        let (mut sent, mut received, mut into) = (0, 0, vec![0; 50_000]);
        client.shake_hands();
        // It waits for nothing: else both would wait for each other to read.
        let stream = client.stream.try_clone().unwrap();
        stream.set_nonblocking(true).unwrap();
        let start = Instant::now();
        let mut round = 0_usize;
        while sent < volume || received < volume || client.tls.wants_write() {
            assert!(
                start.elapsed() < DEADLINE,
                "{sent} sent, {received} received"
            );
            round += 1;
            if sent < volume && !client.tls.wants_write() {
                let some = (round * 331 % 40_000 + 1).min(volume - sent);
                client
                    .tls
                    .writer()
                    .write_all(&patterned(sent, some))
                    .unwrap();
                sent += some;
                if updates && round.is_multiple_of(8) {
                    client.tls.refresh_traffic_keys().unwrap();
                }
            }
            let wrote = client.tls.write_tls(&mut client.stream).is_ok();
            let took = client.tls.read_tls(&mut client.stream).is_ok();
            client.tls.process_new_packets().unwrap();
            while let Ok(read @ 1..) = client.tls.reader().read(&mut into) {
                assert!(into[..read].iter().copied().eq(patterned(received, read)));
                received += read;
            }
            if !wrote && !took {
                thread::yield_now();
            }
        }
        reader.join().unwrap();
    });
}

#[test]
fn both_directions_at_full_rate_through_short_writes_and_key_updates() {
    thread::scope(|threads| {
        for only in [&version::TLS12, &version::TLS13] {
            threads.spawn(|| both_ways(only, 4 << 20));
            threads.spawn(|| both_ways(only, 4 << 20));
        }
    });
}

#[test]
fn nothing_counts_before_all_of_it_has_left() {
    let (mut client, socket) = pair(&version::TLS13, false);
    let bytes = patterned(0, 8 << 20);
    thread::scope(|threads| {
        threads.spawn(|| {
            client.shake_hands();
            client.write(b"x");
        });
        first_byte(&socket);
    });
    // The client does not read: the socket takes less and less, and then nothing.
    let mut sent = 0;
    loop {
        let begun = socket.begun();
        match socket.send(&bytes[sent..], false) {
            Ok(more) => {
                assert!(begun == 0 || more == 0 || more == begun);
                sent += more;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                break;
            }
        }
    }
    let begun = socket.begun();
    assert!(begun > 0);
    assert!(socket.has_output());
    let in_flight = usize::try_from(socket.in_flight()).unwrap();
    assert!(
        in_flight <= sent + sent / 100 + 10_000,
        "{in_flight} of {sent}"
    );
    thread::scope(|threads| {
        threads.spawn(|| send_all(&socket, &bytes[sent..]));
        let mut received = vec![0; bytes.len()];
        client.read_exact(&mut received);
        assert!(received == bytes);
    });
    assert_eq!(socket.begun(), 0);
}

/// However much plaintext one read of the socket brings, all of it comes, and what waits is seen.
#[test]
fn records_of_any_size_are_read_whole() {
    for only in [&version::TLS12, &version::TLS13] {
        let (mut client, socket) = pair(only, false);
        let sizes = [1, 16_384, 1, 2, 7_000, 100, 16_383, 3, 20_000, 1];
        let total: usize = sizes.iter().sum();
        // All of it fits into the window that a socket begins with, 64 KiB.
        let client = thread::spawn(move || {
            client.shake_hands();
            let mut place = 0;
            for size in sizes {
                client.write(&patterned(place, size));
                place += size;
            }
            client
        });
        let mut received = vec![first_byte(&socket)];
        let client = client.join().unwrap();
        let give_up = Instant::now() + DEADLINE;
        while Transport::in_flight(&client.stream) > 0 {
            assert!(Instant::now() < give_up, "it does not arrive");
            thread::yield_now();
        }
        while received.len() < total {
            assert!(socket.has_bytes(), "after {}", received.len());
            let mut into = [0; 7_000];
            let read = read(&socket, &mut into).unwrap();
            assert_ne!(read, 0);
            received.extend(&into[..read]);
        }
        assert!(received == patterned(0, total));
        assert!(!socket.has_bytes());
        drop(client);
    }
}

#[test]
fn both_ends_tell_that_they_end() {
    let (mut client, socket) = pair(&version::TLS13, false);
    thread::scope(|threads| {
        threads.spawn(|| {
            client.shake_hands();
            client.write(b"x");
            let mut bytes = [0; 4];
            client.read_exact(&mut bytes);
            assert_eq!(&bytes, b"over");
            while !client.tls.process_new_packets().unwrap().peer_has_closed() {
                client.tls.read_tls(&mut client.stream).unwrap();
            }
            client.tls.send_close_notify();
            client.tls.write_tls(&mut client.stream).unwrap();
        });
        first_byte(&socket);
        send_all(&socket, b"over");
        socket.shutdown(Shutdown::Write);
        assert_eq!(read(&socket, &mut [0]).unwrap(), 0);
    });
}

#[test]
fn what_is_no_tls_is_an_error_that_says_so_and_gets_no_plaintext() {
    let (client, socket) = pair(&version::TLS13, false);
    (&client.stream)
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .unwrap();
    let error = read(&socket, &mut [0; 100]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert!(error.to_string().contains("wss://"), "{error}");
    assert!(socket.send(b"HTTP/1.1 400 Bad Request", false).is_err());
    socket.shutdown(Shutdown::Both);
    let mut alert = Vec::new();
    (&client.stream).read_to_end(&mut alert).unwrap();
    // A record of type alert (RFC 8446, section 5.1).
    assert_eq!(alert.first(), Some(&21));
}

/// A hello without end, each byte in a record of its own.
#[test]
fn a_hello_that_does_not_end_is_ended() {
    let (client, socket) = pair(&version::TLS13, false);
    // A ClientHello that is 60,000 bytes long, and says so (RFC 8446, section 4).
    let hello = [&[1, 0, 0xEA, 0x60][..], &[3; 60_000]].concat();
    let records: Vec<u8> = hello
        .iter()
        .flat_map(|&byte| [22, 3, 1, 0, 1, byte])
        .collect();
    thread::scope(|threads| {
        // It may be cut off before it has sent everything.
        threads.spawn(|| (&client.stream).write_all(&records));
        let error = read(&socket, &mut [0; 100]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        socket.shutdown(Shutdown::Both);
    });
}

/// Records of TLS 1.3 without anything in them (RFC 8446, sections 5.2 and 5.3).
fn empty_records(client: ClientConnection, count: u64) -> Vec<u8> {
    let (first, secrets) = client.dangerous_extract_secrets().unwrap().tx;
    let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else {
        panic!("another cipher suite");
    };
    let key = UnboundKey::new(&AES_256_GCM, key.as_ref()).unwrap();
    let key = LessSafeKey::new(key);
    let record = |number: u64| {
        let mut nonce: [u8; 12] = iv.as_ref().try_into().unwrap();
        for (byte, of_number) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= of_number;
        }
        let (head, mut text) = ([23, 3, 3, 0, 17], vec![23]);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = key.seal_in_place_append_tag(nonce, Aad::from(head), &mut text);
        sealed.unwrap();
        [&head[..], &text].concat()
    };
    (first..first + count).flat_map(record).collect()
}

#[test]
fn empty_records_without_end_are_ended() {
    let (mut client, socket) = pair(&version::TLS13, false);
    thread::scope(|threads| {
        threads.spawn(|| {
            client.shake_hands();
            client.write(b"x");
            let Client { stream, tls, .. } = client;
            // It may be cut off before it has sent everything.
            (&stream).write_all(&empty_records(tls, 20_000))
        });
        first_byte(&socket);
        let error = read(&socket, &mut [0; 100]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        socket.shutdown(Shutdown::Both);
    });
}

/// Nor do records go on for ever that rustls lets pass, such as changes of keys now and then.
#[test]
fn so_much_may_come_without_plaintext_and_no_more() {
    let (mut client, socket) = pair(&version::TLS13, false);
    thread::scope(|threads| {
        threads.spawn(|| {
            client.shake_hands();
            client.write(b"x");
        });
        first_byte(&socket);
    });
    client.tls.refresh_traffic_keys().unwrap();
    client.write(b"");
    socket.fruitless.store(MAX_FRUITLESS, Relaxed);
    let error = read(&socket, &mut [0; 100]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert!(
        error.to_string().contains("without any plaintext"),
        "{error}"
    );
}
