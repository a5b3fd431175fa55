//! Makes what a broker sends such that amiquip 0.4.2 can parse it. A short string that is not UTF-8
//! ends its connection, and it parses tables recursively: one publication would end the connection
//! of every gateway again and again, or the process.
//!
//! Only whole frames can be judged (AMQP 0-9-1, section 4.2.2), so they are put together here, and
//! changed in their place: amiquip passes over what is left in a frame behind its fields. A name that
//! is not UTF-8 becomes one that nobody has. Of a content header's properties only `type` is left.
//! Bodies pass untouched, as they come. Where a function answers `None`, it is no AMQP frame, or its
//! fields do not fit into it.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;

use Field::{Bytes, Name, Table, Text};

/// One read's worth, and some 200 deliveries of 300 bytes.
const BUFFER: usize = 64 << 10;
/// Larger than any frame that is meant: bodies come in frames of 128 KiB at most, as agreed.
const LARGEST: usize = 16 << 20;

const NO_FRAME: &str = "no AMQP frame; where TLS is spoken, the URL is to begin with amqps://";
/// Type, channel and size.
const HEAD: usize = 7;
const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// Class, weight and body size, before the property flags.
const BEFORE_FLAGS: usize = 12;
/// The properties' flags go down from bit 15, `content-type`.
const TYPE_FLAG: u16 = 1 << 5;

#[derive(Clone, Copy)]
enum Field {
    Bytes(usize),
    /// A short string that means nothing unless it is whole.
    Name,
    /// A short string for people.
    Text,
    Table,
}

/// The frames that were read and not passed on yet.
#[derive(Default)]
pub struct Frames {
    /// What has been read.
    buffer: Vec<u8>,
    /// How much of `buffer` is filled, with what has not been judged yet.
    filled: usize,
    /// How much of the present frame needs no judging any more, or none at all: a body.
    passing: usize,
    /// What may be passed on.
    judged: VecDeque<u8>,
}

impl Frames {
    /// Reads as `source` would, and passes on what amiquip can parse. `source` is asked only when
    /// there is nothing to pass on: its `WouldBlock` means that all of it has been.
    pub fn read(&mut self, source: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
        while self.judged.is_empty() && !into.is_empty() {
            if self.filled == self.buffer.len() {
                self.buffer.resize(BUFFER.max(2 * self.buffer.len()), 0);
            }
            let read = source.read(&mut self.buffer[self.filled..])?;
            if read == 0 {
                return Ok(0);
            }
            self.filled += read;
            let malformed = || io::Error::new(io::ErrorKind::InvalidData, NO_FRAME);
            self.judge().ok_or_else(malformed)?;
        }
        self.judged.read(into)
    }

    /// Judges what has been read, as far as its frames are whole.
    fn judge(&mut self) -> Option<()> {
        let mut rest = &mut self.buffer[..self.filled];
        loop {
            let count = self.passing.min(rest.len());
            self.judged.extend(&*rest.split_off_mut(..count)?);
            self.passing -= count;
            let Some(&[kind, _, _, size @ ..]) = rest.first_chunk::<HEAD>() else {
                break;
            };
            let whole = HEAD + u32::from_be_bytes(size) as usize + 1;
            match kind {
                _ if whole > LARGEST => return None,
                METHOD | CONTENT_HEADER if whole > rest.len() => break,
                METHOD => method(&mut rest[HEAD..whole - 1])?,
                CONTENT_HEADER => content_header(&mut rest[HEAD..whole - 1])?,
                BODY | HEARTBEAT => {}
                _ => return None,
            }
            self.passing = whole;
        }
        let left = rest.len();
        self.buffer.copy_within(self.filled - left..self.filled, 0);
        self.filled = left;
        Some(())
    }
}

/// Makes a method's strings UTF-8.
fn method(payload: &mut [u8]) -> Option<()> {
    let (method, mut rest) = payload.split_first_chunk_mut()?;
    let fields: &[Field] = match method {
        [0, 10, 0, 10] => return connection_start(rest),
        [0, 10, 0, 50] | [0, 20, 0, 40] => &[Bytes(2), Text], // close
        [0, 10, 0, 60] => &[Text],                            // blocked
        [0, 60, 0, 60] => &[Name, Bytes(9), Name, Name],      // deliver
        // Numbers, and names that the gateway or the broker has given; or it is never asked for.
        _ => &[],
    };
    for field in fields {
        split_off(*field, &mut rest)?;
    }
    Some(())
}

