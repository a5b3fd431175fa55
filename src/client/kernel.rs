//! What the kernel knows of a connection's socket and `std` does not say.

use std::ffi::c_int;
use std::net::TcpStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::{Getter, Opcode, ioctl};
use rustix::net::{RecvFlags, recv};

/// `SIOCOUTQ` (tcp(7)): the bytes in the send queue that the peer has not acknowledged.
const SIOCOUTQ: Opcode = 0x5411;

/// How many bytes were written to `socket` and are not acknowledged by the client's host. On a
/// socket that is gone, none.
pub(super) fn in_flight(socket: &TcpStream) -> u64 {
    // SAFETY: the call does nothing but write one `c_int`, which is what the getter makes room for.
    let unacknowledged = unsafe { ioctl(socket, Getter::<SIOCOUTQ, c_int>::new()) };
    unacknowledged.map_or(0, |bytes| u64::try_from(bytes).unwrap_or(0))
}

/// Whether a read would return at once: with bytes, the end, or an error.
pub(super) fn has_input(socket: &TcpStream) -> bool {
    let mut sockets = [PollFd::new(socket, PollFlags::IN)];
    matches!(poll(&mut sockets, Some(&Timespec::default())), Ok(1..))
}

/// Whether a read would return bytes at once. The end and an error are for the one who reads next.
pub(super) fn has_bytes(socket: &TcpStream) -> bool {
    let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    recv(socket, &mut [0], look).is_ok_and(|(read, _)| read > 0)
}
