//! The drills: one fault at a larger size, its figures printed. `tests/run drill` calls this.
//!
//! Without `--drill` it lists them and ends at once, so that a plain `cargo test` runs none. With
//! `--naive` behind its name, a drill is done to the sketch that the gateway started from; `--sketch`
//! runs that with a configuration file.

/// All faults at random.
#[allow(
    unused_imports,
    reason = "its unit tests are tests of the other binary"
)]
mod chaos;
/// What the drills do, shared with the tests in `faults`.
mod scenarios;
/// What they stand on, shared with all tests.
mod support;

use std::env;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::ExitCode;

use scenarios::{Drill, drills, what_the_sketch_lacks};
use support::sketch;

/// Something was lost, or another clause of the promise does not hold.
const BROKEN: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    // A drill starts this binary again for clients that can be stopped, and as the sketch.
    if support::puppet::play() || sketch::play() {
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [drill, name, rest @ ..] = &*arguments
        && (drill.as_str(), name.as_str()) == ("--drill", chaos::NAME)
    {
        return chaos::drill(rest);
    }
    let name = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--drill", name] if name != "--list" => name,
        ["--drill", name, "--naive"] | ["--drill", "--naive", name] => {
            if let Some(reason) = what_the_sketch_lacks(name) {
                println!("{name}: {reason}");
                return ExitCode::SUCCESS;
            }
            sketch::drill();
            name
        }
        ["--sketch", config] => {
            let Err(error) = support::naive::run(Path::new(config)) else {
                return ExitCode::SUCCESS;
            };
            eprintln!("the sketch does not run: {error}");
            return ExitCode::from(BROKEN);
        }
        // What `cargo test` passes on, such as a filter, is not for this.
        _ => return list(),
    };
    match drills().find(|drill| drill.name == name) {
        Some(drill) => run(drill),
        None => {
            eprintln!("there is no drill {name:?}; there are:");
            list();
            ExitCode::from(USAGE)
        }
    }
}

fn list() -> ExitCode {
    for drill in drills() {
        println!("{:18} {}", drill.name, drill.about);
    }
    println!("{:18} {}", chaos::NAME, chaos::ABOUT);
    println!("NAME --naive does it to the sketch that the gateway started from (but not chaos)");
    ExitCode::SUCCESS
}

fn run(drill: &Drill) -> ExitCode {
    let to = if sketch::is_drilled() {
        " (the sketch)"
    } else {
        ""
    };
    println!("{}{to}: {}", drill.name, drill.about);
    // What kept it from going on is on standard error.
    let Ok(figures) = catch_unwind(drill.run) else {
        println!("failed");
        return ExitCode::from(BROKEN);
    };
    print!("{figures}");
    for clause in &figures.broken {
        println!("not kept: {clause}");
    }
    if figures.broken.is_empty() {
        println!("kept");
        ExitCode::SUCCESS
    } else {
        ExitCode::from(BROKEN)
    }
}
