//! One stream of a mux: what it has still to send, and how it begins and ends.

use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

#[derive(Default)]
pub(super) struct Stream {
    outgoing: VecDeque<Bytes>,
    /// The bytes of them.
    waiting: usize,
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

    pub(super) fn push(&mut self, bytes: Bytes) {
        self.waiting += bytes.len();
        self.outgoing.push_back(bytes);
    }

    /// Returns how many bytes wait to be sent.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns how many pushes have not wholly been sent.
    pub(super) fn pending_writes(&self) -> usize {
        self.outgoing.len()
    }

    /// Moves up to `length` bytes into `piece`; returns how many there were.
    pub(super) fn move_into(&mut self, piece: &mut BytesMut, length: usize) -> usize {
        let mut missing = length;
        while missing > 0 {
            let Some(front) = self.outgoing.front_mut() else {
                break;
            };
            let part = front.split_to(missing.min(front.len()));
            if front.is_empty() {
                self.outgoing.pop_front();
            }
            missing -= part.len();
            piece.put_slice(&part);
        }
        let moved = length - missing;
        self.waiting -= moved;
        moved
    }

    /// Drops what waits, but for the first `kept` bytes.
    pub(super) fn truncate(&mut self, kept: usize) {
        let mut left = kept;
        self.outgoing.retain_mut(|bytes| {
            bytes.truncate(left);
            left -= bytes.len();
            !bytes.is_empty()
        });
        self.waiting = kept - left;
    }
}

impl fmt::Debug for Stream {
    /// Everything but the bytes, which are the user's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("waiting", &self.waiting)
            .field("syn", &self.syn)
            .field("end", &self.end)
            .field("heard", &self.heard)
            .finish_non_exhaustive()
    }
}
