//! The directory: which token is whose, and who is in which group, as the configuration says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use prost::Message;

use super::publisher::Publication;
use crate::broker::{
    DIRECT_EXCHANGE, KIND_GROUP_MEMBERS_CHANGED, KIND_SESSION_REVOKED, TOPIC_EXCHANGE,
};
use crate::config::{Embedded, Token};
use crate::services::proto::{GroupMembersChanged, SessionRevoked};

/// Tokens and groups at one time. It never changes: a reload makes the next one.
#[derive(Debug, Default)]
pub(super) struct Directory {
    tokens: HashMap<String, Grant>,
    groups: BTreeMap<String, BTreeSet<String>>,
    groups_of: HashMap<String, Vec<String>>,
}

/// What a token gives.
#[derive(Debug, Clone)]
struct Grant {
    /// As written in the configuration.
    token: Token,
    /// Unix time in seconds; 0: never.
    expires_at: i64,
}

impl Grant {
    /// Rounded up, so that a token holds no shorter than is written.
    fn new(token: &Token, now: SystemTime) -> Self {
        let expires_at = match token {
            Token::Unlimited(_) => 0,
            Token::Expiring { expires_in, .. } => {
                let ends = since_epoch(now).saturating_add(*expires_in);
                let seconds = ends
                    .as_secs()
                    .saturating_add(u64::from(ends.subsec_nanos() > 0));
                i64::try_from(seconds).unwrap_or(i64::MAX)
            }
        };
        Self {
            token: token.clone(),
            expires_at,
        }
    }

    fn holds(&self, now: SystemTime) -> bool {
        self.expires_at == 0 || unix_seconds(now) < self.expires_at
    }
}

/// Whom a token lets in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity<'a> {
    pub user: &'a str,
    /// Unix time in seconds; 0: never.
    pub expires_at: i64,
}

impl Directory {
    /// The directory that `embedded` describes. A token that `previous` has unchanged expires
    /// when it did there; all others count from `now`.
    pub fn new(embedded: &Embedded, previous: &Directory, now: SystemTime) -> Self {
        let grant = |(text, token): (&String, &Token)| {
            let before = previous
                .tokens
                .get(text)
                .filter(|grant| grant.token == *token);
            (
                text.clone(),
                before.cloned().unwrap_or_else(|| Grant::new(token, now)),
            )
        };
        let mut directory = Self {
            tokens: embedded.tokens.iter().map(grant).collect(),
            ..Self::default()
        };
        for (group, members) in &embedded.groups {
            let members: BTreeSet<String> = members.iter().cloned().collect();
            for member in &members {
                directory
                    .groups_of
                    .entry(member.clone())
                    .or_default()
                    .push(group.clone());
            }
            directory.groups.insert(group.clone(), members);
        }
        directory
    }

    /// Whom `token` lets in at `now`; `None`: nobody.
    pub fn identify(&self, token: &str, now: SystemTime) -> Option<Identity<'_>> {
        let grant = self.tokens.get(token).filter(|grant| grant.holds(now))?;
        Some(Identity {
            user: grant.token.user(),
            expires_at: grant.expires_at,
        })
    }

    /// The members of a group in alphabetical order; `None`: there is no such group.
    pub fn members(&self, group: &str) -> Option<&BTreeSet<String>> {
        self.groups.get(group)
    }

    /// Everybody who shares a group with the user, the user too; some more than once.
    pub fn group_mates(&self, user: &str) -> impl Iterator<Item = &String> {
        let groups = self.groups_of.get(user).into_iter().flatten();
        groups.filter_map(|group| self.groups.get(group)).flatten()
    }

    /// What the gateways are told when this directory takes the place of `previous`.
    pub fn differences(&self, previous: &Directory, now: SystemTime) -> Vec<Publication> {
        let names: BTreeSet<_> = self.groups.keys().chain(previous.groups.keys()).collect();
        let changed = names
            .into_iter()
            .filter(|name| self.members(name) != previous.members(name));

        // A token that had expired let nobody in, so that its user is here with another one.
        let revoked: BTreeSet<&str> = previous
            .tokens
            .iter()
            .filter(|(_, grant)| grant.holds(now))
            .filter(|(text, grant)| {
                self.tokens
                    .get(*text)
                    .is_none_or(|new| new.token.user() != grant.token.user())
            })
            .map(|(_, grant)| grant.token.user())
            .collect();

        changed
            .map(|group| members_changed(group))
            .chain(revoked.into_iter().map(revocation))
            .collect()
    }
}

