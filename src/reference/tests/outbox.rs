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
fn what_is_refused_comes_later_in_order_and_holds_up_nobody_else() {
    let rig = Rig::new();
    rig.published.refuse(["user.bob".to_owned()]);
    for n in 0..100 {
        rig.send("alice", "bob", &n.to_string());
    }
    let contents = |count| {
        let messages = rig.published.take_messages(count).into_iter();
        let (keys, contents): (Vec<_>, Vec<_>) = messages.map(|m| (m.1, m.2)).unzip();
        assert!(keys.windows(2).all(|pair| pair[0] == pair[1]), "{keys:?}");
        (keys[0].clone(), contents)
    };
    let all = (0..100).map(|n| n.to_string()).collect::<Vec<_>>();
    assert_eq!(contents(100), ("user.alice".into(), all.clone()));
    rig.published
        .wait_for("refusals", |state| state.refusals >= 5);
    rig.published.refuse([]);
    assert_eq!(contents(100), ("user.bob".into(), all));
}

/// Also after a restart, and with far more of it than is read at once.
#[test]
fn thousands_of_refused_keys_and_rows_hold_up_nobody_else() {
    const KEYS: usize = 1_000;
    let folder = tempfile::tempdir().unwrap();
    let embedded = sample(&folder.path().join("gateway.db"));
    let stuck = |n: usize| format!("user.stuck{n}");
    let published = Published::default();
    published.refuse((0..KEYS).map(stuck));
    let rig = Rig::start(&embedded, published);
    let insert = |connection: &rusqlite::Connection| {
        for n in 0..2 * KEYS {
            // Every second one goes to the same key.
            let number = if n % 2 == 0 { 0 } else { n / 2 };
            let publication = Publication {
                exchange: "im.direct".into(),
                routing_key: format!("user.stuck{number}"),
                kind: "message".into(),
                body: (n as u32).to_be_bytes().to_vec(),
            };
            crate::reference::store::outbox::insert(connection, &publication)?;
        }
        Ok(())
    };
    rig.reference.store.blocking_change(insert).unwrap();
    for n in 0..20 {
        rig.send("alice", "alice", &n.to_string());
        assert_eq!(rig.published.take_messages(1)[0].2, n.to_string());
    }
    rig.published
        .wait_for("refusals", |state| state.refusals > KEYS);
    drop(rig);

    let published = Published::default();
    published.refuse((0..KEYS).map(stuck));
    let rig = Rig::start(&embedded, published);
    for n in 0..20 {
        rig.send("alice", "alice", &n.to_string());
        assert_eq!(rig.published.take_messages(1)[0].2, n.to_string());
    }
    rig.published.refuse([]);
    let rest = rig.published.take(2 * KEYS);
    let mut last = std::collections::HashMap::new();
    for publication in rest {
        let number = u32::from_be_bytes(publication.body.try_into().unwrap());
        let before = last.insert(publication.routing_key.clone(), number);
        assert!(before < Some(number), "{}", publication.routing_key);
    }
    assert_eq!(last.len(), KEYS);
}

#[test]
fn many_keys_are_on_their_way_at_once() {
    let rig = Rig::new();
    rig.published.stick(true);
    rig.send("alice", "alice", "first");
    rig.published
        .wait_for("attempt", |state| state.attempts == 1);
    for n in 0..100 {
        rig.send("alice", &format!("user{n}"), "second");
    }
    rig.published.stick(false);
    rig.published.take(201);
    assert!(rig.published.0.state.lock().most_in_flight > 50);
}

#[test]
fn a_stop_does_not_wait_for_what_is_refused_and_the_next_run_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = sample(&folder.path().join("gateway.db"));
    let mut rig = Rig::with(&embedded);
    rig.published.refuse(["user.bob".to_owned()]);
    rig.send("alice", "bob", "1");
    rig.send("alice", "bob", "2");
    rig.published
        .wait_for("refusal", |state| state.refusals > 0);
    rig.published.take(2);
    rig.runtime = Builder::new_current_thread().build().unwrap();
    let begun = Instant::now();
    rig.reference.stop(begun + PATIENCE);
    assert!(begun.elapsed() < PATIENCE / 4, "{:?}", begun.elapsed());
    drop(rig);
    let rig = Rig::with(&embedded);
    let published = rig.published.take_messages(2);
    let to_bob = |content: &str| ("im.direct".into(), "user.bob".into(), content.into());
    assert_eq!(published, [to_bob("1"), to_bob("2")]);
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
