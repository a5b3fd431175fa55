//! What was measured, round for round, and the targets that it is held against.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A figure that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    PerSecond,
    DeliveredPerSecond,
    CpuPerMessage,
    CpuSaturated,
    CpuPaced,
    CpuBroker,
    P50,
    P99,
    Lost,
    Refused,
    MemoryPerConnection,
    MemoryWhole,
    MemoryKernel,
    ConnectedAfter,
    DoneAfter,
    StartMs,
    ThreadsLeft,
    DescriptorsLeft,
    ClientLoad,
    Others,
}

impl Metric {
    /// Its name, with the unit.
    pub fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "per second",
            Self::DeliveredPerSecond => "delivered as well, per second",
            Self::CpuPerMessage => "CPU until then, us/message",
            Self::CpuSaturated => "CPU saturated, us/delivery",
            Self::CpuPaced => "CPU paced, us/delivery",
            Self::CpuBroker => "CPU of the broker, us/delivery",
            Self::P50 => "p50, ms",
            Self::P99 => "p99, ms",
            Self::Lost => "lost",
            Self::Refused => "refused",
            Self::MemoryPerConnection => "KiB/connection",
            Self::MemoryWhole => "whole process/connections, KiB",
            Self::MemoryKernel => "the kernel's, KiB/connection",
            Self::ConnectedAfter => "until all are connected, s",
            Self::DoneAfter => "done after the first connect, s",
            Self::StartMs => "start, ms",
            Self::ThreadsLeft => "threads left over",
            Self::DescriptorsLeft => "descriptors left over",
            Self::ClientLoad => "client's load, % of a core",
            Self::Others => "others' load, % of the machine",
        }
    }

    /// Whether one bad round is too many.
    fn is_failure(self) -> bool {
        matches!(
            self,
            Self::Lost | Self::Refused | Self::ThreadsLeft | Self::DescriptorsLeft
        )
    }
}

/// What a target compares the gateway with.
#[derive(Debug, Clone, Copy)]
pub enum Against {
    /// A number in the metric's own unit.
    Nothing,
    /// Another subject of the same scenario.
    Subject(&'static str),
}

/// Which side of it is good.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// What is wanted of a figure.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Whom it is for.
    pub subject: &'static str,
    pub metric: Metric,
    pub against: Against,
    pub bound: Bound,
}

/// The subject that is held against the targets where they name no other.
pub const GATEWAY: &str = "gateway";

type Key = (String, Metric, String);

/// All rounds of all figures.
#[derive(Default)]
pub struct Results {
    samples: BTreeMap<Key, Vec<f64>>,
}

/// A target, and what was reached.
pub struct Outcome {
    pub scenario: String,
    pub target: Target,
    /// `None`: not measured.
    pub reached: Option<f64>,
}

impl Outcome {
    pub fn is_met(&self) -> bool {
        match (self.reached, self.target.bound) {
            (None, _) => false,
            (Some(reached), Bound::AtLeast(bound)) => reached >= bound,
            (Some(reached), Bound::AtMost(bound)) => reached <= bound,
        }
    }
}

impl Results {
    pub fn add(&mut self, scenario: &str, subject: &str, metric: Metric, value: f64) {
        let key = (scenario.to_owned(), metric, subject.to_owned());
        self.samples.entry(key).or_default().push(value);
    }

    /// The median of the rounds, or the worst one where a single failure counts.
    pub fn of(&self, scenario: &str, metric: Metric, subject: &str) -> Option<f64> {
        let samples = self
            .samples
            .get(&(scenario.to_owned(), metric, subject.to_owned()))?;
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        if metric.is_failure() {
            return sorted.last().copied();
        }
        let middle = sorted.len() / 2;
        match sorted.len() % 2 {
            1 => Some(sorted[middle]),
            _ => Some((sorted.get(middle.checked_sub(1)?)? + sorted[middle]) / 2.0),
        }
    }

    /// What was measured of a scenario: the metrics, in their order.
    pub fn metrics(&self, scenario: &str) -> Vec<Metric> {
        let mut metrics: Vec<Metric> = self.keys(scenario).map(|(_, metric, _)| *metric).collect();
        metrics.dedup();
        metrics
    }

    /// Who took part in a scenario.
    pub fn subjects(&self, scenario: &str) -> Vec<String> {
        let mut subjects: Vec<String> = self.keys(scenario).map(|key| key.2.clone()).collect();
        subjects.sort();
        subjects.dedup();
        subjects
    }

    fn keys<'a>(&'a self, scenario: &'a str) -> impl Iterator<Item = &'a Key> {
        self.samples.keys().filter(move |key| key.0 == scenario)
    }

    pub fn outcome(&self, scenario: &str, target: Target) -> Outcome {
        let value = |subject| self.of(scenario, target.metric, subject);
        let reached = match target.against {
            Against::Nothing => value(target.subject),
            Against::Subject(other) => value(target.subject)
                .zip(value(other))
                .map(|(ours, theirs)| ours / theirs),
        };
        Outcome {
            scenario: scenario.to_owned(),
            target,
            reached,
        }
    }

    /// Every figure: its rounds and what they come to.
    pub fn to_json(&self) -> Value {
        let figure = |((scenario, metric, subject), rounds): (&Key, &Vec<f64>)| {
            json!({
                "scenario": scenario,
                "metric": metric.name(),
                "subject": subject,
                "value": self.of(scenario, *metric, subject),
                "rounds": rounds,
            })
        };
        self.samples.iter().map(figure).collect()
    }
}
