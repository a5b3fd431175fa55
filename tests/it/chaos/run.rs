//! One run: the deployment comes up, everybody writes, faults happen, they end; then everybody listens,
//! most of them leave, and somebody looks around.

mod aftermath;
mod records;

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::checker::{self, Finding, Sentence};
use super::deployment::Deployment;
use super::device::{Device, Seat};
use super::history::{Clock, Event, History, Records, Suffered};
use super::office::Office;
use super::people::{People, Phase, seats};
use super::series::Fault;
use crate::support::process::Held;
use crate::support::wait::holds_within;

/// Everybody writes for so long once all is well again.
const TALK_ON: Duration = Duration::from_secs(5);
/// And then listens until all has arrived: a Message Service that answered with errors is asked again
/// after a minute at the latest.
const ARRIVE: Duration = Duration::from_secs(75);
/// At least for so long: what was due when all was well has happened by then.
const LISTEN: Duration = Duration::from_secs(15);
/// There are many of them.
const STACK: usize = 512 << 10;

pub struct Run {
    pub seed: u64,
    pub length: Duration,
    pub gateways: usize,
    pub clients: usize,
    /// What is planted in the gateways.
    pub defect: Option<String>,
    /// The folder for what was seen and said.
    pub write: Option<PathBuf>,
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub findings: Vec<Finding>,
    committed: usize,
    pushed: usize,
    twice: usize,
    sessions: usize,
    took: Duration,
    recovered: Option<Duration>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            committed,
            pushed,
            twice,
            sessions,
            ..
        } = self;
        write!(
            f,
            "{committed} messages committed, {pushed} pushes, {twice} of them again, "
        )?;
        write!(f, "{sessions} connections")?;
        if let Some(recovered) = self.recovered {
            write!(
                f,
                "; ready {:.1} s after the last fault",
                recovered.as_secs_f64()
            )?;
        }
        write!(f, "; {:.0} s in all", self.took.as_secs_f64())
    }
}

impl Run {
    /// Lets it happen with these faults.
    pub fn happens(&self, faults: &[Fault]) -> Outcome {
        let clock = Clock::start();
        let seats = seats(self.clients);
        let mut users: Vec<(String, bool)> = seats
            .iter()
            .map(|seat| (seat.user.clone(), seat.brief))
            .collect();
        users.dedup();
        let office = Office::new(users, self.seed);
        let deployment = Deployment::start(&office, self.gateways, self.defect.as_deref());
        let baseline: Vec<Held> = (0..self.gateways)
            .map(|number| deployment.gateway(number).settled(0))
            .collect();

        let entrances = deployment.entrances();
        if self.defect.is_some() {
            // What is not as the document says is the checker's to find.
            entrances
                .iter()
                .for_each(|(addr, _)| crate::support::asyncapi::set_free(*addr, true));
        }
        let people = Arc::new(People::new(entrances, office, seats, Clock::start()));
        let scene = Scene {
            people,
            deployment: Arc::new(deployment),
            records: Records::default(),
        };
        let (records, recovered) = scene.plays(self, faults, &baseline);
        if let Some(folder) = &self.write {
            records::write(folder, &records);
        }
        let mut outcome = Outcome {
            findings: checker::check(&records),
            took: clock.now(),
            recovered,
            committed: records.stored.messages.len(),
            ..Outcome::default()
        };
        records
            .histories
            .iter()
            .for_each(|history| outcome.count(history));
        outcome
    }
}

impl Outcome {
    fn count(&mut self, history: &History) {
        let mut ids = HashSet::new();
        for (_, event) in &history.events {
            match event {
                Event::Connected => self.sessions += 1,
                Event::Pushed(pushed) => {
                    self.pushed += 1;
                    self.twice += usize::from(!ids.insert(&pushed.id));
                }
                _ => {}
            }
        }
    }
}

struct Scene {
    people: Arc<People>,
    deployment: Arc<Deployment>,
    records: Records,
}

impl Scene {
    fn plays(
        mut self,
        run: &Run,
        faults: &[Fault],
        baseline: &[Held],
    ) -> (Records, Option<Duration>) {
        let (people, deployment) = (Arc::clone(&self.people), Arc::clone(&self.deployment));
        let clock = people.clock;
        // Tokens count from now.
        people.office.begin(&deployment, clock);
        let wild = Arc::new(AtomicBool::new(true));
        let office = spawn("office", {
            let (people, deployment, wild) = (
                Arc::clone(&people),
                Arc::clone(&deployment),
                Arc::clone(&wild),
            );
            move || {
                let goes_on = || people.phase() != Phase::Over;
                people
                    .office
                    .work(&deployment, clock, goes_on, || wild.load(Ordering::SeqCst));
            }
        });
        let devices: Vec<_> = people
            .seats
            .iter()
            .map(|seat| {
                let device = Device::new(&people, seat, run.seed);
                (Arc::clone(seat), spawn(&seat.name, move || device.live()))
            })
            .collect();
        let faults: Vec<_> = faults
            .iter()
            .cloned()
            .map(|fault| {
                let (people, deployment) = (Arc::clone(&people), Arc::clone(&deployment));
                spawn(&fault.what.to_string(), move || {
                    let within = deployment.suffer(&fault, &people);
                    Suffered { fault, within }
                })
            })
            .collect();

        for fault in faults {
            let name = fault.thread().name().unwrap_or_default().to_owned();
            match join(fault) {
                Ok(suffered) => self.records.faults.push(suffered),
                Err(panicked) => self.finds(Sentence::Recovers, format!("{name}: {panicked}")),
            }
        }
        clock.sleep_until(run.length);
        wild.store(false, Ordering::SeqCst);
        let over = clock.now();
        let recovered = self.gateways_are_ready().then(|| clock.now() - over);
        self.records.ready_at = clock.now();
        clock.sleep_until(self.records.ready_at + TALK_ON);
        people.go_on_to(Phase::Listen);
        holds_within(ARRIVE, || {
            self.everybody_is_in() && people.outstanding() == 0
        });
        clock.sleep_until(self.records.ready_at + LISTEN);

        people.go_on_to(Phase::Leave);
        let (watch, leave): (Vec<_>, Vec<_>) =
            devices.into_iter().partition(|(seat, _)| seat.watches);
        self.collect(leave);
        self.presence_is_right();
        people.go_on_to(Phase::Over);
        self.collect(watch);
        if let Err(panicked) = join(office) {
            self.finds(
                Sentence::Recovers,
                format!("tokens and groups are not changed: {panicked}"),
            );
        }
        self.nothing_is_left(baseline);
        self.everything_ends();
        self.records.decrees = people.office.decrees();
        (self.records, recovered)
    }

    fn finds(&mut self, sentence: Sentence, seen: impl Into<String>) {
        self.records.findings.push(Finding::new(sentence, seen));
    }

    fn collect(&mut self, devices: Vec<(Arc<Seat>, JoinHandle<History>)>) {
        for (seat, device) in devices {
            match join(device) {
                Ok(history) => self.records.histories.push(history),
                Err(panicked) => {
                    self.finds(Sentence::Answered, format!("{}: {panicked}", seat.name))
                }
            }
        }
    }
}

fn spawn<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let builder = thread::Builder::new().name(name.into()).stack_size(STACK);
    builder.spawn(run).expect("a thread")
}

/// The error is what it panicked with.
fn join<T>(thread: JoinHandle<T>) -> Result<T, String> {
    thread.join().map_err(|panicked| {
        let text = panicked.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panicked.downcast_ref::<&str>().map(|&text| text.to_owned()));
        text.unwrap_or_default()
    })
}
