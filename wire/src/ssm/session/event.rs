//! What comes out of a session: frames to send, and what happened.

use std::fmt;

use bytes::Bytes;

use crate::smux::{ProtocolError, StreamId};
use crate::ssm::basic::TooEarly;
use crate::ssm::handshake::HandshakeError;

/// What a driver sends as one websocket message.
#[derive(Clone, PartialEq, Eq)]
pub enum Frame {
    /// A text message. It holds the token: a secret.
    Text(String),
    /// A binary message.
    Binary(Bytes),
}

/// What happened in a session.
#[derive(Clone, PartialEq, Eq)]
pub enum Event {
    /// Data may flow.
    Ready {
        /// The agent's version, for a client; empty for an agent.
        agent_version: String,
        /// Whether the session carries many streams, or one alone.
        multiplexes: bool,
        /// To be shown to the user, if not empty.
        customer_message: String,
    },
    /// Agent: the client opened a stream.
    Opened(StreamId),
    /// Bytes of a stream came.
    Data(StreamId, Bytes),
    /// The far end of a stream ended it; the stream is gone.
    Finished(StreamId),
    /// A stream that our side finished was ended after the grace time; the stream is gone, and an answer to come with it.
    Abandoned(StreamId),
    /// Client: the target refused a stream; the stream is gone.
    Refused(StreamId),
    /// The service says that the other side is away; nothing is lost yet.
    Paused,
    /// The other side is there again.
    Resumed,
    /// Client: the pause has lasted so long that AWS should be asked whether the session lives.
    Doubtful,
    /// Client: nothing has been acknowledged for a while; [`Session::handle_pong`](super::Session::handle_pong) waits to be
    /// told that the websocket lives.
    Unanswered,
    /// Client: the far end takes nothing more although the websocket lives; a target may not read. With the stream that
    /// is suspected.
    Stalled(Option<StreamId>),
    /// Client: the far end takes bytes again.
    Flowing,
    /// Client: the far end has taken nothing for the stall timeout; the suspected stream is to be reset.
    StallExpired(Option<StreamId>),
    /// Agent: the client asks to end the session.
    Terminate,
    /// The session has ended and can't be resumed.
    Ended(End),
}

/// Why a session has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// The service closed it, in its own words, which may be none.
    #[error("{}", if .0.is_empty() { "the session was ended by the far side" } else { .0.as_str() })]
    ChannelClosed(String),
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The handshake took longer than a minute.
    #[error("no handshake within a minute of opening the data channel")]
    HandshakeTimeout,
    /// So many of the agent's messages were lost that waiting for them takes longer than a new session.
    #[error("{missing} messages of the SSM agent were lost, and it does not send them again in time")]
    Hole {
        /// How many.
        missing: u64,
    },
    /// The far end took nothing more, even after the suspected stream was reset.
    #[error("the SSM agent takes nothing more: a target behind it does not read")]
    Stalled,
    /// An agent in basic mode sent too much too early.
    #[error(transparent)]
    TooEarly(#[from] TooEarly),
    /// The bytes of the session are not smux.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text"),
            Self::Binary(frame) => write!(f, "Binary({} bytes)", frame.len()),
        }
    }
}

impl fmt::Debug for Event {
    /// Everything but the bytes, which are the user's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { agent_version, .. } => write!(f, "Ready(agent {agent_version})"),
            Self::Opened(id) => write!(f, "Opened({id})"),
            Self::Data(id, bytes) => write!(f, "Data({id}, {} bytes)", bytes.len()),
            Self::Abandoned(id) => write!(f, "Abandoned({id})"),
            Self::Finished(id) => write!(f, "Finished({id})"),
            Self::Refused(id) => write!(f, "Refused({id})"),
            Self::Paused => f.write_str("Paused"),
            Self::Resumed => f.write_str("Resumed"),
            Self::Doubtful => f.write_str("Doubtful"),
            Self::Unanswered => f.write_str("Unanswered"),
            Self::Stalled(suspect) => write!(f, "Stalled({suspect:?})"),
            Self::Flowing => f.write_str("Flowing"),
            Self::StallExpired(suspect) => write!(f, "StallExpired({suspect:?})"),
            Self::Terminate => f.write_str("Terminate"),
            Self::Ended(end) => write!(f, "Ended({end:?})"),
        }
    }
}
