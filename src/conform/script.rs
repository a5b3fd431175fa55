//! What the kit does, and what it looks at: a function for each rule that is about what is said on a
//! connection, in the order of [the rules](super::rules).

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use serde_json::json;

use super::kit::{Kit, SOON};
use super::peer::{PING_INTERVAL, Sent, message};
use super::report::{Trouble, Verdict, broken, ensure};

pub fn token(kit: &mut Kit) -> Verdict {
    let arrival = kit.arrival()?;
    let has_one = arrival
        .token
        .as_ref()
        .is_some_and(|token| !token.is_empty());
    ensure(has_one, "an upgrade request without one")
}

pub fn subprotocol(kit: &mut Kit) -> Verdict {
    let offered = &kit.arrival()?.offered;
    let is_offered = offered.is_empty() || offered.iter().any(|name| name == "im.v1");
    // Not all of it: a token may be in it.
    ensure(is_offered, format!("{} others offered", offered.len()))
}

pub fn not_early(kit: &mut Kit) -> Verdict {
    let is_early = kit.arrival()?.is_early(Duration::from_millis(300));
    ensure(!is_early, "bytes before the answer")
}

pub fn unread_first(kit: &mut Kit) -> Verdict {
    let unread = [kit.name(), kit.name()];
    let peer = kit.newcomer()?;
    unread
        .iter()
        .for_each(|name| peer.push(&message(name, name)));
    let comes = peer.listen(SOON, |heard| unread.iter().all(|name| heard.echoed(name)));
    kit.complete(unread.len());
    ensure(
        comes,
        format!("not both were sent back within {} s", SOON.as_secs()),
    )
}

pub fn ack(kit: &mut Kit) -> Verdict {
    let name = kit.name();
    let peer = kit.peer()?;
    peer.push(&message(&name, &name));
    let comes = peer.listen(SOON, |heard| heard.acked.contains(&name));
    ensure(comes, format!("no ack of it within {} s", SOON.as_secs()))
}

/// Pushes a message and waits until it is sent back. Where it is not, another rule is broken.
fn is_handed_over(kit: &mut Kit) -> Verdict<String> {
    let name = kit.name();
    let peer = kit.peer()?;
    peer.push(&message(&name, &name));
    let comes = peer.listen(SOON, |heard| heard.echoed(&name));
    comes.then_some(name).ok_or(Trouble::NotSeen)
}

pub fn unknown_field(kit: &mut Kit) -> Verdict {
    let name = kit.name();
    let peer = kit.peer()?;
    let mut frame = message(&name, &name);
    frame["reactions"] = json!([{"emoji": "👍", "from": ["kit"]}]);
    frame["edited"] = json!(null);
    peer.push(&frame);
    let comes = peer.listen(SOON, |heard| heard.echoed(&name));
    ensure(comes, "a message with further fields was not sent back")
}

pub fn unknown_type(kit: &mut Kit) -> Verdict {
    let name = kit.name();
    let peer = kit.peer()?;
    peer.push(&json!({"type": "poll_opened", "poll": {"id": 7}, "timestamp": 0}));
    peer.push(&message(&name, &name));
    let comes = peer.listen(SOON, |heard| heard.echoed(&name));
    let what = match peer.heard.is_open {
        true => "the message behind one was not sent back",
        false => "the client ended the connection",
    };
    ensure(comes, what)
}

pub fn pong(kit: &mut Kit) -> Verdict {
    const PAYLOAD: &[u8] = b"are you there?";
    let peer = kit.peer()?;
    peer.ping(PAYLOAD);
    let comes = peer.listen(SOON, |heard| heard.pongs.iter().any(|pong| pong == PAYLOAD));
    ensure(comes, "no pong with the ping's payload")
}

pub fn fragments(kit: &mut Kit) -> Verdict {
    let name = format!("é {}", kit.name());
    let peer = kit.peer()?;
    let frame = message(&name, &name);
    let text = frame.to_string();
    // In the middle of a character.
    let middle = text.find('é').map_or(1, |start| start + 1);
    peer.push_in_pieces(&frame, &[middle, middle + 4]);
    let comes = peer.listen(SOON, |heard| heard.echoed(&name));
    ensure(comes, "a message in three pieces was not sent back")
}

