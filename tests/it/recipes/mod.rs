//! What `ws-gateway recipe` prints works: each file is read by the tool that it is for.

/// nginx and HAProxy, really run in front of gateways.
mod balancers;
/// What alert rules and dashboard ask for.
mod queries;

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::gateway::{binary, run};
use crate::support::recipe::{approves, recipe, replaced, written};

const NAMES: [&str; 8] = [
    "systemd",
    "container",
    "sysctl",
    "nginx",
    "haproxy",
    "prometheus",
    "prometheus-rules",
    "grafana",
];

#[test]
fn recipes_are_listed_and_an_unknown_one_is_an_error_that_lists_them() {
    let list = run(&["recipe", "--list"], &[]);
    assert_eq!((list.code, list.stderr.as_str()), (0, ""));
    let names = list
        .stdout
        .lines()
        .filter_map(|line| line.split(' ').next());
    assert_eq!(names.collect::<Vec<_>>(), NAMES);
    for arguments in [
        &["recipe", "apache"][..],
        &["recipe"],
        &["recipe", "nginx", "--list"],
    ] {
        let outcome = run(arguments, &[]);
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (2, ""),
            "{arguments:?}"
        );
    }
    let unknown = run(&["recipe", "apache"], &[]).stderr;
    assert!(unknown.contains("apache"), "{unknown}");
    assert!(NAMES.iter().all(|name| unknown.contains(name)), "{unknown}");
}

/// A recipe is for who has no configuration yet, or a wrong one.
#[test]
fn recipes_need_no_configuration() {
    let outcome = run(&["recipe", "systemd"], &[("GATEWAY_LIMITS__RATE", "fast")]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

#[test]
fn each_recipe_says_how_it_is_used() {
    for name in NAMES.iter().filter(|name| **name != "grafana") {
        let text = recipe(name);
        assert!(
            text.contains(&format!("ws-gateway recipe {name} > ")),
            "{name}"
        );
    }
}

#[test]
fn systemd_takes_the_unit_and_finds_it_hardened() {
    let installed = "/usr/local/bin/ws-gateway";
    let here = binary().get_program().to_str().expect("UTF-8").to_owned();
    let unit = written(
        "ws-gateway.service",
        &replaced("systemd", &[(installed, &here)]),
    );
    let mut verify = Command::new("systemd-analyze");
    assert_eq!(approves(verify.arg("verify").arg(&unit)), "");
    // From 0 to 100; a unit that says nothing of it has 96.
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--offline=yes", "--threshold=20", "--no-pager"]);
    approves(security.arg(&unit));
}

/// They would hold tokens, messages and passwords.
#[test]
fn recipes_that_run_the_gateway_switch_core_dumps_off() {
    for (name, setting) in [
        ("systemd", "\nLimitCORE=0\n"),
        ("container", " --ulimit core=0 "),
    ] {
        assert!(recipe(name).contains(setting), "{name}");
    }
}

#[test]
fn sysctl_takes_its_settings() {
    let file = written("60-ws-gateway.conf", &recipe("sysctl"));
    let said = approves(
        Command::new("sysctl")
            .args(["--dry-run", "--load"])
            .arg(file),
    );
    let names = said
        .lines()
        .map(|line| line.split(" = ").next().expect("a name"));
    let kernel = |name: &&str| Path::new("/proc/sys").join(name.replace('.', "/")).exists();
    // This container's network may have fewer than the host's.
    assert!(
        names
            .filter(|name| name.starts_with("vm.") || kernel(name))
            .count()
            >= 4,
        "{said}"
    );
}

/// The gateway itself says whether it takes what the container sets.
#[test]
fn a_container_is_configured_as_the_gateway_can_be() {
    let text = recipe("container");
    let set = text
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("GATEWAY_"));
    let set = set.filter_map(|word| word.split_once('='));
    let variables: Vec<_> = set
        .map(|(key, value)| (format!("GATEWAY_{key}"), value))
        .collect();
    assert!(variables.len() >= 8, "{variables:?}");
    let variables: Vec<_> = variables
        .iter()
        .map(|(key, value)| (key.as_str(), *value))
        .collect();
    let outcome = run(&["check"], &variables);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(
        outcome.stdout.contains("addr = \"0.0.0.0:8080\""),
        "{outcome:?}"
    );
}

/// Of the folder that it is built in, and the compiler that this needs.
#[test]
fn a_container_is_built_of_what_is_there() {
    let text = recipe("container");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copied = text.lines().filter_map(|line| line.strip_prefix("COPY "));
    let copied = copied.filter(|sources| !sources.starts_with("--from"));
    let sources = copied.flat_map(|line| {
        let words: Vec<_> = line.split(' ').collect();
        words[..words.len() - 1].to_vec()
    });
    let sources: Vec<_> = sources.collect();
    assert!(
        sources.contains(&"Cargo.lock") && sources.contains(&"src"),
        "{sources:?}"
    );
    for source in sources {
        assert!(folder.join(source).exists(), "{source}");
    }
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("it is there");
    let manifest: toml::Table = manifest.parse().expect("TOML");
    let version = manifest["package"]["rust-version"]
        .as_str()
        .expect("a version");
    assert!(text.contains(&format!("FROM rust:{version}-")), "{version}");
}
