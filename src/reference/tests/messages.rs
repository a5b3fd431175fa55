//! Sending, history, what is unread, acknowledging.

use tonic::Code;

use super::*;

#[test]
fn a_single_message_goes_to_both_users_and_is_unread_for_the_recipient() {
    let rig = Rig::new();
    let before = super::super::directory::unix_seconds(std::time::SystemTime::now());
    let sent = rig
        .send_request(single("alice", "bob", "hello", "c-1"))
        .unwrap();
    assert!((before..before + 60).contains(&sent.timestamp));

    let expected = Message {
        id: sent.id,
        from_user_id: "alice".into(),
        to_user_id: "bob".into(),
        group_id: String::new(),
        content: "hello".into(),
        message_type: "text".into(),
        timestamp: sent.timestamp,
        client_message_id: "c-1".into(),
    };
    let published = rig.published.take(2);
    for (publication, key) in published.iter().zip(["user.bob", "user.alice"]) {
        assert_eq!(publication.exchange, "im.direct");
        assert_eq!(
            (publication.routing_key.as_str(), publication.kind.as_str()),
            (key, "message")
        );
        assert_eq!(
            Message::decode(publication.body.as_slice()).unwrap(),
            expected
        );
    }
    assert_eq!(rig.offline("bob", "", 10).unwrap().messages, [expected]);
    assert_eq!(rig.unread("alice"), [""; 0]);
}

#[test]
fn a_message_to_oneself_is_published_once_and_never_unread() {
    let rig = Rig::new();
    rig.send("alice", "alice", "note");
    rig.send("alice", "bob", "after");
    let published = rig.published.take_messages(2);
    assert_eq!(
        published[0],
        ("im.direct".into(), "user.alice".into(), "note".into())
    );
    assert_eq!(published[1].1, "user.bob");
    assert_eq!(rig.unread("alice"), [""; 0]);
    assert_eq!(
        contents(&rig.history("alice", "alice", "", 10).unwrap().messages),
        ["note"]
    );
}

#[test]
fn a_group_message_is_published_once_and_unread_for_all_other_members() {
    let rig = Rig::new();
    rig.send_group("alice", "team", "all");
    rig.send("alice", "bob", "after");
    let published = rig.published.take_messages(2);
    assert_eq!(
        published[0],
        ("im.topic".into(), "group.team".into(), "all".into())
    );
    assert_eq!(published[1].1, "user.bob");
    assert_eq!(rig.unread("alice"), [""; 0]);
    assert_eq!(rig.unread("bob"), ["all", "after"]);
    assert_eq!(rig.unread("carol"), ["all"]);
}

#[test]
fn only_members_send_to_a_group_and_read_its_history() {
    let rig = Rig::new();
    let by_dave = in_group("dave", "team", "hi", "");
    assert_eq!(
        code(rig.send_group_request(by_dave)),
        Code::PermissionDenied
    );
    let nowhere = in_group("alice", "nowhere", "hi", "");
    assert_eq!(code(rig.send_group_request(nowhere)), Code::NotFound);
    assert_eq!(
        code(rig.group_history("dave", "team", "", 10)),
        Code::PermissionDenied
    );
    assert_eq!(
        code(rig.group_history("alice", "nowhere", "", 10)),
        Code::PermissionDenied
    );
    rig.send_group("bob", "team", "kept");
    assert_eq!(
        contents(&rig.group_history("alice", "team", "", 9).unwrap().messages),
        ["kept"]
    );
    assert_eq!(rig.published.take_messages(1)[0].2, "kept");
}

#[test]
fn unread_is_for_the_members_at_the_time_of_the_commit() {
    let mut embedded = sample(Path::new(":memory:"));
    let rig = Rig::with(&embedded);
    rig.send_group("alice", "team", "old");
    group(&mut embedded, "team", &["alice", "bob", "dave"]);
    rig.reference.reload(&embedded).unwrap();
    rig.send_group("alice", "team", "new");
    assert_eq!(rig.unread("bob"), ["old", "new"]);
    assert_eq!(rig.unread("carol"), ["old"]);
    assert_eq!(rig.unread("dave"), ["new"]);
}

