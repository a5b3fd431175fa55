//! From a delivery to the outboxes of the connections that it is for: decode, look up, enqueue.
//! Knows no broker; the consumers of RabbitMQ and of the in-process bus use it alike.

mod group;
#[cfg(test)]
mod panic_tests;

use std::cell::LazyCell;
use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::slice::from_ref;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Select};
use log::{error, info, warn};
use parking_lot::Mutex;

use super::groups::Groups;
use super::waiting::{Sent, Waiting};
use super::{Delivery, KIND_MESSAGE, KIND_SESSION_REVOKED, Queue};
use crate::client::close::CloseReason;
use crate::client::connection::{Batch, Connection};
use crate::client::outbox::Outbox;
use crate::client::protocol::Push;
use crate::error::ensure;
use crate::ids::{UserId, is_id};
use crate::metrics::{Metrics, PushType, Tally};
use crate::registry::Registry;
use crate::services::Services;
use crate::services::proto::{Message, PresenceEvent, PresenceStatus, SessionRevoked};
use crate::threads::fan_out::FanOut;
use crate::threads::{StopSignal, contain, failpoint};
use group::GroupBatch;

/// What every consumer shares.
pub struct DeliveryContext {
    pub registry: Arc<Registry>,
    pub services: Arc<dyn Services>,
    pub metrics: Arc<Metrics>,
    /// For the group queue alone. They outlive its consumer, so that what is asked for after a reconnect is
    /// compared with them.
    pub groups: Mutex<Groups>,
    pub fan_out: FanOut,
}

impl DeliveryContext {
    /// The deliverer of `queue`'s consumer thread.
    pub fn deliverer(self: &Arc<Self>, queue: Queue) -> Deliverer {
        Deliverer {
            deliver: Arc::clone(self),
            queue,
            singles: HashMap::new(),
            batch: None,
            waiting: Waiting::new(),
            pending_flush: Vec::new(),
            tally: Tally::new(Arc::clone(&self.metrics)),
        }
    }
}

/// Delivers what one queue holds. [`Deliverer::enqueue`] leaves the writing to [`Deliverer::flush`], so that a
/// consumer that is behind can take many deliveries for one system call to each connection.
pub struct Deliverer {
    deliver: Arc<DeliveryContext>,
    queue: Queue,
    /// Single messages that have been taken and are not enqueued yet, by user.
    singles: HashMap<UserId, Vec<Sent>>,
    /// Group messages that have been taken and are not enqueued yet.
    batch: Option<GroupBatch>,
    /// Group messages of whose recipients the User Service is asked.
    waiting: Waiting,
    /// The connections whose outboxes wait for [`Deliverer::flush`], some of them several times.
    pending_flush: Vec<Arc<Connection>>,
    tally: Tally,
}

/// Why a delivery can never be delivered.
pub type DeliveryError = String;

/// Why a delivery is a dead letter whose body says otherwise.
const OTHER_USER: &str = "the routing key names another user";
const INVALID_IDS: &str = "a message without valid id, sender or recipient";

impl Deliverer {
    /// Enqueues a delivery for its recipients: acknowledge it when it is in all of their outboxes, or
    /// waits for their names. After an error, such as a panic, it is a dead letter: reject it, once.
    pub fn enqueue(&mut self, delivery: &Delivery<'_>) -> Result<(), DeliveryError> {
        self.tally.begin();
        let outcome = self.guarded(|deliverer| match deliverer.queue {
            Queue::Single => deliverer.single(delivery),
            Queue::Group => deliverer.group(delivery),
            Queue::Presence => deliverer.presence(delivery),
        });
        match outcome.unwrap_or_else(|| Err("delivering it panicked".into())) {
            // It has no dead letters: RabbitMQ would fill them with expired presence.
            Err(reason) if self.queue == Queue::Presence => {
                warn!("Presence event ignored: reason={reason}");
                Ok(())
            }
            outcome => outcome.inspect_err(|_| self.deliver.metrics.dead_lettered.inc()),
        }
    }

