//! The rules, in the order in which the script comes to them.

use super::kit::Kit;
use super::report::Verdict;
use super::{returns, script};

pub struct Rule {
    pub name: &'static str,
    /// What the client has to do.
    pub must: &'static str,
    /// What to mend where it does not, and where in the chapter on the protocol that stands.
    pub cure: &'static str,
    /// What the kit does, and what it looks at.
    pub play: fn(&mut Kit) -> Verdict,
}

pub const RULES: [Rule; 30] = [
    Rule {
        name: "token",
        must: "the upgrade request has a token, in one of the three ways",
        cure: "send the header, or a subprotocol, or ?token= (Connecting)",
        play: script::token,
    },
    Rule {
        name: "subprotocol",
        must: "who offers subprotocols offers im.v1",
        cure: "offer im.v1 beside base64url.bearer.…, which is never chosen (Connecting)",
        play: script::subprotocol,
    },
    Rule {
        name: "not-early",
        must: "nothing is sent before the answer 101",
        cure: "wait until the socket is open, better for `connected` (Connecting)",
        play: script::not_early,
    },
    Rule {
        name: "unread-first",
        must: "messages that come before offline_complete are handed over as they come",
        cure: "wait for no offline_complete (When to acknowledge)",
        play: script::unread_first,
    },
    Rule {
        name: "ack",
        must: "a message is acknowledged within 5 s",
        cure: "send ack for what was handed over, a few times a second (When to acknowledge)",
        play: script::ack,
    },
    Rule {
        name: "unknown-field",
        must: "fields that it does not know are ignored",
        cure: "read the fields that you need, and no others (What comes)",
        play: script::unknown_field,
    },
    Rule {
        name: "unknown-type",
        must: "frames of a type that it does not know are ignored",
        cure: "let the default case of your switch do nothing (What comes)",
        play: script::unknown_type,
    },
    Rule {
        name: "pong",
        must: "a WebSocket ping is answered with its payload",
        cure: "leave pings to the library, and read all the time (Connecting)",
        play: script::pong,
    },
    Rule {
        name: "fragments",
        must: "a message in several frames, with pings between them, is one message",
        cure: "read whole messages, not frames; decode UTF-8 when all is there (Connecting)",
        play: script::fragments,
    },
    Rule {
        name: "order",
        must: "messages are handed over, and sent, in order",
        cure: "handle one frame after the other; send the next when one is answered (Order)",
        play: script::order,
    },
    Rule {
        name: "ping",
        must: "it sends pings of its own, one in each ping_interval",
        cure: "send {\"type\":\"ping\"} (When a connection is dead)",
        play: script::ping,
    },
    Rule {
        name: "repeat",
        must: "a message without an answer is sent again after a reconnect, as it was",
        cure: "keep it, with its client_message_id, until its answer is here (What to keep)",
        play: script::repeat,
    },
    Rule {
        name: "duplicate",
        must: "a message that comes again is not handed over again",
        cure: "keep the last 10,000 ids, across reconnects (When to drop)",
        play: script::duplicate,
    },
    Rule {
        name: "ack-again",
        must: "a message that comes again is acknowledged again",
        cure: "acknowledge what you drop as well (When to drop)",
        play: script::ack_again,
    },
    Rule {
        name: "slow-consumer",
        must: "after 4001 it comes back",
        cure: "do as the Close frame's reason says (When to reconnect)",
        play: returns::slow_consumer,
    },
    Rule {
        name: "restart",
        must: "after 1012 it comes back after after_ms: not before, and within 5 s then",
        cure: "wait for as long as after_ms in the Close frame's reason says (When to reconnect)",
        play: returns::restart,
    },
    Rule {
        name: "idle",
        must: "after 4002 it comes back",
        cure: "do as the Close frame's reason says (When to reconnect)",
        play: returns::idle,
    },
    Rule {
        name: "expired",
        must: "after 4003 it comes back with another token",
        cure: "ask for a new token; start the client with two at least (Tokens)",
        play: returns::expired,
    },
    Rule {
        name: "backoff",
        must: "where nobody said when, the waits begin at 0.5 s or more, and double",
        cure: "wait 2 s, 4 s, 8 s, each times 0.5 to 1, until offline_complete (When to reconnect)",
        play: returns::backoff,
    },
    Rule {
        name: "unauthorized",
        must: "after a 401 it does not come within 1 s with the same token",
        cure: "get another token, or give up (Tokens)",
        play: returns::unauthorized,
    },
    Rule {
        name: "unavailable",
        must: "after a 503 it comes back, not before Retry-After, 1 s",
        cure: "wait for 1 s at least after every failure to connect (Connecting)",
        play: returns::unavailable,
    },
    Rule {
        name: "rate-exceeded",
        must: "after 4006 it comes back after after_ms: not before, and within 5 s then",
        cure: "wait for as long as after_ms in the Close frame's reason says (When to reconnect)",
        play: returns::rate_exceeded,
    },
    Rule {
        name: "half-open",
        must: "a connection on which nothing comes is left for another one, within 10 intervals",
        cure: "where nothing came for 2.5 intervals, drop it and reconnect (When a connection is dead)",
        play: returns::half_open,
    },
    Rule {
        name: "replaced",
        must: "after 4004 it does not come back by itself",
        cure: "end where \"reconnect\" is false (When not to)",
        play: returns::replaced,
    },
    Rule {
        name: "revoked",
        must: "after 4005 it does not come back by itself, also if the reason is no JSON",
        cure: "end at 4004 and 4005 whatever the reason (When not to)",
        play: returns::revoked,
    },
    Rule {
        name: "jitter",
        must: "the waits of its own differ from one another",
        cure: "wait a random part between half of it and all (When to reconnect)",
        play: returns::jitter,
    },
    Rule {
        name: "first-ping",
        must: "a connection's first ping comes after a random part of the interval",
        cure: "wait for random() * ping_interval before it (When a connection is dead)",
        play: returns::first_ping,
    },
    Rule {
        name: "message-ids",
        must: "each message has a client_message_id of its own",
        cure: "make a UUID for each, once (What to keep)",
        play: script::message_ids,
    },
    Rule {
        name: "once",
        must: "what was answered is not sent again",
        cure: "forget a request when its answer is here (What to keep)",
        play: script::once,
    },
    Rule {
        name: "requests",
        must: "all that it sends is a request that a gateway knows",
        cure: "compare with the table of requests (Requests)",
        play: script::requests,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cure_names_what_is_to_be_read() {
        let chapter = include_str!("../docs/protocol.md");
        for Rule { name, cure, .. } in &RULES {
            let (_, section) = cure.rsplit_once(" (").expect("a section");
            let section = section.trim_end_matches(')');
            let is_there = [format!("\n## {section}\n"), format!("\n**{section}")];
            assert!(
                is_there.iter().any(|heading| chapter.contains(heading)),
                "{name}: there is no {section}"
            );
        }
    }
}
