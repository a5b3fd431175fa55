//! Publishing until confirmed: failures, restarts, and what may be dropped.

use super::*;

#[test]
fn a_failed_batch_is_published_again_in_order() {
    let rig = Rig::new();
    rig.published.fail(3);
    for n in 0..3 {
        rig.send("alice", "alice", &n.to_string());
    }
    let contents: Vec<_> = rig
        .published
        .take_messages(3)
        .into_iter()
        .map(|m| m.2)
        .collect();
    assert_eq!(contents, ["0", "1", "2"]);
    assert!(rig.published.0.state.lock().attempts >= 4);
}

#[test]
fn answers_do_not_wait_for_the_broker() {
    let rig = Rig::new();
    rig.published.stick(true);
    for n in 0..5 {
        rig.send("alice", "bob", &n.to_string());
    }
    assert_eq!(rig.unread("bob").len(), 5);
    rig.published.stick(false);
    assert_eq!(rig.published.take_messages(10)[9].2, "4");
}

#[test]
fn what_a_broken_off_run_has_not_published_the_next_one_does_in_commit_order() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = sample(&folder.path().join("gateway.db"));
    let rig = Rig::with(&embedded);
    rig.send("alice", "alice", "published");
    rig.published.take(1);
    rig.published.fail(usize::MAX);
    let sent = rig.send("alice", "bob", "first");
    rig.send_group("bob", "team", "second");
    rig.published
        .wait_for("attempts", |state| state.attempts >= 3);
    drop(rig);

    // The next one breaks off too.
    let published = Published::default();
    published.fail(usize::MAX);
    drop(Rig::start(&embedded, published));

    let rig = Rig::with(&embedded);
    rig.send("carol", "carol", "third");
    let expected = [
        ("im.direct", "user.bob", "first"),
        ("im.direct", "user.alice", "first"),
        ("im.topic", "group.team", "second"),
        ("im.direct", "user.carol", "third"),
    ]
    .map(|(exchange, key, content)| (exchange.into(), key.into(), content.into()));
    assert_eq!(rig.published.take_messages(4), expected);
    assert_eq!(rig.unread("bob"), ["first"]);
    assert_eq!(rig.offline("bob", "", 1).unwrap().messages[0].id, sent.id);
    drop(rig);

    // Nothing is published twice after a clean end, and ids go on.
    let rig = Rig::with(&embedded);
    assert!(rig.send("alice", "alice", "fourth").id > sent.id);
    assert_eq!(rig.published.take_messages(1)[0].2, "fourth");
}

#[test]
fn what_was_answered_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = sample(&folder.path().join("gateway.db"));
    let rig = Rig::with(&embedded);
    rig.published.fail(usize::MAX);
    let sent = rig
        .send_request(single("alice", "bob", "kept", "c-1"))
        .unwrap();

    // The files as they are now are what a killed process leaves: the log is not written back.
    let killed = tempfile::tempdir().unwrap();
    for file in ["gateway.db", "gateway.db-wal"] {
        std::fs::copy(folder.path().join(file), killed.path().join(file)).unwrap();
    }
    let next = Rig::with(&sample(&killed.path().join("gateway.db")));
    let published = next.published.take_messages(2);
    assert_eq!(
        (published[0].1.as_str(), published[1].1.as_str()),
        ("user.bob", "user.alice")
    );
    assert_eq!(next.unread("bob"), ["kept"]);
    assert_eq!(
        next.send_request(single("alice", "bob", "kept", "c-1"))
            .unwrap(),
        sent
    );
}

#[test]
fn more_rows_than_a_batch_come_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = sample(&folder.path().join("gateway.db"));
    let rig = Rig::with(&embedded);
    rig.published.fail(usize::MAX);
    for n in 0..300 {
        rig.send("alice", "bob", &n.to_string());
    }
    drop(rig);
    let rig = Rig::with(&embedded);
    let published = rig.published.take_messages(600);
    assert!(
        published
            .iter()
            .enumerate()
            .all(|(n, message)| message.2 == (n / 2).to_string())
    );
}

#[test]
fn a_stop_publishes_what_is_there_when_that_works_at_once() {
    let mut rig = Rig::new();
    rig.published.stick(true);
    rig.send("alice", "alice", "1");
    rig.published
        .wait_for("attempt", |state| state.attempts == 1);
    rig.send("alice", "alice", "2");
    rig.published.stick(false);
    rig.runtime = Builder::new_current_thread().build().unwrap();
    rig.reference.stop(Instant::now() + PATIENCE);
    assert_eq!(rig.published.0.state.lock().publications.len(), 2);
}