    /// Enqueues the rest, and writes what is enqueued to the sockets, as far as they take it. Never
    /// blocks, never panics. What was taken may be acknowledged after it. Call it after each
    /// [wait](Deliverer::wait).
    pub fn flush(&mut self) {
        self.guarded(Self::write_singles);
        if let Some((members, messages)) = self.batch.take() {
            self.guarded(|deliverer| deliverer.write_to_members(members, messages));
        }
        while let Some((group, answer)) = self.waiting.next_answer() {
            self.guarded(|deliverer| deliverer.answered(group, answer));
        }
        self.waiting.ask(&*self.deliver.services);
        let mut connections = mem::take(&mut self.pending_flush);
        connections.sort_unstable_by_key(Arc::as_ptr);
        connections.dedup_by_key(|connection| Arc::as_ptr(connection));
        let count = connections.len();
        self.deliver.fan_out.chunks(count, move |chunk| {
            for connection in &connections[chunk] {
                for_one("flush", connection, |one| one.outbox.flush());
            }
        });
        self.tally.end();
    }

    /// Does a part of the work. A panic in it ends nothing. What was taken before may be gone with it: what is
    /// unread comes again, a user's own copies do not.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> Option<T> {
        // Each push is contained by itself, so `pending_flush` names all who have something enqueued.
        let outcome = contain(|| work(self));
        if outcome.is_none() {
            error!("Delivering panicked: queue={}", self.queue.name());
            catch_up(&self.deliver.registry.connections());
        }
        outcome
    }

    /// Waits until something has come from `source`, the signal to quit is given, or there is
    /// something else to do for [`Deliverer::flush`]; no longer than `at_most`.
    pub fn wait<T>(&self, source: &Receiver<T>, quit: &StopSignal, at_most: Duration) {
        let mut select = Select::new();
        select.recv(source);
        select.recv(quit.receiver());
        select.recv(self.waiting.answers());
        // Whichever it is, or none of them.
        let _ = select.ready_timeout(at_most.min(self.waiting.due_in()));
    }

    fn single(&mut self, delivery: &Delivery<'_>) -> Result<(), DeliveryError> {
        let user = user_behind("user.", delivery)?;
        failpoint::reached("deliver", &user);
        match delivery.kind {
            "" | KIND_MESSAGE => {
                let message: Message = decode(delivery)?;
                let sender = UserId::new(&message.from_user_id).map_err(|_| INVALID_IDS)?;
                let is_valid = !message.id.is_empty() && is_id(&message.to_user_id);
                ensure(is_valid, INVALID_IDS)?;
                // Whatever the body says: the routing key decides whom it is for.
                let messages = self.singles.entry(user).or_default();
                messages.push((sender, Push::message(&message, false)));
            }
            KIND_SESSION_REVOKED => {
                let revoked: SessionRevoked = decode(delivery)?;
                ensure(revoked.user_id == user.as_str(), OTHER_USER)?;
                let connections = self.deliver.registry.connections_of(from_ref(&user));
                let count = connections.len();
                info!("Session revoked: user={user}, connections={count}");
                let revoked = connections.iter().filter(|_| !failpoint::skips("revoke"));
                revoked.for_each(|one| one.close(CloseReason::SessionRevoked));
            }
            _ => return Err("unknown type".into()),
        }
        Ok(())
    }

    fn presence(&mut self, delivery: &Delivery<'_>) -> Result<(), DeliveryError> {
        let user = user_behind("presence.", delivery)?;
        let event: PresenceEvent = decode(delivery)?;
        ensure(event.user_id == user.as_str(), OTHER_USER)?;
        let online = match event.status() {
            PresenceStatus::Online => true,
            PresenceStatus::Offline => false,
            PresenceStatus::Unspecified => return Err("unknown status".into()),
        };
        // Nobody can be connected under an impossible id, so those are left out; whoever is named twice
        // is told once.
        let watchers = event.watcher_ids.iter();
        let watchers: BTreeSet<_> = watchers.filter_map(|id| UserId::new(id).ok()).collect();
        let watchers = Vec::from_iter(watchers);
        // Encoded once, and only if any of them is connected here.
        let push = LazyCell::new(|| Push::presence(&user, online, event.timestamp));
        self.push_for(PushType::Presence, &watchers, |one| one.push(&push));
        Ok(())
    }

    /// Writes single messages to the users' connections, each user's together.
    fn write_singles(&mut self) {
        let mut singles = mem::take(&mut self.singles);
        let users: Vec<_> = singles.keys().cloned().collect();
        let connections = self.deliver.registry.connections_of(&users);
        for devices in connections.chunk_by(|one, other| one.user() == other.user()) {
            let messages = singles.remove(devices[0].user()).unwrap_or_default();
            let queued = write(&Batch::of(messages), devices);
            self.tally.pushed(PushType::Message, queued);
        }
    }

    /// Has `push` enqueue something for the connections here of `users`.
    fn push_for(&mut self, kind: PushType, users: &[UserId], push: impl Fn(&Connection) -> usize) {
        let recipients = self.deliver.registry.connections_of(users);
        self.tally.pushed(kind, push_to(&recipients, push));
        self.pending_flush.extend(recipients);
    }
}

