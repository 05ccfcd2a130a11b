//! The wire read a second time, straight from the tables of the protocol notes: what judges the crate's own codec must
//! not be that codec.

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256};

/// One binary frame of the data channel.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) kind: String,
    pub(crate) sequence: u64,
    pub(crate) flags: u64,
    pub(crate) id: String,
    pub(crate) payload_type: u32,
    pub(crate) payload: Vec<u8>,
    digest: Vec<u8>,
}

pub(crate) const OUTPUT: u32 = 1;
pub(crate) const HANDSHAKE_COMPLETE: u32 = 7;
pub(crate) const FLAG: u32 = 10;

pub(crate) const DISCONNECT_TO_PORT: u32 = 1;
pub(crate) const TERMINATE_SESSION: u32 = 2;
pub(crate) const CONNECT_TO_PORT_ERROR: u32 = 3;

impl Raw {
    pub(crate) fn read(frame: &[u8]) -> Self {
        let number = |at: usize| u64::from_be_bytes(frame[at..at + 8].try_into().unwrap());
        let short = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
        assert_eq!(short(0), 116, "the header's length");
        assert_eq!(short(36), 1, "the schema version");
        assert_ne!(number(40), 0, "the creation date");
        let uuid = [&frame[72..80], &frame[64..72]].concat();
        let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        let id = format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        );
        let kind = str::from_utf8(&frame[4..36]).unwrap();
        Self {
            kind: kind.trim_end_matches([' ', '\0']).to_owned(),
            sequence: number(48),
            flags: number(56),
            id,
            payload_type: short(112),
            payload: frame[120..].to_vec(),
            digest: frame[80..112].to_vec(),
        }
    }

    pub(crate) fn is_data(&self) -> bool {
        self.kind.ends_with("_stream_data")
    }

    pub(crate) fn digest_is_right(&self) -> bool {
        Sha256::digest(&self.payload)[..] == self.digest[..]
    }

    /// What a body of JSON says.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.payload).unwrap()
    }

    /// The number that an acknowledgement is about.
    pub(crate) fn acknowledged(&self) -> Option<u64> {
        let about = || self.json()["AcknowledgedMessageSequenceNumber"].as_u64().unwrap();
        (self.kind == "acknowledge").then(about)
    }
}

/// One smux frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Syn(u32),
    Data(u32, Vec<u8>),
    Fin(u32),
    Nop,
}

/// The number that the first stream of a session has.
pub(crate) const FIRST: u32 = 3;

/// The numbered messages of one direction put in order, and their smux frames read.
#[derive(Default)]
pub(crate) struct Pipe {
    expected: u64,
    waiting: BTreeMap<u64, Raw>,
    bytes: Vec<u8>,
    /// In basic mode, which has no frames: the number that the present connection would have as a stream.
    basic: Option<u32>,
}

impl Pipe {
    /// Of a session that carries one connection at a time. Its bytes are read as if they stood in smux frames, and the
    /// flag that tells of a connection's end as its FIN.
    pub(crate) fn basic() -> Self {
        Self {
            basic: Some(FIRST),
            ..Self::default()
        }
    }

    /// Takes a data message, in any order and any number of times; returns the smux frames that it completes, and the
    /// flags.
    pub(crate) fn take(&mut self, raw: Raw) -> (Vec<Piece>, Vec<u32>) {
        let mut flags = Vec::new();
        let mut pieces = Vec::new();
        self.waiting.insert(raw.sequence, raw);
        self.waiting.retain(|sequence, _| *sequence >= self.expected);
        while let Some(raw) = self.waiting.remove(&self.expected) {
            self.expected += 1;
            match (raw.payload_type, &mut self.basic) {
                (OUTPUT, None) => self.bytes.extend(raw.payload),
                (OUTPUT, Some(number)) => pieces.push(Piece::Data(*number, raw.payload)),
                (FLAG, basic) => {
                    let flag = u32::from_be_bytes(raw.payload.try_into().unwrap());
                    flags.push(flag);
                    if let (DISCONNECT_TO_PORT, Some(number)) = (flag, basic) {
                        pieces.push(Piece::Fin(*number));
                        *number += 2;
                    }
                }
                _ => {}
            }
        }
        pieces.extend(self.pieces());
        (pieces, flags)
    }

    fn pieces(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while let Some(header) = self.bytes.get(at..at + 8) {
            assert_eq!(header[0], 1, "the smux version");
            let length = usize::from(u16::from_le_bytes([header[2], header[3]]));
            let id = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
            let piece = match header[1] {
                0 => Piece::Syn(id),
                1 => Piece::Fin(id),
                3 => Piece::Nop,
                2 => match self.bytes.get(at + 8..at + 8 + length) {
                    Some(data) => Piece::Data(id, data.to_vec()),
                    None => break,
                },
                other => panic!("smux command {other}"),
            };
            at += 8 + if header[1] == 2 { length } else { 0 };
            pieces.push(piece);
        }
        self.bytes.drain(..at);
        pieces
    }

    /// What has come of a frame that is not whole.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes
    }
}

/// What streams carried in one direction.
#[derive(Default, PartialEq, Eq)]
pub(crate) struct Streams(pub(crate) BTreeMap<u32, Vec<u8>>);

impl Streams {
    pub(crate) fn take(&mut self, piece: &Piece) {
        if let Piece::Data(id, bytes) = piece {
            self.0.entry(*id).or_default().extend(bytes);
        }
    }

    /// Takes a data frame that is not whole.
    pub(crate) fn take_beginning(&mut self, frame: &[u8]) {
        if let Some((header, data)) = frame.split_at_checked(8) {
            let id = u32::from_le_bytes(header[4..].try_into().unwrap());
            self.0.entry(id).or_default().extend(data);
        }
    }
}

impl fmt::Debug for Streams {
    /// Lengths and digests, in place of pages of numbers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digests = self
            .0
            .iter()
            .map(|(id, bytes)| (id, (bytes.len(), Sha256::digest(bytes)[0])));
        f.debug_map().entries(digests).finish()
    }
}
