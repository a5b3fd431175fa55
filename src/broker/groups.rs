//! Who is in a group: the User Service's answers, kept for `groups.cache_ttl`.
//!
//! Between two answers a list may be out of date, and a message may have gone past a new member.
//! One rule makes that good: whenever a list is fetched, whoever is connected here and is in it or in
//! the list held before, but not in both, is caught up with what is unread: somebody who has left, too,
//! since a message from before that may have waited for this list. So an outdated list is kept for
//! comparing, also after it has expired. A group of which there was no list before compares with
//! nothing: somebody who left it just before finds what waited then at the next connect. The lists outlive
//! the connection to the broker, outdated, since what was committed meanwhile may be published after it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashlink::LruCache;
use log::warn;

use crate::ids::{GroupId, UserId};
use crate::services::{ErrorCode, Result, ServiceError};

/// How many lists are held at most; the longest unused goes first.
const MAX_GROUPS: usize = 10_000;
/// How long one group may fail, with a User Service that answers, before its messages go to those who
/// were members before.
const GROUP_FAILURE_TIMEOUT: Duration = Duration::from_secs(60);

/// What the User Service says of a group: its members, in any order.
pub type Answer = Result<Vec<String>>;

/// Sorted, each once.
pub type Members = Arc<[UserId]>;

/// The member lists of the groups with traffic.
pub struct Groups {
    ttl: Duration,
    lists: LruCache<GroupId, List>,
}

#[derive(Default)]
struct List {
    /// `None`: never known, so there is nothing to compare with.
    members: Option<Members>,
    /// From then on, or if it is `None`, it is outdated, and held for comparing only.
    fresh_until: Option<Instant>,
    failing_since: Option<Instant>,
}

impl Groups {
    pub fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            lists: LruCache::new(MAX_GROUPS),
        }
    }

    /// The members, if a fresh list is held.
    pub fn fresh(&mut self, group: &GroupId) -> Option<Members> {
        let list = self.lists.get(group)?;
        let is_fresh = list.fresh_until.is_some_and(|end| Instant::now() < end);
        list.members.clone().filter(|_| is_fresh)
    }

    /// Marks the list as outdated; whether there is one.
    pub fn invalidate(&mut self, group: &GroupId) -> bool {
        let list = self.lists.get_mut(group);
        list.map(|list| list.fresh_until = None).is_some()
    }

    /// Marks all lists as outdated: changes may have gone past.
    pub fn invalidate_all(&mut self) {
        let lists = self.lists.iter_mut();
        lists.for_each(|(_, list)| list.fresh_until = None);
    }

    /// Takes in the members as they are now. Answers who has come or gone, and is to be caught up.
    pub fn learn(&mut self, group: &GroupId, members: &Members) -> Members {
        let fresh_until = Some(Instant::now() + self.ttl);
        let list = self.list(group);
        (list.fresh_until, list.failing_since) = (fresh_until, None);
        let before = list.members.replace(Arc::clone(members));
        // Where there was none, it compares with itself.
        let before = before.as_ref().unwrap_or(members);
        let [before, after] = [before, members].map(|list| BTreeSet::from_iter(list.to_vec()));
        (&before ^ &after).into_iter().collect()
    }

    /// Whom the group's messages go to after an `error`, if anybody. While the service is out of reach,
    /// and a while where it answers, they wait; then they go to those who were members before, and with
    /// the next list the others are caught up.
    pub fn stand_in(&mut self, group: &GroupId, error: &ServiceError) -> Option<Members> {
        let list = self.list(group);
        if error.is_out_of_reach() {
            list.failing_since = None;
            return None;
        }
        let failing_since = list.failing_since.get_or_insert_with(Instant::now);
        let failing = failing_since.elapsed();
        // Not forgotten: the next list is compared with it.
        let members = || Arc::clone(list.members.get_or_insert_default());
        (failing >= GROUP_FAILURE_TIMEOUT).then(members)
    }

    /// As if the group had failed for as long as it may.
    #[cfg(test)]
    pub fn has_failed_for_long(&mut self, group: &GroupId) {
        self.list(group).failing_since = Some(Instant::now() - GROUP_FAILURE_TIMEOUT);
    }

    /// The group's list, which [`Self::fresh`] has looked for: so it counts as used.
    fn list(&mut self, group: &GroupId) -> &mut List {
        let list = self.lists.entry(group.clone());
        list.or_insert_with(List::default)
    }
}

