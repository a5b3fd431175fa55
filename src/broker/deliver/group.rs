//! The group queue's half of a [`Deliverer`]. A message to a group whose members are known joins a
//! batch; any other waits until the User Service has answered who they are.
//!
//! The lists of members that are held, and what a new one means, are in `broker/groups.rs`; the
//! messages that wait, and the questions to the User Service, in `broker/waiting.rs`. Here the two
//! come together: neither knows the other's state.

use std::mem;
use std::sync::Arc;

use log::error;

use super::{Deliverer, DeliveryError, catch_up, decode, id_behind, write};
use crate::broker::groups::{self, Answer, Members};
use crate::broker::waiting::{LAST_WAIT, Sent, Waiting};
use crate::broker::{Delivery, KIND_GROUP_MEMBERS_CHANGED, KIND_MESSAGE};
use crate::client::connection::{Batch, Connection};
use crate::client::outbox::Outbox;
use crate::client::protocol::Push;
use crate::error::ensure;
use crate::ids::{GroupId, UserId};
use crate::metrics::PushType;
use crate::services::ServiceError;
use crate::services::proto::{GroupMembersChanged, Message};

/// How many messages that have waited are enqueued before the sockets are written to. It stays below
/// the default `session.send_queue`, so that they find room.
const MAX_BATCH: usize = 128;
/// Why a delivery is a dead letter whose body says otherwise.
const OTHER_GROUP: &str = "the routing key names another group";

/// Messages to one group that came one behind the other: its members are looked up once for all of
/// them, and each connection gets them as one batch, so that a gateway that is behind does next to
/// nothing for each further delivery. (Saturated, a group of 1,000 on 2 cores: several times the
/// deliveries of one push for each message and connection.)
pub(super) type GroupBatch = (Members, Vec<Sent>);

impl Deliverer {
    pub(super) fn group(&mut self, delivery: &Delivery<'_>) -> Result<(), DeliveryError> {
        let id = id_behind("group.", delivery);
        let group = GroupId::new(id).map_err(|_| "not a group's routing key")?;
        match delivery.kind {
            "" | KIND_MESSAGE => {
                let message: Message = decode(delivery)?;
                let sender = UserId::new(&message.from_user_id);
                let (Ok(sender), false) = (sender, message.id.is_empty()) else {
                    return Err("a message without valid id or sender".into());
                };
                ensure(message.group_id == group.as_str(), OTHER_GROUP)?;
                let sent = (sender, Push::group_message(&message));
                match self.members(&group) {
                    Some(members) => self.add_to_batch(members, sent),
                    None => self.await_members(&group, sent),
                }
            }
            KIND_GROUP_MEMBERS_CHANGED => {
                let changed: GroupMembersChanged = decode(delivery)?;
                ensure(changed.group_id == group.as_str(), OTHER_GROUP)?;
                if self.deliver.groups.lock().invalidate(&group) || self.waiting.contains(&group) {
                    self.make_room_for(&group);
                    self.waiting.members_changed(&group);
                    self.waiting.ask(&*self.deliver.services);
                }
            }
            _ => return Err("unknown type".into()),
        }
        Ok(())
    }

    /// The group's members, unless earlier messages wait for them.
    fn members(&mut self, group: &GroupId) -> Option<Members> {
        let are_awaited = self.waiting.contains(group);
        (self.deliver.groups.lock().fresh(group)).filter(|_| !are_awaited)
    }

    /// Has a message wait for its group's members.
    fn await_members(&mut self, group: &GroupId, message: Sent) {
        self.make_room_for(group);
        self.waiting.enter(group);
        while self.waiting.is_full(group, &message) {
            // Takes in what is answered, too; and nothing enqueued waits any longer.
            self.flush();
            if let Some(members) = self.members(group) {
                return self.add_to_batch(members, message);
            }
            if !self.waiting.await_answer(group, LAST_WAIT) {
                let dropped = self.waiting.let_go();
                self.push_own_copies(dropped);
            }
        }
        let dropped = self.waiting.add(group, message);
        self.push_own_copies(Vec::from_iter(dropped));
        self.waiting.ask(&*self.deliver.services);
    }

    /// Where one more group would be too many, those that wait are left to catch-up.
    fn make_room_for(&mut self, group: &GroupId) {
        if self.waiting.is_crowded() && !self.waiting.contains(group) {
            self.give_up_waiting();
        }
    }

