//! What anybody can cause is logged in few lines.

use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How many lines of one kind are written in a second.
const LINES_PER_SECOND: usize = 5;

/// Lets a few lines of a kind through each second: for what anybody can cause, who needs no token to do
/// it ten thousand times.
pub struct LineLimit(Mutex<Second>);

struct Second {
    began: Option<Instant>,
    written: usize,
    left_out: usize,
}

impl LineLimit {
    pub const fn new() -> Self {
        Self(Mutex::new(Second {
            began: None,
            written: 0,
            left_out: 0,
        }))
    }

    /// What to write behind the line; `None`: leave the line out.
    pub fn pass(&self) -> Option<LeftOut> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<LeftOut> {
        let mut second = self.0.lock();
        let is_over = |began: Instant| now.duration_since(began) >= Duration::from_secs(1);
        if second.began.is_none_or(is_over) {
            (second.began, second.written) = (Some(now), 0);
        }
        if second.written == LINES_PER_SECOND {
            second.left_out += 1;
            return None;
        }
        second.written += 1;
        Some(LeftOut(std::mem::take(&mut second.left_out)))
    }
}

impl Default for LineLimit {
    fn default() -> Self {
        Self::new()
    }
}

/// How many lines were left out before this one: `, left_out=7`, or nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct LeftOut(usize);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, ", left_out={count}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_lines_a_second_pass_and_the_rest_is_counted() {
        let limit = LineLimit::new();
        let start = Instant::now();
        for _ in 0..LINES_PER_SECOND {
            assert_eq!(limit.pass_at(start), Some(LeftOut(0)));
        }
        for _ in 0..7 {
            assert_eq!(limit.pass_at(start + Duration::from_millis(999)), None);
        }
        let next = limit.pass_at(start + Duration::from_secs(1));
        assert_eq!(
            next.map(|it| it.to_string()).as_deref(),
            Some(", left_out=7")
        );
        assert_eq!(
            limit.pass_at(start + Duration::from_secs(1)),
            Some(LeftOut(0))
        );
    }
}
