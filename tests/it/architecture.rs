//! The dependency direction of the code, held: who may name whom. It reads `src/` as text. And the
//! README's promise: each test that it names is there.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::named;
use crate::support::paths::{Source, read};

/// A sentence about the code, and what would break it.
struct Rule {
    sentence: &'static str,
    /// Files and folders that it is about; empty: all.
    about: &'static [&'static str],
    except: &'static [&'static str],
    never_names: &'static [&'static str],
}

/// What the core does without: each could be deleted with its folder or file.
const EDGES: [&str; 11] = [
    "crate::check",
    "crate::recipes",
    "crate::reference",
    "crate::admin",
    "crate::discovery",
    "crate::proxy_protocol",
    "crate::tls",
    "crate::chat",
    "crate::chat_page",
    "crate::conform",
    "crate::planted",
];

const RULES: [Rule; 11] = [
    Rule {
        sentence: "async is named in services/, discovery/ and reference/ alone",
        about: &[],
        except: &[
            "services/",
            "reference/",
            "discovery/",
            // TLS for tonic's connections.
            "tls/services.rs",
        ],
        never_names: &[
            "tonic",
            "tokio",
            "tonic_prost",
            "tokio_stream",
            "futures_util",
        ],
    },
    Rule {
        sentence: "SQLite is the reference services' own",
        about: &[],
        except: &["reference/"],
        never_names: &["rusqlite"],
    },
    Rule {
        sentence: "the core never imports an edge; gateway/edges.rs and main.rs tie them in",
        about: &[],
        except: &[
            "main.rs",
            "gateway/edges.rs",
            "lib.rs",
            "reference/",
            // They publish as the reference services do.
            "broker/rabbit_tests.rs",
            "admin/",
            "check/",
            "recipes/",
            "discovery/",
            "tls/",
            "chat.rs",
            "chat/",
            "chat_page/",
            "conform/",
            "planted/",
            // What of them must hold whatever comes in.
            "fuzzing.rs",
        ],
        never_names: &EDGES,
    },
    Rule {
        sentence: "a connection never knows the broker: they meet in the registry",
        about: &["client/"],
        except: &[],
        never_names: &["crate::broker", "amiquip"],
    },
    Rule {
        sentence: "the broker knows connections, and nothing of how they come to be",
        about: &["broker/"],
        except: &[],
        never_names: &[
            "crate::client::accept",
            "crate::client::address",
            "crate::client::admission",
            "crate::client::dispatch",
            "crate::client::handshake",
            "crate::client::head",
            "crate::client::rate",
            "crate::client::refuser",
            "crate::client::request",
            "crate::client::session",
            "crate::client::socket",
            "crate::client::transport",
            "crate::client::writer",
        ],
    },
    Rule {
        sentence: "a client's socket is a transport, so that TLS can be one",
        about: &["client/"],
        except: &["client/transport.rs", "client/fixture.rs"],
        never_names: &["std::net::TcpStream", "std::net::UdpSocket"],
    },
    Rule {
        sentence: "the registry does no I/O",
        about: &["registry.rs"],
        except: &[],
        never_names: &[
            "std::fs",
            "std::io",
            "std::net",
            "std::process",
            "std::thread",
            "rustix",
            "tungstenite",
            "amiquip",
            "crate::broker",
            "crate::services::Services",
            "crate::services::grpc",
        ],
    },
    Rule {
        sentence: "services know neither clients nor broker",
        about: &["services/"],
        except: &[],
        never_names: &[
            "crate::client",
            "crate::registry",
            "crate::broker",
            "crate::presence",
        ],
    },
    Rule {
        sentence: "the reference services reach clients through what they publish, and in no other way",
        about: &["reference/"],
        except: &[],
        never_names: &["crate::client", "crate::registry", "crate::presence"],
    },
    Rule {
        sentence: "what everyone may use knows nobody",
        about: &[
            "config.rs",
            "config/",
            "ids.rs",
            "error.rs",
            "http.rs",
            "metrics.rs",
            "threads/",
        ],
        except: &[],
        never_names: &[
            "crate::client",
            "crate::registry",
            "crate::broker",
            "crate::services",
            "crate::presence",
        ],
    },
    Rule {
        sentence: "nobody knows the composition root but main.rs",
        about: &[],
        except: &["main.rs", "first_run.rs", "gateway.rs", "gateway/"],
        never_names: &["crate::gateway"],
    },
];

