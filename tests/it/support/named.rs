//! Tests, found by the names that documents and tables give them: `module::test`, as
//! `tests/run MODULE::TEST` takes it.

use std::fs;
use std::path::{Path, PathBuf};

/// A test, as it is written.
pub struct Found {
    /// From its name to its end.
    pub body: String,
    /// What is no test in its file.
    pub helpers: String,
}

/// The test `name` of `tests/it/`, or else of `src/`; `None` if there is none that is run.
pub fn find(name: &str) -> Option<Found> {
    let (module, name) = name.rsplit_once("::")?;
    let text = source(module)?;
    let mut parts = text.split("#[test]\n");
    let mut helpers = parts.next()?.to_owned();
    let mut body = None;
    for part in parts {
        // A test ends with the first brace that stands as far left as its name.
        let indent = &part[..part.len() - part.trim_start().len()];
        let end = format!("\n{indent}}}\n");
        let (test, rest) = part.split_once(&end).unwrap_or((part, ""));
        helpers += rest;
        let written = test.trim_start().strip_prefix("fn ");
        if written.and_then(|text| text.split('(').next()) == Some(name) {
            body = Some(test.to_owned());
        }
    }
    body.map(|body| Found { body, helpers })
}

/// Whether there is the test `name`; for `module::*`, whether there is any.
pub fn exists(name: &str) -> bool {
    match name.strip_suffix("::*") {
        Some(module) => source(module).is_some_and(|text| text.contains("#[test]\n")),
        None => find(name).is_some(),
    }
}

/// The file of a module of `tests/it/` or `src/`, or of the one that it is a part of.
fn source(module: &str) -> Option<String> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = module.replace("::", "/");
    let of_src = path.strip_suffix("/tests").unwrap_or(&path);
    let files = |root: &str, path: &str| -> [PathBuf; 2] {
        let root = package.join(root);
        [
            root.join(format!("{path}.rs")),
            root.join(path).join("mod.rs"),
        ]
    };
    let mut all = [
        files("tests/it", &path),
        files("src", &path),
        files("src", of_src),
    ];
    let mut all = all.iter_mut().flatten();
    all.find_map(|file| fs::read_to_string(file).ok())
}
