//! Properties of what a broker sends, for [`fuzzing`](crate::fuzzing).

use std::io::{self, ErrorKind, Read};

use super::sanitize::Frames;
use crate::fuzzing::pieces;

/// A broker whose bytes come piece by piece, with nothing there in between.
struct Broker<'a, P> {
    pieces: P,
    piece: &'a [u8],
    has_come: bool,
}

impl<'a, P: Iterator<Item = &'a [u8]>> Read for Broker<'a, P> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            self.has_come = !self.has_come;
            if !self.has_come {
                return Err(ErrorKind::WouldBlock.into());
            }
            let Some(piece) = self.pieces.next() else {
                return Ok(0);
            };
            self.piece = piece;
        }
        self.piece.read(into)
    }
}

/// What amiquip would get, and whether it ends with an error.
fn sanitized<'a>(pieces: impl Iterator<Item = &'a [u8]>, at_once: usize) -> (Vec<u8>, bool) {
    let mut broker = Broker {
        pieces,
        piece: &[],
        has_come: false,
    };
    let (mut frames, mut passed, mut into) = (Frames::default(), Vec::new(), vec![0; at_once]);
    loop {
        match frames.read(&mut broker, &mut into) {
            Ok(0) => return (passed, false),
            Ok(count) => passed.extend(&into[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidData);
                return (passed, true);
            }
        }
    }
}

const HEAD: usize = 7;

/// Whether amiquip can read the frames that `bytes` begin with: the strings of a delivery are UTF-8,
/// and a content header has no property but a `type` that is.
fn is_safe(mut bytes: &[u8]) -> bool {
    while let Some(&[kind, _, _, size @ ..]) = bytes.first_chunk::<HEAD>() {
        let size = u32::from_be_bytes(size) as usize;
        let Some(payload) = bytes.get(HEAD..HEAD + size) else {
            // A body comes in parts; any other frame is passed on whole.
            return kind == 3 || kind == 8;
        };
        let is_safe = match (kind, payload) {
            (1, [0, 60, 0, 60, fields @ ..]) => {
                let behind_tag = short_string(fields).and_then(|rest| rest.get(9..));
                let behind_exchange = behind_tag.and_then(short_string);
                behind_exchange.and_then(short_string).is_some()
            }
            (2, [_, _, _, _, _, _, _, _, _, _, _, _, 0, 0, ..]) => true,
            (2, [_, _, _, _, _, _, _, _, _, _, _, _, 0, 0x20, rest @ ..]) => {
                short_string(rest).is_some()
            }
            (2, _) => false,
            _ => true,
        };
        if !is_safe {
            return false;
        }
        bytes = bytes.get(HEAD + size + 1..).unwrap_or_default();
    }
    true
}

/// What follows a short string; `None` if there is none, or it is not UTF-8.
fn short_string(fields: &[u8]) -> Option<&[u8]> {
    let (&length, rest) = fields.split_first()?;
    let (string, rest) = rest.split_at_checked(usize::from(length))?;
    str::from_utf8(string).ok()?;
    Some(rest)
}

/// Whatever a broker sends, and in what pieces: what is passed on amiquip can read, it is as long as
/// what came, and there is nothing more to be changed in it.
pub fn amqp_frames(input: &[u8]) {
    let (sizes, bytes) = input.split_at(input.len().min(4));
    let (passed, is_broken) = sanitized([bytes].into_iter(), 4_096);
    assert!(passed.len() <= bytes.len() && is_safe(&passed));
    let split = sanitized(
        pieces(bytes, sizes),
        1 + usize::from(*sizes.first().unwrap_or(&0)),
    );
    assert_eq!(split.1, is_broken, "in pieces");
    assert!(is_safe(&split.0));
    if !is_broken {
        assert_eq!(split.0, passed, "in pieces");
    }
    let (again, _) = sanitized([&passed[..]].into_iter(), 4_096);
    assert!(passed.starts_with(&again));
    assert!(is_broken || again == passed, "once more");
}
