//! AgentMessage: the frame of the data channel, one per binary websocket message.
//!
//! ```text
//!   offset  size  field            encoding
//!        0     4  header length    u32 BE, 116: the bytes before the payload length
//!        4    32  message type     ASCII, padded with spaces (NULs seen from the service)
//!       36     4  schema version   u32 BE, 1
//!       40     8  created          u64 BE, Unix time in milliseconds
//!       48     8  sequence number  i64 BE
//!       56     8  flags            u64 BE
//!       64    16  message id       UUID, its two halves swapped
//!       80    32  digest           SHA-256 of the payload
//!      112     4  payload type     u32 BE; absent where the header length is 112
//!      116     4  payload length   u32 BE; not what cuts the payload
//!      120     …  payload          to the end of the websocket message
//! ```
//!
//! Layout and quirks: `src/message` of session-manager-plugin 1.2.677 and `agent/session/contracts` of
//! amazon-ssm-agent 3.3.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::text::in_one_line;

/// Bytes before the payload length in every frame that we send.
const HEADER_LENGTH: usize = 116;
/// Bytes before the payload of every frame that we send.
pub const OVERHEAD: usize = HEADER_LENGTH + 4;
/// The shortest header that holds all fields up to the digest: what the service sends for `channel_closed`.
const SHORTEST_HEADER: usize = 112;
/// The longest header that is believed: room for fields to come. A longer one would hold memory that no payload
/// accounts for.
const LONGEST_HEADER: usize = 512;
const TYPE_WIDTH: usize = 32;

/// One frame of the data channel.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// What the frame is for.
    pub kind: Kind,
    /// When it was made, Unix time in milliseconds; never 0.
    pub created: u64,
    /// Its number among the sender's data messages; 0 for everything else.
    pub sequence: u64,
    /// 1 on the agent's first data message, 3 on acknowledgements; read by no known peer.
    pub flags: u64,
    /// Names the message in its acknowledgement.
    pub id: Uuid,
    /// SHA-256 of the payload as its sender claims it.
    pub digest: [u8; 32],
    /// What the payload is.
    pub payload_type: PayloadType,
    /// The payload.
    pub payload: Bytes,
}

/// The message type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Data from client to agent.
    InputStreamData,
    /// Data from agent to client.
    OutputStreamData,
    /// One data message arrived.
    Acknowledge,
    /// From the service: the session has ended.
    ChannelClosed,
    /// From the service: the other side is there.
    StartPublication,
    /// From the service: the other side is away.
    PausePublication,
    /// From agent to service only.
    AgentSessionState,
}

/// What a data message carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadType {
    /// Acknowledgements and the service's own messages.
    Undefined,
    /// The session's bytes, in both directions.
    Output,
    /// The agent's offer.
    HandshakeRequest,
    /// The client's answer.
    HandshakeResponse,
    /// The agent's word that data may flow.
    HandshakeComplete,
    /// A four-byte [`Flag`].
    Flag,
    /// Anything else; ignored in port sessions.
    Other(u32),
}

/// The value of a flag payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// Client to agent, basic mode: the local connection has closed.
    DisconnectToPort,
    /// Client to agent: end the session.
    TerminateSession,
    /// Agent to client: a dial to the target failed. It doesn't say for which stream.
    ConnectToPortError,
}

/// Why a frame can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The frame is shorter than its header says, or the header is none.
    #[error("frame of {length} bytes can't have a header of {header}")]
    Header {
        /// The header length it claims.
        header: u64,
        /// The frame's own length.
        length: usize,
    },
    /// No known message type.
    #[error("unknown message type `{0}`")]
    UnknownKind(String),
    /// The creation date is missing.
    #[error("message has no creation date")]
    Created,
    /// The sequence number is negative.
    #[error("sequence number {0} is negative")]
    Sequence(i64),
    /// The digest is not the payload's.
    #[error("digest does not match the payload")]
    Digest,
}

