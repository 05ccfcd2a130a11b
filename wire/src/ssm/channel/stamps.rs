//! Where message ids and dates come from: a seed and a pair of clock readings that the driver took.

use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use crate::ssm::message::{self, Draft, Kind, Message, PayloadType};

/// Makes messages of one side, each with a new id and the present date.
#[derive(Debug)]
pub(crate) struct Stamps {
    random: fastrand::Rng,
    began: Instant,
    began_unix: Duration,
}

impl Stamps {
    /// `began_unix` is the time since 1970 at `began`.
    pub(crate) fn new(seed: u64, began: Instant, began_unix: Duration) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            began,
            began_unix,
        }
    }

    pub(crate) fn id(&mut self) -> Uuid {
        uuid::Builder::from_random_bytes(self.random.u128(..).to_ne_bytes()).into_uuid()
    }

    pub(crate) fn message(
        &mut self,
        kind: Kind,
        sequence: u64,
        flags: u64,
        payload_type: PayloadType,
        payload: Bytes,
        now: Instant,
    ) -> Message {
        let digest = message::digest(&payload);
        self.stamp(kind, sequence, flags, payload_type, (payload, digest), now)
    }

    /// Encodes a frame around what was written into a draft.
    pub(crate) fn frame(
        &mut self,
        kind: Kind,
        sequence: u64,
        flags: u64,
        payload_type: PayloadType,
        draft: Draft,
        now: Instant,
    ) -> Bytes {
        let digest = message::digest(draft.written());
        self.stamp(kind, sequence, flags, payload_type, (Bytes::new(), digest), now)
            .encode_around(draft)
    }

    fn stamp(
        &mut self,
        kind: Kind,
        sequence: u64,
        flags: u64,
        payload_type: PayloadType,
        (payload, digest): (Bytes, [u8; 32]),
        now: Instant,
    ) -> Message {
        let since_1970 = self.began_unix + now.saturating_duration_since(self.began);
        let created = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX).max(1);
        Message {
            kind,
            created,
            sequence,
            flags,
            id: self.id(),
            digest,
            payload_type,
            payload,
        }
    }
}
