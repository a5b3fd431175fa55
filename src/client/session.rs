//! A connection's whole life on its reader thread, from the first byte to the last.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};

use super::address::client_address;
use super::admission::{Admission, no_room};
use super::close::CloseReason;
use super::connection::Connection;
use super::frame::{BINARY, Frame, TEXT};
use super::gate::DeliveryGate;
use super::handshake::{Accepted, expect_upgrade, validate_upgrade};
use super::head::{RECEIVE_WITHIN, read_head, send};
use super::outbox::Outbox;
use super::protocol::{Outgoing, timestamp};
use super::rate::RateLimit;
use super::request::Request;
use super::socket::{FrameReader, Incoming};
use super::stack::{self, STACK};
use super::transport::Socket;
use super::{Context, Route, dispatch, failpoint};
use crate::http::{self, HttpResponse, MAX_HEAD};
use crate::metrics::observe;
use crate::services::{ErrorCode, ServiceError};

/// How long the first catch-up waits for the user's route.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves one accepted socket until its end.
pub(super) fn run(mut admission: Box<Admission>, context: &Arc<Context>) {
    let opened = shake_hands(&mut admission, context);
    admission.handshake_is_over();
    match opened {
        Ok(Some(session)) => session.serve(Arc::clone(&admission.socket)),
        Ok(None) => {}
        Err(answer) => refuse(&admission, context, &answer),
    }
}

/// From the first byte to a registered connection; or another answer, or none if no head came.
///
/// Not inlined: its frame is large, and would stay on the stack of a connection that waits.
#[inline(never)]
fn shake_hands(admission: &mut Admission, context: &Arc<Context>) -> http::Result<Option<Session>> {
    let deadline = admission.since + context.config.listen.handshake_timeout;
    let mut bytes = Vec::with_capacity(MAX_HEAD);
    let on_progress = || admission.note_progress(Instant::now());
    let read = read_head(&admission.socket, deadline, &mut bytes, on_progress);
    admission.peer = admission.socket.client().unwrap_or(admission.peer);
    admission.head_is_over()?;
    let Some(head) = read? else {
        return Ok(None);
    };
    let client = client_address(&head, admission.peer, &context.config.listen);
    let counted = admission.count_for(client);
    // Pages are shown to those as well who are too many.
    expect_upgrade(&head, context)?;
    counted?;
    let accepted = validate_upgrade(&head, &admission.socket, context)?;
    let user = &accepted.identity.user;
    failpoint::reached("handshake", user);
    admission.user = Some(user.clone());
    let session = Session::open(admission, &accepted, context)?;
    observe(&context.metrics.handshake, admission.since.elapsed());
    Ok(Some(session))
}

/// Not inlined, like [`shake_hands`].
#[inline(never)]
fn refuse(admission: &Admission, context: &Context, answer: &HttpResponse) {
    context.refused(admission.peer, admission.user.as_ref(), answer);
    send(&admission.socket, answer, Instant::now() + RECEIVE_WITHIN);
}

/// A registered connection. Whatever happens, its end gives back what it holds of the gateway.
struct Session {
    connection: Arc<Connection>,
    context: Arc<Context>,
    writer: Option<thread::JoinHandle<()>>,
}

impl Session {
    /// Registers the connection, asks for the user's route and starts the writer thread.
    fn open(
        admission: &Admission,
        accepted: &Accepted,
        context: &Arc<Context>,
    ) -> http::Result<Self> {
        let config = &context.config;
        let connected = Outgoing::Connected {
            connection_id: &admission.id.to_string(),
            user_id: accepted.identity.user.as_str(),
            gateway_id: &config.gateway.id,
            ping_interval: config.session.ping_interval.as_millis().div_ceil(1_000) as u64,
            max_message_size: config.limits.max_message_size,
        };
        let (frames, bytes) = (config.session.send_queue, config.session.send_queue_bytes);
        let greeting = (!context.echo).then(|| connected.frame(None, timestamp()));
        let greeting = greeting.as_ref().map_or(&[][..], Frame::bytes);
        let opening = Frame::raw(&[accepted.switching.as_bytes(), greeting].concat());
        let outbox = Outbox::new(Arc::clone(&admission.socket), opening, frames, bytes);
        let gate = DeliveryGate::new(frames, bytes);
        let connection = Connection::new(admission.id, accepted, admission.peer, outbox, gate);
        let connection = Arc::new(connection);
        let too_many = |_| {
            let message = "The user has too many connections";
            HttpResponse::too_many("max_connections_per_user", message)
        };
        // Else the user's oldest connection might go for one that does not come.
        context.reject_if_draining()?;
        let route = context.observer.connected(&connection).map_err(too_many)?;
        let mut session = Self {
            connection,
            context: Arc::clone(context),
            writer: None,
        };
        // It is in the registry, so that a shutdown that begins after this look finds it there.
        let shutdown = CloseReason::Shutdown(Duration::ZERO);
        let let_in = context.reject_if_draining();
        let_in.inspect_err(|_| session.connection.close(shutdown))?;
        session.start_writer(route)?;
        Ok(session)
    }