#[test]
fn history_comes_in_pages_oldest_first() {
    let rig = Rig::new();
    for n in 1..=5 {
        let (from, to) = if n % 2 == 0 {
            ("alice", "bob")
        } else {
            ("bob", "alice")
        };
        rig.send(from, to, &n.to_string());
        rig.send("alice", "carol", "other");
        rig.send_group("alice", "team", &format!("g{n}"));
    }
    let mut before = String::new();
    let mut pages = Vec::new();
    loop {
        let page = rig.history("alice", "bob", &before, 2).unwrap();
        pages.push(contents(&page.messages));
        if !page.has_more {
            break;
        }
        before.clone_from(&page.messages[0].id);
    }
    assert_eq!(pages, [vec!["4", "5"], vec!["2", "3"], vec!["1"]]);
    assert_eq!(
        contents(&rig.history("bob", "alice", "", 100).unwrap().messages).len(),
        5
    );

    let page = rig.group_history("carol", "team", "", 3).unwrap();
    assert_eq!(
        (contents(&page.messages), page.has_more),
        (vec!["g3".into(), "g4".into(), "g5".into()], true)
    );
    let page = rig
        .group_history("carol", "team", &page.messages[0].id, 3)
        .unwrap();
    assert_eq!(
        (contents(&page.messages), page.has_more),
        (vec!["g1".into(), "g2".into()], false)
    );
    let page = rig.history("alice", "nobody", "", 10).unwrap();
    assert_eq!((page.messages.len(), page.has_more), (0, false));
}

#[test]
fn a_page_is_full_exactly_at_its_limit() {
    let rig = Rig::new();
    for n in 0..3 {
        rig.send("alice", "bob", &n.to_string());
    }
    assert!(!rig.history("alice", "bob", "", 3).unwrap().has_more);
    assert!(rig.history("alice", "bob", "", 2).unwrap().has_more);
    assert!(!rig.offline("bob", "", 3).unwrap().has_more);
    assert!(rig.offline("bob", "", 2).unwrap().has_more);
}

#[test]
fn unread_messages_come_in_pages_after_a_position() {
    let rig = Rig::new();
    let mut ids = Vec::new();
    for n in 1..=4 {
        ids.push(rig.send("alice", "bob", &n.to_string()).id);
        ids.push(rig.send_group("carol", "team", &format!("g{n}")).id);
    }
    let first = rig.offline("bob", "", 3).unwrap();
    assert_eq!(
        (contents(&first.messages), first.has_more),
        (vec!["1".into(), "g1".into(), "2".into()], true)
    );

    // A position holds even after that message was acknowledged, or if it was never unread.
    rig.ack("bob", &[&ids[0], &ids[2]]).unwrap();
    let second = rig.offline("bob", &ids[2], 3).unwrap();
    assert_eq!(
        (contents(&second.messages), second.has_more),
        (vec!["g2".into(), "3".into(), "g3".into()], true)
    );
    let last = rig.offline("bob", &second.messages[2].id, 3).unwrap();
    assert_eq!(
        (contents(&last.messages), last.has_more),
        (vec!["4".into(), "g4".into()], false)
    );
    assert_eq!(rig.unread("bob")[0], "g1");
    assert_eq!(rig.offline("alice", &ids[0], 2).unwrap().messages.len(), 2);
}

#[test]
fn acknowledging_is_each_users_own_and_passes_over_what_it_does_not_know() {
    let rig = Rig::new();
    let id = rig.send_group("alice", "team", "all").id;
    rig.ack("bob", &[&id, "", "m1", "ffffffff-000000000001", &id])
        .unwrap();
    rig.ack("bob", &[&id]).unwrap();
    rig.ack("dave", &[&id]).unwrap();
    assert_eq!(rig.unread("bob"), [""; 0]);
    assert_eq!(rig.unread("carol"), ["all"]);
    assert_eq!(
        contents(&rig.group_history("bob", "team", "", 9).unwrap().messages),
        ["all"]
    );
}

#[test]
fn many_acknowledgements_at_once() {
    let rig = Rig::new();
    let id = rig.send("alice", "bob", "one").id;
    let unknown: Vec<String> = (1_000..3_000)
        .map(|seq| rig.reference.store.ids.text(seq))
        .collect();
    let mut ids: Vec<&str> = unknown.iter().map(String::as_str).collect();
    ids.push(&id);
    rig.ack("bob", &ids).unwrap();
    assert_eq!(rig.unread("bob"), [""; 0]);
}

