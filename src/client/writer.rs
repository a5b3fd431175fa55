//! The writer thread of a connection. It writes whenever the socket is full and somebody has to
//! wait for it, catches up on unread messages, keeps the connection's time (pings, idleness, token
//! expiry), and says goodbye.

use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{mem, thread};

use log::info;

use super::Context;
use super::catch_up::CatchUp;
use super::close::CloseReason;
use super::connection::Connection;
use super::liveness::{Liveness, Next, Seen};
use super::stack;
use super::token::seconds_left;
use super::token_check::TokenCheck;
use crate::metrics::observe;
use crate::threads::{contain, failpoint};

/// The longest sleep, so that a change of the wall clock is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// Serves `connection` until it ends, then ends its socket. The first catch-up starts at
/// `catch_up_at`, unless it is requested earlier.
pub(super) fn run(connection: &Connection, context: &Arc<Context>, catch_up_at: Instant) {
    connection.outbox.set_writer(thread::current());
    let served = contain(|| {
        let (session, since) = (&context.config.session, connection.since);
        let mut writer = Writer {
            connection,
            context,
            // Spreads the pings of clients that came together over one interval.
            next_ping: since + session.ping_interval.mul_f64(connection.id.fraction()),
            liveness: Liveness::new(session.idle_timeout, session.write_timeout, since),
            is_behind: false,
            token_check: TokenCheck::new(Arc::clone(context)),
            catch_up: CatchUp::new(Arc::clone(context), catch_up_at),
        };
        let mut trimmed = false;
        while !connection.is_closing() {
            let next = writer.work();
            // What its calls to the services took of the stack is given back before the long wait.
            if !trimmed && writer.catch_up.is_over() {
                stack::trim();
                trimmed = true;
                observe(&context.metrics.catch_up, connection.since.elapsed());
            }
            match next {
                Ok(wake_at) => {
                    thread::park_timeout(wake_at.saturating_duration_since(Instant::now()))
                }
                Err(reason) => connection.close(reason),
            }
        }
    });
    served.unwrap_or_else(|| connection.close(CloseReason::InternalError));
    leave(connection, context.config.session.write_timeout);
}

/// What a writer thread has to do, each thing at its time.
struct Writer<'c> {
    connection: &'c Connection,
    context: &'c Context,
    next_ping: Instant,
    liveness: Liveness,
    /// The client fell back to its inbox.
    is_behind: bool,
    token_check: TokenCheck,
    catch_up: CatchUp,
}

impl Writer<'_> {
    /// Does what is due, none of it for longer than a call to a service. Answers when to be called
    /// again, or why the connection is to end.
    ///
    /// Not inlined: its frame is large, and would stay on the stack of a thread that waits.
    #[inline(never)]
    fn work(&mut self) -> Result<Instant, CloseReason> {
        let connection = self.connection;
        if connection.outbox.is_handed_over() {
            connection.outbox.flush_blocking();
        }
        let now = Instant::now();
        let next_look = self.look_after_client(now)?;
        let left = seconds_left(connection.expires_at()).map_or(MAX_SLEEP, Duration::from_secs);
        if left.is_zero() {
            return Err(CloseReason::TokenExpired);
        }
        // Also where something waits for the client, which may see to it that something always does.
        let next_check = self.token_check.advance(connection, now)?;
        if connection.outbox.is_handed_over() || connection.is_closing() {
            return Ok(now);
        }
        let next_catch_up = self.catch_up.advance(connection, Instant::now());
        let next_write = connection.outbox.is_handed_over().then_some(now);
        let latest = self.next_ping.min(now + left.min(MAX_SLEEP));
        let next = [next_look, next_check, next_catch_up, next_write];
        Ok(next.into_iter().flatten().fold(latest, Instant::min))
    }

    /// Pings, and judges how the client takes it.
    fn look_after_client(&mut self, now: Instant) -> Next {
        let connection = self.connection;
        let seen = Seen {
            at: now,
            heard: (connection.activity.lock().last_frame).unwrap_or(connection.since),
            progress: connection.outbox.progress(),
            is_waiting: connection.outbox.is_handed_over(),
            is_behind: connection.gate.fell_back(),
        };
        let was_behind = mem::replace(&mut self.is_behind, seen.is_behind);
        if seen.is_behind && !was_behind {
            info!("Fell back to the inbox: {connection}");
            self.context.metrics.fallbacks.inc();
        }
        let has_input = || connection.outbox.has_input();
        let next_look = self.liveness.judge(&seen, has_input)?;
        if now < self.next_ping {
            return Ok(next_look);
        }
        failpoint::reached("writer", connection.user());
        self.next_ping = now + self.context.config.session.ping_interval;
        self.liveness.ping(&seen, || {
            connection.activity.lock().pinged_at = Some(now);
            connection.outbox.ping()
        });
        // Encrypting takes a page more than waiting does.
        stack::trim();
        Ok(Some(now))
    }
}

/// Sends the Close frame and ends the socket, within `patience` and a write that was under way.
fn leave(connection: &Connection, patience: Duration) {
    let Some(reason) = connection.outbox.closing() else {
        return connection.outbox.abort();
    };
    // Whoever has been silent for so long gets a Close if there is room for it.
    let patience = match reason {
        CloseReason::Idle => Duration::ZERO,
        _ => patience,
    };
    let deadline = Instant::now() + patience;
    let close = reason.frame(connection.id.fraction());
    connection.outbox.finish_close(close, patience);
    while reason.lingers() && !connection.is_reader_done() && Instant::now() < deadline {
        thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
    }
    connection.outbox.abort();
}