/// Leaves out the server's properties, a table that nobody reads.
fn connection_start(fields: &mut [u8]) -> Option<()> {
    /// The version.
    const BEFORE_TABLE: usize = 2;
    let fields = fields.get_mut(BEFORE_TABLE..)?;
    let table = split_off(Table, &mut &mut *fields)?.len();
    fields[..4].fill(0);
    keep(fields, 4, table..fields.len());
    Some(())
}

/// Leaves `type` of the properties, or none. Where they cannot be read, `type` is one that nobody
/// knows.
fn content_header(payload: &mut [u8]) -> Option<()> {
    let list = payload.get_mut(BEFORE_FLAGS..)?;
    let kind = match find_type(list) {
        Some(kind) => kind,
        None => {
            list.get_mut(2..4)?.copy_from_slice(&[1, b'?']);
            2..4
        }
    };
    let flags = if kind.is_empty() { 0 } else { TYPE_FLAG };
    list[..2].copy_from_slice(&flags.to_be_bytes());
    keep(list, 2, kind);
    Some(())
}

/// Has nothing but `kept` follow the first bytes, up to `at`.
fn keep(bytes: &mut [u8], at: usize, kept: Range<usize>) {
    let end = at + kept.len();
    bytes.copy_within(kept, at);
    bytes[end..].fill(0);
}

/// Where the `type` of a property list is that begins with its flags, with its length byte; empty
/// when there is none.
fn find_type(list: &mut [u8]) -> Option<Range<usize>> {
    /// Another word of flags follows.
    const MORE: u8 = 1;
    let (length, present) = (list.len(), u16::from_be_bytes(*list.first_chunk()?));
    if present & TYPE_FLAG == 0 {
        return Some(2..2);
    }
    let (words, _) = list.as_chunks();
    let last_word = words.iter().position(|[_, low]| low & MORE == 0)?;
    let mut values = &mut list[2 * (last_word + 1)..];
    // What is in front of `type`, from the highest flag on.
    for bit in (6..16).rev().filter(|bit| present & (1 << bit) != 0) {
        let field = match bit {
            13 => Table,         // headers
            11 | 12 => Bytes(1), // delivery-mode and priority
            6 => Bytes(8),       // timestamp
            // The content's type and encoding, correlation-id, reply-to, expiration, message-id.
            _ => Name,
        };
        split_off(field, &mut values)?;
    }
    let start = length - values.len();
    let kind = split_off(Name, &mut values)?;
    Some(start..start + kind.len())
}

/// Splits a field off that `bytes` begin with. A string of it is UTF-8 then.
fn split_off<'a>(field: Field, bytes: &mut &'a mut [u8]) -> Option<&'a [u8]> {
    let length = match field {
        Bytes(count) => count,
        Name | Text => 1 + usize::from(*bytes.first()?),
        Table => 4 + u32::from_be_bytes(*bytes.first_chunk()?) as usize,
    };
    let value = bytes.split_off_mut(..length)?;
    if let Name | Text = field {
        make_utf8(field, &mut value[1..]);
    }
    Some(value)
}

