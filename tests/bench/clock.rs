//! CLOCK_MONOTONIC, which all processes of the machine share, and message contents that carry it:
//! whoever reads one knows how long ago it was published.

use rustix::time::{ClockId, clock_gettime};

/// What stands before the time stamp in a content, as JSON.
const CONTENT: &[u8] = br#""content":"t="#;
/// What stands before the time stamp that is a request's name, in its answer.
const REQUEST: &[u8] = br#""request_id":"t="#;
/// Nanoseconds in decimal, with leading zeros.
const DIGITS: usize = 19;

/// Nanoseconds since some moment before the machine's start.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A content of exactly `size` bytes, at least 21, that says that it was made at `stamp`.
pub fn content(stamp: u64, size: usize) -> String {
    let mut content = self::stamp(stamp);
    content.extend(std::iter::repeat_n('x', size.saturating_sub(content.len())));
    content
}

/// A time stamp as [`Stamps`] finds it.
pub fn stamp(stamp: u64) -> String {
    format!("t={stamp:0DIGITS$}")
}

/// Finds time stamps in frames. All frames of one kind look alike, so it looks first where it
/// found the last one.
pub struct Stamps {
    mark: &'static [u8],
    place: usize,
}

impl Stamps {
    /// Those in the contents of pushes.
    pub fn of_contents() -> Self {
        Self {
            mark: CONTENT,
            place: 0,
        }
    }

    /// Those in the answers to requests that have one as their `request_id`.
    pub fn of_requests() -> Self {
        Self {
            mark: REQUEST,
            place: 0,
        }
    }

    pub fn read(&mut self, payload: &[u8]) -> Option<u64> {
        let is_there = |rest: &[u8]| rest.starts_with(self.mark);
        if !payload.get(self.place..).is_some_and(is_there) {
            self.place = payload
                .windows(self.mark.len())
                .position(|window| window == self.mark)?;
        }
        let start = self.place + self.mark.len();
        let digits = payload.get(start..start + DIGITS)?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    }
}

/// Puts another moment into all time stamps of contents in a broker's `bytes`, whatever is around them.
pub fn restamp(bytes: &mut [u8], stamp: u64) {
    let stamp = self::stamp(stamp);
    let (mark, length) = (&stamp.as_bytes()[..2], stamp.len());
    let mut place = 0;
    while let Some(found) = bytes.get(place..place + length) {
        if found.starts_with(mark) && found[2..].iter().all(u8::is_ascii_digit) {
            bytes[place..place + length].copy_from_slice(stamp.as_bytes());
            place += length;
        } else {
            place += 1;
        }
    }
}

/// The value below which the part `share` of `sorted` lies; 0 of nothing.
pub fn percentile(sorted: &[u32], share: f64) -> u32 {
    let last = sorted.len().saturating_sub(1);
    let place = (last as f64 * share).round() as usize;
    sorted.get(place).copied().unwrap_or(0)
}
