//! What the kit does, and what it looks at: a function for each rule, in the order of
//! [the rules](super::rules).

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use serde_json::json;

use super::kit::{Kit, RETURN};
use super::peer::{PING_INTERVAL, Sent, message};
use super::report::{Trouble, Verdict, broken, ensure};
use crate::http::HttpResponse;

/// For whatever takes no wait.
const SOON: Duration = Duration::from_secs(5);
/// Clocks and sleeps of different programs differ.
const EARLY: Duration = Duration::from_millis(30);
/// No connection is taken for alive for so long after the last thing that came.
const HALF_OPEN: Duration = Duration::from_secs(10 * PING_INTERVAL);
/// The first wait where nobody says when to come back, at least.
const LEAST: Duration = Duration::from_millis(500);
/// `Retry-After` of the refusals, and as long as nobody tries a refused token again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

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

/// Ends the connection without a word, and waits until the client is back. Whether it comes at all is
/// another rule's.
fn is_back_after_cut(kit: &mut Kit) -> Verdict {
    let since = kit.cut();
    let after = kit.returns(since, RETURN).map_err(|_| Trouble::NotSeen)?;
    kit.waits.push(after.as_secs_f64());
    Ok(())
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
    is_back_after_cut(kit)?;
    let peer = kit.peer()?;
    let comes = peer.listen(SOON, |heard| heard.echoed(&name));
    ensure(comes, "it was not sent again")?;
    let again = peer.heard.sent.iter().find(|sent| sent.content == name);
    let is_same = again.is_some_and(|sent| sent.client_message_id == first.client_message_id);
    ensure(is_same, "it was sent again with another client_message_id")
}

