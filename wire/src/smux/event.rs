//! What a mux tells of its streams.

use std::fmt;

use bytes::Bytes;

use super::frame::StreamId;

/// What happened to a stream.
#[derive(Clone, PartialEq, Eq)]
pub enum Event {
    /// The far end opened it.
    Opened(StreamId),
    /// Bytes came.
    Data(StreamId, Bytes),
    /// The far end ended it; the stream is gone. `silent`: without ever having sent a byte.
    Finished {
        /// The stream.
        id: StreamId,
        /// No byte ever came.
        silent: bool,
    },
    /// Our side finished it, and the far end has sent nothing for the grace time: the stream ends without its answer.
    Abandoned(StreamId),
}

impl fmt::Debug for Event {
    /// Everything but the bytes, which are the user's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opened(id) => write!(f, "Opened({id})"),
            Self::Data(id, bytes) => write!(f, "Data({id}, {} bytes)", bytes.len()),
            Self::Abandoned(id) => write!(f, "Abandoned({id})"),
            Self::Finished { id, silent } => write!(f, "Finished({id}, silent: {silent})"),
        }
    }
}