/// Overwrites what is not UTF-8. Of a name that is all of it, lest it become a similar one: no key
/// that is somebody's begins with a question mark, and no `type` is made of them.
fn make_utf8(field: Field, string: &mut [u8]) {
    let mut from = 0;
    while let Err(error) = str::from_utf8(&string[from..]) {
        if let Name = field {
            return string.fill(b'?');
        }
        from += error.valid_up_to();
        string[from] = b'?';
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    /// Numbers that look random, the same in each run.
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self, below: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 16) as usize % below
        }

        fn bytes(&mut self, below: usize) -> Vec<u8> {
            (0..self.next(below))
                .map(|_| self.next(256) as u8)
                .collect()
        }

        /// A short string: UTF-8 or not, and sometimes of the largest size.
        fn short(&mut self) -> Vec<u8> {
            match self.next(6) {
                0 => self.bytes(256),
                1 => vec![b'k'; 255],
                2 => vec![0xE9; 255],
                3 => b"group.caf\xe9".to_vec(),
                4 => "user.\u{e9}\0".into(),
                _ => b"session_revoked".to_vec(),
            }
        }
    }

    fn frame(kind: u8, channel: u8, payload: &[u8]) -> Vec<u8> {
        let size = (payload.len() as u32).to_be_bytes();
        [&[kind, 0, channel], &size[..], payload, &[0xCE]].concat()
    }

    fn short(string: &[u8]) -> Vec<u8> {
        [&[string.len() as u8], string].concat()
    }

    fn deliver(tag: &[u8], exchange: &[u8], key: &[u8]) -> Vec<u8> {
        let tag = [&[0, 60, 0, 60], &short(tag)[..]].concat();
        let payload = [
            tag,
            vec![0, 0, 0, 0, 0, 0, 1, 0, 1],
            short(exchange),
            short(key),
        ];
        frame(METHOD, 7, &payload.concat())
    }

    fn header(flags: &[u16], values: &[u8]) -> Vec<u8> {
        let flags = flags.iter().flat_map(|word| word.to_be_bytes());
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3];
        payload.extend(flags);
        payload.extend(values);
        frame(CONTENT_HEADER, 7, &payload)
    }

    /// The frame with nothing but zeros where its payload is longer than that of `left`.
    fn emptied(frame: &[u8], left: &[u8]) -> Vec<u8> {
        let (size, (end, left)) = (frame.len(), left.split_last().unwrap());
        let mut emptied = [&frame[..HEAD], &left[HEAD..]].concat();
        emptied.resize(size - 1, 0);
        emptied.push(*end);
        emptied
    }

    /// A content header with all 14 properties, or those in `mask`, and what becomes of it.
    fn properties(numbers: &mut Numbers, mask: u16) -> (Vec<u8>, Vec<u8>) {
        let mut values = Vec::new();
        let mut left = (vec![0_u16], Vec::new());
        for bit in (2..16).rev().filter(|bit| mask & (1 << bit) != 0) {
            let value = match bit {
                13 => {
                    let table = numbers.bytes(2_000);
                    [&(table.len() as u32).to_be_bytes()[..], &table].concat()
                }
                11 | 12 => vec![0xFF],
                6 => vec![0xFF; 8],
                5 => {
                    let kind = numbers.short();
                    left = (vec![TYPE_FLAG], short(&expected(&kind)));
                    short(&kind)
                }
                _ => short(&numbers.short()),
            };
            values.extend(value);
        }
        let frame = header(&[mask], &values);
        let left = emptied(&frame, &header(&left.0, &left.1));
        (frame, left)
    }

    fn expected(name: &[u8]) -> Vec<u8> {
        match str::from_utf8(name) {
            Ok(_) => name.to_vec(),
            Err(_) => vec![b'?'; name.len()],
        }
    }

    /// Gives these pieces, the last first, and has nothing more after each read.
    struct Pieces<'a> {
        pieces: Vec<&'a [u8]>,
        blocked: bool,
    }

    impl Read for Pieces<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.blocked = !self.blocked;
            if self.blocked {
                return Err(ErrorKind::WouldBlock.into());
            }
            let Some(mut piece) = self.pieces.pop() else {
                return Ok(0);
            };
            let count = piece.read(into)?;
            if !piece.is_empty() {
                self.pieces.push(piece);
            }
            Ok(count)
        }
    }

    /// Reads to the end, `most` bytes at a time.
    fn read(pieces: Vec<&[u8]>, most: usize) -> io::Result<Vec<u8>> {
        let pieces = pieces.into_iter().rev().filter(|piece| !piece.is_empty());
        let mut source = Pieces {
            pieces: pieces.collect(),
            blocked: false,
        };
        let (mut frames, mut all, mut into) = (Frames::default(), Vec::new(), vec![0; most]);
        loop {
            match frames.read(&mut source, &mut into) {
                Ok(0) => return Ok(all),
                Ok(count) => all.extend(&into[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn becomes(frame: &[u8], wanted: &[u8]) {
        let wanted = emptied(frame, wanted);
        assert_eq!(read(vec![frame], 4_096).unwrap(), wanted, "{frame:?}");
    }

    #[test]
    fn names_that_are_not_utf8_become_nobodys() {
        for (key, becomes_key) in [
            (&b"group.caf\xe9"[..], &b"??????????"[..]),
            (b"user.bob\xff", b"?????????"),
            (b"\xff", b"?"),
            (b"user.\xc3\xa9", b"user.\xc3\xa9"),
            (b"user.b\0b", b"user.b\0b"),
            (b"", b""),
            (&[b'k'; 255], &[b'k'; 255]),
            (&[0x80; 255], &[b'?'; 255]),
        ] {
            let wanted = deliver(b"tag", b"im.direct", becomes_key);
            becomes(&deliver(b"tag", b"im.direct", key), &wanted);
            let wanted = deliver(b"tag", becomes_key, b"user.bob");
            becomes(&deliver(b"tag", key, b"user.bob"), &wanted);
        }
    }

    #[test]
    fn texts_for_people_lose_only_what_is_not_utf8() {
        let close = |text: &[u8]| {
            let text = short(text);
            let method = [&[0, 20, 0, 40, 1, 150], &text[..], &[0, 50, 0, 10]];
            frame(METHOD, 7, &method.concat())
        };
        // As RabbitMQ does when it cuts a text in the middle of a character.
        becomes(&close(b"no queue 'caf\xc3"), &close(b"no queue 'caf?"));
        becomes(&close(b"\xe9t\xe9 in use"), &close(b"?t? in use"));
        let blocked = |text: &[u8]| frame(METHOD, 0, &[&[0, 10, 0, 60], &short(text)[..]].concat());
        becomes(&blocked(b"low on \xff"), &blocked(b"low on ?"));
    }

    #[test]
    fn type_alone_is_left_of_the_properties() {
        let mut numbers = Numbers(1);
        for mask in 0..=u16::MAX >> 2 {
            // Of the others some; of those that decide all.
            if mask % 37 == 0 || mask.count_ones() <= 2 {
                let (frame, wanted) = properties(&mut numbers, mask << 2);
                becomes(&frame, &wanted);
            }
        }
    }

    #[test]
    fn further_words_of_flags_are_passed_over() {
        let values = [short(b"\xff"), short(b"message"), vec![9, 9]].concat();
        let wanted = header(&[TYPE_FLAG], &short(b"message"));
        let flags = (1 << 15) | TYPE_FLAG | 1;
        becomes(&header(&[flags, 0xFFFF, 0xFFFE], &values), &wanted);
    }

    #[test]
    fn the_type_of_properties_that_cannot_be_read_is_nobodys() {
        let wanted = header(&[TYPE_FLAG], &short(b"?"));
        let cases: [(u16, &[u8]); 5] = [
            (TYPE_FLAG, b"\x05mess"),
            (1 << 15 | TYPE_FLAG, b"\xff\0"),
            (1 << 13 | TYPE_FLAG, b"\xff\xff\xff\xff\x07message"),
            (1 << 13 | TYPE_FLAG, b"\0\0"),
            (TYPE_FLAG | 1, b"\xff\xff"),
        ];
        for (flags, values) in cases {
            becomes(&header(&[flags], values), &wanted);
        }
        // What is behind the type is not read.
        let kind = [short(b"message"), vec![200]].concat();
        let wanted = header(&[TYPE_FLAG], &short(b"message"));
        becomes(&header(&[TYPE_FLAG | 1 << 4], &kind), &wanted);
    }

    #[test]
    fn the_servers_properties_are_left_out() {
        let start = |table: &[u8]| {
            let size = (table.len() as u32).to_be_bytes();
            let rest = b"\0\0\0\x05PLAIN\0\0\0\x05en_US";
            let payload = [&[0, 10, 0, 10, 0, 9], &size[..], table, rest];
            frame(METHOD, 0, &payload.concat())
        };
        becomes(&start(&[b'F'; 50_000]), &start(b""));
        becomes(&start(b""), &start(b""));
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let huge = [BODY, 0, 1, 0x7F, 0xFF, 0xFF, 0xFF, 0];
        let cut_deliver = frame(METHOD, 1, b"\0\x3c\0\x3c\x09tag");
        let cut_header = frame(CONTENT_HEADER, 1, b"\0\x3c\0\0");
        let no_room = header(&[TYPE_FLAG], b"\x05");
        for bytes in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"AMQP\0\0\x09\x01",
            &huge,
            &cut_deliver,
            &cut_header,
            &no_room,
            &frame(4, 1, b""),
        ] {
            let error = read(vec![bytes], 4_096).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{bytes:?}");
        }
        // amiquip looks at the last byte of each frame.
        let mut wrong_end = deliver(b"tag", b"", b"k");
        *wrong_end.last_mut().unwrap() = 0;
        becomes(&wrong_end, &wrong_end);
    }

    /// Frames of all kinds as a broker may send them, and what becomes of each.
    fn stream(numbers: &mut Numbers, frames: usize) -> (Vec<u8>, Vec<u8>) {
        let (mut sent, mut wanted) = (Vec::new(), Vec::new());
        for _ in 0..frames {
            let (bytes, becomes) = match numbers.next(6) {
                0 => {
                    let [tag, exchange, key] = [(); 3].map(|()| numbers.short());
                    let [t, e, k] = [&tag, &exchange, &key].map(|name| expected(name));
                    (deliver(&tag, &exchange, &key), deliver(&t, &e, &k))
                }
                1 => {
                    let mask = numbers.next(1 << 14) as u16;
                    properties(numbers, mask << 2)
                }
                kind => {
                    let bytes = match kind {
                        2 => frame(BODY, 7, &numbers.bytes(3_000)),
                        3 => frame(BODY, 7, &vec![0xCE; 70_000]),
                        4 => frame(HEARTBEAT, 0, b""),
                        // basic.ack
                        _ => frame(METHOD, 7, &[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
                    };
                    (bytes.clone(), bytes)
                }
            };
            sent.extend(bytes);
            wanted.extend(becomes);
        }
        (sent, wanted)
    }

    #[test]
    fn a_frame_is_judged_whole_wherever_the_reads_split_it() {
        let mut numbers = Numbers(2);
        let (sent, wanted) = stream(&mut numbers, 1);
        let (head, wanted_head) = properties(&mut numbers, 1 << 15 | TYPE_FLAG);
        let key = deliver(b"tag", b"im.topic", b"group.caf\xe9");
        let sent = [key, head, frame(BODY, 7, b"body"), sent].concat();
        let changed_key = deliver(b"tag", b"im.topic", b"??????????");
        let wanted = [changed_key, wanted_head, frame(BODY, 7, b"body"), wanted].concat();
        for split in 0..=sent.len().min(1_000) {
            let (first, second) = sent.split_at(split);
            for most in [1, 7, 4_096] {
                assert_eq!(read(vec![first, second], most).unwrap(), wanted);
            }
        }
        assert_eq!(read(sent.chunks(1).collect(), 4_096).unwrap(), wanted);
    }

    #[test]
    fn long_streams_in_pieces_of_any_size_are_judged_frame_by_frame() {
        let mut numbers = Numbers(3);
        for _ in 0..100 {
            let (sent, wanted) = stream(&mut numbers, 20);
            let (mut pieces, mut rest) = (Vec::new(), &sent[..]);
            let largest = [10, 1_000, 200_000][numbers.next(3)];
            while !rest.is_empty() {
                let (piece, left) = rest.split_at(rest.len().min(1 + numbers.next(largest)));
                pieces.push(piece);
                rest = left;
            }
            let most = [16, 4_096, 131_072][numbers.next(3)];
            assert!(read(pieces, most).unwrap() == wanted);
        }
    }

    #[test]
    fn a_header_larger_than_the_buffer_is_judged_too() {
        let table = vec![b'x'; 3 * BUFFER];
        let size = (table.len() as u32).to_be_bytes();
        let values = [&size[..], &table, &short(b"session_revoked")].concat();
        let frame = header(&[1 << 13 | TYPE_FLAG], &values);
        becomes(&frame, &header(&[TYPE_FLAG], &short(b"session_revoked")));
    }
}
