//! A server that speaks HTTP/2 as a test tells it, frame by frame: proxies' pages, half answers,
//! GOAWAY and RST_STREAM at will. RFC 9113; what it sends is HPACK without tables (RFC 7541, 6.2.2).

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const MAX_FRAME: usize = 16_384;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Codes of RFC 9113, 7.
pub const NO_ERROR: u32 = 0;
pub const INTERNAL_ERROR: u32 = 2;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// A call whose request is there.
pub struct Call {
    pub stream: u32,
    /// The request's message, without its prefix.
    pub message: Vec<u8>,
    /// How many calls came before it, on this connection and on all.
    pub nth: u32,
    pub nth_of_all: u32,
}

/// What a server does with a call: bytes to send, and whether the connection ends with them.
#[derive(Default, Clone)]
pub struct Reply {
    bytes: Vec<u8>,
    ends: bool,
}

type Script = dyn Fn(&Call) -> Reply + Send + Sync;

pub struct Http2 {
    addr: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    script: Mutex<Arc<Script>>,
    over: AtomicBool,
    calls: AtomicU32,
    connections: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

impl Http2 {
    pub fn start(script: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("a bound address");
        let shared = Arc::new(Shared {
            script: Mutex::new(Arc::new(script)),
            over: AtomicBool::new(false),
            calls: AtomicU32::new(0),
            connections: AtomicUsize::new(0),
            open: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("a connection");
                if accepting.over.load(SeqCst) {
                    return;
                }
                let _ = stream.set_nodelay(true);
                accepting.connections.fetch_add(1, SeqCst);
                let open = stream.try_clone().expect("a descriptor");
                accepting.open.lock().unwrap().push(open);
                let shared = Arc::clone(&accepting);
                thread::spawn(move || {
                    // An error is the other side's going away.
                    let _ = serve(&stream, &shared);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        let thread = Some(thread);
        Self {
            addr,
            shared,
            thread,
        }
    }

    /// From now on it does this.
    pub fn becomes(&self, script: impl Fn(&Call) -> Reply + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Arc::new(script);
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// How many calls came whose message is not empty: all but the pings of an address that rests.
    pub fn calls(&self) -> u32 {
        self.shared.calls.load(SeqCst)
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.shared.over.store(true, SeqCst);
        let _ = TcpStream::connect(self.addr);
        let _ = self.thread.take().map(thread::JoinHandle::join);
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn serve(mut stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    stream.read_exact(&mut [0; PREFACE.len()])?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    let mut requests: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut nth = 0;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        match kind {
            SETTINGS | PING if flags & ACK == 0 => {
                let answer = if kind == PING { &payload[..] } else { &[] };
                stream.write_all(&frame(kind, ACK, 0, answer))?;
            }
            DATA => requests.entry(id).or_default().extend(payload),
            _ => {}
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            let body = requests.remove(&id).unwrap_or_default();
            let message = body.get(5..).unwrap_or_default().to_vec();
            let nth_of_all = match message.is_empty() {
                true => shared.calls.load(SeqCst),
                false => shared.calls.fetch_add(1, SeqCst),
            };
            let call = Call {
                stream: id,
                message,
                nth,
                nth_of_all,
            };
            nth += 1;
            let script = Arc::clone(&shared.script.lock().unwrap());
            let reply = script(&call);
            stream.write_all(&reply.bytes)?;
            if reply.ends {
                return Ok(());
            }
        }
    }
}

impl Call {
    /// A whole answer, with what is well-formed gRPC around `message`.
    pub fn answer(&self, message: &[u8]) -> Reply {
        Reply::default()
            .head(self.stream, "200", &[("content-type", b"application/grpc")])
            .data(self.stream, &framed(message))
            .trailers(self.stream, &[("grpc-status", b"0")])
    }

    /// A status and nothing else.
    pub fn status(&self, code: u8, fields: &[(&str, &[u8])]) -> Reply {
        let code = code.to_string();
        let mut all = vec![
            (":status", &b"200"[..]),
            ("content-type", b"application/grpc"),
            ("grpc-status", code.as_bytes()),
        ];
        all.extend_from_slice(fields);
        Reply::default().headers(self.stream, &all, true)
    }

    /// A page, as a proxy answers.
    pub fn page(&self, status: &str, content_type: &str) -> Reply {
        let fields = [("content-type", content_type.as_bytes())];
        let head = Reply::default().head(self.stream, status, &fields);
        head.data(self.stream, b"<html><h1>no</h1></html>")
            .end(self.stream)
    }
}

impl Reply {
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn head(self, stream: u32, status: &str, fields: &[(&str, &[u8])]) -> Self {
        let mut all = vec![(":status", status.as_bytes())];
        all.extend_from_slice(fields);
        self.headers(stream, &all, false)
    }

    pub fn trailers(self, stream: u32, fields: &[(&str, &[u8])]) -> Self {
        self.headers(stream, fields, true)
    }

    fn headers(mut self, stream: u32, fields: &[(&str, &[u8])], ends: bool) -> Self {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0);
            string(&mut block, name.as_bytes());
            string(&mut block, value);
        }
        let mut kind = HEADERS;
        let mut flags = if ends { END_STREAM } else { 0 };
        let mut chunks = block.chunks(MAX_FRAME).peekable();
        while let Some(chunk) = chunks.next() {
            if chunks.peek().is_none() {
                flags |= END_HEADERS;
            }
            self.bytes.extend(frame(kind, flags, stream, chunk));
            (kind, flags) = (CONTINUATION, 0);
        }
        self
    }

    pub fn data(mut self, stream: u32, bytes: &[u8]) -> Self {
        for chunk in bytes.chunks(MAX_FRAME) {
            self.bytes.extend(frame(DATA, 0, stream, chunk));
        }
        self
    }

    /// Ends the stream without trailers.
    pub fn end(mut self, stream: u32) -> Self {
        self.bytes.extend(frame(DATA, END_STREAM, stream, &[]));
        self
    }

    pub fn reset(mut self, stream: u32, code: u32) -> Self {
        let frame = frame(RST_STREAM, 0, stream, &code.to_be_bytes());
        self.bytes.extend(frame);
        self
    }

    pub fn go_away(mut self, last: u32, code: u32) -> Self {
        let payload = [last.to_be_bytes(), code.to_be_bytes()].concat();
        self.bytes.extend(frame(GOAWAY, 0, 0, &payload));
        self
    }

    pub fn and_close(mut self) -> Self {
        self.ends = true;
        self
    }

    pub fn and(mut self, other: &Self) -> Self {
        self.bytes.extend_from_slice(&other.bytes);
        self.ends |= other.ends;
        self
    }
}

/// A message behind its prefix.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a length");
    [&[0], &length.to_be_bytes()[..], message].concat()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a length");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A string literal (RFC 7541, 5.1 and 5.2), not Huffman-coded.
fn string(block: &mut Vec<u8>, bytes: &[u8]) {
    match bytes.len() {
        short @ ..127 => block.push(u8::try_from(short).expect("less than 127")),
        long => {
            block.push(127);
            let mut rest = long - 127;
            while rest >= 128 {
                block.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            block.push(rest as u8);
        }
    }
    block.extend_from_slice(bytes);
}

/// A server that sends these bytes to whoever connects, once it has read something, and closes.
pub struct NotHttp2 {
    addr: SocketAddr,
    over: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<()>>,
}

impl NotHttp2 {
    pub fn start(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("a bound address");
        let over = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(AtomicUsize::new(0));
        let (ends, count) = (Arc::clone(&over), Arc::clone(&connections));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(SeqCst) {
                    return;
                }
                let mut stream = stream.expect("a connection");
                count.fetch_add(1, SeqCst);
                if !answer.is_empty() {
                    let _ = stream.read(&mut [0; 1024]);
                    let _ = stream.write_all(answer);
                }
            }
        });
        let thread = Some(thread);
        Self {
            addr,
            over,
            connections,
            thread,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

impl Drop for NotHttp2 {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        let _ = TcpStream::connect(self.addr);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}
