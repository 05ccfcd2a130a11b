//! Frames: the header's encoding, and a decoder that gives out what has arrived of a frame at once.

use std::fmt;

use bytes::{Buf, Bytes};

/// Bytes of a header.
pub(crate) const HEADER_LENGTH: usize = 8;
/// The longest payload that the official library sends in one frame.
pub(crate) const LONGEST_PAYLOAD: usize = 32_768;
const VERSION: u8 = 1;

/// Names a stream of one mux.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub(crate) u32);

impl StreamId {
    /// The first that the official library gives out.
    pub(crate) const FIRST: Self = Self(3);

    /// Returns the id of the next stream; `None` once all are used up.
    pub(crate) fn next(self) -> Option<Self> {
        self.0.checked_add(2).map(Self)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Opens a stream.
    Syn(StreamId),
    /// Ends a stream, in both directions.
    Fin(StreamId),
    /// That many bytes of a stream follow.
    Psh(StreamId, u16),
    /// Nothing: a sign of life.
    Nop,
}

impl Header {
    /// Encodes the header.
    pub fn encode(self) -> [u8; HEADER_LENGTH] {
        let (command, length, id) = match self {
            Self::Syn(id) => (0, 0, id.0),
            Self::Fin(id) => (1, 0, id.0),
            Self::Psh(id, length) => (2, length, id.0),
            Self::Nop => (3, 0, 0),
        };
        let [length_low, length_high] = length.to_le_bytes();
        let [a, b, c, d] = id.to_le_bytes();
        [VERSION, command, length_low, length_high, a, b, c, d]
    }

    fn decode(bytes: [u8; HEADER_LENGTH]) -> Result<Self, ProtocolError> {
        let [version, command, length_low, length_high, a, b, c, d] = bytes;
        if version != VERSION {
            return Err(ProtocolError::Version(version));
        }
        let id = StreamId(u32::from_le_bytes([a, b, c, d]));
        match command {
            0 => Ok(Self::Syn(id)),
            1 => Ok(Self::Fin(id)),
            2 => Ok(Self::Psh(id, u16::from_le_bytes([length_low, length_high]))),
            3 => Ok(Self::Nop),
            other => Err(ProtocolError::Command(other)),
        }
    }
}

/// The byte pipe is not smux v1; nothing after this point can be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A frame of another version.
    #[error("smux frame of version {0} where only version 1 is spoken")]
    Version(u8),
    /// A command that version 1 does not have.
    #[error("unknown smux command {0}")]
    Command(u8),
}

/// What the decoder found.
#[derive(Clone, PartialEq, Eq)]
pub enum Item {
    /// A stream was opened.
    Syn(StreamId),
    /// A stream was ended.
    Fin(StreamId),
    /// Bytes of a stream: a whole frame's, or what has arrived of it.
    Data(StreamId, Bytes),
}

/// Reads frames out of pieces of a byte pipe.
#[derive(Debug, Default)]
pub struct Decoder {
    header: [u8; HEADER_LENGTH],
    filled: usize,
    /// The stream and what is still to come of its present frame.
    payload: Option<(StreamId, usize)>,
}

impl Decoder {
    /// Takes the next item out of `bytes`; `None` once they are used up. After an error the decoder is of no more use.
    pub fn next(&mut self, bytes: &mut Bytes) -> Result<Option<Item>, ProtocolError> {
        while !bytes.is_empty() {
            if let Some((id, missing)) = self.payload.take() {
                let piece = bytes.split_to(missing.min(bytes.len()));
                let still_missing = missing - piece.len();
                if still_missing > 0 {
                    self.payload = Some((id, still_missing));
                }
                return Ok(Some(Item::Data(id, piece)));
            }
            let wanted = self.header.get_mut(self.filled..).unwrap_or_default();
            let taken = wanted.len().min(bytes.len());
            bytes.copy_to_slice(wanted.get_mut(..taken).unwrap_or_default());
            self.filled += taken;
            if self.filled < HEADER_LENGTH {
                return Ok(None);
            }
            self.filled = 0;
            match Header::decode(self.header)? {
                Header::Syn(id) => return Ok(Some(Item::Syn(id))),
                Header::Fin(id) => return Ok(Some(Item::Fin(id))),
                Header::Psh(_, 0) | Header::Nop => {}
                Header::Psh(id, length) => self.payload = Some((id, usize::from(length))),
            }
        }
        Ok(None)
    }
}

impl fmt::Debug for Item {
    /// Everything but the bytes, which are the user's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syn(id) => write!(f, "Syn({id})"),
            Self::Fin(id) => write!(f, "Fin({id})"),
            Self::Data(id, bytes) => write!(f, "Data({id}, {} bytes)", bytes.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(decoder: &mut Decoder, bytes: &[u8]) -> Vec<Item> {
        let mut bytes = Bytes::copy_from_slice(bytes);
        let mut items = Vec::new();
        while let Some(item) = decoder.next(&mut bytes).unwrap() {
            items.push(item);
        }
        items
    }

    #[test]
    fn what_has_arrived_of_a_frame_is_given_out_at_once() {
        let mut decoder = Decoder::default();
        let id = StreamId(3);
        let mut wire = Header::Psh(id, 5).encode().to_vec();
        wire.extend(b"he");
        assert_eq!(
            items(&mut decoder, &wire),
            [Item::Data(id, Bytes::from_static(b"he"))]
        );
        assert_eq!(
            items(&mut decoder, b"llo"),
            [Item::Data(id, Bytes::from_static(b"llo"))]
        );
    }

    #[test]
    fn a_header_may_be_cut_anywhere() {
        let mut wire = Header::Syn(StreamId(3)).encode().to_vec();
        wire.extend(Header::Nop.encode());
        wire.extend(Header::Psh(StreamId(3), 1).encode());
        wire.push(b'x');
        wire.extend(Header::Fin(StreamId(3)).encode());
        let whole = items(&mut Decoder::default(), &wire);
        assert_eq!(whole.len(), 3);
        let mut decoder = Decoder::default();
        let bytewise: Vec<_> = wire
            .iter()
            .flat_map(|byte| items(&mut decoder, &[*byte]))
            .collect();
        assert_eq!(bytewise, whole);
    }

    #[test]
    fn another_version_or_command_is_an_error() {
        let decode = |bytes: [u8; 8]| Decoder::default().next(&mut Bytes::copy_from_slice(&bytes));
        assert_eq!(decode([2, 0, 0, 0, 3, 0, 0, 0]), Err(ProtocolError::Version(2)));
        assert_eq!(decode([1, 4, 8, 0, 3, 0, 0, 0]), Err(ProtocolError::Command(4)));
    }
}