/// Crates that are named in one file or folder, so that they can be replaced.
const ONE_PLACE: [&str; 3] = ["tungstenite", "amiquip", "rustls"];
/// What plays a client, or a gateway for somebody else's client, with tungstenite of its own.
const OTHER_ENDS: [&str; 3] = ["chat.rs", "chat/", "conform/"];
/// The folders that count as one file there.
const ONE_FOLDER: [&str; 2] = ["broker/amqp/", "tls/"];

/// What breaks the rules, in sentences.
fn violations(sources: &[Source]) -> Vec<String> {
    let mut violations = Vec::new();
    let within = |file: &str, places: &[&str]| {
        places
            .iter()
            .any(|place| file == *place || (place.ends_with('/') && file.starts_with(place)))
    };
    for source in sources {
        for rule in &RULES {
            let file = source.file.as_str();
            let about =
                (rule.about.is_empty() || within(file, rule.about)) && !within(file, rule.except);
            let broken = rule
                .never_names
                .iter()
                .filter(|path| about && source.names(path));
            violations
                .extend(broken.map(|path| format!("{file} names {path}, but {}", rule.sentence)));
        }
    }
    for name in ONE_PLACE {
        let place = |source: &Source| {
            let folder = ONE_FOLDER
                .iter()
                .find(|place| source.file.starts_with(**place));
            folder.map_or(source.file.clone(), |folder| (*folder).into())
        };
        let naming = sources
            .iter()
            .filter(|source| source.names(name) && !within(&source.file, &OTHER_ENDS));
        let places: BTreeSet<String> = naming.map(place).collect();
        if places.len() > 1 {
            let places = Vec::from_iter(places).join(", ");
            violations.push(format!(
                "{name} is named in {places}, and one place is enough"
            ));
        }
    }
    violations
}

#[test]
fn the_dependency_direction_holds() {
    let sources = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let violations = violations(&sources);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    for (name, file) in [
        ("tungstenite", "client/"),
        ("amiquip", "broker/"),
        ("tonic", "services/"),
        ("rustls", "tls/"),
    ] {
        let found = sources
            .iter()
            .any(|source| source.file.starts_with(file) && source.names(name));
        assert!(found, "the reader of paths must find {name} in {file}");
    }
}

/// What the reader of paths makes of `text` in `file`, and what the rules say to it.
fn violation(file: &str, text: &str) -> Option<String> {
    violations(&[Source::new(file, text)]).into_iter().next()
}

#[test]
fn every_way_of_naming_what_must_not_be_named_is_found() {
    for (file, text) in [
        ("client/session.rs", "use crate::broker::amqp;"),
        (
            "client/session.rs",
            "use crate::{ids::UserId, broker::{self, Delivery}};",
        ),
        ("client/session.rs", "use super::super::broker::Delivery;"),
        ("client/mod.rs", "pub use super::broker as events;"),
        ("client/mod.rs", "fn f() { crate::broker::deliver::run() }"),
        (
            "client/mod.rs",
            "fn f() -> Vec<crate::broker::Delivery> { vec![] }",
        ),
        (
            "presence.rs",
            "use crate as everything; fn f() { everything::reference::start() }",
        ),
        ("presence.rs", "use ::tokio::time::sleep;"),
        ("registry.rs", "use std::{collections::HashMap, net};"),
        (
            "registry.rs",
            "fn f() { let a = 'x'; let b: &'a str = \"//\"; std::fs::read(b) }",
        ),
        (
            "broker/deliver.rs",
            "use crate::client; fn f() { client::session::run() }",
        ),
        (
            "broker/deliver.rs",
            "use crate::client::{connection::Connection, handshake as h};",
        ),
        ("gateway.rs", "use rusqlite::Connection;"),
        ("gateway/edges.rs", "use rusqlite::Connection;"),
        ("gateway.rs", "use crate::admin::console::Console;"),
        (
            "gateway/shutdown.rs",
            "fn f() { crate::admin::listener::stop() }",
        ),
        ("config/mod.rs", "use crate::services::proto;"),
        (
            "client/mod.rs",
            "#[cfg(test)] mod tests { use x::y; } use crate::gateway::Gateway;",
        ),
    ] {
        assert!(violation(file, text).is_some(), "{file}: {text}");
    }
    let two = [
        Source::new("broker/amqp.rs", "use amiquip::Channel;"),
        Source::new("reference/publish.rs", "fn f(c: &amiquip::Channel) {}"),
    ];
    assert_eq!(violations(&two).len(), 1, "amiquip in two files");
}

