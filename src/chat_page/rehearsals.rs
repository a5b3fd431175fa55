//! What can be rehearsed, and on whom. A rehearsal is of one connection: the one whose id the request
//! names, and only its own client was ever told that id. It either ends the connection as the gateway
//! would, or acts on calls to the services that the connection's own threads make.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::info;
use parking_lot::Mutex;
use rustix::system::uname;
use serde_json::json;
use strum::IntoEnumIterator;

use crate::client::close::CloseReason;
use crate::client::connection::Connection;
use crate::error::ErrorCode;
use crate::http::{self, Head, HttpResponse};

/// The header field in which the page names its connection. That it is there keeps other sites' forms
/// and links from acting, as [`Head::check_host`] keeps DNS rebinding.
const HEADER: &str = "X-Gateway-Connection";

/// How long the services pause for a connection.
const PAUSE: Duration = Duration::from_secs(5);
/// After how many seconds a token expires that is made to.
pub const EXPIRES_IN: i64 = 6;
/// When those who are told of a shutdown are to come back.
const RETURN_AFTER: Duration = Duration::from_secs(2);

/// What is done to a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rehearsal {
    /// It ends.
    Close(CloseReason),
    /// For [`PAUSE`] each call of its threads fails.
    Pause,
    /// With the next history the newest message of it is pushed again.
    Duplicate,
    /// The next token that it sends expires after [`EXPIRES_IN`].
    Expiry,
}

impl Rehearsal {
    /// Each of them. Of the reasons to close, those that a client can read.
    fn all() -> impl Iterator<Item = Self> {
        let told = CloseReason::iter().filter(|reason| {
            let of_client = matches!(reason, CloseReason::ClientClosed(_));
            !of_client && reason.code() != 1006
        });
        let closes = told.map(|reason| match reason {
            CloseReason::Shutdown(_) => Self::Close(CloseReason::Shutdown(RETURN_AFTER)),
            reason => Self::Close(reason),
        });
        closes.chain([Self::Pause, Self::Duplicate, Self::Expiry])
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Close(reason) => reason.name(),
            Self::Pause => "pause",
            Self::Duplicate => "duplicate",
            Self::Expiry => "expiry",
        }
    }
}

/// The names of all rehearsals.
#[cfg(test)]
pub fn names() -> impl Iterator<Item = &'static str> {
    Rehearsal::all().map(|rehearsal| rehearsal.name())
}

/// A connection, and what is rehearsed on it.
struct Rehearsing {
    connection: Arc<Connection>,
    paused_until: Option<Instant>,
    repeats: bool,
    expires: bool,
}

/// The connections, by the first digits of their ids, after which their threads are named.
#[derive(Default)]
pub struct Rehearsals {
    connections: Mutex<HashMap<String, Rehearsing>>,
}

impl Rehearsals {
    pub fn connected(&self, connection: &Arc<Connection>) {
        let rehearsing = Rehearsing {
            connection: Arc::clone(connection),
            paused_until: None,
            repeats: false,
            expires: false,
        };
        let key = connection.id.short();
        self.connections.lock().insert(key, rehearsing);
    }

    pub fn disconnected(&self, connection: &Connection) {
        self.connections.lock().remove(&connection.id.short());
    }

    /// Rehearses what the request wants.
    pub fn respond(&self, head: &Head<'_>) -> HttpResponse {
        self.try_respond(head).unwrap_or_else(|refusal| refusal)
    }

    fn try_respond(&self, head: &Head<'_>) -> http::Result<HttpResponse> {
        head.check_host(&uname().nodename().to_string_lossy())?;
        let id = head.header(HEADER)?.ok_or_else(|| {
            let message = format!("Name your connection in the header field {HEADER}");
            HttpResponse::error(403, ErrorCode::PermissionDenied, &message)
        })?;
        let what = head.parameter("what").unwrap_or_default();
        let rehearsal = Rehearsal::all().find(|rehearsal| rehearsal.name() == what);
        let rehearsal = rehearsal.ok_or_else(|| {
            let all: Vec<_> = Rehearsal::all().map(|rehearsal| rehearsal.name()).collect();
            HttpResponse::bad_request(&format!("?what= is one of: {}", all.join(", ")))
        })?;
        let connection = self.begin(id, &rehearsal).ok_or_else(|| {
            let message = "There is no such connection: the id is in its `connected`";
            HttpResponse::error(404, ErrorCode::NotFound, message)
        })?;
        info!("Rehearsed: {connection}, what={what}");
        if let Rehearsal::Close(reason) = rehearsal {
            connection.close(reason);
        }
        let body = json!({ "rehearsed": what });
        Ok(HttpResponse::page(
            200,
            "application/json",
            format!("{body}\n"),
        ))
    }

    /// Notes what is to be done to the connection of this id, if there is one.
    fn begin(&self, id: &str, rehearsal: &Rehearsal) -> Option<Arc<Connection>> {
        let mut connections = self.connections.lock();
        let rehearsing = connections.get_mut(id.get(..12)?);
        let rehearsing = rehearsing.filter(|it| it.connection.id.to_string() == id)?;
        match rehearsal {
            Rehearsal::Close(_) => {}
            Rehearsal::Pause => rehearsing.paused_until = Some(Instant::now() + PAUSE),
            Rehearsal::Duplicate => rehearsing.repeats = true,
            Rehearsal::Expiry => rehearsing.expires = true,
        }
        Some(Arc::clone(&rehearsing.connection))
    }

    /// Whether the services pause for the connection whose thread calls.
    pub fn is_paused(&self) -> bool {
        let until = self.of_this_thread(&["r-", "w-"], |it| it.paused_until);
        until.flatten().is_some_and(|until| Instant::now() < until)
    }

    /// The connection whose reader thread calls, if the history that it gets is to be followed by a
    /// message that it has; once.
    pub fn take_duplicate(&self) -> Option<Arc<Connection>> {
        let taken = self.of_this_thread(&["r-"], |it| {
            std::mem::take(&mut it.repeats).then(|| Arc::clone(&it.connection))
        });
        taken.flatten()
    }

    /// Whether the token that this reader thread has validated is to expire soon; once.
    pub fn take_expiry(&self) -> bool {
        let taken = self.of_this_thread(&["r-"], |it| std::mem::take(&mut it.expires));
        taken.unwrap_or_default()
    }

    /// Looks at the connection that this thread serves, if it is one of those named so (`r-` reads, `w-`
    /// writes).
    fn of_this_thread<T>(
        &self,
        prefixes: &[&str],
        look: impl FnOnce(&mut Rehearsing) -> T,
    ) -> Option<T> {
        let thread = thread::current();
        let name = thread.name()?;
        let id = prefixes
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))?;
        self.connections.lock().get_mut(id).map(look)
    }
}
