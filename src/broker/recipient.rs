//! One connection among those that something is for. A panic in it ends it (1011) and is seen by
//! nobody else: the others get theirs, and what is enqueued for them is written.

use std::panic::{AssertUnwindSafe, catch_unwind};

use log::error;

use crate::client::close::CloseReason;
use crate::client::connection::Connection;
use crate::client::failpoint;
use crate::client::frame::Frame;
use crate::client::protocol::Push;

/// As [`Connection::push`].
#[must_use]
pub fn push(connection: &Connection, push: &Push) -> bool {
    alone("push", connection, || connection.push(push))
}

/// As [`Connection::push_train`].
#[must_use]
pub fn push_train(
    connection: &Connection,
    train: &Frame,
    pushes: impl Iterator<Item = Push>,
) -> bool {
    alone("push", connection, || connection.push_train(train, pushes))
}

/// As [`Connection::push_train_and_flush`].
pub fn push_train_and_flush(
    connection: &Connection,
    train: &Frame,
    pushes: impl Iterator<Item = Push>,
) {
    alone("push", connection, || {
        failpoint::reached("flush", connection.user());
        connection.push_train_and_flush(train, pushes);
    });
}

/// As [`Connection::flush`].
pub fn flush(connection: &Connection) {
    alone("flush", connection, || connection.flush());
}

/// As [`Connection::request_catch_up`].
pub fn request_catch_up(connection: &Connection) {
    alone("catch_up", connection, || connection.request_catch_up());
}

fn alone<T: Default>(place: &str, connection: &Connection, act: impl FnOnce() -> T) -> T {
    // Nothing of it is used again: the connection ends.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        failpoint::reached(place, connection.user());
        act()
    }));
    outcome.unwrap_or_else(|_| {
        let (user, id) = (connection.user(), connection.id());
        error!("Delivering panicked: place={place}, user={user}, conn_id={id}");
        connection.close(CloseReason::Internal);
        T::default()
    })
}
