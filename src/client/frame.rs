//! Finished WebSocket frames (RFC 6455, section 5), encoded once and shared by all recipients.
//!
//! A server's frames are unmasked: a header of 2 to 10 bytes, then the payload.

use std::sync::Arc;

/// Set in the first byte of a frame that is its whole message.
const FIN: u8 = 0x80;
const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// The longest payload of a control frame (RFC 6455, section 5.5).
const MAX_CONTROL: usize = 125;

/// Bytes that are ready for the socket: a frame, or a train of several. Cloning shares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    bytes: Arc<[u8]>,
    count: u32,
}

impl Frame {
    /// A text frame with `payload`, which is UTF-8.
    pub fn text(payload: &[u8]) -> Self {
        Self::encode(TEXT, payload)
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
        Self::encode(
            CLOSE,
            &[&code.to_be_bytes(), &reason.as_bytes()[..end]].concat(),
        )
    }

    /// Bytes that go before the first frame: the answer to the upgrade request.
    pub fn raw(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.into(),
            count: 1,
        }
    }

    /// Several frames that leave one behind the other; one alone is the frame itself.
    pub fn train<'a>(frames: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let count: u32 = frames.clone().map(|frame| frame.count).sum();
        match frames.clone().next() {
            Some(only) if count == 1 => only.clone(),
            _ => {
                let mut bytes = Vec::with_capacity(frames.clone().map(Self::len).sum());
                frames.for_each(|frame| bytes.extend(frame.bytes()));
                Self {
                    bytes: bytes.into(),
                    count,
                }
            }
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many WebSocket frames it is.
    pub fn count(&self) -> usize {
        self.count as usize
    }

    /// The length on the wire.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// No frame is empty: it has a header.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn encode(opcode: u8, payload: &[u8]) -> Self {
        let mut frame = Vec::with_capacity(10 + payload.len());
        frame.push(FIN | opcode);
        match payload.len() {
            length @ 0..=125 => frame.push(length as u8),
            length @ 126..=0xFFFF => {
                frame.push(126);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(payload);
        Self {
            bytes: frame.into(),
            count: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_grows_with_its_payload() {
        let header = |length: usize| {
            let frame = Frame::text(&vec![b'x'; length]);
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
    fn a_train_is_its_frames_one_behind_the_other() {
        let frames = [Frame::text(b"a"), Frame::text(b"bc")];
        let train = Frame::train(frames.iter());
        assert_eq!(
            train.bytes(),
            [frames[0].bytes(), frames[1].bytes()].concat()
        );
        assert_eq!(train.count(), 2);
        let alone = Frame::train(frames[..1].iter());
        assert!(
            std::ptr::eq(alone.bytes(), frames[0].bytes()),
            "shared, not copied"
        );
    }
}