#[test]
fn what_may_be_named_and_what_only_looks_like_a_name_is_let_through() {
    for (file, text) in [
        (
            "client/session.rs",
            "// use crate::broker;\n/* crate::broker::x */ use crate::registry::Registry;",
        ),
        (
            "client/session.rs",
            "const A: &str = \"crate::broker::x\"; const B: &str = r#\"tokio::x \" \"#;",
        ),
        (
            "client/session.rs",
            "#[cfg(test)]\nmod tests { use crate::broker::x; fn f() { {} } }\nuse std::io;",
        ),
        (
            "client/session.rs",
            "/// See [`crate::broker::amqp`].\nfn f() {}",
        ),
        (
            "broker/deliver.rs",
            "use crate::client::connection::Connection; use crate::registry::Registry;",
        ),
        (
            "reference/store.rs",
            "use rusqlite::Connection; use tokio::sync::Mutex;",
        ),
        (
            "gateway/edges.rs",
            "use super::Users; use crate::{admin, broker, client, reference};",
        ),
        (
            "registry.rs",
            "use std::collections::HashMap; fn f() { let broker = 1; }",
        ),
        (
            "client/session.rs",
            "fn brokered() { my::broker::x(); broken::tokio() }",
        ),
    ] {
        assert_eq!(violation(file, text), None, "{file}: {text}");
    }
}

/// From the bottom up: a file names no part of the crate that is above its own.
const LAYERS: [&[&str]; 10] = [
    &[
        "backoff", "drain", "error", "ids", "logging", "sync", "threads",
    ],
    &["config", "http", "metrics", "readiness"],
    &["services"],
    &["client"],
    &["capacity", "probe", "registry"],
    &["broker", "presence"],
    &[
        "admin",
        "discovery",
        "planted",
        "proxy_protocol",
        "reference",
        "tls",
    ],
    &["chat", "chat_page", "conform"],
    &["check", "gateway", "recipes"],
    &["docs", "main", "lib", "first_run", "signals"],
];

/// Every file but those that are compiled for unit tests, and fuzzers, alone.
fn product() -> Vec<Source> {
    const FOR_TESTS: [&str; 5] = [
        "fake.rs",
        "fixture.rs",
        "fuzzing.rs",
        "tests.rs",
        "support.rs",
    ];
    const FOLDERS_FOR_TESTS: [&str; 2] = ["tests/", "client/schema/"];
    let mut sources = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    sources.retain(|source| {
        let file = &source.file;
        !FOR_TESTS.iter().any(|end| file.ends_with(end))
            && !FOLDERS_FOR_TESTS.iter().any(|folder| file.contains(folder))
    });
    sources
}

