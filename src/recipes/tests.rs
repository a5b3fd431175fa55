//! What the files promise in figures is what the gateway counts with.

use std::collections::HashMap;
use std::time::Duration;

use super::RECIPES;
use crate::capacity::{Resource, service_addresses};
use crate::config::Config;

fn recipe(name: &str) -> &'static str {
    let recipe = RECIPES.iter().find(|recipe| recipe.name == name);
    recipe.expect(name).text
}

/// What `connections` with the default services need.
fn needed(resource: Resource, connections: usize) -> usize {
    resource.needed(connections, service_addresses(&Config::default()))
}

/// The values of `key = value` and `Key=value`.
fn settings(text: &'static str) -> HashMap<&'static str, &'static str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs
        .map(|(key, value)| (key.trim(), value.trim()))
        .collect()
}

/// The figures in the last three columns of a row.
fn row(table: &str, name: &str) -> Vec<usize> {
    let head = format!("#   {name} ");
    let row = table.lines().find(|line| line.starts_with(&head));
    let row = row.unwrap_or_else(|| panic!("no row of {name}"));
    let figures: Vec<_> = row.split_whitespace().rev().take(3).collect();
    let numbers = figures
        .iter()
        .rev()
        .map(|figure| figure.parse().expect("a number"));
    numbers.collect()
}

#[test]
fn sysctl_counts_as_the_gateway_does() {
    let text = recipe("sysctl");
    // The spare descriptors are rounded up: what else is open changes with the gateway.
    let resources = [
        ("descriptors", "N + 500", Resource::Descriptors, 200),
        ("threads", "2 N + 500", Resource::Threads, 0),
        ("mappings", "4 N + 2000", Resource::Mappings, 0),
    ];
    for (name, formula, resource, rounding) in resources {
        assert!(text.contains(&format!(" {formula} ")), "{name}");
        let counted = [10_000, 50_000, 100_000].map(|n| needed(resource, n));
        let figures = row(text, name);
        assert_eq!(figures.len(), counted.len(), "{name}: {figures:?}");
        for (figure, counted) in figures.into_iter().zip(counted) {
            assert!(
                (counted..=counted + rounding).contains(&figure),
                "{name}: {counted}"
            );
        }
    }
    let settings = settings(text);
    let number = |key: &str| settings[key].parse::<usize>().expect("a number");
    let promised = 100_000;
    assert!(text.contains("up to 100,000 connections"));
    assert!(number("vm.max_map_count") >= needed(Resource::Mappings, promised));
    assert!(number("kernel.pid_max") >= needed(Resource::Threads, promised));
    assert!(number("kernel.threads-max") >= needed(Resource::Threads, promised));
    assert!(number("fs.nr_open") >= needed(Resource::Descriptors, promised));
    assert!(
        number("net.core.somaxconn") >= 4_096,
        "the listener's backlog"
    );
}

#[test]
fn the_unit_has_room_for_the_default_and_time_to_drain() {
    let (settings, config) = (settings(recipe("systemd")), Config::default());
    let number = |key: &str| settings[key].parse::<usize>().expect("a number");
    let connections = config.limits.max_connections;
    assert!(number("LimitNOFILE") >= needed(Resource::Descriptors, connections));
    assert!(number("TasksMax") >= needed(Resource::Threads, connections));
    let stop = Duration::from_secs(number("TimeoutStopSec") as u64);
    assert!(stop >= config.shutdown.drain + Duration::from_secs(10));
}

#[test]
fn the_container_has_room_for_the_default_and_time_to_drain() {
    let (text, config) = (recipe("container"), Config::default());
    let number = |option: &str| {
        let value = text.split(option).nth(1).expect(option);
        let digits = value
            .trim_start()
            .split(|c: char| !c.is_ascii_digit())
            .next();
        digits.expect(option).parse::<usize>().expect(option)
    };
    let connections = config.limits.max_connections;
    assert!(number("--ulimit nofile=") >= needed(Resource::Descriptors, connections));
    assert!(number("--pids-limit") >= needed(Resource::Threads, connections));
    assert!(needed(Resource::Threads, 770) <= 2_048, "Podman's default");
    let stop = Duration::from_secs(number("--stop-timeout") as u64);
    assert!(stop >= config.shutdown.drain + Duration::from_secs(10));
}

#[test]
fn proxies_wait_in_silence_for_longer_than_pings_take() {
    let ping_interval = Config::default().session.ping_interval;
    let shown = format!("session.ping_interval (\"{}s\")", ping_interval.as_secs());
    for (name, timeouts) in [
        ("nginx", &["proxy_read_timeout", "proxy_send_timeout"][..]),
        (
            "haproxy",
            &["timeout tunnel", "timeout client ", "timeout server"],
        ),
    ] {
        let text = recipe(name);
        assert!(text.contains(&shown), "{name}: {shown}");
        for timeout in timeouts {
            let value = text.split(timeout).nth(1).expect(timeout);
            let seconds = value.trim_start().split('s').next().expect(timeout);
            let seconds = Duration::from_secs(seconds.parse().expect(timeout));
            assert!(seconds >= ping_interval * 2, "{name}: {timeout}");
        }
    }
}
