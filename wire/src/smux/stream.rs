//! One stream of a mux: what it has still to send, and how it begins and ends.

use std::fmt;
use std::time::Instant;

use crate::queue::Queue;

#[derive(Default)]
pub(super) struct Stream {
    pub(super) outgoing: Queue,
    /// Whether it stands in the mux's line, or its frame is under way.
    pub(super) queued: bool,
    pub(super) syn: Syn,
    pub(super) end: End,
    /// Whether a byte ever came.
    pub(super) heard: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Syn {
    /// Sent, or not ours to send.
    #[default]
    Done,
    /// To be sent with the first bytes, or then.
    Due(Instant),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum End {
    #[default]
    Open,
    /// Everything was written; the FIN is due then, unless more is heard before.
    Finishing(Instant),
    /// The FIN is to be sent as soon as what is queued has been.
    Closing,
}

impl Stream {
    /// A stream that is ours to open.
    pub(super) fn with_syn_due(at: Instant) -> Self {
        Self {
            syn: Syn::Due(at),
            ..Self::default()
        }
    }
}

impl fmt::Debug for Stream {
    /// Everything but the bytes, which are the user's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("waiting", &self.outgoing.len())
            .field("syn", &self.syn)
            .field("end", &self.end)
            .field("heard", &self.heard)
            .finish_non_exhaustive()
    }
}