    fn start_writer(&mut self, route: Route) -> http::Result<()> {
        let now = Instant::now();
        let catch_up_at = match route {
            Route::Bound => {
                self.connection.routed();
                now
            }
            Route::Pending => now + ROUTE_TIMEOUT,
            Route::Away => now,
        };
        let (connection, context) = (Arc::clone(&self.connection), Arc::clone(&self.context));
        let name = format!("w-{}", connection.id.short());
        let writer = thread::Builder::new().name(name).stack_size(STACK);
        let writer = writer.spawn(move || super::writer::run(&connection, &context, catch_up_at));
        self.writer = Some(writer.map_err(|error| {
            let user = self.connection.user();
            warn!("No writer thread: user={user}, error={error}");
            no_room()
        })?);
        Ok(())
    }

    /// Upgrades, then reads until the connection ends.
    fn serve(self, socket: Socket) {
        let connection = &*self.connection;
        let peer = connection.peer.address();
        info!("Connection established: {connection}, peer={peer}");
        connection.outbox.write_behind([]);
        stack::trim();

        let mut reader = FrameReader::new(socket, self.context.config.limits.max_message_size);
        let read = catch_unwind(AssertUnwindSafe(|| self.read(&mut reader)));
        let Err(reason) = read.unwrap_or(Err(CloseReason::InternalError));
        connection.close(reason);
        let closing = connection.outbox.closing();
        if closing.is_some_and(CloseReason::lingers) {
            reader.discard();
        }
        connection.set_reader_done();
    }

    /// One request at a time, until there is a reason to end.
    fn read(&self, reader: &mut FrameReader) -> Result<Infallible, CloseReason> {
        let limits = &self.context.config.limits;
        let limit = || RateLimit::new(limits.rate, limits.burst, Instant::now());
        let (mut requests, mut pings) = (limit(), limit());
        loop {
            let incoming = reader.read()?;
            let now = Instant::now();
            let mut activity = self.connection.activity.lock();
            (activity.last_frame, activity.received) = (Some(now), reader.received());
            if matches!(incoming, Incoming::Pong)
                && let Some(pinged_at) = activity.pinged_at.take()
            {
                let took = *activity.round_trip.insert(pinged_at.elapsed());
                observe(&self.context.metrics.ping, took);
            }
            drop(activity);
            if let Some(reason) = self.connection.outbox.closing() {
                return Err(reason.clone());
            }
            let answer = match incoming {
                Incoming::Text(text) if self.context.echo => Frame::encode(TEXT, text.as_bytes()),
                Incoming::Binary(bytes) if self.context.echo => Frame::encode(BINARY, &bytes),
                Incoming::Text(text) => self.answer(&text, &mut requests)?,
                Incoming::Binary(_) => return Err(CloseReason::BinaryFrame),
                // Each is answered; too many end the connection as too many requests do.
                Incoming::Ping(payload) => pings.allows(now).map(|_| Frame::pong(&payload))?,
                Incoming::Pong => {
                    // Decrypting takes a page more than waiting does.
                    stack::trim();
                    continue;
                }
            };
            self.connection.outbox.send(&answer);
        }
    }

    /// The answer to one request; ends the connection when there have been too many.
    ///
    /// Not inlined, like [`shake_hands`].
    #[inline(never)]
    fn answer(&self, text: &str, rate: &mut RateLimit) -> Result<Frame, CloseReason> {
        failpoint::reached("reader", self.connection.user());
        let mut request = Request::parse(text, self.connection.user());
        let kind = request.body.as_ref().ok().map(Into::into);
        self.context.metrics.received(kind);
        if !rate.allows(Instant::now())? {
            let error = ServiceError::new(ErrorCode::RateLimited, "Too many requests");
            request.body = Err(error);
        }
        Ok(dispatch::answer(&self.context, &self.connection, request))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let connection = &*self.connection;
        connection.close(CloseReason::InternalError);
        connection.set_reader_done();
        if let Some(writer) = self.writer.take() {
            // The writer catches its panics itself.
            let _ = writer.join();
        }
        self.context.observer.disconnected(connection);
        if let Some(reason) = connection.outbox.closing() {
            let code = reason.code();
            let lasted = connection.since.elapsed().as_secs();
            info!(
                "Connection closed: {connection}, reason={reason}, code={code}, seconds={lasted}"
            );
        }
    }
}