    /// Leaves all that waits to catch-up, which needs no list.
    pub(super) fn give_up_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let waiting = mem::replace(&mut self.waiting, Waiting::new());
        self.push_own_copies(waiting.into_messages().collect());
        catch_up(&self.deliver.registry.connections());
    }

    /// For the senders' devices: their copies are never unread, so catch-up does not bring them. Each
    /// sender's come as one batch, for which an empty queue has room.
    fn push_own_copies(&mut self, mut messages: Vec<Sent>) {
        messages.sort_by(|(one, _), (other, _)| one.cmp(other));
        for own in messages.chunk_by(|(one, _), (other, _)| one == other) {
            let sender = own.iter().take(1).map(|(sender, _)| sender.clone());
            self.write_to_members(sender.collect(), own.to_vec());
        }
    }

    /// Delivers what has waited for this answer of the User Service.
    pub(super) fn answered(&mut self, group: GroupId, answer: Answer) {
        let members = match groups::members(&group, answer) {
            Ok(members) => members,
            Err(error) => return self.failed(group, &error),
        };
        let changed = self.deliver.groups.lock().learn(&group, &members);
        let waited = self.waiting.known(&group);
        if waited.changed_after.is_some() {
            // The answer is outdated already.
            self.deliver.groups.lock().invalidate(&group);
        }
        let missing = if waited.let_go { &*members } else { &[] };
        for users in [missing, &*changed] {
            catch_up(&self.deliver.registry.connections_of(users));
        }
        self.write_waited(&members, &waited.messages);
    }

    /// The User Service is asked again. What waits does so still, unless that has lasted too long.
    fn failed(&mut self, group: GroupId, error: &ServiceError) {
        let stand_in = self.deliver.groups.lock().stand_in(&group, error);
        if let Some(members) = stand_in {
            let (waited, let_go) = self.waiting.take(&group);
            if let_go {
                catch_up(&self.deliver.registry.connections_of(&members));
            }
            let count = waited.len();
            error!("Without the group's members: group={group}, messages={count}, error={error}");
            self.write_waited(&members, &waited);
        }
        self.waiting.failed(group, error);
    }

    fn write_waited(&self, members: &Members, messages: &[Sent]) {
        for messages in messages.chunks(MAX_BATCH) {
            self.write_to_members(Arc::clone(members), messages.to_vec());
        }
    }

    /// Writes messages to those of `members` who are connected here; each is looked up by the thread
    /// that writes.
    pub(super) fn write_to_members(&self, members: Members, messages: Vec<Sent>) {
        let (registry, metrics) = (self.deliver.registry.clone(), self.deliver.metrics.clone());
        let (batch, count) = (Batch::of(messages), members.len());
        self.deliver.fan_out.chunks(count, move |chunk| {
            let connections = registry.connections_of(&members[chunk]);
            metrics.pushed(PushType::GroupMessage, write(&batch, &connections));
        });
    }

    /// The batch before it, where that is another group's, is enqueued for the members who are
    /// connected here, and written with what comes after it.
    fn add_to_batch(&mut self, members: Members, message: Sent) {
        // One list is one group's.
        let is_other = |(group, _): &mut GroupBatch| !Arc::ptr_eq(group, &members);
        if let Some((members, messages)) = self.batch.take_if(is_other) {
            let batch = Batch::of(messages);
            let push = |one: &Connection| one.push_batch(&batch, Outbox::push);
            self.push_for(PushType::GroupMessage, &members, push);
        }
        let (_, messages) = self.batch.get_or_insert((members, Vec::new()));
        messages.push(message);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use crossbeam::channel::never;
    use prost::Message as _;

    use super::super::tests::{Scene, group_message, scene};
    use super::*;
    use crate::broker::Queue;
    use crate::broker::waiting::{MAX_ASKED, MAX_ASKED_AGAIN, MAX_BYTES, MAX_GROUPS};
    use crate::client::fixture::Client;
    use crate::services::ErrorCode;
    use crate::services::fake::FakeServices;
    use crate::threads::StopSignal;

    const PATIENCE: Duration = Duration::from_secs(20);
    /// So many small messages find no room to wait, and so many do.
    const TOO_MANY: usize = MAX_BYTES / 100;
    const MANY: usize = MAX_BYTES / 200;

    impl Scene {
        fn group_deliverer(&self) -> Deliverer {
            self.deliver.deliverer(Queue::Group)
        }

        fn join<const N: usize>(&self, users: [&str; N]) -> [Client; N] {
            users.map(|user| Client::join(&self.registry, user))
        }
    }

    impl Deliverer {
        /// Takes what is published to a group.
        fn gets(&mut self, group: &str, kind: &str, body: &[u8]) {
            let taken = self.enqueue(&Delivery {
                routing_key: &format!("group.{group}"),
                kind,
                body,
            });
            assert_eq!(taken, Ok(()));
        }

        fn gets_message(&mut self, id: &str, group: &str) {
            self.gets_from("alice", id, group);
        }

        fn gets_from(&mut self, sender: &str, id: &str, group: &str) {
            let body = group_message(id, sender, group).encode_to_vec();
            self.gets(group, KIND_MESSAGE, &body);
        }

        /// Takes small messages until what waits has room for `spare` bytes at most.
        fn fills_up(&mut self, group: &str, spare: usize) {
            let mut probe = group_message("m", "alice", group);
            probe.content = "x".repeat(spare);
            let probe = (UserId::new("alice").unwrap(), Push::group_message(&probe));
            let id = GroupId::new(group).unwrap();
            while !self.waiting.is_full(&id, &probe) {
                self.gets_message("m", group);
            }
        }

        fn gets_change(&mut self, group: &str) {
            let changed = GroupMembersChanged {
                group_id: group.into(),
            };
            self.gets(group, KIND_GROUP_MEMBERS_CHANGED, &changed.encode_to_vec());
        }

        /// Does what a consumer does with no more deliveries, until nothing waits.
        fn settles(&mut self) {
            let give_up = Instant::now() + PATIENCE;
            while !self.waiting.is_empty() {
                assert!(Instant::now() < give_up, "something waits for ever");
                self.idles();
            }
            self.flush();
        }

        /// Waits until there is something to do.
        fn idles(&mut self) {
            self.wait(&never::<()>(), &StopSignal::never(), PATIENCE);
            self.flush();
        }
    }

    fn receives(client: &mut Client, ids: &[&str]) {
        for id in ids {
            let text = client.next();
            assert!(text.contains(&format!(r#""id":"{id}""#)), "{id}: {text}");
        }
    }

    /// How a group's members are not to be had.
    fn faults() -> Vec<Option<ErrorCode>> {
        let codes = [
            ErrorCode::Internal,
            ErrorCode::RateLimited,
            ErrorCode::InvalidMessage,
            ErrorCode::PermissionDenied,
            ErrorCode::Unauthenticated,
            ErrorCode::DeadlineExceeded,
            ErrorCode::ServiceUnavailable,
        ];
        // None: it does not answer.
        codes.into_iter().map(Some).chain([None]).collect()
    }

    fn breaks(users: &FakeServices, group: &str, fault: Option<ErrorCode>) {
        match fault {
            Some(code) => users.fail_group(group, code),
            None => users.slow_group(group),
        }
    }

    fn heals(users: &FakeServices, group: &str) {
        users.fail_group(group, None);
        while users.unanswered() > 0 {
            users.answer();
        }
    }

    #[test]
    fn only_the_group_whose_members_are_not_known_waits_and_in_order() {
        for fault in faults() {
            let s = scene();
            let [mut alice, mut bob, mut carol] = s.join(["alice", "bob", "carol"]);
            s.users.set("bad", &["alice", "bob"]);
            breaks(&s.users, "bad", fault);
            let mut deliverer = s.group_deliverer();
            deliverer.gets_message("b1", "bad");
            deliverer.gets_message("t1", "team");
            deliverer.gets_message("b2", "bad");
            deliverer.gets_change("bad");
            deliverer.gets_message("t2", "team");
            deliverer.flush();
            deliverer.idles();
            receives(&mut bob, &["t1", "t2"]);
            deliverer.gets_message("b3", "bad");
            assert!(bob.is_quiet(), "{fault:?}");

            heals(&s.users, "bad");
            deliverer.flush();
            heals(&s.users, "bad");
            deliverer.settles();
            deliverer.gets_message("b4", "bad");
            deliverer.flush();
            receives(&mut bob, &["b1", "b2", "b3", "b4"]);
            receives(&mut alice, &["t1", "t2", "b1", "b2", "b3", "b4"]);
            assert!(carol.is_quiet() && bob.is_quiet());
            assert!(!bob.takes_catch_up(), "nothing was let go");
        }
    }

    #[test]
    fn who_left_while_nobody_consumed_is_caught_up_with_the_next_list() {
        let s = scene();
        let [alice, bob] = s.join(["alice", "bob"]);
        for members in [&["alice", "bob"][..], &["alice"]] {
            s.users.set("team", members);
            let mut deliverer = s.group_deliverer();
            deliverer.gets_message("m", "team");
            deliverer.settles();
        }
        assert!(bob.takes_catch_up() && !alice.takes_catch_up());
    }

    #[test]
    fn a_group_that_fails_for_long_goes_on_with_those_who_are_known_and_the_others_are_caught_up() {
        let s = scene();
        let [mut bob, carol] = s.join(["bob", "carol"]);
        let mut deliverer = s.group_deliverer();
        s.users.set("old", &["bob"]);
        deliverer.gets_message("o1", "old");
        deliverer.flush();
        receives(&mut bob, &["o1"]);
        let groups = ["old", "new"];
        for group in groups {
            s.users.set(group, &["bob", "carol"]);
            breaks(&s.users, group, Some(ErrorCode::Internal));
            deliverer.gets_change("old");
            deliverer.gets_message(&format!("{group}2"), group);
        }
        deliverer.flush();
        assert!(bob.is_quiet());
        for group in groups {
            let group = GroupId::new(group).unwrap();
            deliverer.deliver.groups.lock().has_failed_for_long(&group);
        }
        let give_up = Instant::now() + PATIENCE;
        while deliverer.waiting.holds_messages() {
            assert!(Instant::now() < give_up, "they wait for ever");
            deliverer.idles();
        }
        receives(&mut bob, &["old2"]);
        assert!(bob.is_quiet() && !bob.takes_catch_up() && !carol.takes_catch_up());

        // Nothing more is sent to either.
        for group in groups {
            s.users.fail_group(group, None);
        }
        deliverer.settles();
        assert!(bob.takes_catch_up(), "of the group that was never known");
        assert!(carol.takes_catch_up());
        deliverer.gets_message("new3", "new");
        deliverer.flush();
        receives(&mut bob, &["new3"]);
    }

    #[test]
    fn a_group_that_was_let_go_and_fails_for_long_goes_on_with_those_who_are_known() {
        let s = scene();
        let [mut bob] = s.join(["bob"]);
        let mut deliverer = s.group_deliverer();
        deliverer.gets_message("t1", "team");
        deliverer.flush();
        receives(&mut bob, &["t1"]);
        breaks(&s.users, "team", Some(ErrorCode::Internal));
        deliverer.gets_change("team");
        for _ in 0..TOO_MANY {
            deliverer.gets_from("carol", "t", "team");
        }
        let team = GroupId::new("team").unwrap();
        deliverer.deliver.groups.lock().has_failed_for_long(&team);
        let give_up = Instant::now() + PATIENCE;
        while !bob.takes_catch_up() {
            assert!(Instant::now() < give_up, "he waits for ever");
            deliverer.idles();
        }
        deliverer.gets_message("t2", "team");
        while deliverer.waiting.holds_messages() {
            assert!(Instant::now() < give_up, "it waits for ever");
            deliverer.idles();
        }
        receives(&mut bob, &["t2"]);
    }

    #[test]
    fn hundreds_of_bad_groups_hold_up_no_other_and_lose_nothing() {
        for fault in faults() {
            let s = scene();
            let [mut bob, mut carol] = s.join(["bob", "carol"]);
            let bad: Vec<_> = (0..MAX_ASKED - 1)
                .map(|number| format!("bad{number}"))
                .collect();
            let mut deliverer = s.group_deliverer();
            for group in &bad {
                s.users.set(group, &["carol"]);
                breaks(&s.users, group, fault);
                for number in 0..3 {
                    deliverer.gets_message(&format!("{group}-{number}"), group);
                }
            }
            deliverer.flush();
            s.users.set("new", &["bob"]);
            deliverer.gets_message("n1", "new");
            deliverer.flush();
            receives(&mut bob, &["n1"]);
            for group in &bad {
                heals(&s.users, group);
            }
            deliverer.settles();
            let mut next = std::collections::HashMap::new();
            for _ in 0..3 * bad.len() {
                let text = carol.next();
                let id = text.split(r#""id":""#).nth(1).unwrap();
                let (group, number) = id.split('"').next().unwrap().split_once('-').unwrap();
                let expected = next.entry(group.to_owned()).or_insert(0);
                assert_eq!(number, expected.to_string(), "{group}");
                *expected += 1;
            }
        }
    }

    #[test]
    fn who_fails_again_and_again_is_asked_for_ever_more_rarely_and_few_at_a_time() {
        let s = scene();
        let mut deliverer = s.group_deliverer();
        let bad: Vec<_> = (0..100).map(|number| format!("bad{number}")).collect();
        for group in &bad {
            s.users.fail_group(group, ErrorCode::Internal);
            deliverer.gets_message("m", group);
        }
        deliverer.flush();
        assert_eq!(s.users.calls(), bad.len());
        // From now on each answer takes its time.
        bad.iter().for_each(|group| s.users.slow_group(group));
        let give_up = Instant::now() + PATIENCE;
        while s.users.unanswered() < MAX_ASKED_AGAIN {
            assert!(Instant::now() < give_up);
            deliverer.idles();
        }
        deliverer.flush();
        assert_eq!(s.users.unanswered(), MAX_ASKED_AGAIN);
        assert_eq!(
            deliverer.waiting.due_in(),
            Duration::MAX,
            "an answer comes first"
        );
        s.users.answer();
        while s.users.unanswered() < MAX_ASKED_AGAIN {
            assert!(Instant::now() < give_up);
            deliverer.idles();
        }
        assert_eq!(s.users.unanswered(), MAX_ASKED_AGAIN);
    }

    #[test]
    fn only_so_many_are_asked_for_at_a_time_and_the_next_when_one_is_answered() {
        let s = scene();
        let [mut bob] = s.join(["bob"]);
        let mut deliverer = s.group_deliverer();
        for number in 0..MAX_ASKED + 10 {
            let group = format!("slow{number}");
            s.users.slow_group(&group);
            deliverer.gets_message("m", &group);
        }
        deliverer.gets_message("t1", "team");
        deliverer.flush();
        assert_eq!(s.users.unanswered(), MAX_ASKED);
        for _ in 0..10 {
            s.users.answer();
        }
        deliverer.idles();
        assert_eq!(s.users.unanswered(), MAX_ASKED);
        assert!(bob.is_quiet());
        s.users.answer();
        deliverer.idles();
        deliverer.idles();
        receives(&mut bob, &["t1"]);
    }

    #[test]
    fn a_flood_is_let_go_and_every_member_caught_up_once_they_are_known() {
        for fault in faults() {
            let s = scene();
            let [mut alice, mut bob, dave] = s.join(["alice", "bob", "dave"]);
            s.users.set("bad", &["alice", "bob"]);
            s.users.set("few", &["bob"]);
            breaks(&s.users, "bad", fault);
            breaks(&s.users, "few", fault);
            let mut deliverer = s.group_deliverer();
            deliverer.gets_message("f1", "few");
            deliverer.gets_message("b1", "bad");
            for _ in 0..TOO_MANY {
                deliverer.gets_from("carol", "b", "bad");
            }
            deliverer.flush();
            // What alice sent herself is never unread: her devices get it now.
            let mut own = [alice.next(), alice.next()];
            own.sort();
            assert!(own[0].contains(r#""b1""#) && own[1].contains(r#""f1""#));
            assert!(alice.is_quiet() && bob.is_quiet());
            deliverer.gets_message("b", "bad");
            deliverer.flush();
            receives(&mut alice, &["b"]);
            assert!(!bob.takes_catch_up(), "not before the list is had");

            for group in ["bad", "few"] {
                heals(&s.users, group);
            }
            deliverer.settles();
            assert!(bob.takes_catch_up() && alice.takes_catch_up());
            assert!(!dave.takes_catch_up());
            deliverer.gets_message("live", "bad");
            deliverer.flush();
            receives(&mut bob, &["live"]);
            receives(&mut alice, &["live"]);
        }
    }

    #[test]
    fn where_there_is_no_room_a_busy_group_whose_list_has_expired_is_not_let_go() {
        let s = scene();
        let [mut bob] = s.join(["bob"]);
        let mut deliverer = s.group_deliverer();
        deliverer.gets_message("m", "team");
        deliverer.flush();
        s.users.slow_group("other");
        deliverer.fills_up("other", 200);
        s.users.drop_question();
        s.users.slow_group("team");
        deliverer.gets_change("team");
        deliverer.gets_message("m0", "team");
        assert_eq!(s.users.answer(), "team");
        for number in 1..100 {
            deliverer.gets_message(&format!("m{number}"), "team");
        }
        deliverer.flush();
        receives(&mut bob, &["m"]);
        for number in 0..100 {
            receives(&mut bob, &[&format!("m{number}")]);
        }
        assert!(!bob.takes_catch_up());
    }

    /// Those who wait for an answer wait alone, also where there is no more room.
    #[test]
    fn where_there_is_no_room_other_groups_are_held_up_for_a_moment_at_most() {
        let s = scene();
        let [mut bob] = s.join(["bob"]);
        s.users.slow_group("slow");
        s.users.slow_group("late");
        let mut deliverer = s.group_deliverer();
        deliverer.gets_message("late", "late");
        deliverer.fills_up("slow", 0);
        let start = Instant::now();
        s.users.set("new", &["bob"]);
        for number in 0..1_000 {
            let group = ["team", "new"][number % 2];
            deliverer.gets_message(&format!("m{number}"), group);
            deliverer.flush();
            receives(&mut bob, &[&format!("m{number}")]);
        }
        for _ in 0..1_000 {
            deliverer.gets_message("m", "slow");
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(s.users.unanswered(), 2);
    }

    #[test]
    fn large_messages_fill_the_room_sooner() {
        let s = scene();
        let [bob] = s.join(["bob"]);
        s.users.slow_group("team");
        let mut deliverer = s.group_deliverer();
        let mut large = group_message("m", "carol", "team");
        large.content = "x".repeat(MAX_BYTES / 4);
        for _ in 0..4 {
            deliverer.gets("team", KIND_MESSAGE, &large.encode_to_vec());
        }
        heals(&s.users, "team");
        deliverer.settles();
        assert!(bob.takes_catch_up());
    }

    #[test]
    fn a_message_that_is_larger_than_all_that_may_wait_waits_alone() {
        let s = scene();
        let [bob] = s.join(["bob"]);
        s.users.slow_group("team");
        let mut deliverer = s.group_deliverer();
        let mut large = group_message("m", "carol", "team");
        large.content = "x".repeat(MAX_BYTES + 1);
        deliverer.gets("team", KIND_MESSAGE, &large.encode_to_vec());
        assert!(deliverer.waiting.contains(&GroupId::new("team").unwrap()));
        drop(deliverer);
        assert!(bob.takes_catch_up());
    }

    #[test]
    fn beyond_so_many_groups_everybody_is_caught_up() {
        let s = scene();
        let [mut alice, bob] = s.join(["alice", "bob"]);
        s.users.fail(ErrorCode::ServiceUnavailable);
        let mut deliverer = s.group_deliverer();
        for number in 0..MAX_GROUPS {
            let group = format!("g{number}");
            match number {
                0 => deliverer.gets_message("m1", &group),
                _ => deliverer
                    .waiting
                    .members_changed(&GroupId::new(&group).unwrap()),
            }
        }
        assert!(alice.is_quiet() && !bob.takes_catch_up());
        deliverer.gets_message("m2", "team");
        deliverer.flush();
        assert!(bob.takes_catch_up() && alice.takes_catch_up());
        receives(&mut alice, &["m1"]);
        s.users.fail(None);
        deliverer.settles();
        receives(&mut alice, &["m2"]);
    }

    /// The answer that is on its way may have been made before the change.
    #[test]
    fn what_comes_after_a_change_is_for_those_who_are_members_after_it() {
        let s = scene();
        let [mut alice, mut bob, mut carol] = s.join(["alice", "bob", "carol"]);
        s.users.slow_group("team");
        let mut deliverer = s.group_deliverer();
        deliverer.gets_message("m1", "team");
        deliverer.gets_change("team");
        deliverer.gets_message("m2", "team");
        deliverer.gets_change("team");
        deliverer.gets_message("m3", "team");
        s.users.answer();
        deliverer.flush();
        receives(&mut bob, &["m1"]);
        s.users.set("team", &["alice", "carol"]);
        s.users.answer();
        deliverer.settles();
        receives(&mut alice, &["m1", "m2", "m3"]);
        receives(&mut carol, &["m2", "m3"]);
        assert!(bob.is_quiet());
        assert!(s.users.unanswered() == 0);
    }

    #[test]
    fn changes_that_do_not_end_let_messages_through() {
        let s = scene();
        let [mut bob] = s.join(["bob"]);
        s.users.slow_group("team");
        let mut deliverer = s.group_deliverer();
        for number in 0..20 {
            let id = format!("m{number}");
            deliverer.gets_message(&id, "team");
            deliverer.gets_change("team");
            s.users.answer();
            deliverer.flush();
            receives(&mut bob, &[&id]);
        }
    }

    #[test]
    fn a_change_of_a_group_that_is_let_go_reaches_old_and_new_members() {
        let s = scene();
        let [bob, carol] = s.join(["bob", "carol"]);
        s.users.slow_group("team");
        let mut deliverer = s.group_deliverer();
        for _ in 0..TOO_MANY {
            deliverer.gets_message("m", "team");
        }
        deliverer.gets_message("m", "team");
        deliverer.gets_change("team");
        deliverer.gets_message("m", "team");
        s.users.answer();
        deliverer.flush();
        assert!(bob.takes_catch_up() && !carol.takes_catch_up());
        s.users.set("team", &["carol"]);
        s.users.answer();
        deliverer.settles();
        assert!(carol.takes_catch_up());
    }

    #[test]
    fn a_question_that_is_dropped_is_asked_again() {
        let s = scene();
        let [mut bob] = s.join(["bob"]);
        s.users.slow_group("team");
        let mut deliverer = s.group_deliverer();
        deliverer.gets_message("m1", "team");
        s.users.drop_question();
        let give_up = Instant::now() + PATIENCE;
        while s.users.unanswered() == 0 {
            assert!(Instant::now() < give_up);
            deliverer.idles();
        }
        s.users.answer();
        deliverer.settles();
        receives(&mut bob, &["m1"]);
    }

    #[test]
    fn what_waits_when_the_deliverer_is_dropped_is_left_to_catch_up_own_copies_apart() {
        let s = scene();
        let [mut alice, bob] = s.join(["alice", "bob"]);
        s.users.slow_group("team");
        let mut deliverer = s.group_deliverer();
        deliverer.gets_message("m1", "team");
        drop(deliverer);
        assert!(bob.takes_catch_up() && alice.takes_catch_up());
        receives(&mut alice, &["m1"]);
        // An answer that comes now finds nobody.
        s.users.answer();
        let mut next = s.group_deliverer();
        next.gets_message("m2", "team");
        s.users.answer();
        next.settles();
        receives(&mut alice, &["m2"]);
    }

    #[test]
    fn an_expired_list_is_asked_for_while_other_groups_go_on() {
        let s = scene();
        let [mut bob] = s.join(["bob"]);
        s.users.set("other", &["bob"]);
        let mut deliverer = s.group_deliverer();
        for group in ["team", "other"] {
            deliverer.gets_message(group, group);
            deliverer.flush();
            receives(&mut bob, &[group]);
        }
        s.users.slow_group("team");
        deliverer.gets_message("t1", "team");
        deliverer.gets_change("team");
        deliverer.gets_message("t2", "team");
        deliverer.gets_message("o1", "other");
        deliverer.gets_message("t3", "team");
        deliverer.flush();
        // What came before the change is for those who were known.
        receives(&mut bob, &["t1", "o1"]);
        s.users.answer();
        deliverer.settles();
        receives(&mut bob, &["t2", "t3"]);
    }

    #[test]
    fn many_that_waited_come_in_trains_that_find_room() {
        let s = scene();
        let [mut bob] = s.join(["bob"]);
        s.users.slow_group("team");
        let mut deliverer = s.group_deliverer();
        let ids: Vec<_> = (0..MANY).map(|number| format!("m{number}")).collect();
        ids.iter().for_each(|id| deliverer.gets_message(id, "team"));
        s.users.answer();
        let reader = std::thread::spawn(move || {
            ids.iter().for_each(|id| receives(&mut bob, &[id]));
            bob
        });
        deliverer.settles();
        assert!(reader.join().unwrap().close_reason().is_none());
    }
}
