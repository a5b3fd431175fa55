//! The same users and the same messages on one, on two and on three gateways: what does one gateway
//! more cost the broker, and what the gateways?
//!
//! Messages are published to the exchanges as a Message Service does it, each at its own moment. What
//! is counted is processor time, since rates are the machine's, and the broker's own count of what it
//! delivered, which is exact: a single message goes to one gateway, whatever their number, and a group
//! message to each.

mod messages;
mod spent;
mod trial;

use std::time::Duration;

use super::{Drill, Figures};
use crate::support::broker::Broker;
use crate::support::ledger::{Ledger, Report};
use trial::Trial;

pub const DRILLS: &[Drill] = &[Drill {
    name: "scale",
    about: "600 users on one, two and three gateways: what messages cost the broker and the gateways",
    run: || {
        scale(&Size {
            users: 600,
            single: 12_000,
            group: 4_000,
            elsewhere: 8_000,
            behind: 20_000,
            unknown: 2_000,
            everybody: 100,
            rate: 1_000,
            idle: Duration::from_secs(10),
        })
    },
}];

/// What is done on each number of gateways.
pub struct Size {
    /// Each with one device; as many on each gateway.
    pub users: usize,
    /// Messages to one user each, so many to each: a multiple of `users`.
    pub single: usize,
    /// Messages to [`GROUP`].
    pub group: usize,
    /// Messages to [`ELSEWHERE`].
    pub elsewhere: usize,
    /// The same, as fast as they can be published.
    pub behind: usize,
    /// Messages to groups like that, each to another.
    pub unknown: usize,
    /// Messages to [`EVERYBODY`].
    pub everybody: usize,
    /// Single messages a second; see [`Size::phases`] for the others.
    pub rate: usize,
    /// For how long the processes are watched while nothing is sent.
    pub idle: Duration,
}

const MOST_GATEWAYS: usize = 3;
/// So many of the users, some on each gateway.
const GROUP: &str = "twenty";
const GROUP_SIZE: usize = 20;
/// Members who are not connected: what a message costs a gateway that it concerns not at all.
const ELSEWHERE: &str = "elsewhere";
/// With a number behind it: groups that no gateway knows the members of, who are not connected.
const UNKNOWN: &str = "unknown";
const EVERYBODY: &str = "everybody";
/// As many a second as it goes.
const AT_ONCE: usize = usize::MAX;
/// Messages of one kind, one after the other.
struct Phase {
    name: &'static str,
    /// The group, or else each user in turn.
    group: Option<&'static str>,
    messages: usize,
    rate: usize,
    /// The first so many users are who gets each of them; of single messages, one of them does.
    recipients: usize,
}

impl Size {
    /// At most as many pushes a second as the clients of one process read easily.
    fn phases(&self) -> [Phase; 6] {
        let (single, users, rate) = (None, self.users, self.rate);
        let phase = |name, group, messages, rate, recipients| Phase {
            name,
            group,
            messages,
            rate,
            recipients,
        };
        [
            phase("single", single, self.single, rate, users),
            phase("group of 20", Some(GROUP), self.group, rate / 2, GROUP_SIZE),
            phase("group elsewhere", Some(ELSEWHERE), self.elsewhere, rate, 0),
            phase(
                "elsewhere, behind",
                Some(ELSEWHERE),
                self.behind,
                AT_ONCE,
                0,
            ),
            phase("groups unknown", Some(UNKNOWN), self.unknown, rate / 5, 0),
            phase(
                "group of all",
                Some(EVERYBODY),
                self.everybody,
                rate / 100,
                users,
            ),
        ]
    }
}

impl Phase {
    /// How many gateways the broker has to deliver each of them to.
    fn deliveries(&self, gateways: usize) -> usize {
        let each = if self.group.is_none() { 1 } else { gateways };
        self.messages * each
    }

    /// The first to a group whose members are asked for once.
    fn is_first_to_group(&self) -> bool {
        self.rate != AT_ONCE && self.group.is_some_and(|group| group != UNKNOWN)
    }

    /// How often gateways have to ask who a group's members are: each of them, of each that it has
    /// not heard of.
    fn look_ups(&self, gateways: usize) -> usize {
        if self.group == Some(UNKNOWN) {
            self.messages * gateways
        } else {
            0
        }
    }

    /// How many of them each recipient gets.
    fn for_each(&self) -> usize {
        if self.group.is_none() {
            self.messages / self.recipients
        } else {
            self.messages
        }
    }
}

/// The same on one gateway, on two, and on three.
pub fn scale(size: &Size) -> Figures {
    assert_eq!(size.single % size.users, 0, "as many for each");
    let broker = Broker::private();
    let (mut whole, mut notes) = (Report::default(), Vec::new());
    let mut broken = Figures::default();
    for gateways in 1..=MOST_GATEWAYS {
        let ledger = Ledger::default();
        let found = Trial::on(&broker, gateways, size, &ledger);
        let report = ledger.report();
        broken.demand(
            report.stray.is_empty(),
            format!("strays: {:?}", report.stray),
        );
        whole.committed += report.committed;
        whole.delivered += report.delivered;
        whole.duplicated += report.duplicated;
        whole.lost.extend(report.lost);
        whole.missing.extend(report.missing);
        whole.disordered.extend(report.disordered);
        notes.extend(found.notes);
        broken.broken.extend(found.broken);
    }
    let mut figures = Figures::of(whole);
    figures.broken = broken.broken;
    figures.demand_unnoticed();
    figures.demand(figures.duplicated == 0, "nothing comes twice");
    figures.notes = notes;
    figures
}

fn name(user: usize) -> String {
    format!("user{user}")
}

fn unknown(group: usize) -> String {
    format!("{UNKNOWN}{group}")
}