pub fn duplicate(kit: &mut Kit) -> Verdict {
    let name = is_handed_over(kit)?;
    is_back_after_cut(kit)?;
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

/// A Close frame that says when to come back: not before, and within [`SOON`] after that.
fn comes_back(kit: &mut Kit, code: u16, after_ms: u64, reason: &str) -> Verdict {
    let told = json!({"reconnect": true, "after_ms": after_ms, "reason": reason});
    let since = kit.close(code, &told.to_string())?;
    let told = Duration::from_millis(after_ms);
    let after = kit.returns(since, told + SOON)?;
    let is_early = after + EARLY < told;
    ensure(
        !is_early,
        format!("it came back after {} ms", after.as_millis()),
    )
}

pub fn slow_consumer(kit: &mut Kit) -> Verdict {
    comes_back(kit, 4001, 300, "slow consumer")
}

pub fn restart(kit: &mut Kit) -> Verdict {
    comes_back(kit, 1012, 2_500, "the gateway is shutting down")
}

pub fn idle(kit: &mut Kit) -> Verdict {
    comes_back(kit, 4002, 300, "idle")
}

pub fn rate_exceeded(kit: &mut Kit) -> Verdict {
    comes_back(kit, 4006, 2_500, "request rate exceeded")
}

pub fn expired(kit: &mut Kit) -> Verdict {
    let before = kit.peer()?.token.clone().ok_or(Trouble::NotSeen)?;
    comes_back(kit, 4003, 300, "token expired")?;
    let is_another = kit.arrival()?.token.as_ref() != Some(&before);
    ensure(is_another, "it came back with the one that had expired")
}

pub fn backoff(kit: &mut Kit) -> Verdict {
    let mut since = kit.close(1011, "")?;
    let mut waits = Vec::new();
    for doubled in [1, 2, 4] {
        if !waits.is_empty() {
            since = kit.turn_away();
        }
        let wait = kit.returns(since, 2 * RETURN)?;
        kit.waits.push(wait.as_secs_f64() / f64::from(doubled));
        waits.push(wait);
    }
    let all: Vec<_> = waits.iter().map(|wait| wait.as_millis()).collect();
    let grows = waits[0] >= LEAST && waits[2] >= waits[0].mul_f64(1.9);
    ensure(grows, format!("it came back after {all:?} ms"))
}

pub fn unauthorized(kit: &mut Kit) -> Verdict {
    kit.knock()?;
    let arrival = kit.take_arrival()?;
    let before = arrival.token.clone();
    arrival.refuse(&HttpResponse::unauthorized("The kit takes no token now"));
    let since = Instant::now();
    let Some(arrival) = kit.comes(RETURN) else {
        // To give up is right as well.
        kit.stays_away = true;
        return Ok(());
    };
    let (after, is_same) = (arrival.at - since, arrival.token == before);
    if after >= LEAST {
        kit.waits.push(after.as_secs_f64());
    }
    let is_loop = is_same && after + EARLY < RETRY_AFTER;
    ensure(
        !is_loop,
        format!("the same token again after {} ms", after.as_millis()),
    )
}

pub fn unavailable(kit: &mut Kit) -> Verdict {
    kit.knock()?;
    let full = HttpResponse::unavailable("too_many_connections", "The kit is full for a second");
    kit.take_arrival()?.refuse(&full);
    let after = kit.returns(Instant::now(), RETURN)?;
    kit.waits.push(after.as_secs_f64());
    let is_early = after + EARLY < RETRY_AFTER;
    ensure(
        !is_early,
        format!("it came back after {} ms", after.as_millis()),
    )
}

pub fn half_open(kit: &mut Kit) -> Verdict {
    kit.peer()?;
    // From now on nothing is read, and nothing written.
    let noticed = kit.comes(HALF_OPEN).is_some();
    kit.cut();
    ensure(
        noticed,
        format!("still on a dead connection after {HALF_OPEN:?}"),
    )
}

/// Stays away for long enough to have come back if it did so by itself.
fn stays_away(kit: &mut Kit, code: u16, reason: &str) -> Verdict {
    kit.close(code, reason)?;
    if kit.comes(Duration::from_secs(4)).is_some() {
        return broken("it came back");
    }
    kit.stays_away = true;
    Ok(())
}

pub fn replaced(kit: &mut Kit) -> Verdict {
    stays_away(
        kit,
        4004,
        r#"{"reconnect":false,"reason":"replaced by a newer connection"}"#,
    )
}

pub fn revoked(kit: &mut Kit) -> Verdict {
    // Without JSON: the code is enough.
    stays_away(kit, 4005, "")
}

/// Whether all but one are so close to the median that no chance was in it.
fn are_the_same(samples: &[f64], tolerance: f64) -> Verdict<bool> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    // Of fewer, two could be the same by chance.
    let median = sorted.get(sorted.len() / 2).filter(|_| sorted.len() >= 4);
    let median = median.ok_or(Trouble::NotSeen)?;
    let close = sorted
        .iter()
        .filter(|it| (**it - median).abs() <= tolerance);
    Ok(close.count() + 1 >= sorted.len())
}

pub fn jitter(kit: &mut Kit) -> Verdict {
    // Seven waits of one to two seconds look so by chance once in 200,000 times.
    let are_same = are_the_same(&kit.waits, 0.02)?;
    ensure(!are_same, format!("waits of {:.2?} s", kit.waits))
}

pub fn first_ping(kit: &mut Kit) -> Verdict {
    kit.retire();
    let after = kit.first_pings.iter().map(Duration::as_secs_f64);
    let after: Vec<f64> = after.map(|after| after / PING_INTERVAL as f64).collect();
    let are_same = are_the_same(&after, 0.04)?;
    ensure(!are_same, format!("after {after:.2?} intervals"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_the_same_if_all_but_one_are() {
        let same = |samples: &[f64]| are_the_same(samples, 0.02);
        assert_eq!(same(&[1.5, 1.51, 1.5, 1.49, 1.5]), Ok(true));
        assert_eq!(
            same(&[1.5, 1.51, 3.0, 1.49, 1.5]),
            Ok(true),
            "a busy machine"
        );
        assert_eq!(same(&[1.5, 1.51, 1.3, 1.7, 1.5]), Ok(false));
        assert_eq!(same(&[1.1, 1.9, 1.3, 1.7, 1.5]), Ok(false));
        assert_eq!(same(&[1.5, 1.5, 1.5]), Err(Trouble::NotSeen), "too few");
    }
}
