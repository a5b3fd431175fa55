//! No log line is written while a lock is held: the log goes to a file or a terminal, and whoever
//! waits for the lock would wait for that. It reads `src/` as text: what it cannot see is a lock that
//! a caller holds.

use std::path::Path;

use crate::support::paths::{Source, read};

const LOCKS: [&str; 4] = ["lock", "read", "write", "try_lock"];
const LOGS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "log_limited"];

/// A lock that is held: until its block ends, or it is dropped by its name.
struct Guard {
    name: Option<String>,
    depth: usize,
}

/// Reads one file's tokens, statement by statement.
struct Reader<'t> {
    tokens: &'t [String],
    guards: Vec<Guard>,
    depth: usize,
    /// Where the statement, or the head of the block, begins.
    start: usize,
    violations: usize,
}

impl Reader<'_> {
    fn is(&self, place: usize, expected: &[&str]) -> bool {
        let found = self.tokens.iter().skip(place).map(String::as_str);
        found.take(expected.len()).eq(expected.iter().copied())
    }

    /// Whether `.lock()` and the like stand here.
    fn locks(&self, place: usize) -> bool {
        LOCKS
            .iter()
            .any(|lock| self.is(place, &[".", lock, "(", ")"]))
    }

    fn any_lock(&self, places: std::ops::Range<usize>) -> bool {
        places.into_iter().any(|place| self.locks(place))
    }

    fn run(mut self) -> usize {
        let mut place = 0;
        while place < self.tokens.len() {
            match self.tokens[place].as_str() {
                ";" => {
                    self.end_statement(place);
                    self.start = place + 1;
                }
                "{" => self.open(place),
                "}" => {
                    self.depth = self.depth.saturating_sub(1);
                    self.guards.retain(|guard| guard.depth <= self.depth);
                    self.start = place + 1;
                }
                "drop" if self.is(place + 1, &["("]) && self.is(place + 3, &[")"]) => {
                    let name = self.tokens.get(place + 2);
                    self.guards.retain(|guard| guard.name.as_ref() != name);
                }
                log if LOGS.contains(&log) && self.is(place + 1, &["!"]) => {
                    let end = self.end_of_parentheses(place + 2);
                    let within = self.any_lock(self.start..end);
                    self.violations += usize::from(within || !self.guards.is_empty());
                    place = end;
                    continue;
                }
                _ => {}
            }
            place += 1;
        }
        self.violations
    }

    /// `let guard = mutex.lock();` holds it until the block ends; every other statement drops it at
    /// its own end.
    fn end_statement(&mut self, end: usize) {
        let binds = self.is(self.start, &["let"]) && end >= 4 && self.locks(end - 4);
        if binds {
            self.hold_bound(self.depth);
        }
    }

    fn hold_bound(&mut self, depth: usize) {
        let pattern = self.tokens[self.start..].iter();
        let pattern = pattern.take_while(|token| !["=", ":"].contains(&token.as_str()));
        let names = pattern.filter(|token| token.starts_with(|c: char| c.is_alphabetic()));
        let name = names.last().cloned();
        self.guards.push(Guard { name, depth });
    }

    fn open(&mut self, place: usize) {
        let head = &self.tokens[self.start..place];
        let has = |word: &str| head.iter().any(|token| token == word);
        let locks = self.any_lock(self.start..place);
        let conditional = has("if") || has("while");
        if locks && has("let") && has("else") && !conditional && !has("match") {
            // `let Some(guard) = mutex.try_lock() else {`
            self.hold_bound(self.depth);
        } else if locks && (has("match") || has("for") || (conditional && has("let"))) {
            let (name, depth) = (None, self.depth + 1);
            self.guards.push(Guard { name, depth });
        }
        self.depth += 1;
        self.start = place + 1;
    }

    fn end_of_parentheses(&self, open: usize) -> usize {
        let mut depth = 0;
        for (place, token) in self.tokens.iter().enumerate().skip(open) {
            match token.as_str() {
                "(" => depth += 1,
                ")" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return place + 1;
            }
        }
        self.tokens.len()
    }
}

/// How many log lines of `source` are written under a lock.
fn violations(source: &Source) -> usize {
    let reader = Reader {
        tokens: &source.tokens,
        guards: Vec::new(),
        depth: 0,
        start: 0,
        violations: 0,
    };
    reader.run()
}

#[test]
fn no_log_line_is_written_under_a_lock() {
    let sources = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let found: Vec<_> = sources
        .iter()
        .map(|source| (source.file.as_str(), violations(source)))
        .filter(|(_, count)| *count > 0)
        .collect();
    assert!(found.is_empty(), "log lines under locks: {found:?}");
}

#[test]
fn every_way_of_logging_under_a_lock_is_found() {
    for text in [
        "let mut state = self.state.lock(); state.x(); warn!(\"a\");",
        "let state = self.state.lock(); if state.x { for y in z { log::info!(\"a\"); } }",
        "let state = self.map.read(); state.x(); info!(\"a\"); drop(state);",
        "let Some(mut side) = self.side.try_lock() else { return; }; error!(\"a\");",
        "match self.state.lock().x { X => {} Y => warn!(\"a\") }",
        "match &mut *self.state.lock() { X => { debug!(\"a\") } }",
        "if let Some(x) = self.state.lock().x() { warn!(\"a\") }",
        "if x && let Some(x) = self.state.lock().x() { warn!(\"a\") }",
        "while let Some(x) = self.state.lock().pop() { info!(\"a\"); }",
        "for x in self.map.write().values() { info!(\"a\"); }",
        "info!(\"a\", self.state.lock().len());",
        "self.state.lock().each(|x| warn!(\"a\"));",
        "let state = self.state.lock(); log_limited!(warn, \"a\");",
    ] {
        let source = Source::new("x.rs", &format!("fn f() {{ {text} }}"));
        assert_eq!(violations(&source), 1, "{text}");
    }
}

#[test]
fn what_is_logged_once_the_lock_is_free_is_let_through() {
    for text in [
        "let mut state = self.state.lock(); drop(state); warn!(\"a\");",
        "{ let state = self.state.lock(); state.x(); } warn!(\"a\");",
        "let x = { let state = self.state.lock(); state.x() }; warn!(\"a\");",
        "let x = self.state.lock().take(); if x.is_some() { info!(\"a\"); }",
        "let x = replace(&mut *self.state.lock(), y); match x { X => warn!(\"a\") }",
        "if self.state.lock().is_full() { warn!(\"a\"); }",
        "self.state.lock().x = true; warn!(\"a\");",
        "if let Some(x) = self.state.lock().x() { x.y(); } info!(\"a\");",
        "let read = socket.read(&mut bytes); warn!(\"a\");",
        "// self.state.lock()\nwarn!(\"let x = y.lock();\");",
    ] {
        let source = Source::new("x.rs", &format!("fn f() {{ {text} }}"));
        assert_eq!(violations(&source), 0, "{text}");
    }
}
