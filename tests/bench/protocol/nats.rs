//! What is needed of NATS' client protocol: lines, and behind that of a message its bytes.

use super::{Next, Said};

/// What either side of the benchmark says first.
pub const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"name\":\"bench\"}\r\n";

/// What stands first in `bytes`; `None` as long as it is not whole.
pub fn next(bytes: &[u8]) -> Next<'_> {
    let line = bytes.iter().position(|byte| *byte == b'\n')?;
    let length = line + 1;
    if !bytes.starts_with(b"MSG ") {
        let said = match bytes {
            [b'P', b'O', b'N', b'G', ..] => Said::Done,
            [b'P', b'I', b'N', b'G', ..] => Said::Ping,
            [b'-', ..] => Said::Error,
            _ => Said::Other,
        };
        return Some((said, length));
    }
    // MSG SUBJECT SID [REPLY] SIZE, then as many bytes, then a line's end.
    let head = bytes[..line].trim_ascii_end();
    let digits = head.rsplit(|byte| *byte == b' ').next()?;
    let decimal = |size: usize, digit: &u8| size * 10 + usize::from(digit - b'0');
    let end = length + digits.iter().fold(0, decimal);
    let payload = bytes.get(length..end)?;
    bytes.get(end + 1)?;
    Some((Said::Message(payload), end + 2))
}
