//! Defects that are planted in a gateway on purpose, to try on them whoever checks gateways: a feature
//! for tests, which no default build has. `PLANTED_DEFECT=NAME` in the environment of the process plants
//! one, of which the start warns; an unknown name ends the start; without the variable there is none.
//!
//! A [`Defect`] breaks one sentence of what the gateway promises, or two that go together, and leaves all
//! else right. It acts at every 2nd, 3rd, 5th or 20th occasion, counted for the whole process, and `gateway_planted_total` says how often
//! it has.
//!
//! An edge. The defects are decorators: of the [`Services`] ([`services`]), of the
//! [`ConnectionObserver`] ([`observer`]), of what a client's socket is told ([`socket`], whose
//! [`frames`] are rewritten), and of what is to be done for a user who has gone. A
//! revocation, which none of them reaches, is ignored at a [`failpoint`]; `stays-unready` is a check of
//! readiness.

mod frames;
mod observer;
mod services;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, thread};

use log::warn;
use parking_lot::Mutex;
use prometheus::IntCounter;
use strum::{EnumString, IntoStaticStr, VariantNames};

use crate::client::ConnectionObserver;
use crate::client::connection::Connection;
use crate::client::transport::Opener;
use crate::error::ensure;
use crate::ids::UserId;
use crate::metrics::{Metrics, register};
use crate::readiness::Readiness;
use crate::services::Services;
use crate::threads::failpoint;
use frames::Astray;
use observer::{Leak, PlantedObserver};
use services::PlantedServices;
use socket::PlantedSocket;

/// The environment variable that names the defect.
const VARIABLE: &str = "PLANTED_DEFECT";

/// What can be planted, by the name that the variable says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum Defect {
    /// A page of unread messages lacks one, which is acknowledged as if the user had done so.
    LosesUnread,
    /// A live push is not given to one of the user's connections.
    LosesLive,
    /// A message is followed by one with an id that the Message Service never gave.
    Invents,
    /// A message comes with another content.
    Alters,
    /// A message comes behind the next one of the same sender to the same user or group.
    Disorders,
    /// The newest of the unread messages comes behind `offline_complete`.
    UnreadLater,
    /// A single message reaches a user who is neither its sender nor its recipient, too.
    Misdelivers,
    /// A newcomer is refused with 401 whose token holds.
    TurnsAway,
    /// A revocation has no effect: `session_revoked` is ignored, and later refusals of the token by the
    /// User Service are, too.
    IgnoresRevocation,
    /// A connection outlives its token.
    IgnoresExpiry,
    /// The Presence Service is not told that a user has gone.
    ForgetsOffline,
    /// The answer to a request comes twice.
    AnswersTwice,
    /// No answer to a request comes.
    AnswersNothing,
    /// `message_sent` answers for a message that was never committed.
    ClaimsCommit,
    /// A history lacks a message in its middle.
    CutsHistory,
    /// A connection ends with 1011, whose client has done nothing but send a message.
    ClosesWithoutCause,
    /// A connection that has ended leaves a thread.
    LeaksThread,
    /// A connection that has ended leaves a file descriptor.
    LeaksDescriptor,
    /// A connection that has ended keeps its entry in the registry, and with it its socket, until the
    /// gateway shuts down.
    LeaksConnection,
    /// The binding of a user who has gone stays, until the broker's connection is lost.
    KeepsRoute,
    /// Once the broker was lost, the gateway is never ready again.
    StaysUnready,
}

impl Defect {
    /// At every how many-th occasion it acts: few where there are few occasions in a minute.
    fn every(self) -> u64 {
        match self {
            Self::IgnoresRevocation => 2,
            Self::LosesUnread | Self::UnreadLater | Self::IgnoresExpiry | Self::CutsHistory => 3,
            Self::ForgetsOffline | Self::KeepsRoute => 5,
            Self::LeaksThread | Self::LeaksDescriptor | Self::LeaksConnection => 5,
            _ => 20,
        }
    }

    /// Whether it is in what clients are sent.
    fn is_of_frames(self) -> bool {
        matches!(
            self,
            Self::LosesLive
                | Self::Invents
                | Self::Alters
                | Self::Disorders
                | Self::UnreadLater
                | Self::Misdelivers
                | Self::AnswersTwice
                | Self::AnswersNothing
        )
    }
}

/// What is planted in one gateway.
pub struct Planted {
    defect: Option<Defect>,
    /// How many there were to act.
    occasions: AtomicU64,
    acted: IntCounter,
    /// By the first digits of their ids, after which their threads are named.
    connections: Mutex<HashMap<String, Arc<Connection>>>,
    /// What is about to reach somebody whose it is not.
    astray: Mutex<Option<Astray>>,
    /// The connections that have leaked; `None` once no more are to.
    leaks: Mutex<Option<Vec<Leak>>>,
}

