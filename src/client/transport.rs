//! What a client's socket is to the core: bytes, with or without TLS below them.

use std::ffi::c_int;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::ioctl::{Getter, Opcode, ioctl};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::address::Peer;

/// `SIOCOUTQ` (tcp(7)): the bytes in the send queue that the peer has not acknowledged.
const SIOCOUTQ: Opcode = 0x5411;

/// One connection's socket, shared by its reader and its writer thread.
///
/// The contract, beyond what the methods say:
/// - At most one thread reads and one sends at a time; they may do so at the same time.
/// - [`Transport::read`] makes at most one read of the socket. Bytes that bring no plaintext yet are
///   [`Interrupted`](io::ErrorKind::Interrupted): read again. Bytes that cannot come here at all are
///   [`InvalidData`](io::ErrorKind::InvalidData), and the error says to the client what has to come.
/// - [`Transport::send`] counts a byte only once what carries it has left for the socket. What was not
///   counted is sent again, and a retry begins with the same bytes.
/// - What the transport itself wants to write after a read ([`Transport::has_output`]) goes out with
///   the next `send`, of no bytes if need be; never from within `read`.
/// - So that a goodbye keeps to frames, whoever drops what is unsent, or puts something before it, keeps
///   what a `send` was begun with ([`Transport::begun`]).
pub trait Transport: AsFd + Send + Sync {
    /// Reads into `into`; `Ok(0)` is the end. It blocks if it `may_block` and nothing is there to be
    /// read; else nothing is [`WouldBlock`](io::ErrorKind::WouldBlock).
    fn read(&self, into: &mut [u8], may_block: bool) -> io::Result<usize>;
    /// Sends of `bytes` what the socket takes, and answers how much that was. It blocks, for as long
    /// as the write timeout lets it, if it `may_block` and the socket takes nothing; else nothing is
    /// [`WouldBlock`](io::ErrorKind::WouldBlock).
    fn send(&self, bytes: &[u8], may_block: bool) -> io::Result<usize>;
    /// Whether a `send`, of no bytes if need be, has something to write on the transport's own behalf.
    fn has_output(&self) -> bool {
        false
    }
    /// How many bytes a `send` was begun with that are not counted yet: the next one begins with them.
    fn begun(&self) -> usize {
        0
    }
    /// The client, where the transport has been told by whoever passes it on.
    fn client(&self) -> Option<Peer> {
        None
    }
    /// `None`: sends wait for ever. Fails for zero alone.
    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;
    /// Ends a half: of sending, which fails from then on, and the client reads the end once it has read
    /// what was sent; of reading,
    /// and whoever blocks on that reads the end at once. Or both: whoever blocks on the socket returns.
    fn shutdown(&self, how: Shutdown);

    /// How many bytes the socket took that the client's host has not acknowledged. On a socket that is
    /// gone, none.
    fn in_flight(&self) -> u64 {
        // SAFETY: the call does nothing but write one `c_int`, which is what the getter makes room for.
        let unacknowledged = unsafe { ioctl(self.as_fd(), Getter::<SIOCOUTQ, c_int>::new()) };
        unacknowledged.map_or(0, |bytes| u64::try_from(bytes).unwrap_or(0))
    }

    /// Whether a read would return bytes at once. The end and an error are for the one who reads next.
    fn has_bytes(&self) -> bool {
        let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        recv(self.as_fd(), &mut [0], look).is_ok_and(|(read, _)| read > 0)
    }
}

/// A transport, as both threads of a connection hold it.
pub type Socket = Arc<dyn Transport>;

/// Makes an accepted socket a transport. It does not block, nor wait for the client.
pub type Opener = Box<dyn Fn(TcpStream, Peer) -> Socket + Send + Sync>;

/// A plain socket.
pub fn plain() -> Opener {
    Box::new(|socket, _| Arc::new(socket))
}

impl Transport for TcpStream {
    fn read(&self, into: &mut [u8], may_block: bool) -> io::Result<usize> {
        let mut flags = RecvFlags::empty();
        flags.set(RecvFlags::DONTWAIT, !may_block);
        let (read, _) = recv(self, into, flags)?;
        Ok(read)
    }

    fn send(&self, bytes: &[u8], may_block: bool) -> io::Result<usize> {
        let mut flags = SendFlags::NOSIGNAL;
        flags.set(SendFlags::DONTWAIT, !may_block);
        Ok(send(self, bytes, flags)?)
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        TcpStream::set_write_timeout(self, timeout)
    }

    fn shutdown(&self, how: Shutdown) {
        // It fails when the connection is gone already, which is what is wanted.
        let _ = TcpStream::shutdown(self, how);
    }
}
