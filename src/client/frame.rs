//! Finished WebSocket frames (RFC 6455, section 5), encoded once and shared by all recipients.
//!
//! A server's frames are unmasked: a header of 2 to 10 bytes, then the payload.

use std::sync::Arc;

/// Set in the first byte of a frame that is its whole message.
const FIN: u8 = 0x80;
pub(super) const TEXT: u8 = 0x1;
pub(super) const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// The longest payload of a control frame (RFC 6455, section 5.5).
const MAX_CONTROL: usize = 125;
/// The longest header of an unmasked frame.
const MAX_HEADER: usize = 10;

/// What a frame is put together in, at first. It is more than malloc keeps back for the thread that
/// frees it (1,032 bytes), or each connection's threads would keep one.
const SCRATCH: usize = 2 << 10;

/// Bytes that are ready for the socket: a frame, or a batch of several. Cloning shares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    bytes: Arc<[u8]>,
    count: usize,
}

impl Frame {
    /// A text frame; `write` appends its payload, which is UTF-8.
    pub fn text(write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = Vec::with_capacity(SCRATCH);
        // The header's length follows from the payload's: so it is put in front of it once it is there.
        bytes.resize(MAX_HEADER, 0);
        write(&mut bytes);
        let header = header(TEXT, bytes.len() - MAX_HEADER);
        let start = MAX_HEADER - header.len();
        bytes[start..MAX_HEADER].copy_from_slice(&header);
        Self::raw(&bytes[start..])
    }

    pub fn ping() -> Self {
        Self::encode(PING, &[])
    }

    /// The answer to a ping that carried `payload`, at most 125 bytes.
    pub fn pong(payload: &[u8]) -> Self {
        Self::encode(PONG, &payload[..payload.len().min(MAX_CONTROL)])
    }

    /// A Close frame; a reason is cut where a control frame ends.
    pub fn close(code: u16, reason: &str) -> Self {
        let end = reason.floor_char_boundary(MAX_CONTROL - 2);
        let payload = [&code.to_be_bytes(), &reason.as_bytes()[..end]].concat();
        Self::encode(CLOSE, &payload)
    }

    /// A frame that is its whole message.
    pub(super) fn encode(opcode: u8, payload: &[u8]) -> Self {
        Self::raw(&[&header(opcode, payload.len()), payload].concat())
    }

    /// Bytes as they are to leave.
    pub(super) fn raw(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.into(),
            count: 1,
        }
    }

    /// Several frames that leave one behind the other; one alone is the frame itself.
    pub fn batch<'a>(frames: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let count = frames.clone().map(Self::count).sum();
        if let (Some(only), 1) = (frames.clone().next(), count) {
            return only.clone();
        }
        let mut bytes = Vec::with_capacity(frames.clone().map(Self::len).sum());
        frames.for_each(|frame| bytes.extend(frame.bytes()));
        Self {
            count,
            ..Self::raw(&bytes)
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many WebSocket frames it is.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The length on the wire.
    #[expect(clippy::len_without_is_empty, reason = "no frame is: it has a header")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// The header of an unmasked frame with a payload of `length` bytes.
fn header(opcode: u8, length: usize) -> Vec<u8> {
    let first = FIN | opcode;
    match length {
        0..=125 => vec![first, length as u8],
        126..=0xFFFF => [&[first, 126], &(length as u16).to_be_bytes()[..]].concat(),
        _ => [&[first, 127], &(length as u64).to_be_bytes()[..]].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(payload: &str) -> Frame {
        Frame::text(|bytes| bytes.extend(payload.as_bytes()))
    }

    #[test]
    fn a_header_grows_with_its_payload() {
        let header = |length: usize| {
            let frame = text(&"x".repeat(length));
            frame.bytes()[..frame.len() - length].to_vec()
        };
        assert_eq!(header(125), [0x81, 125]);
        assert_eq!(header(126), [0x81, 126, 0, 126]);
        assert_eq!(header(65_535), [0x81, 126, 0xFF, 0xFF]);
        assert_eq!(header(65_536), [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_close_reason_is_cut_between_characters() {
        let frame = Frame::close(4001, &"é".repeat(100));
        assert_eq!(frame.bytes()[1], 124);
        assert!(std::str::from_utf8(&frame.bytes()[4..]).is_ok());
    }

    #[test]
    fn a_batch_is_its_frames_one_behind_the_other() {
        let frames = [text("a"), text("bc")];
        let batch = Frame::batch(frames.iter());
        assert_eq!(
            batch.bytes(),
            [frames[0].bytes(), frames[1].bytes()].concat()
        );
        assert_eq!(batch.count(), 2);
        let alone = Frame::batch(frames[..1].iter());
        assert!(
            std::ptr::eq(alone.bytes(), frames[0].bytes()),
            "shared, not copied"
        );
    }
}
