//! The peer's direction of a channel: puts in order, and remembers what is to be acknowledged.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use uuid::Uuid;

use crate::ssm::message::Message;

/// The most messages that may wait for an earlier one: after an outage an agent goes on at 838 a second while the hole
/// is filled at 10 a second (ssm.md trap 29), which may take as long as a hole is waited for, half a minute.
const MOST_EARLY: usize = 30_000;
/// The most bytes of them.
const MOST_EARLY_BYTES: usize = 32 << 20;
/// The most acknowledgements that wait to be sent, as when the websocket takes nothing; beyond, the peer has to send
/// its message again.
const MOST_ACKS: usize = MOST_EARLY;
/// Acknowledgements that are repeated when the websocket is back, at most: what a cut may have swallowed of them. They
/// take 300 bytes each, and a driver's queue and the kernel's buffer may hold a megabyte.
const REPEATED_ACKS: usize = 4_096;

/// The peer's messages.
#[derive(Default)]
pub(super) struct Incoming {
    expected: u64,
    early: BTreeMap<u64, Message>,
    early_bytes: usize,
    delivered: VecDeque<Message>,
    /// Oldest first: those that were sent of late, then those to be sent.
    acks: VecDeque<Ack>,
    /// How many of them were sent.
    sent_acks: usize,
    duplicates: Duplicates,
}

/// What is done with a message that has come before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Duplicates {
    #[default]
    Acknowledged,
    /// As agents before 3.2.1041.0 do.
    Ignored,
}

/// A message that is to be acknowledged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ack {
    pub(super) id: Uuid,
    pub(super) sequence: u64,
}

impl Incoming {
    /// Says what is done with a message that has come before.
    pub(super) fn treat_duplicates(&mut self, duplicates: Duplicates) {
        self.duplicates = duplicates;
    }

    /// Takes a data message of the peer.
    pub(super) fn receive(&mut self, message: Message) {
        let ack = Ack {
            id: message.id,
            sequence: message.sequence,
        };
        if message.sequence < self.expected {
            match self.duplicates {
                Duplicates::Acknowledged => self.acknowledge(ack),
                Duplicates::Ignored => {}
            }
        } else if message.sequence == self.expected {
            self.acknowledge(ack);
            self.deliver(message);
            while let Some(next) = self.early.remove(&self.expected) {
                self.early_bytes -= next.payload.len();
                self.deliver(next);
            }
        } else if self.early.contains_key(&message.sequence) {
            self.acknowledge(ack);
        } else if self.early.len() < MOST_EARLY
            && self.early_bytes + message.payload.len() <= MOST_EARLY_BYTES
        {
            self.acknowledge(ack);
            self.early_bytes += message.payload.len();
            // What waits must not keep all that it was read with.
            let payload = Bytes::copy_from_slice(&message.payload);
            self.early
                .insert(message.sequence, Message { payload, ..message });
        }
    }

    /// Returns the number of the message that is next in order.
    pub(super) fn expected(&self) -> u64 {
        self.expected
    }

    /// Returns how many messages are missing before one that has come.
    pub(super) fn missing(&self) -> u64 {
        let last = self.early.last_key_value().map(|(number, _)| *number);
        let absent = last.map_or(0, |last| last + 1 - self.expected);
        absent - self.early.len() as u64
    }

    /// Returns the peer's next message in order.
    pub(super) fn poll_delivery(&mut self) -> Option<Message> {
        self.delivered.pop_front()
    }

    /// Returns the next message to acknowledge.
    pub(super) fn poll_ack(&mut self) -> Option<Ack> {
        let ack = self.acks.get(self.sent_acks).copied()?;
        self.sent_acks += 1;
        if self.sent_acks > REPEATED_ACKS {
            self.acks.pop_front();
            self.sent_acks -= 1;
        }
        Some(ack)
    }

    /// Acknowledges the latest messages once more, before what waits to be acknowledged, if that is what this side does
    /// with duplicates.
    pub(super) fn repeat_acks(&mut self) {
        match self.duplicates {
            Duplicates::Acknowledged => self.sent_acks = 0,
            Duplicates::Ignored => {}
        }
    }

    /// Forgets what is still to be acknowledged; the peer will send it again.
    pub(super) fn forget_acks(&mut self) {
        self.acks.truncate(self.sent_acks);
    }

    fn deliver(&mut self, message: Message) {
        self.expected += 1;
        self.delivered.push_back(message);
    }

    fn acknowledge(&mut self, ack: Ack) {
        if self.acks.len() - self.sent_acks < MOST_ACKS {
            self.acks.push_back(ack);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssm::message::{Kind, PayloadType};

    fn message(sequence: u64) -> Message {
        Message {
            kind: Kind::OutputStreamData,
            created: 1,
            sequence,
            flags: 0,
            id: Uuid::from_u128(sequence.into()),
            digest: [0; 32],
            payload_type: PayloadType::Output,
            payload: Bytes::from_static(b"x"),
        }
    }

    fn received(count: u64) -> Incoming {
        let mut incoming = Incoming::default();
        (0..count).for_each(|sequence| incoming.receive(message(sequence)));
        incoming
    }

    fn acks(incoming: &mut Incoming) -> Vec<u64> {
        std::iter::from_fn(|| incoming.poll_ack())
            .map(|ack| ack.sequence)
            .collect()
    }

    #[test]
    fn a_resume_repeats_what_was_acknowledged_of_late_and_forgets_nothing_that_waits() {
        let count = 3 * REPEATED_ACKS as u64;
        let mut incoming = received(count);
        incoming.repeat_acks();
        for expected in 0..2_000 {
            assert_eq!(incoming.poll_ack().map(|ack| ack.sequence), Some(expected));
        }
        incoming.repeat_acks();
        assert_eq!(acks(&mut incoming), (0..count).collect::<Vec<_>>());
        incoming.repeat_acks();
        let repeated = count - REPEATED_ACKS as u64..count;
        assert_eq!(acks(&mut incoming), repeated.collect::<Vec<_>>());
    }

    #[test]
    fn what_waits_does_not_keep_what_it_was_read_with() {
        let mut incoming = Incoming::default();
        let read = Bytes::from(vec![0; 16_384]);
        for sequence in [1, 0] {
            let payload = read.slice(..1);
            incoming.receive(Message {
                payload,
                ..message(sequence)
            });
        }
        let mut delivered = std::iter::from_fn(|| incoming.poll_delivery());
        let shares = |message: Message| read.as_ptr_range().contains(&message.payload.as_ptr());
        assert_eq!(delivered.next().map(shares), Some(true));
        assert_eq!(delivered.next().map(shares), Some(false), "it waited");
    }

    #[test]
    fn acknowledgements_that_nobody_takes_are_bounded() {
        let mut incoming = received(2 * MOST_ACKS as u64);
        assert_eq!(acks(&mut incoming).len(), MOST_ACKS);
    }
}
