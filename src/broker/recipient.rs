//! The connections that something is for, each by itself.

use std::sync::Arc;

use log::error;

use crate::client::close::CloseReason;
use crate::client::connection::Connection;
use crate::client::failpoint;
use crate::threads;

/// Does something for one connection. A panic in it ends that one (1011) and is seen by nobody else:
/// the others get theirs, and what is enqueued for them is written.
pub fn contain<T: Default>(
    place: &str,
    connection: &Connection,
    act: impl FnOnce(&Connection) -> T,
) -> T {
    let (user, id) = (connection.user(), connection.id());
    let act = || {
        failpoint::reached(place, user);
        act(connection)
    };
    // Nothing of it is used again: the connection ends.
    threads::contain(act).unwrap_or_else(|| {
        error!("Delivering panicked: place={place}, user={user}, conn_id={id}");
        connection.close(CloseReason::Internal);
        T::default()
    })
}

/// As [`Connection::request_catch_up`], for each of them.
pub fn catch_up(connections: &[Arc<Connection>]) {
    for connection in connections {
        contain("catch_up", connection, Connection::request_catch_up);
    }
}
