//! One connection among those that something is for.

use std::panic::{AssertUnwindSafe, catch_unwind};

use log::error;

use crate::client::close::CloseReason;
use crate::client::connection::Connection;
use crate::client::failpoint;

/// Does something for one connection. A panic in it ends that one (1011) and is seen by nobody else:
/// the others get theirs, and what is enqueued for them is written.
pub fn contain(place: &str, connection: &Connection, act: impl FnOnce(&Connection)) {
    // Nothing of it is used again: the connection ends.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        failpoint::reached(place, connection.user());
        act(connection);
    }));
    if outcome.is_err() {
        let (user, id) = (connection.user(), connection.id());
        error!("Delivering panicked: place={place}, user={user}, conn_id={id}");
        connection.close(CloseReason::Internal);
    }
}

/// As [`Connection::request_catch_up`].
pub fn request_catch_up(connection: &Connection) {
    contain("catch_up", connection, Connection::request_catch_up);
}