#[test]
fn an_empty_acknowledgement_is_answered_without_the_store() {
    let rig = Rig::new();
    let runtime = Builder::new_current_thread().build().unwrap();
    runtime.block_on(rig.reference.store.stop());
    assert_eq!(code(rig.ack("", &[])), Code::InvalidArgument);
    assert_eq!(code(rig.ack("alice", &[])), Code::Ok);
    assert_eq!(code(rig.offline("alice", "", 1)), Code::Unavailable);
}

#[test]
fn a_repeated_send_returns_the_first_answer_and_publishes_nothing_again() {
    let rig = Rig::new();
    let first = rig
        .send_request(single("alice", "bob", "hello", "c-1"))
        .unwrap();
    assert_eq!(
        rig.send_request(single("alice", "bob", "hello", "c-1"))
            .unwrap(),
        first
    );
    let group = rig
        .send_group_request(in_group("alice", "team", "hello", "c-2"))
        .unwrap();
    assert_eq!(
        rig.send_group_request(in_group("alice", "team", "hello", "c-2"))
            .unwrap(),
        group
    );
    // Another sender's ids are others.
    let other = rig
        .send_request(single("bob", "bob", "hello", "c-1"))
        .unwrap();
    assert_ne!(other.id, first.id);

    let keys: Vec<_> = rig
        .published
        .take_messages(4)
        .into_iter()
        .map(|message| message.1)
        .collect();
    assert_eq!(keys, ["user.bob", "user.alice", "group.team", "user.bob"]);
    assert_eq!(rig.unread("bob"), ["hello", "hello"]);
}

#[test]
fn a_used_client_message_id_with_other_contents_is_refused() {
    let rig = Rig::new();
    rig.send_request(single("alice", "bob", "hello", "c-1"))
        .unwrap();
    rig.send_group_request(in_group("alice", "team", "hello", "c-2"))
        .unwrap();
    let image = SendMessageRequest {
        message_type: "image".into(),
        ..single("alice", "bob", "hello", "c-1")
    };
    for other in [
        single("alice", "carol", "hello", "c-1"),
        single("alice", "bob", "hello!", "c-1"),
        single("alice", "team", "hello", "c-2"),
        image,
    ] {
        assert_eq!(code(rig.send_request(other)), Code::InvalidArgument);
    }
    for other in [
        in_group("alice", "team", "hello", "c-1"),
        in_group("alice", "team", "", "c-2"),
    ] {
        assert_eq!(code(rig.send_group_request(other)), Code::InvalidArgument);
    }
    assert_eq!(rig.unread("bob"), ["hello", "hello"]);
}

#[test]
fn a_repetition_is_answered_even_when_the_sender_has_left_the_group() {
    let mut embedded = sample(Path::new(":memory:"));
    let rig = Rig::with(&embedded);
    let first = rig
        .send_group_request(in_group("alice", "team", "bye", "c-1"))
        .unwrap();
    group(&mut embedded, "team", &["bob"]);
    rig.reference.reload(&embedded).unwrap();
    assert_eq!(
        rig.send_group_request(in_group("alice", "team", "bye", "c-1"))
            .unwrap(),
        first
    );
    let new = in_group("alice", "team", "bye", "c-2");
    assert_eq!(code(rig.send_group_request(new)), Code::PermissionDenied);
}

#[test]
fn an_empty_client_message_id_never_repeats() {
    let rig = Rig::new();
    assert_ne!(
        rig.send("alice", "bob", "same").id,
        rig.send("alice", "bob", "same").id
    );
    assert_eq!(rig.unread("bob"), ["same", "same"]);
}

#[test]
fn garbage_is_an_invalid_argument() {
    let rig = Rig::new();
    let invalid = |what: &str, code: Code| assert_eq!(code, Code::InvalidArgument, "{what}");
    for bad in ["", "a\nb", "\u{7f}", &"u".repeat(201)] {
        invalid(bad, code(rig.send_request(single(bad, "bob", "", ""))));
        invalid(bad, code(rig.send_request(single("alice", bad, "", ""))));
        invalid(
            bad,
            code(rig.send_group_request(in_group(bad, "team", "", ""))),
        );
        invalid(
            bad,
            code(rig.send_group_request(in_group("alice", bad, "", ""))),
        );
        invalid(bad, code(rig.history(bad, "bob", "", 1)));
        invalid(bad, code(rig.history("alice", bad, "", 1)));
        invalid(bad, code(rig.group_history(bad, "team", "", 1)));
        invalid(bad, code(rig.group_history("alice", bad, "", 1)));
        invalid(bad, code(rig.offline(bad, "", 1)));
        invalid(bad, code(rig.ack(bad, &["m1"])));
    }
    for bad in [i32::MIN, -1, 0, 101, i32::MAX] {
        invalid("limit", code(rig.history("alice", "bob", "", bad)));
        invalid("limit", code(rig.group_history("alice", "team", "", bad)));
        invalid("limit", code(rig.offline("alice", "", bad)));
    }
    let id = rig.send("alice", "bob", "one").id;
    let next = rig.reference.store.ids.text(2);
    for bad in ["m1", &id[1..], &next, "ffffffff-000000000001"] {
        invalid(bad, code(rig.history("alice", "bob", bad, 1)));
        invalid(bad, code(rig.group_history("alice", "team", bad, 1)));
        invalid(bad, code(rig.offline("bob", bad, 1)));
    }
}

