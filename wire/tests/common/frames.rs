//! Frames made by hand.

use bytes::Bytes;
use tunneld_wire::ssm::message::{self, Kind, Message, PayloadType};

/// A message of the service itself.
pub(crate) fn service_message(kind: Kind, payload: Bytes) -> Bytes {
    data_message(kind, 0, PayloadType::Undefined, payload)
}

/// A well-formed message of any kind.
pub(crate) fn data_message(kind: Kind, sequence: u64, payload_type: PayloadType, payload: Bytes) -> Bytes {
    let id = uuid::Uuid::from_u128(u128::from(sequence) | 1 << 100);
    let digest = message::digest(&payload);
    Message {
        kind,
        created: 1,
        sequence,
        flags: 0,
        id,
        digest,
        payload_type,
        payload,
    }
    .encode()
}