pub fn order(kit: &mut Kit) -> Verdict {
    let names: Vec<String> = (0..10).map(|_| kit.name()).collect();
    let peer = kit.peer()?;
    names
        .iter()
        .for_each(|name| peer.push(&message(name, name)));
    let come = peer.listen(SOON, |heard| names.iter().all(|name| heard.echoed(name)));
    let sent = peer.heard.sent.iter().map(|sent| &sent.content);
    let back: Vec<&String> = sent.filter(|content| names.contains(content)).collect();
    ensure(
        come,
        format!("of ten messages {} were sent back", back.len()),
    )?;
    ensure(back.iter().copied().eq(&names), format!("{back:?}"))
}

pub fn ping(kit: &mut Kit) -> Verdict {
    let peer = kit.peer()?;
    let patience = Duration::from_millis(1_500 * PING_INTERVAL);
    let comes = peer.listen(patience, |heard| heard.first_ping.is_some());
    let interval = Duration::from_secs(PING_INTERVAL);
    ensure(comes, format!("none, where ping_interval is {interval:?}"))
}

pub fn repeat(kit: &mut Kit) -> Verdict {
    let name = kit.name();
    let peer = kit.peer()?;
    peer.withholds = true;
    peer.push(&message(&name, &name));
    let comes = peer.listen(SOON, |heard| heard.echoed(&name));
    let first = peer
        .heard
        .sent
        .iter()
        .find(|sent| sent.content == name)
        .cloned();
    let first = first.filter(|_| comes).ok_or(Trouble::NotSeen)?;
    kit.is_back_after_cut()?;
    let peer = kit.peer()?;
    let comes = peer.listen(SOON, |heard| heard.echoed(&name));
    ensure(comes, "it was not sent again")?;
    let again = peer.heard.sent.iter().find(|sent| sent.content == name);
    let is_same = again.is_some_and(|sent| sent.client_message_id == first.client_message_id);
    ensure(is_same, "it was sent again with another client_message_id")
}

pub fn duplicate(kit: &mut Kit) -> Verdict {
    let name = is_handed_over(kit)?;
    kit.is_back_after_cut()?;
    kit.newcomer()?.push(&message(&name, &name));
    kit.complete(1);
    let fence = is_handed_over(kit)?;
    let peer = kit.peer()?;
    peer.push(&message(&name, &name));
    peer.push(&message(&fence, &fence));
    is_handed_over(kit)?;
    let latest = kit.peer()?.heard.sent.clone();
    let sent = kit.sent.iter().chain(&latest);
    // What is sent again as it was is another rule's.
    let of = |content: &str| {
        let ids = sent.clone().filter(|sent| sent.content == content);
        let ids = ids.map(|sent| &sent.client_message_id);
        ids.collect::<BTreeSet<_>>().len()
    };
    let are_once = of(&name) == 1 && of(&fence) == 1;
    ensure(are_once, "one that came again was handed over again")
}

pub fn ack_again(kit: &mut Kit) -> Verdict {
    let name = is_handed_over(kit)?;
    let peer = kit.peer()?;
    let is_acked = peer.listen(SOON, |heard| heard.acked.contains(&name));
    ensure(is_acked, "not even the first ack came").map_err(|_| Trouble::NotSeen)?;
    peer.heard.acked.clear();
    peer.push(&message(&name, &name));
    let comes = peer.listen(SOON, |heard| heard.acked.contains(&name));
    ensure(comes, "no second ack")
}

pub fn message_ids(kit: &mut Kit) -> Verdict {
    let mut contents: HashMap<&str, &str> = HashMap::new();
    for Sent {
        content,
        client_message_id,
        ..
    } in &kit.sent
    {
        ensure(
            !client_message_id.is_empty(),
            format!("{content:?} was sent without one"),
        )?;
        let other = *contents.entry(client_message_id).or_insert(content);
        ensure(
            other == content,
            format!("{other:?} and {content:?} were sent with the same"),
        )?;
    }
    ensure(!contents.is_empty(), "").map_err(|_| Trouble::NotSeen)
}

pub fn once(kit: &mut Kit) -> Verdict {
    let mut answered: Vec<[&str; 2]> = Vec::new();
    for sent in &kit.sent {
        let this = [sent.client_message_id.as_str(), sent.content.as_str()];
        ensure(
            !answered.contains(&this),
            format!("{:?} was sent again", sent.content),
        )?;
        answered.extend(sent.is_answered.then_some(this));
    }
    ensure(!answered.is_empty(), "").map_err(|_| Trouble::NotSeen)
}

pub fn requests(kit: &mut Kit) -> Verdict {
    match &kit.wrong {
        Some(wrong) => broken(wrong.clone()),
        None if kit.sent.is_empty() => Err(Trouble::NotSeen),
        None => Ok(()),
    }
}
