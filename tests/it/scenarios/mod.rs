//! What goes wrong, as functions of a size: the tests in `faults` call them small, the drills
//! (`tests/run drill`) large. A scenario fails when a clause of its fault does not hold; what was
//! lost, if anything, is in its [`Figures`], for the caller to judge.

#![allow(dead_code, reason = "tests and drills each use a part")]

pub mod broker;
pub mod clients;
pub mod connecting;
pub mod flow;
pub mod gateway;
pub mod reconnects;
pub mod services;

use std::fmt;
use std::time::Duration;

use crate::support::ledger::Report;

/// A scenario at its larger size.
pub struct Drill {
    pub name: &'static str,
    /// One line: what happens.
    pub about: &'static str,
    pub run: fn() -> Figures,
}

/// All drills. A file of scenarios adds its own here.
pub fn drills() -> impl Iterator<Item = &'static Drill> {
    [
        broker::DRILLS,
        reconnects::DRILLS,
        services::DRILLS,
        gateway::DRILLS,
        clients::DRILLS,
        connecting::DRILLS,
    ]
    .into_iter()
    .flatten()
}

/// What a scenario comes to.
#[derive(Debug, Default)]
pub struct Figures {
    /// Messages whose sender has had `message_sent`.
    pub committed: usize,
    /// Pushes that reached a device for the first time.
    pub delivered: usize,
    /// Pushes of an id that the device had already.
    pub duplicated: usize,
    /// (recipient, id): received by no device, and not pushed when one connected next.
    pub lost: Vec<(String, String)>,
    /// (device, id): not pushed to a device of the recipient that was connected all the time.
    pub missing: Vec<(String, String)>,
    /// (device, id): came after a later one of the same pair.
    pub disordered: Vec<(String, String)>,
    /// Connections that ended without being asked to.
    pub disconnects: usize,
    /// Requests that were answered with an error, and repeated.
    pub refused: usize,
    /// The longest wait for an answer.
    pub slowest_answer: Duration,
    /// Where the fault ends at a moment: how long after it, and after its commit, a message was
    /// first pushed, at most.
    pub recovered: Option<Duration>,
    /// What else was measured.
    pub notes: Vec<String>,
}

impl Figures {
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// What a ledger of devices that were connected all the time says.
    pub fn of(report: Report) -> Self {
        Self {
            committed: report.committed,
            delivered: report.delivered,
            duplicated: report.duplicated,
            lost: report.lost,
            missing: report.missing,
            disordered: report.disordered,
            ..Self::default()
        }
    }

    /// Nothing is lost, and nobody had to reconnect for it.
    pub fn assert_sound(&self) {
        println!("{self}");
        assert!(self.lost.is_empty(), "{self}: {:?}", self.lost);
        assert!(self.missing.is_empty(), "{self}: {:?}", self.missing);
        assert_eq!(self.disconnects, 0, "{self}");
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "committed {}, delivered {}, duplicated {}, lost {}, missing {}, disordered {}, \
             disconnects {}, refused {}, slowest answer {:?}",
            self.committed,
            self.delivered,
            self.duplicated,
            self.lost.len(),
            self.missing.len(),
            self.disordered.len(),
            self.disconnects,
            self.refused,
            self.slowest_answer,
        )?;
        if let Some(recovered) = self.recovered {
            write!(f, ", recovered in {recovered:?}")?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "; {note}"))
    }
}
