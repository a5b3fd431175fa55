//! One client connection, in reading order: it is accepted ([`accept`]), and waits for its turn if the
//! limits admit it ([`admission`]), or is refused ([`refuser`]); its request head is read ([`head`]) and
//! judged ([`handshake`]), by the [`address`] it comes from as well, and answered; or its session runs
//! ([`session`]), reading frames from the socket ([`socket`]), parsing them ([`request`]), calling the
//! services ([`dispatch`]), and answering ([`protocol`]) through the outbox ([`outbox`]), whose writer
//! thread ([`writer`]) also keeps time and catches up on unread messages ([`catch_up`]). What both
//! threads cost in memory is the business of [`stack`].

pub mod close;
pub mod connection;
pub mod frame;
pub mod outbox;
pub mod protocol;

pub mod accept;

pub mod address;
pub mod admission;
mod catch_up;
mod dispatch;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod gate;
mod handshake;
mod head;
mod liveness;
mod rate;
pub(crate) mod refuser;
mod request;
#[cfg(test)]
mod schema;
mod session;
mod socket;
mod stack;
mod token;
mod token_check;
pub mod transport;
mod writer;

/// Every `type` of a request.
pub const REQUEST_TYPES: &[&str] = <request::Body as strum::VariantNames>::VARIANTS;

use std::sync::Arc;

use crate::config::Config;
use crate::drain::Drain;
use crate::http::{self, HttpResponse, Page, Refusal};
use crate::ids::UserId;
use crate::logging::log_limited;
use crate::metrics::Metrics;
use crate::services::Services;
pub(crate) use crate::threads::failpoint;
use crate::threads::semaphore::Semaphore;
use address::Peer;
use connection::Connection;

/// What every connection uses of the gateway.
pub struct Context {
    pub config: Config,
    pub services: Arc<dyn Services>,
    pub observer: Arc<dyn ConnectionObserver>,
    pub metrics: Arc<Metrics>,
    pub drain: Arc<Drain>,
    /// How many connections fetch a page of unread messages at a time.
    pub pacing: Arc<Semaphore>,
    /// How many connections have their token validated again at a time.
    pub validating: Arc<Semaphore>,
    /// What there is besides the WebSocket. None is at `listen.path`, which a configuration may not
    /// have there.
    pub pages: Vec<Page>,
    /// Answers each message with itself, binary ones too, and sends nothing else: so the conformance
    /// tests reach the code that reads and writes. No configuration has it.
    pub echo: bool,
}

impl Context {
    /// Refuses newcomers while the gateway shuts down.
    fn reject_if_draining(&self) -> http::Result<()> {
        let draining = || HttpResponse::unavailable("draining", "The gateway is shutting down");
        (!self.drain.refuses()).then_some(()).ok_or_else(draining)
    }

    /// Notes that a client was turned away, if this is what `response` does.
    fn refused(&self, peer: Peer, user: Option<&UserId>, response: &HttpResponse) {
        if let Some(refusal) = response.refusal() {
            self.observer.refused(peer, user, refusal);
            let peer = peer.address();
            log_limited!(info, "Connection refused: peer={peer}, {refusal}");
        }
    }
}

/// Who is told that connections come and go: the registry, and behind it presence and the broker's
/// routes.
pub trait ConnectionObserver: Send + Sync {
    /// `connection` is about to be served, and from now on gets what is for its user, unless that user
    /// has too many. Answers how it stands with the user's route.
    fn connected(&self, connection: &Arc<Connection>) -> Result<Route, OverUserLimit>;
    /// It has ended, or was not served after all.
    fn disconnected(&self, connection: &Connection);
    /// A client was turned away. `user`: whose token it brought, if that was validated by then.
    fn refused(&self, _peer: Peer, _user: Option<&UserId>, _refusal: &Refusal) {}
}

/// The user has as many connections as `limits.max_connections_per_user` allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverUserLimit;

/// Whether what is published for a user comes here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// It does.
    Bound,
    /// It will in a moment, and catch-up is requested then.
    Pending,
    /// Not before the broker is back; catch-up is requested then.
    Away,
}
