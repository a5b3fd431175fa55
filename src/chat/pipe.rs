//! Standard input that is no terminal: lines, read when there is something to read and room for it.

use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::command::Target;

/// The longest line that is read at all. What the gateway takes is less.
const LONGEST: usize = 1 << 20;
const CHUNK: usize = 16 << 10;

pub(super) struct Pipe {
    /// Whom all lines are for.
    pub target: Option<Target>,
    stdin: io::Stdin,
    bytes: Vec<u8>,
    /// The line that is being read is too long; its rest is passed over.
    is_overlong: bool,
    has_ended: bool,
    /// How many lines there were.
    lines: usize,
}

/// A line with its number, from 1 on, or why it cannot be sent.
pub(super) type Line = (usize, Result<String, String>);

impl Pipe {
    pub fn new(target: Option<Target>) -> Self {
        Self {
            target,
            stdin: io::stdin(),
            bytes: Vec::new(),
            is_overlong: false,
            has_ended: false,
            lines: 0,
        }
    }

    /// Reads what is there. To be called when the descriptor is readable.
    pub fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; CHUNK];
        match rustix::io::read(&self.stdin, &mut chunk) {
            Ok(0) => self.has_ended = true,
            Ok(count) => self.take_in(&chunk[..count]),
            // Somebody else may have read it, where it is shared.
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn take_in(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
        let has_line = self.bytes.contains(&b'\n');
        if !has_line && self.bytes.len() > LONGEST {
            self.is_overlong = true;
            self.bytes.clear();
        }
    }

    /// The next line that has come. The last one may have no line end.
    pub fn next(&mut self) -> Option<Line> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n');
        let line = match end {
            Some(end) => {
                let rest = self.bytes.split_off(end + 1);
                mem::replace(&mut self.bytes, rest)
            }
            None if self.has_ended && (!self.bytes.is_empty() || self.is_overlong) => {
                mem::take(&mut self.bytes)
            }
            None => return None,
        };
        self.lines += 1;
        let is_overlong = mem::take(&mut self.is_overlong) || line.len() > LONGEST;
        Some((self.lines, text(line, is_overlong)))
    }

    pub fn has_ended(&self) -> bool {
        self.has_ended
    }
}

fn text(mut line: Vec<u8>, is_overlong: bool) -> Result<String, String> {
    if is_overlong {
        return Err(format!("is longer than {LONGEST} bytes"));
    }
    for end in [b'\n', b'\r'] {
        line.pop_if(|last| *last == end);
    }
    String::from_utf8(line).map_err(|_| "is not UTF-8".into())
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stdin.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<Line> {
        let mut pipe = Pipe::new(None);
        let mut lines = Vec::new();
        for chunk in chunks {
            pipe.take_in(chunk);
            lines.extend(std::iter::from_fn(|| pipe.next()));
        }
        pipe.has_ended = true;
        lines.extend(std::iter::from_fn(|| pipe.next()));
        lines
    }

    fn read(chunks: &[&[u8]]) -> Vec<String> {
        let lines = lines(chunks).into_iter();
        lines.map(|(_, line)| line.expect("a line")).collect()
    }

    #[test]
    fn lines_are_the_same_however_they_come() {
        assert_eq!(read(&[b"a\nb\r\n\nc"]), ["a", "b", "", "c"]);
        assert_eq!(read(&[b"a", b"\nb\r", b"\n\n", b"c"]), ["a", "b", "", "c"]);
        assert_eq!(read(&[b"/quit\n"]), ["/quit"], "no line is a command");
        assert!(lines(&[]).is_empty());
    }

    #[test]
    fn what_is_no_text_or_too_long_costs_itself_alone() {
        let long = vec![b'x'; CHUNK];
        let mut chunks: Vec<&[u8]> = vec![b"a\n\xff\n"];
        chunks.extend((0..=LONGEST / CHUNK).map(|_| &long[..]));
        chunks.push(b"\nb\n");
        let read = lines(&chunks);
        let told: Vec<_> = read
            .iter()
            .map(|(number, line)| (*number, line.as_ref().ok()))
            .collect();
        let (a, b) = ("a".to_owned(), "b".to_owned());
        assert_eq!(told, [(1, Some(&a)), (2, None), (3, None), (4, Some(&b))]);
        assert_eq!(read[1].1, Err("is not UTF-8".into()));
    }
}
