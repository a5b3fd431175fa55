//! What goes wrong, as functions of a size: the tests in `faults` call them small, the drills
//! (`tests/run drill`) large. What a fault's row of the promise demands, a scenario demands itself,
//! and puts what does not hold into its [`Figures`]; it fails at once where it cannot go on.

#![allow(dead_code, reason = "tests and drills each use a part")]

pub mod broker;
pub mod clients;
pub mod connecting;
pub mod figures;
pub mod flow;
pub mod gateway;
pub mod rebinds;
pub mod reconnects;
pub mod rolling;
pub mod scale;
pub mod services;
pub mod slow;
pub mod tls;

pub use figures::Figures;

/// A scenario at its larger size.
pub struct Drill {
    pub name: &'static str,
    /// One line: what happens.
    pub about: &'static str,
    pub run: fn() -> Figures,
}

/// Why there is nothing to drill about the sketch that the gateway started from.
pub fn what_the_sketch_lacks(drill: &str) -> Option<&'static str> {
    match drill {
        "tls-both-ways" => Some("the sketch has no TLS"),
        "scale" => Some("nothing fails here, and the sketch counts nothing"),
        "rolling-nginx" | "rolling-haproxy" => Some(
            "the sketch cannot be taken out of a balancer: no readiness, no way out, nobody is told \
             when to come back",
        ),
        _ => None,
    }
}

/// All drills. A file of scenarios adds its own here.
pub fn drills() -> impl Iterator<Item = &'static Drill> {
    [
        broker::DRILLS,
        rebinds::DRILLS,
        reconnects::DRILLS,
        rolling::DRILLS,
        scale::DRILLS,
        services::DRILLS,
        gateway::DRILLS,
        clients::DRILLS,
        slow::DRILLS,
        connecting::DRILLS,
        tls::DRILLS,
    ]
    .into_iter()
    .flatten()
}