impl Message {
    /// Encodes the frame, with the digest that it claims.
    pub fn encode(&self) -> Bytes {
        let mut frame = BytesMut::with_capacity(OVERHEAD + self.payload.len());
        frame.put_slice(&self.header(self.payload.len()));
        frame.put_slice(&self.payload);
        frame.freeze()
    }

    /// Encodes the frame around a payload that was written into a draft, in place of its own.
    pub(crate) fn encode_around(&self, draft: Draft) -> Bytes {
        let Draft(mut frame) = draft;
        let header = self.header(frame.len().saturating_sub(OVERHEAD));
        if let Some(room) = frame.get_mut(..OVERHEAD) {
            room.copy_from_slice(&header);
        }
        frame.freeze()
    }

    fn header(&self, payload_length: usize) -> [u8; OVERHEAD] {
        let mut header = [0; OVERHEAD];
        let mut fields = header.as_mut_slice();
        fields.put_u32(HEADER_LENGTH as u32);
        let name = self.kind.name().as_bytes();
        fields.put_slice(name);
        fields.put_bytes(b' ', TYPE_WIDTH.saturating_sub(name.len()));
        fields.put_u32(1);
        fields.put_u64(self.created);
        fields.put_u64(self.sequence);
        fields.put_u64(self.flags);
        let (high, low) = self.id.as_u64_pair();
        fields.put_u64(low);
        fields.put_u64(high);
        fields.put_slice(&self.digest);
        fields.put_u32(self.payload_type.number());
        fields.put_u32(payload_length as u32);
        header
    }

    /// Decodes one websocket message. The digest is not looked at: see [`Message::verify`].
    pub fn decode(frame: Bytes) -> Result<Self, Malformed> {
        let length = frame.len();
        let mut fields = Fields { rest: &frame };
        let short = |header: u64| Malformed::Header { header, length };
        let header = fields.u32().ok_or_else(|| short(0))?;
        let header_length = header as usize;
        let payload_start = header_length.saturating_add(4);
        if !(SHORTEST_HEADER..=LONGEST_HEADER).contains(&header_length) || payload_start > length {
            return Err(short(u64::from(header)));
        }
        let missing = || short(u64::from(header));
        let name = fields.take(TYPE_WIDTH).ok_or_else(missing)?;
        let _schema = fields.u32().ok_or_else(missing)?;
        let created = fields.u64().ok_or_else(missing)?;
        let sequence = fields.u64().ok_or_else(missing)? as i64;
        let flags = fields.u64().ok_or_else(missing)?;
        let low = fields.u64().ok_or_else(missing)?;
        let high = fields.u64().ok_or_else(missing)?;
        let digest = fields
            .take(32)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(missing)?;
        let payload_type = match header_length >= HEADER_LENGTH {
            true => PayloadType::from_number(fields.u32().ok_or_else(missing)?),
            false => PayloadType::Undefined,
        };

        let kind = Kind::from_name(without_padding(name)).ok_or_else(|| {
            let name = String::from_utf8_lossy(without_padding(name));
            Malformed::UnknownKind(in_one_line(&name, TYPE_WIDTH))
        })?;
        if created == 0 {
            return Err(Malformed::Created);
        }
        let sequence = u64::try_from(sequence).map_err(|_| Malformed::Sequence(sequence))?;
        let payload = frame.slice(payload_start..);
        let id = Uuid::from_u64_pair(high, low);
        Ok(Self {
            kind,
            created,
            sequence,
            flags,
            id,
            digest,
            payload_type,
            payload,
        })
    }

    /// Checks the digest as the official client does, except of the two publication hints, which the service was seen to
    /// send with nonsense in these fields. Other messages of the service may have neither a payload nor a digest; data
    /// messages and acknowledgements always have both, and without their payload they were cut short.
    pub fn verify(&self) -> Result<(), Malformed> {
        let exempt = match self.kind {
            Kind::StartPublication | Kind::PausePublication => true,
            Kind::ChannelClosed | Kind::AgentSessionState => self.payload.is_empty(),
            Kind::InputStreamData | Kind::OutputStreamData | Kind::Acknowledge => false,
        };
        if exempt || digest(&self.payload) == self.digest {
            return Ok(());
        }
        Err(Malformed::Digest)
    }
}