impl Drop for Deliverer {
    /// However a consumer ends, what is enqueued is written; and until the next one, no change of a group is
    /// heard. (It may be panicking: no step panics, or the process would end.)
    fn drop(&mut self) {
        self.guarded(Self::give_up_waiting);
        self.flush();
        self.deliver.groups.lock().invalidate_all();
    }
}

/// Writes a batch to each connection, as far as it takes it. Answers how many frames are queued or written.
fn write(batch: &Batch, connections: &[Arc<Connection>]) -> usize {
    push_to(connections, |one| {
        failpoint::reached("flush", one.user());
        let queued = one.push_batch(batch, Outbox::push_and_flush);
        one.outbox.flush();
        queued
    })
}

/// Answers how many frames `push` has queued for all of them.
fn push_to(connections: &[Arc<Connection>], push: impl Fn(&Connection) -> usize) -> usize {
    let queued = connections.iter().map(|one| for_one("push", one, &push));
    queued.sum()
}

/// Does something for one connection. A panic in it ends that one (1011) and is seen by nobody else:
/// the others get theirs, and what is enqueued for them is written.
fn for_one<T: Default>(place: &str, one: &Connection, act: impl FnOnce(&Connection) -> T) -> T {
    let act = || {
        failpoint::reached(place, one.user());
        act(one)
    };
    // Nothing of it is used again: the connection ends.
    contain(act).unwrap_or_else(|| {
        error!("Delivering panicked: place={place}, {one}");
        one.close(CloseReason::InternalError);
        T::default()
    })
}

/// Whatever has not reached these is unread, and comes again.
fn catch_up(connections: &[Arc<Connection>]) {
    for connection in connections {
        for_one("catch_up", connection, Connection::request_catch_up);
    }
}

/// What follows `prefix` in the routing key; nothing, which is no id, where that begins otherwise.
fn id_behind<'a>(prefix: &str, delivery: &Delivery<'a>) -> &'a str {
    let key = delivery.routing_key;
    key.strip_prefix(prefix).unwrap_or_default()
}

fn user_behind(prefix: &str, delivery: &Delivery<'_>) -> Result<UserId, DeliveryError> {
    UserId::new(id_behind(prefix, delivery)).map_err(|_| "not a user's routing key".into())
}

