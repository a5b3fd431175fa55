//! What was found, a line each, as soon as it is.

use std::fmt::Display;
use std::io::Write;

/// Writes `ok: …` and `failed: …`, and remembers whether the gateway would be ready.
pub struct Report<W> {
    out: W,
    is_ready: bool,
}

impl<W: Write> Report<W> {
    pub fn new(out: W) -> Self {
        let is_ready = true;
        Self { out, is_ready }
    }

    /// Nothing failed that the gateway needs.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    pub(super) fn ok(&mut self, found: impl Display) {
        self.line(format_args!("ok: {found}"));
    }

    /// Without it the gateway is not ready. `found` says what is wrong, `cure` what to do.
    pub(super) fn failed(&mut self, found: impl Display, cure: impl Display) {
        self.is_ready = false;
        self.line(format_args!("failed: {found}: {cure}"));
    }

    /// The gateway is ready without it.
    pub(super) fn lacking(&mut self, found: impl Display, cure: impl Display) {
        self.line(format_args!(
            "failed: {found}: {cure} (the gateway is ready without it)"
        ));
    }

    fn line(&mut self, line: impl Display) {
        // Whoever closed the output does not want to know.
        let _ = writeln!(self.out, "{line}");
    }
}
