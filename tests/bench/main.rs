//! `cargo bench`: the gateway beside what people would pick instead, in one run. Without names it
//! runs all scenarios; `--help` tells more.
//!
//! The reading order: `scenarios` says what is measured, `session` what a server is put through,
//! `window` what that costs (`cpu`, `clock`); `servers` starts those under test, `peer` is what the
//! gateway is compared with and `installed` what one would install instead (`protocol` speaks theirs);
//! `client`, `publisher` and `raw` are the load, as processes of their own (`remote`); `results`
//! collects, `machine` names the machine, `report`, `plot` and `table` show it.

mod client;
mod clock;
mod cpu;
mod installed;
mod machine;
mod peer;
mod plot;
mod protocol;
mod publisher;
mod raw;
mod remote;
mod report;
mod results;
mod scenarios;
mod servers;
mod session;
#[allow(
    unused_imports,
    reason = "it is shared with the tests, which use all of it"
)]
#[path = "../it/support/mod.rs"]
mod support;
mod table;
mod window;

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;

use machine::Machine;
use scenarios::{ALL, Bench, Effort, Scenario};

const USAGE: u8 = 2;
const DIRECTORY: &str = env!("CARGO_MANIFEST_DIR");

/// The gateway beside an asynchronous peer and the raw limit, or beside servers that one would
/// install instead, in one run.
#[derive(Parser)]
#[command(name = "cargo bench --", after_help = AFTER_HELP)]
struct Arguments {
    /// The scenarios to run [default: all].
    names: Vec<String>,
    /// Runs beside Debian's nats-server, mosquitto and nginx with nchan; the names are then those
    /// under it in the list.
    #[arg(long)]
    installed: bool,
    /// Lists the scenarios, and ends.
    #[arg(long)]
    list: bool,
    /// One round, and less of everything.
    #[arg(long)]
    quick: bool,
    /// How often each server takes its turn [default: 5; quick: 1].
    #[arg(long)]
    rounds: Option<usize>,
    /// Writes tests/bench/figures.json and figures.svg as well, and the chapter's table of growth;
    /// for all scenarios only.
    #[arg(long, conflicts_with_all = ["names", "installed"])]
    record: bool,
    /// What cargo passes to a benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

const AFTER_HELP: &str = "Figures are medians of the rounds; of what was lost or refused, the worst \
round. The figures of each round go to standard error as they come, all of them to \
target/bench.json (of --installed: target/bench-installed.json).";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    // The processes of the benchmark are this binary, started again.
    match arguments.first().map(String::as_str) {
        Some("peer") => peer::run(&arguments[1..]),
        Some("client") => client::run(&arguments[1..]),
        Some("raw") => raw::run(&arguments[1..]),
        _ => return benchmark(&Arguments::parse()),
    }
    ExitCode::SUCCESS
}

fn benchmark(arguments: &Arguments) -> ExitCode {
    // `cargo test` builds and runs it too, without this argument.
    if arguments.list || !arguments.bench {
        list();
        return ExitCode::SUCCESS;
    }
    let known = known(arguments.installed);
    let unknown = |name: &&String| !known.contains(&name.as_str());
    if let Some(name) = arguments.names.iter().find(unknown) {
        eprintln!("there is no scenario {name:?}; there are:");
        list();
        return ExitCode::from(USAGE);
    }
    // Thousands of connections, on both sides.
    peer::raise_descriptor_limit();
    if arguments.installed {
        return run_installed(arguments);
    }
    let asked = |scenario: &&Scenario| {
        arguments.names.is_empty() || arguments.names.iter().any(|name| name == scenario.name)
    };
    run(arguments, &ALL.iter().filter(asked).collect::<Vec<_>>());
    ExitCode::SUCCESS
}

fn run(arguments: &Arguments, asked: &[&Scenario]) {
    let machine = Machine::describe();
    let mut bench = Bench::start(effort(arguments));
    for scenario in asked {
        eprintln!("{}: {}", scenario.name, scenario.about);
        bench.run(scenario);
    }
    report::print(&bench.results, &machine, asked);
    let json = report::to_json(&bench.results, &machine, asked);
    let json = format!("{json:#}\n");
    let directory = Path::new(DIRECTORY);
    report::write(&directory.join("target/bench.json"), &json);
    if arguments.record {
        report::write(&directory.join("tests/bench/figures.json"), &json);
        let plot = plot::growth(&bench.results, &machine);
        report::write(&directory.join("tests/bench/figures.svg"), &plot);
        let chapter = directory.join("src/docs/figures.md");
        let text = fs::read_to_string(&chapter).ok();
        if let Some(text) = text.and_then(|text| table::put(&text, &bench.results)) {
            report::write(&chapter, &text);
        }
    }
}

fn run_installed(arguments: &Arguments) -> ExitCode {
    if let Some(missing) = installed::missing() {
        eprintln!("{missing}");
        return ExitCode::from(USAGE);
    }
    let machine = Machine::describe();
    let mut bench = Bench::start(effort(arguments));
    installed::run(&mut bench, &arguments.names);
    println!("{machine}\n{}", installed::versions());
    installed::print(&bench.results);
    let json = json!({
        "machine": machine.to_json(),
        "servers": installed::versions(),
        "figures": bench.results.to_json(),
    });
    let file = Path::new(DIRECTORY).join("target/bench-installed.json");
    report::write(&file, &format!("{json:#}\n"));
    ExitCode::SUCCESS
}

fn effort(arguments: &Arguments) -> Effort {
    Effort {
        rounds: arguments
            .rounds
            .unwrap_or(if arguments.quick { 1 } else { 5 }),
        quick: arguments.quick,
    }
}

/// What can be run, with or without `--installed`.
fn known(installed: bool) -> Vec<&'static str> {
    match installed {
        true => installed::ALL.iter().map(|part| part.name).collect(),
        false => ALL.iter().map(|scenario| scenario.name).collect(),
    }
}

fn list() {
    let line = |name: &str, about: &str| {
        // Whoever closed standard output does not want to know.
        let _ = writeln!(io::stdout(), "{name:22}{about}");
    };
    for scenario in &ALL {
        line(scenario.name, scenario.about);
    }
    line(
        "--installed",
        "beside nats-server, mosquitto and nginx with nchan, as Debian has them:",
    );
    for part in &installed::ALL {
        line(&format!("  {}", part.name), part.about);
    }
}
