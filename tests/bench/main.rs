//! `cargo bench`: the gateway beside what people would pick instead, in one run. Without names it
//! runs all scenarios; `--help` tells more.
//!
//! The reading order: `scenarios` says what is measured, `session` what a server is put through,
//! `window` what that costs; `servers` starts those under test, `client`, `publisher` and `raw`
//! are the load; `report`, `plot` and `table` show it.

mod client;
mod clock;
mod cpu;
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

use machine::Machine;
use scenarios::{ALL, Bench, Effort, Scenario};

const USAGE: u8 = 2;
const DIRECTORY: &str = env!("CARGO_MANIFEST_DIR");

/// The gateway beside an asynchronous peer and the raw limit, in one run.
#[derive(Parser)]
#[command(name = "cargo bench --", after_help = AFTER_HELP)]
struct Arguments {
    /// The scenarios to run [default: all].
    names: Vec<String>,
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
    #[arg(long, conflicts_with = "names")]
    record: bool,
    /// What cargo passes to a benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

const AFTER_HELP: &str = "Figures are medians of the rounds; of what was lost or refused, the worst \
round. The figures of each round go to standard error as they come, all of them to \
target/bench.json.";

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
    let unknown = |name: &&String| ALL.iter().all(|scenario| scenario.name != **name);
    if let Some(name) = arguments.names.iter().find(unknown) {
        eprintln!("there is no scenario {name:?}; there are:");
        list();
        return ExitCode::from(USAGE);
    }
    let asked = |scenario: &&Scenario| {
        arguments.names.is_empty() || arguments.names.iter().any(|name| name == scenario.name)
    };
    run(arguments, &ALL.iter().filter(asked).collect::<Vec<_>>());
    ExitCode::SUCCESS
}

fn run(arguments: &Arguments, asked: &[&Scenario]) {
    let machine = Machine::describe();
    let effort = Effort {
        rounds: arguments
            .rounds
            .unwrap_or(if arguments.quick { 1 } else { 5 }),
        quick: arguments.quick,
    };
    let mut bench = Bench::start(effort);
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

fn list() {
    for scenario in &ALL {
        // Whoever closed standard output does not want to know.
        let _ = writeln!(io::stdout(), "{:22}{}", scenario.name, scenario.about);
    }
}
