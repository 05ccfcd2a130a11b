//! The peer's direction of a channel: puts in order, and remembers what is to be acknowledged.

use std::collections::{BTreeMap, VecDeque};

use uuid::Uuid;

use crate::ssm::message::Message;

/// The most messages that may wait for an earlier one: after an outage an agent goes on at 900 a second while the hole
/// is filled at 10 a second (ssm.md trap 29).
const MOST_EARLY: usize = 20_000;
/// The most bytes of them.
const MOST_EARLY_BYTES: usize = 32 << 20;
/// The most acknowledgements that wait to be sent, as when the websocket takes nothing; beyond, the peer has to send
/// its message again.
const MOST_ACKS: usize = MOST_EARLY;
/// Acknowledgements that are repeated when the websocket is back: what a cut may have swallowed of them.
const REPEATED_ACKS: usize = 256;

/// The peer's messages.
#[derive(Default)]
pub(super) struct Incoming {
    expected: u64,
    early: BTreeMap<u64, Message>,
    early_bytes: usize,
    delivered: VecDeque<Message>,
    acks: VecDeque<Ack>,
    recent_acks: VecDeque<Ack>,
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
            self.early.insert(message.sequence, message);
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
        self.acks.pop_front()
    }

    /// Acknowledges the latest messages once more, if that is what this side does with duplicates.
    pub(super) fn repeat_acks(&mut self) {
        match self.duplicates {
            Duplicates::Acknowledged => self.acks = self.recent_acks.clone(),
            Duplicates::Ignored => {}
        }
    }

    /// Forgets what is still to be acknowledged; the peer will send it again.
    pub(super) fn forget_acks(&mut self) {
        self.acks.clear();
    }

    fn deliver(&mut self, message: Message) {
        self.expected += 1;
        self.delivered.push_back(message);
    }

    fn acknowledge(&mut self, ack: Ack) {
        if self.acks.len() < MOST_ACKS {
            self.acks.push_back(ack);
        }
        self.recent_acks.push_back(ack);
        if self.recent_acks.len() > REPEATED_ACKS {
            self.recent_acks.pop_front();
        }
    }
}
