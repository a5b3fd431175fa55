//! What the kernel knows of a connection's socket and `std` does not say.

use std::net::TcpStream;

use rustix::net::{RecvFlags, recv};

/// Whether a read would return bytes at once. The end and an error are for the one who reads next.
pub(super) fn has_bytes(socket: &TcpStream) -> bool {
    let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    recv(socket, &mut [0], look).is_ok_and(|(read, _)| read > 0)
}
