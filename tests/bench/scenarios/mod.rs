//! The scenarios: the rows of the table of targets, and how the cost grows.

mod at_once;
mod connects;
mod group;
mod group_small;
mod growth;
mod memory;
mod requests;
mod single;
mod start;
mod ten_thousand;

use crate::publisher::Publisher;
use crate::raw::Raw;
use crate::results::{Against, Bound, GATEWAY, Metric, Results, Target};
use crate::servers::{Kind, Stand};
use crate::session::Session;
use crate::window::Figures;

pub use growth::{CONNECTIONS, NAME as GROWTH, SIZES, by_connections, by_size};

/// Length of a content, where nothing else is said.
const SIZE: usize = 200;
/// What the raw limit is called among the servers.
pub const RAW: &str = "raw send";

/// The share of the machine from which on others spoil a window.
const DISTURBED: f64 = 0.15;
/// How often a spoilt window is measured again.
const REPEATS: usize = 2;

pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    pub targets: &'static [Target],
    run: fn(&mut Bench),
}

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Effort {
    pub rounds: usize,
    pub quick: bool,
}

impl Effort {
    /// One of two sizes.
    pub fn size<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

pub const ALL: [Scenario; 18] = [
    group::SATURATED,
    group::PACED,
    at_once::AT_ONCE,
    at_once::AT_ONCE_UNREAD,
    group_small::GROUP_SMALL,
    single::SATURATED,
    single::PACED,
    group::SATURATED_TLS,
    group::PACED_TLS,
    requests::CLOSED_LOOP,
    requests::PACED,
    memory::IDLE,
    memory::IDLE_TLS,
    memory::USED,
    ten_thousand::TEN_THOUSAND,
    connects::CONNECTS,
    start::START,
    growth::GROWTH,
];

/// What the scenarios share, servers that run on among it.
pub struct Bench {
    pub results: Results,
    pub stand: Stand,
    pub effort: Effort,
    sessions: Vec<(Kind, Session)>,
    raw: Option<(usize, Raw)>,
}

impl Bench {
    pub fn start(effort: Effort) -> Self {
        Self {
            results: Results::default(),
            stand: Stand::start(),
            effort,
            sessions: Vec::new(),
            raw: None,
        }
    }

    pub fn run(&mut self, scenario: &Scenario) {
        (scenario.run)(self);
    }

    /// A server of this kind with so many connections, from the scenario before if it had one. All
    /// kinds stay up side by side, and one at a time has something to do.
    pub fn session(&mut self, kind: Kind, connections: usize) -> &mut Session {
        if self
            .sessions
            .iter()
            .any(|(_, session)| session.connections != connections)
        {
            self.end_sessions();
        }
        let found = self
            .sessions
            .iter()
            .position(|(running, _)| *running == kind);
        let place = found.unwrap_or_else(|| {
            let session = Session::start(&self.stand, kind, connections);
            self.sessions.push((kind, session));
            self.sessions.len() - 1
        });
        &mut self.sessions[place].1
    }

    pub fn end_sessions(&mut self) {
        self.sessions
            .drain(..)
            .for_each(|(_, session)| session.end());
    }

    /// What a server that was killed leaves on the broker.
    fn delete_queues(&self, kind: Kind, id: &str) {
        Publisher::open(self.stand.url(kind)).delete_queues(id);
    }

    fn raw(&mut self, connections: usize) -> &mut Raw {
        if self
            .raw
            .as_ref()
            .is_none_or(|(running, _)| *running != connections)
        {
            self.raw = Some((connections, Raw::start(connections)));
        }
        &mut self.raw.as_mut().expect("it was started").1
    }

    pub fn add(&mut self, scenario: &str, subject: &str, metric: Metric, value: f64) {
        self.results.add(scenario, subject, metric, value);
    }

    /// Measures, and again while others take too much of the machine; the least disturbed window
    /// counts, with what was lost in any of them.
    pub fn undisturbed(&mut self, mut window: impl FnMut(&mut Self) -> Figures) -> Figures {
        let mut best = window(self);
        for _ in 0..self.effort.size(REPEATS, 0) {
            if best.others <= DISTURBED {
                break;
            }
            let again = window(self);
            let lost = best.lost + again.lost;
            best = if again.others < best.others {
                again
            } else {
                best
            };
            best.lost = lost;
        }
        best
    }

    /// Records a window in which the server had all it could do.
    pub fn add_saturated(&mut self, scenario: &str, subject: &str, figures: &Figures) {
        self.add(scenario, subject, Metric::PerSecond, figures.per_second);
        self.add(scenario, subject, Metric::CpuSaturated, figures.cpu_us);
        self.add_window(scenario, subject, figures);
    }

    /// Records a window in which the server waited for work.
    pub fn add_paced(&mut self, scenario: &str, subject: &str, figures: &Figures) {
        self.add(scenario, subject, Metric::CpuPaced, figures.cpu_us);
        self.add(scenario, subject, Metric::P50, figures.p50_ms);
        self.add(scenario, subject, Metric::P99, figures.p99_ms);
        self.add_window(scenario, subject, figures);
    }

    fn add_window(&mut self, scenario: &str, subject: &str, figures: &Figures) {
        eprintln!("  {scenario}: {subject}: {figures:?}");
        self.add(scenario, subject, Metric::Lost, figures.lost);
        self.add(
            scenario,
            subject,
            Metric::ClientLoad,
            100.0 * figures.client_load,
        );
        self.add(scenario, subject, Metric::Others, 100.0 * figures.others);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.end_sessions();
    }
}

const fn at_least(metric: Metric, bound: f64, other: &'static str) -> Target {
    Target {
        subject: GATEWAY,
        metric,
        against: Against::Subject(other),
        bound: Bound::AtLeast(bound),
    }
}

const fn at_most(metric: Metric, bound: f64, other: &'static str) -> Target {
    Target {
        subject: GATEWAY,
        metric,
        against: Against::Subject(other),
        bound: Bound::AtMost(bound),
    }
}

/// A number in the metric's own unit.
const fn up_to(metric: Metric, bound: f64) -> Target {
    Target {
        subject: GATEWAY,
        metric,
        against: Against::Nothing,
        bound: Bound::AtMost(bound),
    }
}

/// The target for the gateway with TLS.
const fn with_tls(target: Target) -> Target {
    Target {
        subject: Kind::GatewayTls.name(),
        ..target
    }
}
