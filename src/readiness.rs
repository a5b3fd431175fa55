//! Whether this gateway can do its work, and if not, why: the answer to `GET /readyz`.

use std::mem;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use serde_json::{Map, Value, json};

type Probe = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The checks of a gateway. Parts add theirs when they are built.
#[derive(Default)]
pub struct Readiness {
    /// A check's name, whether the gateway is not ready while it fails, and how to ask it.
    checks: RwLock<Vec<(&'static str, bool, Probe)>>,
}

/// What the checks say at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    ready: bool,
    checks: Map<String, Value>,
}

impl Readiness {
    /// Adds a check; the gateway is not ready while a `decisive` one fails. `probe` answers at once,
    /// and says in its error what is wrong.
    pub fn add(
        &self,
        name: &'static str,
        decisive: bool,
        probe: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        let probe: Probe = Box::new(probe);
        self.checks.write().push((name, decisive, probe));
    }

    /// Adds a check that says what the last of several tries came to.
    pub fn show(&self, name: &'static str, decisive: bool, last: LastOutcome) {
        self.add(name, decisive, move || last.get());
    }

    /// Whether the check of this name is there and does not fail.
    pub fn passes(&self, name: &str) -> bool {
        let checks = self.checks.read();
        let check = checks.iter().find(|(other, ..)| *other == name);
        check.is_some_and(|(.., probe)| probe().is_ok())
    }

    /// Asks every check.
    pub fn check(&self) -> Report {
        let (mut ready, mut checks) = (true, Map::new());
        for (name, decisive, probe) in self.checks.read().iter() {
            let state = match probe() {
                Ok(()) => json!({ "ok": true }),
                Err(reason) => {
                    ready &= !decisive;
                    json!({ "ok": false, "reason": reason })
                }
            };
            checks.insert((*name).into(), state);
        }
        Report { ready, checks }
    }
}

impl Report {
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    pub fn to_json(&self) -> String {
        // Strings, booleans and maps with string keys: serialising them does not fail.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

/// What the last of several tries came to: what a check says, and when it is worth a log line. An
/// error is what is wrong.
#[derive(Debug, Clone)]
pub struct LastOutcome(Arc<Mutex<Result<(), String>>>);

impl LastOutcome {
    /// Before the first try.
    pub fn new(outcome: Result<(), String>) -> Self {
        Self(Arc::new(Mutex::new(outcome)))
    }

    /// Remembers an outcome. Answers whether it differs from the one before.
    pub fn record(&self, outcome: &Result<(), String>) -> bool {
        let before = mem::replace(&mut *self.0.lock(), outcome.clone());
        before != *outcome
    }

    pub fn get(&self) -> Result<(), String> {
        self.0.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Report {
        /// The names of the checks that fail, with their reasons.
        fn failures(&self) -> Vec<String> {
            let failed = self.checks.iter().filter_map(|(name, state)| {
                state["reason"]
                    .as_str()
                    .map(|reason| format!("{name}: {reason}"))
            });
            failed.collect()
        }
    }

    #[test]
    fn only_a_decisive_check_makes_it_unready() {
        let readiness = Readiness::default();
        readiness.add("presence_service", false, || Err("away".into()));
        assert!(readiness.check().is_ready());
        assert_eq!(readiness.check().failures(), ["presence_service: away"]);
        readiness.add("broker", true, || Err("away".into()));
        assert!(!readiness.check().is_ready());
    }
}
