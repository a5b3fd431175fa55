//! One client connection, in reading order: it is accepted ([`accept`]) or refused ([`refuser`]),
//! its request head is read ([`head`]) and judged ([`handshake`]), its session runs ([`session`]),
//! reading frames from the socket ([`socket`]), parsing them ([`request`]), calling the services
//! ([`dispatch`]), and answering ([`protocol`]) through the outbox ([`outbox`]), whose writer
//! thread ([`writer`]) also keeps time and catches up on unread messages ([`catch_up`]).

pub mod close;
pub mod connection;
pub mod frame;
pub mod outbox;
pub mod protocol;

mod catch_up;
mod hold;
mod permits;
mod request;