/// A frame whose payload is written before its header: the bytes of a stream are copied once, to where they are sent
/// from.
pub(crate) struct Draft(BytesMut);

impl Draft {
    /// An empty one with room for so many bytes of payload.
    pub(crate) fn with_room(payload: usize) -> Self {
        let mut frame = BytesMut::with_capacity(OVERHEAD + payload);
        frame.put_bytes(0, OVERHEAD);
        Self(frame)
    }

    /// Returns what the payload is appended to.
    pub(crate) fn payload(&mut self) -> &mut BytesMut {
        &mut self.0
    }

    /// Returns the payload as written so far.
    pub(crate) fn written(&self) -> &[u8] {
        self.0.get(OVERHEAD..).unwrap_or_default()
    }
}

/// Returns the SHA-256 of a payload.
pub fn digest(payload: &[u8]) -> [u8; 32] {
    Sha256::digest(payload).into()
}

impl fmt::Debug for Message {
    /// Everything but the payload's bytes, which are the user's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("kind", &self.kind)
            .field("sequence", &self.sequence)
            .field("payload_type", &self.payload_type)
            .field("payload_length", &self.payload.len())
            .finish_non_exhaustive()
    }
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::InputStreamData => "input_stream_data",
            Self::OutputStreamData => "output_stream_data",
            Self::Acknowledge => "acknowledge",
            Self::ChannelClosed => "channel_closed",
            Self::StartPublication => "start_publication",
            Self::PausePublication => "pause_publication",
            Self::AgentSessionState => "agent_session_state",
        }
    }

    fn from_name(name: &[u8]) -> Option<Self> {
        let all = [
            Self::InputStreamData,
            Self::OutputStreamData,
            Self::Acknowledge,
            Self::ChannelClosed,
            Self::StartPublication,
            Self::PausePublication,
            Self::AgentSessionState,
        ];
        all.into_iter().find(|kind| kind.name().as_bytes() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PayloadType {
    fn number(self) -> u32 {
        match self {
            Self::Undefined => 0,
            Self::Output => 1,
            Self::HandshakeRequest => 5,
            Self::HandshakeResponse => 6,
            Self::HandshakeComplete => 7,
            Self::Flag => 10,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Undefined,
            1 => Self::Output,
            5 => Self::HandshakeRequest,
            6 => Self::HandshakeResponse,
            7 => Self::HandshakeComplete,
            10 => Self::Flag,
            other => Self::Other(other),
        }
    }
}

impl Flag {
    /// Encodes the flag's payload.
    pub fn payload(self) -> Bytes {
        let number: u32 = match self {
            Self::DisconnectToPort => 1,
            Self::TerminateSession => 2,
            Self::ConnectToPortError => 3,
        };
        Bytes::copy_from_slice(&number.to_be_bytes())
    }

    /// Decodes a flag's payload; `None` for a flag that is unknown and so to be ignored.
    pub fn from_payload(payload: &[u8]) -> Option<Self> {
        match u32::from_be_bytes(payload.try_into().ok()?) {
            1 => Some(Self::DisconnectToPort),
            2 => Some(Self::TerminateSession),
            3 => Some(Self::ConnectToPortError),
            _ => None,
        }
    }
}

/// The bytes of a message type without what fills its field up.
fn without_padding(field: &[u8]) -> &[u8] {
    let is_padding = |byte: &u8| *byte == 0 || byte.is_ascii_whitespace();
    let start = field
        .iter()
        .position(|byte| !is_padding(byte))
        .unwrap_or(field.len());
    let end = field
        .iter()
        .rposition(|byte| !is_padding(byte))
        .map_or(start, |last| last + 1);
    field.get(start..end).unwrap_or_default()
}

/// A cursor over the header's fields.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }
}
