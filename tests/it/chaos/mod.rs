//! `tests/run drill chaos`: faults of the broker, the services, the gateways and the clients, of 18 kinds, at
//! random and overlapping, while users write to one another; and sixteen sentences ([`checker::Sentence`])
//! held against what all have seen.
//!
//! The reading order: `series` makes the faults from a seed; `deployment` are the processes and what is
//! done to them; `people`, `device` and `office` are the traffic; `run` lets it all happen and looks
//! around afterwards; `history` is what is written down, `checker` what reads it; `shrink` leaves out
//! what a failure does not need.

#![allow(dead_code, reason = "tests and drills each use a part")]

mod checker;
mod deployment;
mod device;
mod history;
mod office;
mod people;
#[cfg(all(test, feature = "planted"))]
mod planted;
mod run;
mod series;
mod shrink;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;

use checker::Finding;
use run::{Outcome, Run};
use series::{Fault, series};

/// Random faults, overlapping, from a seed; then a check of sixteen sentences of what is promised.
#[derive(Debug, Parser)]
#[command(name = "tests/run drill chaos")]
struct Arguments {
    /// What decides on faults, tokens, groups and traffic [default: another one each time].
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults happen; what follows takes about half a minute more.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    #[arg(long, default_value_t = 3)]
    gateways: usize,
    /// Devices; a third of the users has two.
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// How long a failure is made shorter, in minutes.
    #[arg(long, default_value_t = 15.0)]
    shrink: f64,
    /// Has all that was seen and said written into this folder.
    #[arg(long)]
    write: Option<PathBuf>,
}

/// As the drills have it.
pub const NAME: &str = "chaos";
pub const ABOUT: &str =
    "faults of 18 kinds at random, overlapping, from a seed: --seed N --minutes M";

/// How many findings of a run are printed.
const SHOWN: usize = 20;

/// Does as `arguments` say, behind the drill's name. The exit code is 1 if a sentence was broken, and 2
/// if they cannot be understood.
pub fn drill(arguments: &[String]) -> ExitCode {
    let name = "tests/run drill chaos".to_owned();
    let arguments = Arguments::parse_from([name].iter().chain(arguments));
    let any = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |now| now.as_secs())
    };
    let run = Run {
        seed: arguments.seed.unwrap_or_else(any),
        length: Duration::from_secs_f64(60.0 * arguments.minutes),
        gateways: arguments.gateways,
        clients: arguments.clients,
        defect: None,
        write: arguments.write.clone(),
    };
    println!(
        "chaos: seed {}, {} s, {} gateways, {} clients",
        run.seed,
        run.length.as_secs_f64(),
        run.gateways,
        run.clients
    );
    let all = series(run.seed, run.length, run.gateways);
    all.iter().for_each(|fault| println!("  {fault}"));
    let outcome = run.happens(&all);
    println!("{outcome}");
    if outcome.findings.is_empty() {
        println!("kept");
        return ExitCode::SUCCESS;
    }
    print_findings(&outcome);
    let run = Run { write: None, ..run };
    let budget = Duration::from_secs_f64(60.0 * arguments.shrink);
    print_shortest(&run, &all, &outcome, budget);
    println!(
        "again: tests/run drill chaos --seed {} --minutes {} --gateways {} --clients {}",
        run.seed, arguments.minutes, run.gateways, run.clients
    );
    ExitCode::FAILURE
}

fn print_findings(outcome: &Outcome) {
    for finding in outcome.findings.iter().take(SHOWN) {
        println!("not kept: {finding}");
    }
    let more = outcome.findings.len().saturating_sub(SHOWN);
    if more > 0 {
        println!("not kept: {more} more");
    }
}

/// Leaves out faults as long as one of the same sentences is broken.
fn print_shortest(run: &Run, all: &[Fault], outcome: &Outcome, budget: Duration) {
    let broken = |findings: &[Finding]| {
        let mut findings = findings.iter();
        findings.any(|one| {
            outcome
                .findings
                .iter()
                .any(|it| it.sentence == one.sentence)
        })
    };
    let end = Instant::now() + budget;
    let fails = |fewer: &[Fault]| {
        (Instant::now() < end).then(|| {
            let fails = broken(&run.happens(fewer).findings);
            println!(
                "{} faults: {}",
                fewer.len(),
                if fails { "not kept" } else { "kept" }
            );
            fails
        })
    };
    let shortest = shrink::shortest(all, fails);
    println!(
        "the shortest series that still fails has {} of {} faults:",
        shortest.len(),
        all.len()
    );
    shortest.iter().for_each(|fault| println!("  {fault}"));
}