impl Planted {
    /// What the environment says. An error names the variable, and what it may be.
    pub fn from_environment(metrics: &Metrics) -> Result<Arc<Self>, String> {
        let name = env::var_os(VARIABLE);
        let planted = Self::new(name.map(|it| it.to_string_lossy().into()), metrics)?;
        if let Some(defect) = planted.defect {
            warn!("A defect is planted: {}", <&str>::from(defect));
        }
        if planted.has(Defect::IgnoresRevocation) {
            let planted = Arc::clone(&planted);
            failpoint::skip(move |place| {
                place == "revoke" && planted.acts(Defect::IgnoresRevocation)
            });
        }
        Ok(planted)
    }

    fn new(name: Option<String>, metrics: &Metrics) -> Result<Arc<Self>, String> {
        let named = |name: String| {
            let all = Defect::VARIANTS.join(", ");
            let unknown =
                |_| format!("{VARIABLE}: there is no defect {name:?}; it is one of: {all}");
            Defect::try_from(&*name).map_err(unknown)
        };
        let acted = IntCounter::new(
            "gateway_planted_total",
            "How often the defect has acted that is planted.",
        );
        Ok(Arc::new(Self {
            defect: name.map(named).transpose()?,
            occasions: AtomicU64::new(0),
            acted: register(metrics.registry(), acted),
            connections: Mutex::default(),
            astray: Mutex::default(),
            leaks: Mutex::new(Some(Vec::new())),
        }))
    }

    /// `services`, with what is planted.
    pub fn services(self: &Arc<Self>, services: Arc<dyn Services>) -> Arc<dyn Services> {
        match self.defect {
            Some(_) => Arc::new(PlantedServices::new(services, Arc::clone(self))),
            None => services,
        }
    }

    /// `observer`, with what is planted.
    pub fn observer(
        self: &Arc<Self>,
        observer: Arc<dyn ConnectionObserver>,
    ) -> Arc<dyn ConnectionObserver> {
        match self.defect {
            Some(_) => Arc::new(PlantedObserver::new(observer, Arc::clone(self))),
            None => observer,
        }
    }

    /// `opener`, whose sockets send what is planted.
    pub fn opener(self: &Arc<Self>, opener: Opener) -> Opener {
        let planted = Arc::clone(self);
        match self.defect {
            Some(defect) if defect.is_of_frames() => Box::new(move |socket, peer| {
                let below = opener(socket, peer);
                Arc::new(PlantedSocket::new(below, Arc::clone(&planted)))
            }),
            _ => opener,
        }
    }

    /// `gone`, which is called for each user who has left, but for some.
    pub fn gone(
        self: &Arc<Self>,
        gone: impl Fn(&UserId) + Send + Sync + 'static,
    ) -> impl Fn(&UserId) + Send + Sync + 'static {
        let planted = Arc::clone(self);
        // It is called again where telling the Presence Service fails.
        let kept: Mutex<HashSet<UserId>> = Mutex::default();
        move |user| {
            let mut kept = kept.lock();
            let is_kept = kept.contains(user) || planted.acts(Defect::KeepsRoute);
            if is_kept {
                kept.insert(user.clone());
                return;
            }
            drop(kept);
            gone(user);
        }
    }

    /// Adds the check that fails for ever.
    pub fn unready(self: &Arc<Self>, readiness: &Readiness, metrics: &Arc<Metrics>) {
        if self.has(Defect::StaysUnready) {
            let (planted, metrics) = (Arc::clone(self), Arc::clone(metrics));
            readiness.add("planted", true, move || {
                let was_lost = metrics.broker_reconnects.get() > 0;
                planted.acted.inc_by(was_lost.into());
                ensure(!was_lost, "the broker was lost once: a planted defect")
            });
        }
    }

    /// Gives back which connections have leaked, so that the shutdown waits for none; and has none leak
    /// from now on.
    pub fn give_back(&self) {
        let leaks = self.leaks.lock().take();
        leaks.into_iter().flatten().for_each(Leak::give_back);
    }

    fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    /// At an occasion for `defect`: whether it is planted and this is its turn.
    fn is_due(&self, defect: Defect) -> bool {
        let every = defect.every();
        self.has(defect) && self.occasions.fetch_add(1, Ordering::Relaxed) % every == every - 1
    }

    /// As [`Planted::is_due`], where it acts at once.
    fn acts(&self, defect: Defect) -> bool {
        let acts = self.is_due(defect);
        if acts {
            self.acted.inc();
        }
        acts
    }

    /// The connection whose thread calls, once it is registered, with that thread's part.
    fn connection(&self) -> Option<(Part, Arc<Connection>)> {
        let thread = thread::current();
        let (part, id) = thread.name()?.split_once('-')?;
        let part = Part::try_from(part).ok()?;
        let connection = self.connections.lock().get(id).cloned()?;
        Some((part, connection))
    }
}

/// What a connection's thread does, as its name begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString)]
enum Part {
    #[strum(serialize = "r")]
    Reader,
    #[strum(serialize = "w")]
    Writer,
}
