//! Reads Rust source for the paths that it names: `use` trees, and paths in the code itself, with
//! `super` and imported names resolved. Comments, strings and `#[cfg(test)]` items do not count.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::{fs, iter};

/// A source file and every path that it names, such as `crate::client::session::run`.
pub struct Source {
    /// Relative to `src`, such as `client/session.rs`.
    pub file: String,
    pub paths: BTreeSet<String>,
    /// Names, `::`, and single other characters.
    pub tokens: Vec<String>,
    /// How many lines have code on them.
    pub lines: usize,
}

/// Every `.rs` file under `directory`.
pub fn read(directory: &Path) -> Vec<Source> {
    let mut files = Vec::new();
    collect(directory, &mut files);
    files.sort();
    let source = |file: &std::path::PathBuf| {
        let name = file
            .strip_prefix(directory)
            .expect("it is under it")
            .display()
            .to_string();
        Source::new(&name, &fs::read_to_string(file).expect("a source file"))
    };
    files.iter().map(source).collect()
}

fn collect(directory: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(directory).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

impl Source {
    pub fn new(file: &str, text: &str) -> Self {
        let (tokens, lines): (Vec<String>, Vec<usize>) =
            without_tests(tokens(text)).into_iter().unzip();
        let lines = lines.into_iter().collect::<BTreeSet<_>>().len();
        let mut reader = Reader {
            module: module(file),
            tokens: &tokens,
            aliases: HashMap::new(),
        };
        let mut paths = BTreeSet::new();
        // Twice: the first time learns what names are imported.
        for _ in 0..2 {
            paths = reader.paths();
        }
        Self {
            file: file.into(),
            paths,
            tokens,
            lines,
        }
    }

    /// `crate::client::session` for `client/session.rs`.
    pub fn module(&self) -> String {
        module(&self.file).join("::")
    }

    /// Whether it names `path` or something inside it.
    pub fn names(&self, path: &str) -> bool {
        let inside = |named: &String| {
            named
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        self.paths.iter().any(inside)
    }
}

/// `crate::client::session` for `client/session.rs`.
fn module(file: &str) -> Vec<String> {
    let parts = file.trim_end_matches(".rs").split('/');
    let parts = parts.filter(|part| !["mod", "lib", "main"].contains(part));
    iter::once("crate")
        .chain(parts)
        .map(str::to_owned)
        .collect()
}

struct Reader<'a> {
    module: Vec<String>,
    tokens: &'a [String],
    /// What an imported name stands for.
    aliases: HashMap<String, Vec<String>>,
}

impl Reader<'_> {
    fn paths(&mut self) -> BTreeSet<String> {
        let mut paths = BTreeSet::new();
        let mut place = 0;
        while place < self.tokens.len() {
            let imports = self.is(place, "use");
            let start = place + usize::from(imports);
            let start = start + usize::from(imports && self.is(start, "::"));
            if imports || (self.is_name(start) && self.is(start + 1, "::")) {
                let mut leaves = Vec::new();
                place = self.tree(start, &[], &mut leaves);
                for (path, name) in leaves {
                    let path = self.resolved(path);
                    paths.insert(path.join("::"));
                    if imports && !matches!(name.as_str(), "*" | "_") {
                        self.aliases.insert(name, path);
                    }
                }
            } else {
                place += 1;
            }
        }
        paths
    }

    /// Reads a path or use tree; returns where it ends.
    fn tree(
        &self,
        mut place: usize,
        before: &[String],
        leaves: &mut Vec<(Vec<String>, String)>,
    ) -> usize {
        let mut path = before.to_vec();
        loop {
            if self.is(place, "{") {
                place += 1;
                while place < self.tokens.len() && !self.is(place, "}") {
                    place = self.tree(place, &path, leaves);
                    place += usize::from(self.is(place, ","));
                }
                return place + 1;
            }
            if !self.is_name(place) && !self.is(place, "*") {
                // Generic arguments, or nothing that a path goes on with.
                leaves.push((path.clone(), path.last().cloned().unwrap_or_default()));
                return place + 1;
            }
            path.push(self.tokens[place].clone());
            place += 1;
            if !self.is(place, "::") {
                break;
            }
            place += 1;
        }
        let mut name = path.last().cloned().unwrap_or_default();
        if name == "self" && path.len() > 1 {
            path.pop();
            name = path.last().cloned().unwrap_or_default();
        }
        if self.is(place, "as") {
            name = self.tokens.get(place + 1).cloned().unwrap_or_default();
            place += 2;
        }
        leaves.push((path, name));
        place
    }

    fn resolved(&self, path: Vec<String>) -> Vec<String> {
        let mut module = self.module.clone();
        match path.first().map(String::as_str) {
            Some("ws_gateway") => [vec!["crate".into()], path[1..].to_vec()].concat(),
            Some("self") => [module, path[1..].to_vec()].concat(),
            Some("super") => {
                let ups = path.iter().take_while(|part| *part == "super").count();
                module.truncate(module.len().saturating_sub(ups).max(1));
                [module, path[ups..].to_vec()].concat()
            }
            Some(first) => match self.aliases.get(first) {
                Some(whole) if *whole != path => [whole.clone(), path[1..].to_vec()].concat(),
                _ => path,
            },
            None => path,
        }
    }

    fn is(&self, place: usize, token: &str) -> bool {
        self.tokens.get(place).is_some_and(|found| found == token)
    }

    fn is_name(&self, place: usize) -> bool {
        self.tokens
            .get(place)
            .is_some_and(|token| token.starts_with(|c: char| c.is_alphabetic() || c == '_'))
    }
}