/// An empty body is a valid protobuf message without any field; the checks of ids find it.
fn decode<M: prost::Message + Default>(delivery: &Delivery<'_>) -> Result<M, DeliveryError> {
    M::decode(delivery.body).map_err(|error| format!("does not parse: {error}"))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::broker::KIND_GROUP_MEMBERS_CHANGED;
    use crate::client::fixture::Client;
    use crate::services::fake::FakeServices;
    use crate::services::proto::GroupMembersChanged;

    pub(super) struct Scene {
        pub registry: Arc<Registry>,
        pub users: Arc<FakeServices>,
        pub deliver: Arc<DeliveryContext>,
    }

    pub(super) fn scene() -> Scene {
        let (users, registry) = (
            Arc::new(FakeServices::default()),
            Arc::new(Registry::default()),
        );
        users.set("team", &["alice", "bob"]);
        let deliver = DeliveryContext {
            registry: Arc::clone(&registry),
            services: Arc::clone(&users) as _,
            metrics: Arc::new(Metrics::new(&[])),
            groups: Groups::new(Duration::from_secs(3_600)).into(),
            fan_out: FanOut::start(),
        };
        Scene {
            registry,
            users,
            deliver: Arc::new(deliver),
        }
    }

    impl Scene {
        fn take(
            &self,
            queue: Queue,
            key: &str,
            kind: &str,
            body: &[u8],
        ) -> Result<(), DeliveryError> {
            let mut deliverer = self.deliver.deliverer(queue);
            let taken = deliverer.enqueue(&Delivery {
                routing_key: key,
                kind,
                body,
            });
            deliverer.flush();
            taken
        }
    }

    pub(super) fn message(id: &str, from: &str, to: &str) -> Message {
        Message {
            id: id.into(),
            from_user_id: from.into(),
            to_user_id: to.into(),
            content: "hi".into(),
            ..Message::default()
        }
    }

    pub(super) fn group_message(id: &str, from: &str, group: &str) -> Message {
        Message {
            group_id: group.into(),
            to_user_id: String::new(),
            ..message(id, from, "")
        }
    }

    #[test]
    fn a_message_goes_to_every_device_of_the_user_in_the_key() {
        let s = scene();
        let mut bobs = [(); 2].map(|()| Client::join(&s.registry, "bob"));
        let mut alice = Client::join(&s.registry, "alice");
        let body = message("m1", "alice", "bob").encode_to_vec();
        assert_eq!(s.take(Queue::Single, "user.bob", "", &body), Ok(()));
        for bob in &mut bobs {
            assert!(bob.next().contains(r#""id":"m1""#));
        }
        assert!(alice.is_quiet());
        assert_eq!(
            s.take(Queue::Single, "user.alice", KIND_MESSAGE, &body),
            Ok(())
        );
        assert!(alice.next().contains(r#""to_user_id":"bob""#), "her copy");
        assert_eq!(
            s.take(Queue::Single, "user.alice", "", &body),
            Ok(()),
            "a second time"
        );
    }

    #[test]
    fn taking_writes_nothing_and_flushing_writes_all_of_it() {
        let s = scene();
        let mut bob = Client::join(&s.registry, "bob");
        let mut deliverer = s.deliver.deliverer(Queue::Single);
        for id in ["m1", "m2"] {
            let body = message(id, "alice", "bob").encode_to_vec();
            let delivery = Delivery {
                routing_key: "user.bob",
                kind: "",
                body: &body,
            };
            assert_eq!(deliverer.enqueue(&delivery), Ok(()));
        }
        assert!(bob.is_quiet());
        deliverer.flush();
        assert!(bob.next().contains("m1") && bob.next().contains("m2"));
    }

    #[test]
    fn a_deliverer_that_is_dropped_leaves_nothing_unwritten() {
        let s = scene();
        let mut bob = Client::join(&s.registry, "bob");
        let body = message("m1", "alice", "bob").encode_to_vec();
        let taken = s.deliver.deliverer(Queue::Single).enqueue(&Delivery {
            routing_key: "user.bob",
            kind: "",
            body: &body,
        });
        assert_eq!(taken, Ok(()));
        assert!(bob.next().contains("m1"));
    }

    #[test]
    fn what_can_never_be_delivered_is_a_dead_letter() {
        let s = scene();
        let ok = message("m1", "alice", "bob").encode_to_vec();
        let group_ok = group_message("m1", "alice", "team").encode_to_vec();
        let long = "u".repeat(201);
        let single: [(&str, &str, &[u8]); 9] = [
            ("user.bob", "", b""),
            ("user.bob", "", b"\xff\xff\xff"),
            ("user.bob", "unknown", &ok),
            ("user.", "", &ok),
            ("bob", "", &ok),
            ("user.bob", "", &message("", "alice", "bob").encode_to_vec()),
            ("user.bob", "", &message("m1", "", "bob").encode_to_vec()),
            ("user.bob", "", &message("m1", &long, "bob").encode_to_vec()),
            ("user.bob", KIND_SESSION_REVOKED, b""),
        ];
        for (key, kind, body) in single {
            let taken = s.take(Queue::Single, key, kind, body);
            assert!(taken.is_err(), "{key} {kind} {body:?}: {taken:?}");
        }
        let group: [(&str, &str, &[u8]); 6] = [
            ("group.team", "", b""),
            ("group.team", "", b"junk"),
            ("group.other", "", &group_ok),
            ("group.", "", &group_ok),
            ("group.team", KIND_SESSION_REVOKED, &group_ok),
            ("group.team", KIND_GROUP_MEMBERS_CHANGED, b""),
        ];
        for (key, kind, body) in group {
            let taken = s.take(Queue::Group, key, kind, body);
            assert!(taken.is_err(), "{key} {kind} {body:?}: {taken:?}");
        }
        assert_eq!(s.users.calls(), 0);
    }

    #[test]
    fn a_revoked_session_ends_the_users_connections_and_no_others() {
        let s = scene();
        let [alice, bob] = ["alice", "bob"].map(|user| Client::join(&s.registry, user));
        let body = SessionRevoked {
            user_id: "bob".into(),
            reason: "logout".into(),
        };
        let taken = s.take(
            Queue::Single,
            "user.bob",
            KIND_SESSION_REVOKED,
            &body.encode_to_vec(),
        );
        assert_eq!(taken, Ok(()));
        assert!(matches!(
            bob.close_reason(),
            Some(CloseReason::SessionRevoked)
        ));
        assert!(alice.close_reason().is_none());
    }

    #[test]
    fn a_group_message_goes_to_its_members_alone() {
        let s = scene();
        let [mut alice, mut bob, mut carol] =
            ["alice", "bob", "carol"].map(|user| Client::join(&s.registry, user));
        let body = group_message("m1", "alice", "team").encode_to_vec();
        assert_eq!(s.take(Queue::Group, "group.team", "", &body), Ok(()));
        assert!(alice.next().contains(r#""type":"group_message""#));
        assert!(bob.next().contains(r#""group_id":"team""#));
        assert!(carol.is_quiet());
    }

    #[test]
    fn changed_members_are_fetched_at_once_and_only_for_a_group_in_use() {
        let s = scene();
        let changed = GroupMembersChanged {
            group_id: "team".into(),
        }
        .encode_to_vec();
        let mut deliverer = s.deliver.deliverer(Queue::Group);
        let mut take = |kind: &str, body: &[u8]| {
            let routing_key = "group.team";
            let delivery = Delivery {
                routing_key,
                kind,
                body,
            };
            assert_eq!(deliverer.enqueue(&delivery), Ok(()));
            deliverer.flush();
        };
        take(KIND_GROUP_MEMBERS_CHANGED, &changed);
        assert_eq!(s.users.calls(), 0);

        let mut bob = Client::join(&s.registry, "bob");
        let carol = Client::join(&s.registry, "carol");
        let first = group_message("m1", "alice", "team").encode_to_vec();
        take("", &first);
        assert!(bob.next().contains("m1"));
        s.users.set("team", &["alice", "carol"]);
        take(KIND_GROUP_MEMBERS_CHANGED, &changed);
        assert_eq!(s.users.calls(), 2);
        assert!(carol.takes_catch_up());
        let second = group_message("m2", "alice", "team").encode_to_vec();
        take("", &second);
        assert!(bob.is_quiet(), "he is no member any more");
    }

    #[test]
    fn presence_goes_to_the_watchers_and_garbage_is_done_with() {
        let s = scene();
        let mut bob = Client::join(&s.registry, "bob");
        let event = |user: &str, status: PresenceStatus| {
            let watcher_ids = vec!["bob".into(), "".into(), "nobody".into()];
            PresenceEvent {
                user_id: user.into(),
                status: status.into(),
                timestamp: 1,
                watcher_ids,
            }
            .encode_to_vec()
        };
        let online = event("alice", PresenceStatus::Online);
        assert_eq!(
            s.take(Queue::Presence, "presence.alice", "", &online),
            Ok(())
        );
        assert!(bob.next().contains(r#""status":"online""#));
        let unspecified = event("alice", PresenceStatus::Unspecified);
        for body in [
            b"".as_slice(),
            b"junk",
            &event("bob", PresenceStatus::Online),
            &unspecified,
        ] {
            assert_eq!(s.take(Queue::Presence, "presence.alice", "", body), Ok(()));
        }
        assert!(bob.is_quiet());
    }
}