#[test]
fn an_answer_stays_within_16_mib() {
    let rig = Rig::new();
    let large = "x".repeat(5 << 20);
    for _ in 0..4 {
        rig.send("alice", "bob", &large);
    }
    let page = rig.offline("bob", "", 100).unwrap();
    assert_eq!((page.messages.len(), page.has_more), (3, true));
    let last = &page.messages[2].id;
    let page = rig.offline("bob", last, 100).unwrap();
    assert_eq!((page.messages.len(), page.has_more), (1, false));
    let page = rig.history("bob", "alice", "", 100).unwrap();
    assert_eq!((page.messages.len(), page.has_more), (3, true));
    assert_eq!(
        rig.history("bob", "alice", &page.messages[0].id, 9)
            .unwrap()
            .messages
            .len(),
        1
    );

    // The largest that is taken can be read back; one that could not is refused.
    let largest = "x".repeat((16 << 20) - 200);
    rig.send("bob", "alice", &largest);
    assert_eq!(
        rig.offline("alice", "", 1).unwrap().messages[0]
            .content
            .len(),
        largest.len()
    );
    let too_large = single("bob", "alice", &"x".repeat((16 << 20) - 60), "");
    assert_eq!(code(rig.send_request(too_large)), Code::InvalidArgument);
}

#[test]
fn a_database_that_refuses_is_unavailable_until_it_is_mended() {
    let rig = Rig::new();
    rig.refuse_writes(true);
    assert_eq!(
        code(rig.send_request(single("alice", "bob", "lost", "c-1"))),
        Code::Unavailable
    );
    rig.refuse_writes(false);
    rig.send_request(single("alice", "bob", "kept", "c-1"))
        .unwrap();
    assert_eq!(rig.unread("bob"), ["kept"]);
    assert_eq!(rig.published.take_messages(1)[0].2, "kept");
}

#[test]
fn under_concurrency_ids_publications_and_unread_messages_are_in_commit_order() {
    const SENDERS: usize = 8;
    const EACH: usize = 40;
    let rig = Rig::new();
    let send = async |sender: usize| {
        let mut client = rig.messages.clone();
        let mut ids = Vec::new();
        for n in 0..EACH {
            let request = single(&format!("s{sender}"), "bob", &format!("{sender} {n}"), "c");
            let request = SendMessageRequest {
                client_message_id: n.to_string(),
                ..request
            };
            ids.push(client.send_message(request).await.unwrap().into_inner().id);
        }
        assert!(
            ids.is_sorted(),
            "each sender's messages are in the order of sending"
        );
    };
    rig.runtime.block_on(async {
        let senders: Vec<_> = (0..SENDERS).map(send).collect();
        futures_join(senders).await;
    });

    let published = rig.published.take(2 * SENDERS * EACH);
    let to_bob = published
        .iter()
        .filter(|publication| publication.routing_key == "user.bob");
    let ids: Vec<String> = to_bob
        .map(|publication| Message::decode(publication.body.as_slice()).unwrap().id)
        .collect();
    assert_eq!(ids.len(), SENDERS * EACH);
    assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] != pair[1]));

    let mut unread = Vec::new();
    let mut after = String::new();
    loop {
        let page = rig.offline("bob", &after, 100).unwrap();
        unread.extend(page.messages.into_iter().map(|message| message.id));
        after.clone_from(unread.last().unwrap());
        if !page.has_more {
            break;
        }
    }
    assert_eq!(unread, ids);
}

/// Polls all of `futures` until all are done.
async fn futures_join(futures: Vec<impl Future<Output = ()>>) {
    let mut running: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        running.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if running.is_empty() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}
