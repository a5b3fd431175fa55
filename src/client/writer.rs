//! The writer thread of a connection. It writes whenever the socket is full and somebody has to
//! wait for it, catches up on unread messages, keeps the connection's time (pings, idleness, token
//! expiry), and says goodbye.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::Context;
use super::catch_up::CatchUp;
use super::close::CloseReason;
use super::connection::{Connection, seconds_left};
use super::failpoint;
use super::frame::Frame;

/// The longest sleep, so that a change of the wall clock is noticed.
const NAP: Duration = Duration::from_secs(60);

/// Serves `connection` until it ends, then ends its socket. The first catch-up starts at
/// `catch_up_at`, unless it is requested earlier.
pub(super) fn run(connection: &Connection, context: &Context, catch_up_at: Instant) {
    connection.outbox.set_writer(thread::current());
    let served = catch_unwind(AssertUnwindSafe(|| serve(connection, context, catch_up_at)));
    if served.is_err() {
        connection.close(CloseReason::Internal);
    }
    leave(connection, context.config.session.write_timeout);
}

fn serve(connection: &Connection, context: &Context, catch_up_at: Instant) {
    let (services, pacing) = (Arc::clone(&context.services), Arc::clone(&context.pacing));
    let mut catch_up = CatchUp::new(services, pacing, catch_up_at);
    let mut next_ping = connection.since() + first_ping(connection, context);
    while !connection.is_closing() {
        if connection.outbox.is_handed_over() {
            connection.outbox.drain();
        }
        let now = Instant::now();
        if now >= next_ping {
            failpoint::reached("writer", connection.user());
            next_ping = now + context.config.session.ping_interval;
            connection.outbox.send(&Frame::ping());
        }
        let idle_at = connection.last_heard() + context.config.session.idle_timeout;
        if now >= idle_at {
            return connection.close(CloseReason::Idle);
        }
        let token = seconds_left(connection.expires_at());
        if token == Some(0) {
            return connection.close(CloseReason::TokenExpired);
        }
        let nap = token.map_or(NAP, |seconds| NAP.min(Duration::from_secs(seconds)));
        let next = catch_up.advance(connection, now).unwrap_or(idle_at);
        if connection.outbox.is_handed_over() {
            continue;
        }
        let wake_at = next.min(idle_at).min(next_ping).min(now + nap);
        thread::park_timeout(wake_at.saturating_duration_since(Instant::now()));
    }
}

/// Spreads the pings of clients that came together over one interval.
fn first_ping(connection: &Connection, context: &Context) -> Duration {
    context
        .config
        .session
        .ping_interval
        .mul_f64(connection.id().fraction())
}

/// Sends the Close frame and ends the socket, within `patience` and a write that was under way.
fn leave(connection: &Connection, patience: Duration) {
    let Some(reason) = connection.outbox.closing() else {
        return connection.outbox.cut();
    };
    // Whoever has been silent for so long gets a Close if there is room for it.
    let patience = match reason {
        CloseReason::Idle => Duration::ZERO,
        _ => patience,
    };
    let deadline = Instant::now() + patience;
    let close = reason
        .frame()
        .map(|(code, words)| Frame::close(code, words));
    connection.outbox.say_goodbye(close, patience);
    while reason.lingers() && !connection.is_reader_done() && Instant::now() < deadline {
        thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
    }
    connection.outbox.cut();
}
