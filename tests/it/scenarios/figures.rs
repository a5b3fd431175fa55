//! What a scenario comes to, and whether that keeps the promise.

use std::fmt;
use std::time::Duration;

use crate::support::ledger::Report;

#[derive(Debug, Default)]
pub struct Figures {
    /// Messages whose sender has had `message_sent`.
    pub committed: usize,
    /// Messages that were sent, each time that they were.
    pub asked: usize,
    /// Pushes that reached a device for the first time.
    pub delivered: usize,
    /// Pushes of an id that the device had already.
    pub duplicated: usize,
    /// (recipient, id): received by no device, and not pushed when one connected next.
    pub lost: Vec<(String, String)>,
    /// (device, id): not pushed to a device of the recipient that was connected all the time.
    pub missing: Vec<(String, String)>,
    /// (device, id): came for the first time after a later one of the same pair.
    pub disordered: Vec<(String, String)>,
    /// Connections that ended without being asked to.
    pub disconnects: usize,
    /// Requests that were answered with an error, and repeated.
    pub refused: usize,
    /// The longest wait for an answer, where that was measured.
    pub slowest_answer: Option<Duration>,
    /// Where the fault ends at a moment: how long after it, and after its commit, a message was
    /// first pushed, at most.
    pub recovered: Option<Duration>,
    /// What else was measured.
    pub notes: Vec<String>,
    /// What was demanded and does not hold.
    pub broken: Vec<String>,
}

impl Figures {
    /// What a ledger says.
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

    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// A clause of the fault's row in the promise.
    pub fn demand(&mut self, holds: bool, clause: impl Into<String>) {
        if !holds {
            self.broken.push(clause.into());
        }
    }

    /// All was pushed to all who were to get it, in order.
    pub fn demand_whole(&mut self) {
        for (what, list) in [
            ("lost (recipient, id)", &self.lost),
            ("disordered (device, id)", &self.disordered),
        ] {
            if !list.is_empty() {
                self.broken.push(excerpt(what, list));
            }
        }
        self.demand(self.committed > 0, "something is committed");
    }

    /// The same, and nobody was disconnected, so that no device misses anything.
    pub fn demand_unnoticed(&mut self) {
        self.demand_whole();
        if !self.missing.is_empty() {
            let missing = excerpt("missing (device, id)", &self.missing);
            self.broken.push(missing);
        }
        self.demand(self.disconnects == 0, "nobody is disconnected");
    }

    pub fn demand_recovery_within(&mut self, limit: Duration) {
        let in_time = self.recovered.is_some_and(|after| after <= limit);
        self.demand(in_time, format!("recovered within {}", rounded(limit)));
    }

    /// What a test asserts; a drill prints it.
    pub fn assert_sound(&self) {
        println!("{self}");
        assert!(self.broken.is_empty(), "{:#?}\n{self}", self.broken);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, number, what) in [
            ("committed", self.committed, "messages"),
            (
                "delivered",
                self.delivered,
                "pushes, each new to its device",
            ),
            (
                "duplicated",
                self.duplicated,
                "pushes again, of what was not acknowledged",
            ),
            ("lost", self.lost.len(), ""),
            (
                "missing",
                self.missing.len(),
                "at devices that stayed connected",
            ),
            ("disordered", self.disordered.len(), ""),
            ("disconnects", self.disconnects, ""),
            (
                "refused",
                self.refused,
                "requests, answered with an error and repeated",
            ),
        ] {
            let line = format!("  {name:15}{:>10}  {what}", grouped(number));
            writeln!(f, "{}", line.trim_end())?;
        }
        for (name, took) in [
            ("slowest answer", self.slowest_answer),
            ("recovered in", self.recovered),
        ] {
            if let Some(took) = took {
                writeln!(f, "  {name:15}{:>10}", rounded(took))?;
            }
        }
        let mut notes = self.notes.iter();
        notes.try_for_each(|note| writeln!(f, "  {note}"))
    }
}

/// How many, and the first of them.
fn excerpt(what: &str, list: &[(String, String)]) -> String {
    const SHOWN: usize = 5;
    let (count, first) = (grouped(list.len()), &list[..list.len().min(SHOWN)]);
    let more = if list.len() > SHOWN { ", …" } else { "" };
    format!("{count} {what}: {first:?}{more}")
}

/// With a comma behind each thousand.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Two digits or so: `0.4 ms`, `35 ms`, `1.1 s`, `20 s`.
pub fn rounded(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        ..0.01 => format!("{:.1} ms", seconds * 1e3),
        ..1.0 => format!("{:.0} ms", seconds * 1e3),
        ..10.0 => format!("{seconds:.1} s"),
        _ => format!("{seconds:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn sound() -> Figures {
        Figures {
            committed: 1,
            recovered: Some(LIMIT),
            ..Figures::default()
        }
    }

    /// How many demands do not hold once `spoil` has been at sound figures.
    fn broken(spoil: fn(&mut Figures, Vec<(String, String)>)) -> usize {
        let mut figures = sound();
        spoil(&mut figures, vec![("bob".into(), "m1".into())]);
        figures.demand_unnoticed();
        figures.demand_recovery_within(LIMIT);
        figures.broken.len()
    }

    #[test]
    fn what_a_ledger_finds_breaks_what_is_demanded() {
        assert_eq!(broken(|_, _| {}), 0);
        assert_eq!(broken(|figures, _| figures.committed = 0), 1);
        assert_eq!(broken(|figures, found| figures.lost = found), 1);
        assert_eq!(broken(|figures, found| figures.missing = found), 1);
        assert_eq!(broken(|figures, found| figures.disordered = found), 1);
        assert_eq!(broken(|figures, _| figures.disconnects = 1), 1);
        assert_eq!(broken(|figures, _| figures.recovered = None), 1);
        assert_eq!(broken(|figures, _| figures.recovered = Some(2 * LIMIT)), 1);
    }

    #[test]
    fn figures_are_readable() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(20_003), "20,003");
        assert_eq!(grouped(1_234_567), "1,234,567");
        let all = [400, 35_000, 1_100_782, 20_016_008].map(Duration::from_micros);
        assert_eq!(all.map(rounded), ["0.4 ms", "35 ms", "1.1 s", "20 s"]);
    }
}