/// Whether one of the two modules is within the other: a room and its own corners know each other.
fn is_kin(one: &str, other: &str) -> bool {
    let within = |inner: &str, outer: &str| {
        let rest = inner.strip_prefix(outer);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    within(one, other) || within(other, one)
}

/// The files that each file names, by the index in `sources`.
fn arrows(sources: &[Source]) -> Vec<BTreeSet<usize>> {
    let modules: Vec<String> = sources.iter().map(Source::module).collect();
    let file_of = |path: &str| {
        let within = |module: &str| path == module || path.starts_with(&format!("{module}::"));
        let found = modules.iter().enumerate().filter(|(_, m)| within(m));
        found.max_by_key(|(_, m)| m.len()).map(|(index, _)| index)
    };
    let named = |source: &Source| {
        source
            .paths
            .iter()
            .filter_map(|path| file_of(path))
            .collect()
    };
    sources.iter().map(named).collect()
}

#[test]
fn no_arrow_runs_upwards() {
    let sources = product();
    let layer = |source: &Source| {
        let name = source.file.split(['/', '.']).next().unwrap_or_default();
        let layer = LAYERS.iter().position(|layer| layer.contains(&name));
        layer.unwrap_or_else(|| panic!("{} has no layer", source.file))
    };
    let mut upwards = Vec::new();
    for (source, named) in sources.iter().zip(arrows(&sources)) {
        let above = named.iter().map(|&index| &sources[index]);
        // `crate` alone says nothing of a part.
        let above = above.filter(|other| other.file != "lib.rs" && layer(other) > layer(source));
        upwards.extend(above.map(|other| format!("{} names {}", source.file, other.file)));
    }
    assert!(upwards.is_empty(), "{}", upwards.join("\n"));
}

#[test]
fn there_is_no_circle_among_files() {
    let sources = product();
    let mut arrows = arrows(&sources);
    for (index, named) in arrows.iter_mut().enumerate() {
        named.retain(|&other| !is_kin(&sources[index].module(), &sources[other].module()));
    }
    // Whoever names nobody that is left is in no circle, nor is whom nobody names; both go.
    let mut left: Vec<usize> = (0..sources.len()).collect();
    loop {
        let before = left.len();
        let all = left.clone();
        left.retain(|&file| {
            let names = all.iter().any(|other| arrows[file].contains(other));
            let is_named = all.iter().any(|other| arrows[*other].contains(&file));
            names && is_named
        });
        if left.len() == before {
            break;
        }
    }
    let circles = left.iter().map(|&file| {
        let named = arrows[file].iter().filter(|named| left.contains(named));
        let named: Vec<_> = named.map(|&named| sources[named].file.as_str()).collect();
        format!("{} names {}", sources[file].file, named.join(", "))
    });
    let circles: Vec<_> = circles.collect();
    assert!(
        circles.is_empty(),
        "in circles, or between two:\n{}",
        circles.join("\n")
    );
}

/// What a student reads in three sittings, and of it the first: lines of code at most, without
/// comments and tests.
const CORE: [&str; 8] = [
    "gateway.rs",
    "gateway/shutdown.rs",
    "config/",
    "client/",
    "registry.rs",
    "services/",
    "broker/",
    "presence.rs",
];
/// It only ever gets lower.
const CORE_LINES: usize = 6_800;
/// Compiled for edges alone; they are where they are since amiquip is named in one folder.
const OF_EDGES: [&str; 2] = ["broker/amqp/inspect.rs", "broker/amqp/publish.rs"];
const FIRST_SITTING: [&str; 13] = [
    "client/accept.rs",
    "client/session.rs",
    "client/socket.rs",
    "client/connection.rs",
    "client/outbox.rs",
    "client/frame.rs",
    "client/request.rs",
    "client/dispatch.rs",
    "client/protocol.rs",
    "registry.rs",
    "broker/deliver.rs",
    "broker/consume.rs",
    "services/mod.rs",
];
const FIRST_SITTING_LINES: usize = 2_600;
/// Of one file. The outbox says at its head why it is longer.
const FILE_LINES: usize = 300;

#[test]
fn the_core_is_read_in_three_sittings_and_the_first_in_an_afternoon() {
    let sources = product();
    let within = |source: &Source, places: &[&str]| {
        let is_at = |place: &&str| source.file == **place || source.file.starts_with(*place);
        places.iter().any(is_at) && !OF_EDGES.contains(&source.file.as_str())
    };
    let lines = |places: &[&str]| -> usize {
        let found = sources.iter().filter(|source| within(source, places));
        found.map(|source| source.lines).sum()
    };
    for file in FIRST_SITTING {
        assert!(lines(&[file]) > 0, "{file} is not there");
    }
    let first = lines(&FIRST_SITTING);
    assert!(
        first <= FIRST_SITTING_LINES,
        "the first sitting has {first} lines"
    );
    for source in sources.iter().filter(|source| within(source, &CORE)) {
        let (file, lines) = (&source.file, source.lines);
        assert!(
            lines <= FILE_LINES || file == "client/outbox.rs",
            "{file}: {lines} lines"
        );
    }
    let core = lines(&CORE);
    assert!(core <= CORE_LINES, "the core has {core} lines");
}

#[test]
fn what_only_tests_compile_is_no_line_of_the_product() {
    let text = r#"
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Frame<'a> {
    #[serde(rename = "type")]
    #[cfg_attr(
        test,
        schemars(with = "[u8]", extend("enum" = ["a]", "b"]))
    )]
    kind: [&'a str; 2],
    #[cfg_attr(feature = "admin", serde(skip))]
    more: u8,
}
#[cfg(test)]
use schemars::generate;
#[cfg(test)]
mod tests {
    fn f() {}
}
fn g() {}
"#;
    let source = Source::new("client/frame.rs", text);
    assert_eq!(source.lines, 8, "{:?}", source.tokens);
    assert!(!source.names("schemars"), "{:?}", source.paths);
    assert_eq!(Source::new("a.rs", "#[cfg_attr(test, a)]").lines, 0);
}

