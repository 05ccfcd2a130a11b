//! Bytes that wait to be sent on one stream, in the pieces in which they were written.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

#[derive(Default)]
pub(crate) struct Queue {
    pieces: VecDeque<Bytes>,
    /// The bytes of them.
    length: usize,
}

impl Queue {
    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.length += bytes.len();
        self.pieces.push_back(bytes);
    }

    /// Returns how many bytes wait.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Returns how many pushes have not wholly been taken out.
    pub(crate) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Moves up to `length` bytes into `piece`; returns how many there were.
    pub(crate) fn move_into(&mut self, piece: &mut BytesMut, length: usize) -> usize {
        let mut missing = length;
        while missing > 0 {
            let Some(front) = self.pieces.front_mut() else {
                break;
            };
            let part = front.split_to(missing.min(front.len()));
            if front.is_empty() {
                self.pieces.pop_front();
            }
            missing -= part.len();
            piece.put_slice(&part);
        }
        let moved = length - missing;
        self.length -= moved;
        moved
    }

    /// Drops what waits, but for the first `kept` bytes.
    pub(crate) fn truncate(&mut self, kept: usize) {
        let mut left = kept;
        self.pieces.retain_mut(|bytes| {
            bytes.truncate(left);
            left -= bytes.len();
            !bytes.is_empty()
        });
        self.length = kept - left;
    }
}