/// Names, `::`, and single other characters, each with its line; no comment, character or number is
/// among them, and a string is one `"` for each of its lines.
fn tokens(text: &str) -> Vec<(String, usize)> {
    let chars: Vec<char> = text.chars().collect();
    let at = |place: usize| chars.get(place).copied().unwrap_or('\0');
    let breaks = |from: usize, to: usize| chars[from..to].iter().filter(|c| **c == '\n').count();
    let mut tokens = Vec::new();
    let (mut place, mut line, mut counted) = (0, 1, 0);
    while place < chars.len() {
        let c = at(place);
        let start = place;
        line += breaks(counted, start);
        counted = start;
        let string =
            |end: usize| (line..=line + breaks(start, end)).map(|line| ("\"".into(), line));
        if c == '/' && at(place + 1) == '/' {
            while place < chars.len() && at(place) != '\n' {
                place += 1;
            }
        } else if c == '/' && at(place + 1) == '*' {
            place = after(&chars, place + 2, "*/");
        } else if c == '"' {
            place = after_string(&chars, place + 1);
            tokens.extend(string(place));
        } else if c == '\'' {
            // A character, or a lifetime.
            place = if at(place + 1) == '\\' {
                after(&chars, place + 3, "'")
            } else if at(place + 2) == '\'' {
                place + 3
            } else {
                place + 1
            };
        } else if c.is_alphanumeric() || c == '_' {
            while at(place).is_alphanumeric() || at(place) == '_' {
                place += 1;
            }
            let word: String = chars[start..place].iter().collect();
            let hashes = chars[place..].iter().take_while(|c| **c == '#').count();
            let raw = ["r", "br", "cr"].contains(&word.as_str()) && at(place + hashes) == '"';
            if raw {
                let end = format!("\"{}", "#".repeat(hashes));
                place = after(&chars, place + hashes + 1, &end);
                tokens.extend(string(place));
            } else {
                tokens.push((word, line));
            }
        } else {
            place += if c == ':' && at(place + 1) == ':' {
                2
            } else {
                1
            };
            if !c.is_whitespace() {
                tokens.push((chars[start..place].iter().collect(), line));
            }
        }
    }
    tokens
}

fn after(chars: &[char], from: usize, end: &str) -> usize {
    let end: Vec<char> = end.chars().collect();
    let from = from.min(chars.len());
    let found = chars[from..]
        .windows(end.len())
        .position(|window| window == end);
    found.map_or(chars.len(), |place| from + place + end.len())
}

fn after_string(chars: &[char], mut place: usize) -> usize {
    while place < chars.len() && chars[place] != '"' {
        place += if chars[place] == '\\' { 2 } else { 1 };
    }
    place + 1
}

/// Without the items that only tests compile, or fuzzers, and without the attributes that other items
/// have for tests alone.
fn without_tests(tokens: Vec<(String, usize)>) -> Vec<(String, usize)> {
    // A string is a quotation mark.
    const FOR_TESTS: [&str; 2] = ["#[cfg(test)]", "#[cfg(any(test,feature=\"))]"];
    const ATTRIBUTE_FOR_TESTS: &str = "#[cfg_attr(test,";
    let mut kept = Vec::new();
    let mut place = 0;
    while place < tokens.len() {
        let attribute = |end: usize| tokens[place..end].iter().map(|(token, _)| token.as_str());
        let begins_with = |end: usize, text: &str| attribute(end).collect::<String>() == text;
        let mut ends = (place + 1..=tokens.len()).take(14);
        let is_attribute = tokens[place].0 == "#";
        let is_for_tests = |&end: &usize| {
            let mut all = FOR_TESTS.iter().chain([&ATTRIBUTE_FOR_TESTS]);
            all.any(|text| begins_with(end, text))
        };
        let found = is_attribute.then(|| ends.find(is_for_tests));
        let Some(end) = found.flatten() else {
            kept.push(tokens[place].clone());
            place += 1;
            continue;
        };
        let (open, close, ends_with) = if begins_with(end, ATTRIBUTE_FOR_TESTS) {
            place += 1;
            ("[", "]", &["]"][..])
        } else {
            place = end;
            ("{", "}", &["}", ";"][..])
        };
        let mut depth = 0;
        while place < tokens.len() {
            let token = tokens[place].0.as_str();
            place += 1;
            depth += i32::from(token == open);
            depth -= i32::from(token == close);
            if depth == 0 && ends_with.contains(&token) {
                break;
            }
        }
    }
    kept
}