/// The tests that a section of the README names in the last column of its tables, as `module::test`
/// or `module::*`.
fn shown_by(readme: &str, section: &str) -> Vec<String> {
    let heading = format!("\n## {section}\n");
    let section = readme.split(&heading).nth(1).expect("the section");
    let section = section.split("\n## ").next().expect("a section");
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| ---");
    let cells = section.lines().filter(is_row).map(|row| {
        let row = row.trim_end_matches('|');
        row.rsplit('|').next().expect("cells").to_owned()
    });
    let names = cells.flat_map(|cell| {
        let quoted = cell.split('`').skip(1).step_by(2);
        quoted.map(str::to_owned).collect::<Vec<_>>()
    });
    names.filter(|name| name.contains("::")).collect()
}

#[test]
fn each_test_that_the_readme_names_is_there() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(readme).expect("the README");
    for (section, at_least) in [("The promise", 30), ("Security", 30)] {
        let names = shown_by(&readme, section);
        assert!(names.len() >= at_least, "the table is read: {names:?}");
        for name in &names {
            assert!(
                named::exists(name),
                "README.md, {section}: there is no {name}"
            );
        }
    }
    for name in ["faults::nowhere::*", "faults::clients::puppet", "ledger::x"] {
        assert!(!named::exists(name), "{name} is no test");
    }
    for name in [
        "recipes::*",
        "client::rate::tests::a_burst_passes_then_the_rate",
    ] {
        assert!(named::exists(name), "{name} is one");
    }
}

/// What `text` links to, apart from other sites and its own headings.
fn linked_files(text: &str) -> impl Iterator<Item = &str> {
    let links = text.split("](").skip(1);
    let links = links.filter_map(|rest| rest.split([')', '#']).next());
    links.filter(|link| !link.is_empty() && !link.contains("://"))
}

#[test]
fn each_file_that_the_readme_and_the_chapters_link_to_is_there() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let chapters = std::fs::read_dir(package.join("src/docs")).expect("the chapters");
    let chapters = chapters.map(|chapter| chapter.expect("a chapter").path());
    let mut links = 0;
    for file in chapters.chain([package.join("README.md")]) {
        let text = std::fs::read_to_string(&file).expect("a text");
        let folder = file.parent().expect("its folder");
        for link in linked_files(&text) {
            links += 1;
            let is_there = folder.join(link).exists();
            assert!(is_there, "{}: {link}", file.display());
        }
    }
    assert!(links > 100, "{links} links are found");
    let text = "[a](b.md#c), [d](#e), [f](https://g.example)";
    assert_eq!(linked_files(text).collect::<Vec<_>>(), ["b.md"]);
}
