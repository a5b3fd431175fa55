//! The faults of a run: which, when, for how long. A seed makes them, and nothing else does.

use std::fmt;
use std::time::Duration;

use crate::support::random::Random;

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// When it begins, after the start of the run.
    pub at: Duration,
    pub lasts: Duration,
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Broker(BrokerFault),
    Services(ServicesFault),
    /// The number of a gateway.
    Gateway(usize, GatewayFault),
    Clients(ClientFault, Share),
}

/// Begins at once, save where it says otherwise, and ends when the broker is there again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display, strum::VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum BrokerFault {
    /// SIGKILL, and a start with what it had on disk.
    Killed,
    /// SIGKILL, and a start with nothing.
    Wiped,
    /// SIGSTOP, and SIGCONT.
    Stalled,
    /// Its memory alarm, in which it takes nothing from publishers.
    Alarm,
    /// An operator closes all its connections.
    ConnectionsClosed,
    /// An operator deletes the queues of all gateways.
    QueuesDeleted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display, strum::VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum ServicesFault {
    Killed,
    /// SIGSTOP, and SIGCONT: calls run into their deadlines.
    Stalled,
    /// Stopped for three quarters of the time, in slices.
    Slow,
    /// Their disk is full: what has to be written fails, what is read is answered.
    DiskFull,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display, strum::VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum GatewayFault {
    Killed,
    /// SIGTERM, and a start after it has ended.
    Stopped,
    /// SIGSTOP, and SIGCONT.
    Frozen,
    /// It may open no more than a few descriptors.
    OutOfDescriptors,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display, strum::VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum ClientFault {
    /// It does nothing, and its socket stays open.
    Frozen,
    /// It is gone from one network to another: the old connection is never heard of again.
    HalfOpen,
    /// It reads a frame now and then.
    Slow,
    /// Its connection is cut, without a Close frame.
    Gone,
}

/// Some of the clients: those whose number, mixed with `salt`, falls under `percent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    percent: u64,
    salt: u64,
}

impl Share {
    /// Always the same of so many percent.
    #[cfg(feature = "planted")]
    pub fn of(percent: u64) -> Self {
        Self { percent, salt: 1 }
    }

    pub fn has(self, client: usize) -> bool {
        let mut random =
            Random(self.salt ^ (client as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        (0..3).for_each(|_| _ = random.below(2));
        (random.below(100) as u64) < self.percent
    }
}

impl What {
    /// Faults of one target come one after the other; those of different ones overlap.
    fn target(self) -> usize {
        match self {
            Self::Broker(_) => 0,
            Self::Services(_) => 1,
            Self::Clients(..) => 2,
            Self::Gateway(number, _) => 3 + number,
        }
    }
}

/// From the end of a fault to the next one of the same target, at least: time to come back.
const PAUSE: Duration = Duration::from_secs(2);
/// How soon one fault follows another: up to so much later.
const GAP_MS: usize = 4_000;
/// How long a fault lasts: so much, up to so much more.
const LASTS_MS: (u64, usize) = (300, 7_000);

/// A random series for a run of so long. What is so much as begun at its end is ended then.
pub fn series(seed: u64, length: Duration, gateways: usize) -> Vec<Fault> {
    let mut random = Random::seeded(seed);
    let mut free_at = vec![Duration::ZERO; 3 + gateways];
    let mut series = Vec::new();
    // All are in and talking by then.
    let mut at = Duration::from_secs(1);
    loop {
        at += Duration::from_millis(random.below(GAP_MS) as u64);
        if at >= length {
            return series;
        }
        let what = any(&mut random, gateways);
        let lasts = Duration::from_millis(LASTS_MS.0 + random.below(LASTS_MS.1) as u64);
        let free_at = &mut free_at[what.target()];
        if at < *free_at {
            continue;
        }
        let lasts = lasts.min(length - at);
        *free_at = at + lasts + PAUSE;
        series.push(Fault { at, lasts, what });
    }
}

fn any(random: &mut Random, gateways: usize) -> What {
    use strum::VariantArray;
    match random.below(10) {
        0..3 => What::Broker(*random.pick(BrokerFault::VARIANTS)),
        3..5 => What::Services(*random.pick(ServicesFault::VARIANTS)),
        5..8 => {
            let fault = *random.pick(GatewayFault::VARIANTS);
            What::Gateway(random.below(gateways), fault)
        }
        _ => {
            let fault = *random.pick(ClientFault::VARIANTS);
            let percent = *random.pick(&[5, 20, 50, 100]);
            let salt = random.below(usize::MAX) as u64 | 1;
            What::Clients(fault, Share { percent, salt })
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        write!(f, "at {at:5.1} s for {lasts:4.1} s: {}", self.what)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker(fault) => write!(f, "broker {fault}"),
            Self::Services(fault) => write!(f, "services {fault}"),
            Self::Gateway(number, fault) => write!(f, "gateway g{number} {fault}"),
            Self::Clients(fault, share) => write!(f, "{}% of the clients {fault}", share.percent),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_seed_makes_one_series_and_another_seed_another() {
        assert_eq!(series(7, MINUTE, 3), series(7, MINUTE, 3));
        assert_ne!(series(7, MINUTE, 3), series(8, MINUTE, 3));
    }

    #[test]
    fn faults_overlap_save_those_of_one_target_and_all_kinds_come() {
        let mut kinds = BTreeSet::new();
        let mut overlaps = 0;
        for seed in 0..100 {
            let series = series(seed, MINUTE, 3);
            assert!(series.len() > 5, "{series:?}");
            for (number, fault) in series.iter().enumerate() {
                let end = fault.at + fault.lasts;
                assert!(end <= MINUTE);
                for later in series[number + 1..].iter().filter(|later| later.at < end) {
                    assert_ne!(fault.what.target(), later.what.target(), "{fault}; {later}");
                    overlaps += 1;
                }
                let kind = match fault.what {
                    What::Gateway(_, fault) => format!("gateway {fault}"),
                    What::Clients(fault, _) => format!("clients {fault}"),
                    what => what.to_string(),
                };
                kinds.insert(kind);
            }
        }
        assert_eq!(kinds.len(), 6 + 4 + 4 + 4, "{kinds:?}");
        assert!(overlaps > 500, "{overlaps}");
    }

    #[test]
    fn a_share_is_about_as_large_as_it_says() {
        let share = Share {
            percent: 20,
            salt: 12_345,
        };
        let count = (0..1_000).filter(|client| share.has(*client)).count();
        assert!((150..250).contains(&count), "{count}");
    }
}