fn members_changed(group: &str) -> Publication {
    Publication {
        exchange: TOPIC_EXCHANGE.into(),
        routing_key: format!("group.{group}"),
        kind: KIND_GROUP_MEMBERS_CHANGED.into(),
        body: GroupMembersChanged {
            group_id: group.into(),
        }
        .encode_to_vec(),
    }
}

fn revocation(user: &str) -> Publication {
    let body = SessionRevoked {
        user_id: user.into(),
        reason: "token revoked".into(),
    };
    Publication {
        exchange: DIRECT_EXCHANGE.into(),
        routing_key: format!("user.{user}"),
        kind: KIND_SESSION_REVOKED.into(),
        body: body.encode_to_vec(),
    }
}

/// The directory in force.
#[derive(Clone)]
pub(super) struct Directories(Arc<RwLock<Arc<Directory>>>);

impl Directories {
    pub fn new(first: Directory) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(first))))
    }

    pub fn current(&self) -> Arc<Directory> {
        Arc::clone(&self.0.read())
    }

    pub fn replace(&self, next: Arc<Directory>) {
        *self.0.write() = next;
    }
}

/// `time` as the contract has it: Unix time in seconds.
pub(super) fn unix_seconds(time: SystemTime) -> i64 {
    i64::try_from(since_epoch(time).as_secs()).unwrap_or(i64::MAX)
}

