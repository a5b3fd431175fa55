//! The drills: one fault at a larger size, its figures printed. `tests/run drill` calls this.
//!
//! Without `--drill` it lists them and ends at once, so that a plain `cargo test` runs none.

/// What the drills do, shared with the tests in `faults`.
mod scenarios;
/// What they stand on, shared with all tests.
mod support;

use std::env;
use std::panic::catch_unwind;
use std::process::ExitCode;

use scenarios::{Drill, drills};

/// Something was lost, or another clause of the promise does not hold.
const BROKEN: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    // A drill starts this binary again for clients that can be stopped.
    if support::puppet::play() {
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<String> = env::args().skip(1).collect();
    let name = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--drill", name] if name != "--list" => name,
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
    ExitCode::SUCCESS
}

fn run(drill: &Drill) -> ExitCode {
    println!("{}: {}", drill.name, drill.about);
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
