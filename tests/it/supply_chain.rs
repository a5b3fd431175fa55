//! The dependencies, as `Cargo.lock` pins them: none older than what mended a known fault, and what
//! amiquip holds back is what the README says it is, and comes in by amiquip alone.

use toml::{Table, Value};

/// Whether a dependency has to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// A row whose crate is not there has lost its meaning, or its name is wrong.
    Required,
    /// The day it comes in, by whatever way, it has to be new enough.
    WherePresent,
}
use Presence::{Required, WherePresent};

/// No version below these, and what was mended there. Of a crate that is there in several
/// versions, each has to be at its floor.
const FLOORS: [(&str, &str, Presence, &str); 8] = [
    (
        "tungstenite",
        "0.30.0",
        Required,
        "RUSTSEC-2023-0065 (0.20.1): a long head costs the processor",
    ),
    (
        "crossbeam-channel",
        "0.5.15",
        Required,
        "RUSTSEC-2025-0024: a double free as a channel is dropped",
    ),
    (
        "h2",
        "0.4.4",
        Required,
        "RUSTSEC-2024-0332: a flood of CONTINUATION frames",
    ),
    (
        "tonic",
        "0.12.3",
        Required,
        "RUSTSEC-2024-0376: a server's accept loop that ends",
    ),
    (
        "bytes",
        "1.11.1",
        Required,
        "RUSTSEC-2026-0007: an overflow in reserve",
    ),
    (
        "rustls",
        "0.23.45",
        WherePresent,
        "RUSTSEC-2024-0399 (0.23.18): a panic in accepting; RUSTSEC-2026-0285: a TLS 1.3 \
         handshake goes on in plaintext",
    ),
    (
        "rustls-webpki",
        "0.103.13",
        WherePresent,
        "RUSTSEC-2026-0098, -0099, -0104: constraints that do not bind, a panic over a CRL",
    ),
    (
        "time",
        "0.3.47",
        Required,
        "RUSTSEC-2026-0009: a stack that is used up in parsing",
    ),
];

/// What amiquip alone brings in, and the README speaks of: the name, and how its version begins.
const HELD_BACK: [(&str, &str); 4] = [
    ("mio", "0.6."),
    ("net2", "0.2."),
    ("idna", "0.1."),
    ("nom", "4."),
];

struct Package {
    name: String,
    version: String,
    /// As the lock file writes them: a name, and a version where there are several.
    dependencies: Vec<String>,
}

impl Package {
    fn depends_on(&self, other: &Self) -> bool {
        self.dependencies.iter().any(|name| other.is_named(name))
    }

    fn is_named(&self, dependency: &str) -> bool {
        let (name, version) = dependency
            .split_once(' ')
            .unwrap_or((dependency, &self.version));
        self.name == name && self.version == version
    }
}

fn lock() -> Vec<Package> {
    let lock: Table = include_str!("../../Cargo.lock").parse().expect("TOML");
    let text = |package: &Value, key: &str| package[key].as_str().expect("a text").to_owned();
    let packages = lock["package"].as_array().expect("a list").iter();
    let packages = packages.map(|package| {
        let dependencies = package.get("dependencies").and_then(Value::as_array);
        let names = dependencies.into_iter().flatten().filter_map(Value::as_str);
        Package {
            name: text(package, "name"),
            version: text(package, "version"),
            dependencies: names.map(str::to_owned).collect(),
        }
    });
    packages.collect()
}

/// Major, minor, patch; a pre-release is below what it comes before.
fn version(text: &str) -> (Vec<u64>, bool) {
    let text = text.split('+').next().unwrap_or_default();
    let (numbers, before) = text.split_once('-').unwrap_or((text, ""));
    let numbers = numbers
        .split('.')
        .map(|number| number.parse().expect("a number"));
    (numbers.collect(), before.is_empty())
}

/// The versions of a crate that are below its floor.
fn below(packages: &[Package], name: &str, floor: &str) -> Vec<String> {
    let all = packages.iter().filter(|package| package.name == name);
    let old = all.filter(|package| version(&package.version) < version(floor));
    old.map(|package| package.version.clone()).collect()
}

#[test]
fn no_dependency_is_older_than_what_mended_it() {
    let packages = lock();
    for (name, floor, presence, why) in FLOORS {
        let is_there = packages.iter().any(|package| package.name == name);
        assert!(
            is_there || presence == WherePresent,
            "{name} is not in Cargo.lock"
        );
        let old = below(&packages, name, floor);
        assert!(
            old.is_empty(),
            "{name} {old:?} is older than {floor}: {why}"
        );
    }
}

#[test]
fn an_older_one_is_found() {
    let package = |version: &str| Package {
        name: "h2".into(),
        version: version.into(),
        dependencies: Vec::new(),
    };
    let versions = [
        "0.4.4",
        "0.4.10",
        "0.3.27",
        "1.0.0",
        "0.4.4-rc.1",
        "0.4.3+more",
    ];
    let found = below(&versions.map(package), "h2", "0.4.4");
    assert_eq!(found, ["0.3.27", "0.4.4-rc.1", "0.4.3+more"]);
}

/// A package, and whoever of `packages` depends on it, through others or not.
fn with_dependents<'p>(packages: &[&'p Package], package: &'p Package) -> Vec<&'p Package> {
    let mut found = vec![package];
    let mut next = 0;
    while let Some(&one) = found.get(next) {
        for other in packages {
            let is_new = found.iter().all(|known| !std::ptr::eq(*known, *other));
            if is_new && other.depends_on(one) {
                found.push(other);
            }
        }
        next += 1;
    }
    found
}

/// So that whoever replaces amiquip is rid of them all, and of what the README says about them. This
/// crate names mio for the type of amiquip's socket.
#[test]
fn what_amiquip_holds_back_comes_in_by_amiquip_alone_and_is_told() {
    let packages = lock();
    let readme = include_str!("../../README.md");
    let security = readme.split("\n## Security\n").nth(1);
    let security = security.and_then(|text| text.split("\n## ").next());
    let security = security.expect("the section");
    let all: Vec<&Package> = packages.iter().collect();
    let named = |name: &str| all.iter().find(|package| package.name == name);
    let gateway = named("ws-gateway").expect("this crate");
    let amiquip = named("amiquip").expect("what the section is about");
    let is_other = |package: &&Package| !["ws-gateway", "amiquip"].contains(&&*package.name);
    let others: Vec<&Package> = packages.iter().filter(is_other).collect();
    for (name, beginning) in HELD_BACK {
        let is_it =
            |package: &&&Package| package.name == name && package.version.starts_with(beginning);
        let found = all.iter().find(is_it);
        let found = found.unwrap_or_else(|| panic!("{name} {beginning} is gone: README.md"));
        let told = format!("{name} {}", beginning.trim_end_matches('.'));
        assert!(security.contains(&told), "README.md, Security: {told}");
        let by_amiquip = with_dependents(&all, found);
        let by_amiquip = by_amiquip.iter().any(|one| std::ptr::eq(*one, *amiquip));
        assert!(by_amiquip, "amiquip does not need {name}");
        let mut ways = with_dependents(&others, found);
        let is_sockets_type = |one: &Package| one.name == "mio" && one.version.starts_with("0.6.");
        ways.retain(|one| gateway.depends_on(one) && !is_sockets_type(one));
        let ways: Vec<&str> = ways.iter().map(|one| one.name.as_str()).collect();
        assert!(ways.is_empty(), "{name} also comes in by {ways:?}");
    }
}