/// A clock before 1970 is taken for 1970.
fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_000);

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn embedded(tokens: &[(&str, &str, Option<u64>)], groups: &[(&str, &[&str])]) -> Embedded {
        let token = |&(text, user, expires_in): &(&str, &str, Option<u64>)| {
            let user = user.into();
            let token = match expires_in.map(Duration::from_secs) {
                Some(expires_in) => Token::Expiring { user, expires_in },
                None => Token::Unlimited(user),
            };
            (text.to_owned(), token)
        };
        let group = |(name, members): &(&str, &[&str])| {
            (
                (*name).to_owned(),
                members.iter().map(|member| (*member).to_owned()).collect(),
            )
        };
        Embedded {
            tokens: tokens.iter().map(token).collect(),
            groups: groups.iter().map(group).collect(),
            ..Embedded::default()
        }
    }

    fn directory(tokens: &[(&str, &str, Option<u64>)], groups: &[(&str, &[&str])]) -> Directory {
        Directory::new(
            &embedded(tokens, groups),
            &Directory::default(),
            UNIX_EPOCH + NOW,
        )
    }

    /// Kind and routing key of each difference.
    fn differences(new: &Directory, old: &Directory) -> Vec<(String, String)> {
        let differences = new.differences(old, UNIX_EPOCH + NOW).into_iter();
        differences
            .map(|publication| (publication.kind, publication.routing_key))
            .collect()
    }

    #[test]
    fn a_token_lets_its_user_in_until_it_expires() {
        let directory = directory(&[("t", "alice", Some(60)), ("for-ever", "bob", None)], &[]);
        let alice = Identity {
            user: "alice",
            expires_at: 1_060,
        };
        assert_eq!(directory.identify("t", at(1_059)), Some(alice));
        assert_eq!(directory.identify("t", at(1_060)), None);
        let bob = Identity {
            user: "bob",
            expires_at: 0,
        };
        assert_eq!(directory.identify("for-ever", at(1 << 40)), Some(bob));
        for unknown in ["", "T", "alice", "t "] {
            assert_eq!(directory.identify(unknown, at(1_000)), None, "{unknown:?}");
        }
    }

    #[test]
    fn an_expiry_is_rounded_up_and_never_overflows() {
        let now = at(1_000) + Duration::from_millis(1);
        let expires_at = |expires_in| {
            let user = "alice".into();
            Grant::new(&Token::Expiring { user, expires_in }, now).expires_at
        };
        assert_eq!(expires_at(Duration::from_millis(500)), 1_001);
        assert_eq!(expires_at(Duration::from_secs(1)), 1_002);
        assert_eq!(expires_at(Duration::MAX), i64::MAX);
    }

    #[test]
    fn an_unchanged_token_keeps_its_expiry_across_a_reload() {
        let written = embedded(&[("t", "alice", Some(60))], &[]);
        let first = Directory::new(&written, &Directory::default(), at(1_000));
        let second = Directory::new(&written, &first, at(1_030));
        assert_eq!(second.identify("t", at(1_030)).unwrap().expires_at, 1_060);

        let longer = embedded(&[("t", "alice", Some(90))], &[]);
        let third = Directory::new(&longer, &second, at(1_040));
        assert_eq!(third.identify("t", at(1_040)).unwrap().expires_at, 1_130);
        assert_eq!(differences(&third, &second), []);
    }

    #[test]
    fn groups_that_changed_appeared_or_vanished_are_told_of() {
        let old = directory(
            &[],
            &[("a", &["x", "y"]), ("b", &["x"]), ("c", &["x"]), ("e", &[])],
        );
        let new = directory(
            &[],
            &[
                ("a", &["y", "x", "x"]),
                ("b", &["y"]),
                ("d", &["x"]),
                ("e", &[]),
            ],
        );
        let told = |key: &str| (KIND_GROUP_MEMBERS_CHANGED.to_owned(), key.to_owned());
        assert_eq!(
            differences(&new, &old),
            [told("group.b"), told("group.c"), told("group.d")]
        );
        let first = &new.differences(&old, at(1_000))[0];
        assert_eq!(first.exchange, TOPIC_EXCHANGE);
        let body = GroupMembersChanged::decode(first.body.as_slice()).unwrap();
        assert_eq!(body.group_id, "b");
    }

    #[test]
    fn the_old_user_of_a_token_that_is_gone_or_anothers_is_told_once() {
        let old = directory(
            &[
                ("kept", "alice", None),
                ("gone", "bob", None),
                ("gone too", "bob", None),
                ("other", "carol", None),
                ("expired", "dave", Some(0)),
            ],
            &[],
        );
        let new = directory(&[("kept", "alice", Some(9)), ("other", "erin", None)], &[]);
        let told = |key: &str| (KIND_SESSION_REVOKED.to_owned(), key.to_owned());
        assert_eq!(
            differences(&new, &old),
            [told("user.bob"), told("user.carol")]
        );
        let first = &new.differences(&old, at(1_000))[0];
        assert_eq!(first.exchange, DIRECT_EXCHANGE);
        let body = SessionRevoked::decode(first.body.as_slice()).unwrap();
        assert_eq!(
            (body.user_id.as_str(), body.reason.as_str()),
            ("bob", "token revoked")
        );
    }

    #[test]
    fn group_mates_are_the_members_of_all_ones_groups() {
        let directory = directory(
            &[],
            &[("a", &["x", "y"]), ("b", &["x", "z"]), ("c", &["y", "w"])],
        );
        let mates: BTreeSet<_> = directory.group_mates("x").map(String::as_str).collect();
        assert_eq!(mates, BTreeSet::from(["x", "y", "z"]));
        assert_eq!(directory.group_mates("nobody").count(), 0);
        assert!(directory.members("d").is_none());
    }
}
