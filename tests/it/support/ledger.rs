//! What was committed and what arrived: every message id, for each device, in order.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Mutex;

/// Kept by all threads of a test.
#[derive(Default)]
pub struct Ledger {
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    committed: BTreeMap<String, Committed>,
    /// How many were committed for each (from, to).
    pairs: HashMap<(String, String), u64>,
    /// For each device, the user and the ids as they came.
    received: BTreeMap<String, (String, Vec<String>)>,
}

struct Committed {
    from: String,
    /// The users whose devices it is for, the sender's own apart.
    recipients: Vec<String>,
    /// Its place among those from the same sender to the same recipients.
    place: u64,
}

/// What a ledger comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub committed: usize,
    pub delivered: usize,
    pub duplicated: usize,
    /// (recipient, id): committed, and received by no device of the recipient.
    pub lost: Vec<(String, String)>,
    /// (device, id): committed, and not received by this device of the recipient.
    pub missing: Vec<(String, String)>,
    /// (device, id): came after a later one of the same pair.
    pub disordered: Vec<(String, String)>,
    /// (device, id): a message for somebody else, or that nobody committed.
    pub stray: Vec<(String, String)>,
}

impl Ledger {
    /// A `message_sent` was received. Each pair's messages must be entered in the order sent.
    pub fn committed(&self, from: &str, recipients: &[&str], id: &str) {
        let mut entries = self.entries.lock().unwrap();
        let pair = (from.to_owned(), recipients.join("\n"));
        let count = entries.pairs.entry(pair).or_default();
        let place = *count;
        *count += 1;
        let recipients = recipients.iter().map(|&user| user.to_owned()).collect();
        let entry = Committed {
            from: from.into(),
            recipients,
            place,
        };
        assert!(
            entries.committed.insert(id.into(), entry).is_none(),
            "{id} is committed twice"
        );
    }

    /// A device of `user` exists, also if it never receives anything.
    pub fn device(&self, device: &str, user: &str) {
        let mut entries = self.entries.lock().unwrap();
        entries
            .received
            .entry(device.into())
            .or_insert_with(|| (user.into(), Vec::new()));
    }

    /// A push reached a device.
    pub fn received(&self, device: &str, id: &str) {
        let mut entries = self.entries.lock().unwrap();
        let (_, ids) = entries
            .received
            .get_mut(device)
            .expect("a device that was entered");
        ids.push(id.into());
    }

    /// The ids that `user` must get on each device: those sent to them, and copies of their own.
    pub fn expected(&self, user: &str) -> BTreeSet<String> {
        let entries = self.entries.lock().unwrap();
        let for_user = |entry: &Committed| entry.from == user || entry.is_for(user);
        let found = entries
            .committed
            .iter()
            .filter(|(_, entry)| for_user(entry));
        found.map(|(id, _)| id.clone()).collect()
    }

    /// Whether all that is committed for `user` has reached a device of theirs.
    pub fn has_all(&self, user: &str) -> bool {
        let entries = self.entries.lock().unwrap();
        let devices = entries.received.values().filter(|(owner, _)| owner == user);
        let reached: HashSet<&str> = devices
            .flat_map(|(_, ids)| ids.iter().map(String::as_str))
            .collect();
        let mut committed = entries.committed.iter();
        committed.all(|(id, entry)| !entry.is_for(user) || reached.contains(id.as_str()))
    }

    pub fn report(&self) -> Report {
        let entries = self.entries.lock().unwrap();
        let mut report = Report {
            committed: entries.committed.len(),
            ..Report::default()
        };
        let mut reached = BTreeSet::new();
        for (device, (user, ids)) in &entries.received {
            entries.check_device(device, user, ids, &mut report);
            reached.extend(ids.iter().map(|id| (user.clone(), id.clone())));
        }
        for (id, entry) in &entries.committed {
            let pairs = entry
                .recipients
                .iter()
                .map(|user| (user.clone(), id.clone()));
            report
                .lost
                .extend(pairs.filter(|pair| !reached.contains(pair)));
        }
        report
    }
}

impl Entries {
    fn check_device(&self, device: &str, user: &str, ids: &[String], report: &mut Report) {
        let mut seen = BTreeSet::new();
        let mut places: HashMap<(&str, String), u64> = HashMap::new();
        for id in ids {
            let finding = (device.to_owned(), id.clone());
            let Some(entry) = self.committed.get(id) else {
                report.stray.push(finding);
                continue;
            };
            if !(entry.is_for(user) || entry.from == user) {
                report.stray.push(finding);
            } else if !seen.insert(id) {
                report.duplicated += 1;
            } else {
                report.delivered += 1;
                let next = places
                    .entry((&entry.from, entry.recipients.join("\n")))
                    .or_default();
                if entry.place < *next {
                    report.disordered.push(finding);
                }
                *next = (*next).max(entry.place + 1);
            }
        }
        let missing = self
            .committed
            .iter()
            .filter(|(id, entry)| entry.is_for(user) && !seen.contains(id));
        report
            .missing
            .extend(missing.map(|(id, _)| (device.to_owned(), id.clone())));
    }
}

impl Committed {
    fn is_for(&self, user: &str) -> bool {
        self.recipients.iter().any(|recipient| recipient == user)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            committed,
            delivered,
            duplicated,
            ..
        } = self;
        let (lost, missing) = (self.lost.len(), self.missing.len());
        let (disordered, stray) = (self.disordered.len(), self.stray.len());
        write!(
            f,
            "committed {committed}, delivered {delivered}, duplicated {duplicated}, "
        )?;
        write!(
            f,
            "lost {lost}, missing {missing}, disordered {disordered}, stray {stray}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        let ledger = Ledger::default();
        for id in ["1", "2", "3"] {
            ledger.committed("a", &["b"], id);
        }
        for device in ["b1", "b2"] {
            ledger.device(device, "b");
        }
        ledger
    }

    #[test]
    fn a_ledger_finds_what_is_lost_missing_doubled_disordered_and_stray() {
        let ledger = ledger();
        for id in ["2", "1", "2", "x"] {
            ledger.received("b1", id);
        }
        let owned = |device: &str, id: &str| (device.to_owned(), id.to_owned());
        let report = ledger.report();
        assert_eq!(
            (report.committed, report.delivered, report.duplicated),
            (3, 2, 1)
        );
        assert_eq!(report.lost, [owned("b", "3")]);
        assert_eq!(report.missing.len(), 1 + 3, "{:?}", report.missing);
        assert_eq!(report.disordered, [owned("b1", "1")]);
        assert_eq!(report.stray, [owned("b1", "x")]);
    }

    #[test]
    fn a_ledger_of_what_arrived_finds_nothing() {
        let ledger = ledger();
        for device in ["b1", "b2"] {
            for id in ["1", "2", "3"] {
                ledger.received(device, id);
            }
        }
        let sound = Report {
            committed: 3,
            delivered: 6,
            ..Report::default()
        };
        assert_eq!(ledger.report(), sound);
    }
}
