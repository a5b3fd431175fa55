//! The tables on standard output, and the same as JSON.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::machine::Machine;
use crate::results::{Against, Bound, Outcome, Results};
use crate::scenarios::{self, Scenario};

/// Prints every figure that was measured, and the targets of the scenarios that ran.
pub fn print(results: &Results, machine: &Machine, ran: &[&Scenario]) {
    println!("{machine}");
    for name in names(ran) {
        figures(results, &name);
    }
    println!("\ntargets (gateway : the other)");
    for outcome in outcomes(results, ran) {
        println!("  {}", line(&outcome));
    }
}

/// The scenarios that ran, as figures stand under them.
fn names(ran: &[&Scenario]) -> Vec<String> {
    let mut names = Vec::new();
    for scenario in ran {
        names.push(scenario.name.to_owned());
        if scenario.name == scenarios::GROWTH {
            names.extend(scenarios::CONNECTIONS.map(scenarios::by_connections));
            names.extend(scenarios::SIZES.map(scenarios::by_size));
        }
    }
    names
}

fn figures(results: &Results, name: &str) {
    let subjects = results.subjects(name);
    if subjects.is_empty() {
        return;
    }
    print!("\n{name:<36}");
    subjects.iter().for_each(|subject| print!("{subject:>16}"));
    println!();
    for metric in results.metrics(name) {
        print!("  {:<34}", metric.name());
        for subject in &subjects {
            let value = results.of(name, metric, subject);
            print!("{:>16}", value.map_or_else(|| "-".into(), number));
        }
        println!();
    }
}

fn outcomes(results: &Results, ran: &[&Scenario]) -> Vec<Outcome> {
    let of = |scenario: &&Scenario| {
        let targets = scenario.targets.iter();
        targets
            .map(|target| results.outcome(scenario.name, *target))
            .collect::<Vec<_>>()
    };
    ran.iter().flat_map(of).collect()
}

fn line(outcome: &Outcome) -> String {
    let (bound, sign) = match outcome.target.bound {
        Bound::AtLeast(bound) => (bound, "at least"),
        Bound::AtMost(bound) => (bound, "at most"),
    };
    let against = match outcome.target.against {
        Against::Nothing => String::new(),
        Against::Subject(other) => format!(" : {other}"),
    };
    let reached = outcome
        .reached
        .map_or_else(|| "not measured".into(), number);
    let verdict = if outcome.is_met() { "met" } else { "NOT MET" };
    let what = format!(
        "{}: {}{against}",
        outcome.scenario,
        outcome.target.metric.name()
    );
    format!(
        "{what:<60}{reached:>12}   {sign} {}   {verdict}",
        number(bound)
    )
}

/// Three digits that say something, or all of a large number.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        10_000.0.. => grouped(value.round() as i64),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn grouped(value: i64) -> String {
    let digits = value.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// All rounds, the targets and the machine.
pub fn to_json(results: &Results, machine: &Machine, ran: &[&Scenario]) -> Value {
    let target = |outcome: Outcome| {
        json!({
            "scenario": outcome.scenario,
            "target": line(&outcome).split_whitespace().collect::<Vec<_>>().join(" "),
            "reached": outcome.reached,
            "met": outcome.is_met(),
        })
    };
    json!({
        "machine": machine.to_json(),
        "figures": results.to_json(),
        "targets": outcomes(results, ran).into_iter().map(target).collect::<Vec<_>>(),
    })
}

/// Writes a file, and says so.
pub fn write(file: &Path, text: &str) {
    match fs::write(file, text) {
        Ok(()) => println!("written: {}", file.display()),
        Err(error) => eprintln!("not written: {}: {error}", file.display()),
    }
}
