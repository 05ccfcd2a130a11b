//! What the service sees of a frame at a glance, without decoding it.

use std::ops::Range;

use bytes::Bytes;

/// Bytes before the payload.
pub(super) const HEADER: usize = 120;
/// Where the message type is.
pub(super) const TYPE: Range<usize> = 4..36;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// Data of the client.
    Input,
    /// Data of the agent.
    Output,
    /// An acknowledgement, of either.
    Acknowledge,
    /// Anything else, and what is too short for a whole header.
    Other,
}

/// Returns what a frame is.
pub(super) fn sort(frame: &Bytes) -> Sort {
    let name = frame
        .get(TYPE)
        .filter(|_| frame.len() >= HEADER)
        .map_or(&[][..], |name| name.trim_ascii_end());
    match name {
        b"input_stream_data" => Sort::Input,
        b"output_stream_data" => Sort::Output,
        b"acknowledge" => Sort::Acknowledge,
        _ => Sort::Other,
    }
}

/// Returns how long a frame's payload is.
pub(super) fn payload_length(frame: &Bytes) -> usize {
    frame.len().saturating_sub(HEADER)
}
