//! The way from a client to a server, which can be cut and mended: the network of one client alone.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

/// It ends with this process.
pub struct Link {
    pub addr: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    is_cut: bool,
    is_mute: bool,
    sockets: Vec<TcpStream>,
}

/// What is done to the bytes that a server says, as they pass.
type Change = Arc<dyn Fn(&mut [u8]) + Send + Sync>;

/// How many bytes pass at once, at most.
const CHUNK: usize = 64 << 10;

impl Link {
    pub fn to(target: SocketAddr) -> Self {
        Self::changing(target, |_| {})
    }

    /// What the server says comes through as `change` leaves it.
    pub fn changing(
        target: SocketAddr,
        change: impl Fn(&mut [u8]) + Send + Sync + 'static,
    ) -> Self {
        let change: Change = Arc::new(change);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("a bound address");
        let link = Self {
            addr,
            state: Arc::default(),
        };
        let state = Arc::clone(&link.state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (shared, change) = (Arc::clone(&state), Arc::clone(&change));
                let mut state = state.lock().expect("no panic");
                // Whoever is not taken in is closed, as everybody is while it is cut.
                if !state.is_cut
                    && let Ok(server) = TcpStream::connect(target)
                {
                    let sockets = pass_on(client, server, shared, change);
                    state.sockets.extend(sockets.expect("descriptors"));
                }
            }
        });
        link
    }

    /// Everybody on it is cut off, and nobody comes through.
    pub fn cut(&self) {
        let mut state = self.state();
        state.is_cut = true;
        for socket in state.sockets.drain(..) {
            // It may have ended by itself.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// From now on nothing that the server says comes through. The other way it goes on.
    pub fn mute(&self) {
        self.state().is_mute = true;
    }

    pub fn mend(&self) {
        let mut state = self.state();
        (state.is_cut, state.is_mute) = (false, false);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }
}

/// Passes on what either says, until one of them has nothing more to say. Answers what to cut.
fn pass_on(
    mut client: TcpStream,
    mut server: TcpStream,
    state: Arc<Mutex<State>>,
    change: Change,
) -> io::Result<[TcpStream; 2]> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let to_cut = [client.try_clone()?, server.try_clone()?];
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        // An error ends it as the end does.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = server.read(&mut chunk) {
            let bytes = &mut chunk[..length];
            change(bytes);
            let is_mute = state.lock().expect("no panic").is_mute;
            if !is_mute && client.write_all(bytes).is_err() {
                break;
            }
        }
        let _ = client.shutdown(Shutdown::Write);
    });
    Ok(to_cut)
}
