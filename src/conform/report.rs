//! What was seen of each rule, a line each, as soon as it is.

use std::fmt::Display;
use std::io::Write;

/// What became of a rule. `Ok`: it was kept.
pub type Verdict<T = ()> = Result<T, Trouble>;

#[derive(Debug, PartialEq, Eq)]
pub enum Trouble {
    /// What was seen instead.
    Broken(String),
    /// The client was not there, or did not do that of which the rule speaks.
    NotSeen,
}

pub fn broken<T>(seen: impl Into<String>) -> Verdict<T> {
    Err(Trouble::Broken(seen.into()))
}

/// A rule is broken, unless this holds; `seen` says what was seen instead.
pub fn ensure(holds: bool, seen: impl Into<String>) -> Verdict {
    if holds { Ok(()) } else { broken(seen) }
}

/// Writes the verdicts, and counts them.
pub struct Report<W> {
    out: W,
    kept: usize,
    others: usize,
}

impl<W: Write> Report<W> {
    pub fn new(out: W) -> Self {
        let (kept, others) = (0, 0);
        Self { out, kept, others }
    }

    pub fn line(&mut self, line: impl Display) {
        // Whoever closed the output does not want to know.
        let _ = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
    }

    /// Of the rule `name`: what the client `must` do, and what to mend where it does not.
    pub fn verdict(&mut self, name: &str, must: &str, cure: &str, verdict: &Verdict) {
        match verdict {
            Ok(()) => self.kept += 1,
            Err(_) => self.others += 1,
        }
        match verdict {
            Ok(()) => self.line(format_args!("kept      {name}: {must}")),
            Err(Trouble::Broken(seen)) => self.line(format_args!(
                "broken    {name}: expected: {must}; seen: {seen}; cure: {cure}"
            )),
            Err(Trouble::NotSeen) => self.line(format_args!("not seen  {name}: {must}")),
        }
    }

    /// How many were kept. Answers whether all were.
    pub fn summary(&mut self) -> bool {
        let Self { kept, others, .. } = *self;
        self.line(format_args!("{kept} of {} rules kept", kept + others));
        others == 0
    }
}
