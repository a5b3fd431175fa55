//! Tokens, groups, and what a reload publishes.

use std::sync::mpsc;

use tonic::Code;

use super::*;
use crate::services::proto::{
    GetGroupMembersRequest, GroupMembersChanged, SessionRevoked, ValidateTokenRequest,
    ValidateTokenResponse,
};

impl Rig {
    fn validate(&self, token: &str) -> Result<ValidateTokenResponse, Status> {
        self.wait(self.users.clone().validate_token(ValidateTokenRequest {
            token: token.into(),
        }))
    }

    fn members(&self, group: &str) -> Result<Vec<String>, Status> {
        let request = GetGroupMembersRequest {
            group_id: group.into(),
        };
        self.wait(self.users.clone().get_group_members(request))
            .map(|answer| answer.user_ids)
    }
}

#[test]
fn tokens_are_validated() {
    let mut embedded = sample(Path::new(":memory:"));
    let hour = Token::Expiring {
        user: "dave".into(),
        expires_in: Duration::from_secs(3600),
    };
    embedded.tokens.insert("hour".into(), hour);
    let over = Token::Expiring {
        user: "erin".into(),
        expires_in: Duration::ZERO,
    };
    embedded.tokens.insert("over".into(), over);
    let before = super::super::directory::unix_seconds(std::time::SystemTime::now());
    let rig = Rig::with(&embedded);

    let alice = rig.validate("alice-token").unwrap();
    assert_eq!((alice.user_id.as_str(), alice.expires_at), ("alice", 0));
    let dave = rig.validate("hour").unwrap();
    assert_eq!(dave.user_id, "dave");
    assert!(
        (before + 3600..before + 3700).contains(&dave.expires_at),
        "{}",
        dave.expires_at
    );
    // Seconds are whole: it may hold until the next one begins.
    let deadline = Instant::now() + PATIENCE;
    while rig.validate("over").is_ok() {
        assert!(Instant::now() < deadline, "never expires");
    }
    for bad in ["", "over", "alice", "nobody's", "\n"] {
        let status = rig.validate(bad).unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{bad:?}");
        assert!(bad.is_empty() || !status.message().contains("nobody's"));
    }
}

#[test]
fn members_of_a_group() {
    let rig = Rig::new();
    assert_eq!(rig.members("team").unwrap(), ["alice", "bob", "carol"]);
    assert_eq!(code(rig.members("nobody")), Code::NotFound);
    for bad in ["", "a\nb", &"g".repeat(201)] {
        assert_eq!(code(rig.members(bad)), Code::InvalidArgument, "{bad:?}");
    }
}

#[test]
fn a_reload_is_in_force_before_its_differences_are_published() {
    let mut embedded = sample(Path::new(":memory:"));
    let rig = Rig::with(&embedded);
    let (seen, in_force) = mpsc::channel();
    let directories = rig.reference.directories.clone();
    rig.published.watch(move |_| {
        let directory = directories.current();
        let _ = seen.send(directory.members("team").cloned());
    });

    group(&mut embedded, "team", &["alice", "bob"]);
    group(&mut embedded, "new", &["carol"]);
    embedded.tokens.remove("carol-token");
    token(&mut embedded, "bob-token", "mallory");
    rig.reference.reload(&embedded).unwrap();

    let published = rig.published.take(4);
    let keys: Vec<_> = published
        .iter()
        .map(|publication| publication.routing_key.as_str())
        .collect();
    assert_eq!(keys, ["group.new", "group.team", "user.bob", "user.carol"]);
    let first = &published[0];
    assert_eq!(
        (first.exchange.as_str(), first.kind.as_str()),
        ("im.topic", "group_members_changed")
    );
    assert_eq!(
        GroupMembersChanged::decode(first.body.as_slice())
            .unwrap()
            .group_id,
        "new"
    );
    let last = &published[3];
    assert_eq!(
        (last.exchange.as_str(), last.kind.as_str()),
        ("im.direct", "session_revoked")
    );
    assert_eq!(
        SessionRevoked::decode(last.body.as_slice())
            .unwrap()
            .user_id,
        "carol"
    );

    let members = in_force.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(members.into_iter().collect::<Vec<_>>(), ["alice", "bob"]);
    assert_eq!(rig.members("team").unwrap(), ["alice", "bob"]);
    assert_eq!(rig.validate("bob-token").unwrap().user_id, "mallory");
    assert_eq!(code(rig.validate("carol-token")), Code::Unauthenticated);
}

#[test]
fn a_reload_without_differences_publishes_nothing() {
    let embedded = sample(Path::new(":memory:"));
    let rig = Rig::with(&embedded);
    rig.reference.reload(&embedded).unwrap();
    rig.send("alice", "alice", "first");
    assert_eq!(rig.published.take(1)[0].kind, "message");
}

#[test]
fn differences_survive_a_broker_that_is_away_and_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut embedded = sample(&folder.path().join("gateway.db"));
    let rig = Rig::with(&embedded);
    rig.published.fail(usize::MAX);
    embedded.tokens.remove("bob-token");
    rig.reference.reload(&embedded).unwrap();
    drop(rig);

    let rig = Rig::with(&embedded);
    assert_eq!(rig.published.take(1)[0].routing_key, "user.bob");
}

#[test]
fn a_reload_that_cannot_be_stored_changes_nothing_and_may_be_repeated() {
    let mut embedded = sample(Path::new(":memory:"));
    let rig = Rig::with(&embedded);
    embedded.tokens.remove("carol-token");
    rig.refuse_writes(true);
    let error = rig.reference.reload(&embedded).unwrap_err();
    assert!(error.to_string().contains("reload again"), "{error}");
    assert_eq!(rig.validate("carol-token").unwrap().user_id, "carol");

    rig.refuse_writes(false);
    rig.reference.reload(&embedded).unwrap();
    assert_eq!(rig.published.take(1)[0].routing_key, "user.carol");
    assert_eq!(code(rig.validate("carol-token")), Code::Unauthenticated);
}