/// The members that the User Service has answered. What cannot be a user is left out: nobody can be
/// connected under such an id, and the others' messages must not wait for it. An error means: ask again
/// later.
pub fn members(group: &GroupId, answer: Answer) -> Result<Members> {
    let ids = match answer {
        // As a group without members: if it appears yet, all of them are new.
        Err(error) if error.code == ErrorCode::NotFound => {
            warn!("Group does not exist: group={group}");
            Vec::new()
        }
        answer => answer?,
    };
    let mut members: Vec<_> = ids.iter().filter_map(|id| UserId::new(id).ok()).collect();
    let impossible = ids.len() - members.len();
    if impossible > 0 {
        warn!("Impossible members left out: group={group}, count={impossible}");
    }
    members.sort_unstable();
    members.dedup();
    Ok(members.into())
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::bounded;

    use super::*;
    use crate::services::Services as _;
    use crate::services::fake::FakeServices;
    use crate::services::proto::GetGroupMembersRequest;

    struct Scene {
        users: Arc<FakeServices>,
        groups: Groups,
        team: GroupId,
    }

    fn scene(ttl: Duration) -> Scene {
        let users = Arc::new(FakeServices::default());
        users.set("team", &["alice", "bob"]);
        Scene {
            users,
            groups: Groups::new(ttl),
            team: GroupId::new("team").unwrap(),
        }
    }

    impl Scene {
        /// The members, and the new ones.
        fn fetch(&mut self, group: &str) -> Result<(String, String)> {
            let (told, answer) = bounded(1);
            let request = GetGroupMembersRequest {
                group_id: group.into(),
            };
            let told = Box::new(move |answer| told.send(answer).unwrap());
            self.users.group_members(request, told);
            let (group, answer) = (GroupId::new(group).unwrap(), answer.try_recv().unwrap());
            match members(&group, answer) {
                Ok(members) => Ok((names(&members), names(&self.groups.learn(&group, &members)))),
                Err(error) => match self.groups.stand_in(&group, &error) {
                    Some(members) => Ok((names(&members), String::new())),
                    None => Err(error),
                },
            }
        }
    }

    const LONG: Duration = Duration::from_secs(3_600);

    fn names(members: &Members) -> String {
        let names: Vec<_> = members.iter().map(UserId::as_str).collect();
        names.join(" ")
    }

    fn fetched(members: &str, new: &str) -> Result<(String, String)> {
        Ok((members.into(), new.into()))
    }

    #[test]
    fn a_list_is_used_until_it_expires() {
        let mut s = scene(LONG);
        assert!(s.groups.fresh(&s.team).is_none());
        assert_eq!(s.fetch("team"), fetched("alice bob", ""));
        assert_eq!(names(&s.groups.fresh(&s.team).unwrap()), "alice bob");
        assert_eq!(s.users.calls(), 1);

        let mut s = scene(Duration::ZERO);
        s.fetch("team").unwrap();
        assert!(s.groups.fresh(&s.team).is_none());
    }

    #[test]
    fn only_who_has_come_or_gone_since_the_list_before_is_caught_up() {
        let mut s = scene(Duration::ZERO);
        assert_eq!(s.fetch("team"), fetched("alice bob", ""));
        s.users.set("team", &["alice", "bob", "carol"]);
        assert_eq!(s.fetch("team"), fetched("alice bob carol", "carol"));
        assert_eq!(s.fetch("team"), fetched("alice bob carol", ""));
        s.users.set("team", &["bob", "carol"]);
        assert_eq!(s.fetch("team"), fetched("bob carol", "alice"));
    }

    #[test]
    fn an_outdated_list_is_not_used_and_still_compared_with() {
        let mut s = scene(LONG);
        assert!(!s.groups.invalidate(&s.team), "no list yet");
        s.fetch("team").unwrap();
        assert!(s.groups.invalidate(&s.team));
        assert!(s.groups.fresh(&s.team).is_none());
        s.users.set("team", &["bob", "carol"]);
        assert_eq!(s.fetch("team"), fetched("bob carol", "alice carol"));
    }

    #[test]
    fn a_group_that_does_not_exist_is_empty_and_its_first_members_are_caught_up() {
        let mut s = scene(LONG);
        let new = GroupId::new("new").unwrap();
        assert_eq!(s.fetch("new"), fetched("", ""));
        assert!(
            s.groups.fresh(&new).is_some(),
            "it is not asked for again at once"
        );
        s.users.set("new", &["carol"]);
        assert_eq!(s.fetch("new"), fetched("carol", "carol"));
    }

    #[test]
    fn impossible_members_are_left_out() {
        let mut s = scene(LONG);
        s.users.set("team", &["", "alice", "a\nb"]);
        assert_eq!(s.fetch("team"), fetched("alice", ""));
    }

    #[test]
    fn a_failing_service_is_waited_for_and_an_answering_one_not_for_ever() {
        let mut s = scene(Duration::ZERO);
        s.fetch("team").unwrap();
        s.users.fail(ErrorCode::Internal);
        assert!(s.fetch("team").is_err());
        s.groups.has_failed_for_long(&s.team);
        assert_eq!(s.fetch("team"), fetched("alice bob", ""));
        s.users.fail(ErrorCode::ServiceUnavailable);
        assert!(
            s.fetch("team").is_err(),
            "out of reach is waited for, however long"
        );
        s.users.fail(ErrorCode::Internal);
        assert!(s.fetch("team").is_err(), "and patience begins anew");

        s.users.fail(None);
        s.fetch("team").unwrap();
        s.users.fail(ErrorCode::Internal);
        assert!(s.fetch("team").is_err(), "patience begins anew");
    }

    #[test]
    fn a_group_that_was_never_known_has_nobody_to_compare_with_after_a_short_failure() {
        let mut s = scene(LONG);
        s.users.fail(ErrorCode::Internal);
        assert!(s.fetch("team").is_err());
        s.users.fail(None);
        assert_eq!(s.fetch("team"), fetched("alice bob", ""));
    }

    #[test]
    fn lists_are_bounded() {
        let mut s = scene(LONG);
        let group = |number| GroupId::new(&format!("g{number}")).unwrap();
        for number in 0..2 * MAX_GROUPS {
            s.groups.learn(&group(number), &Members::default());
            assert!(s.groups.fresh(&group(0)).is_some(), "it is used");
        }
        let lists = s.groups.lists;
        // hashlink keeps one more, until the next one comes.
        assert!(lists.len() <= MAX_GROUPS + 1, "{}", lists.len());
        assert!(!lists.contains_key(&group(1)));
        assert!(lists.contains_key(&group(2 * MAX_GROUPS - 1)));
    }
}
