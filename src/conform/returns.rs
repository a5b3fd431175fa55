//! As [`script`](super::script), for the rules about the end of a connection, and when the client comes
//! back, if it is to.

use std::time::{Duration, Instant};

use serde_json::json;

use super::kit::{Kit, RETURN, SOON};
use super::peer::PING_INTERVAL;
use super::report::{Trouble, Verdict, broken, ensure};
use crate::http::HttpResponse;

/// Clocks and sleeps of different programs differ.
const EARLY: Duration = Duration::from_millis(30);
/// No connection is taken for alive for so long after the last thing that came.
const HALF_OPEN: Duration = Duration::from_secs(10 * PING_INTERVAL);
/// The first wait where nobody says when to come back, at least.
const LEAST: Duration = Duration::from_millis(500);
/// `Retry-After` of the refusals, and as long as nobody tries a refused token again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

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
