//! Our messages from the oldest un-acknowledged one on, without gaps in the numbers.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

/// The messages of one side.
#[derive(Default)]
pub(super) struct Backlog {
    next: u64,
    messages: VecDeque<Sent>,
    /// The bytes of payload that are un-acknowledged.
    bytes: usize,
}

/// One message.
pub(super) struct Sent {
    /// Empty once it is acknowledged, however many before it are not.
    pub(super) frame: Bytes,
    pub(super) length: usize,
    pub(super) last_sent: Instant,
    pub(super) times_sent: u32,
    /// How many acknowledgements of later messages have come since it was sent.
    pub(super) overtaken: u32,
    is_acknowledged: bool,
}

impl Backlog {
    /// Returns the number that the next message has.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Returns the number of the oldest un-acknowledged message.
    pub(super) fn first(&self) -> Option<u64> {
        (!self.messages.is_empty()).then(|| self.next - self.messages.len() as u64)
    }

    /// Returns the oldest un-acknowledged message.
    pub(super) fn oldest(&self) -> Option<&Sent> {
        self.messages.front()
    }

    /// Returns the message that was sent last, acknowledged or not, while an earlier one is un-acknowledged.
    pub(super) fn latest(&self) -> Option<&Sent> {
        self.messages.back()
    }

    /// Returns whether everything was acknowledged.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Returns how many messages there are since the oldest un-acknowledged one.
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Returns how many bytes are un-acknowledged.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a message that is sent now, and carries so many bytes.
    pub(super) fn push(&mut self, frame: Bytes, length: usize, now: Instant) {
        self.next += 1;
        self.bytes += length;
        self.messages.push_back(Sent {
            frame,
            length,
            last_sent: now,
            times_sent: 1,
            overtaken: 0,
            is_acknowledged: false,
        });
    }

    /// Returns a message, if it is un-acknowledged.
    pub(super) fn get_mut(&mut self, sequence: u64) -> Option<&mut Sent> {
        let index = sequence.checked_sub(self.first()?)?;
        let sent = self.messages.get_mut(usize::try_from(index).ok()?)?;
        (!sent.is_acknowledged).then_some(sent)
    }

    /// A message has arrived.
    pub(super) fn settle(&mut self, sequence: u64) {
        let Some(sent) = self.get_mut(sequence) else {
            return;
        };
        sent.is_acknowledged = true;
        sent.frame = Bytes::new();
        self.bytes -= sent.length;
        while self.messages.front().is_some_and(|sent| sent.is_acknowledged) {
            self.messages.pop_front();
        }
    }

    /// Returns the un-acknowledged messages.
    pub(super) fn unacknowledged(&self) -> impl Iterator<Item = &Sent> {
        self.messages.iter().filter(|sent| !sent.is_acknowledged)
    }

    /// Returns the un-acknowledged ones among the oldest `reach` messages that are before that one, with their numbers.
    pub(super) fn before(&mut self, sequence: u64, reach: usize) -> impl Iterator<Item = (u64, &mut Sent)> {
        let first = self.first().unwrap_or(sequence);
        let numbered = (first..sequence).zip(&mut self.messages).take(reach);
        numbered.filter(|(_, sent)| !sent.is_acknowledged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an origin for invented time")]
    fn origin() -> Instant {
        Instant::now()
    }

    #[test]
    fn what_has_arrived_is_not_kept_for_what_was_sent_before_it() {
        let mut backlog = Backlog::default();
        let (first, second) = (Bytes::from(vec![1]), Bytes::from(vec![2]));
        backlog.push(first.clone(), 1, origin());
        backlog.push(second.clone(), 1, origin());
        backlog.settle(1);
        assert!(!first.is_unique(), "it may have to be sent again");
        assert!(second.is_unique());
        assert_eq!((backlog.first(), backlog.len(), backlog.bytes()), (Some(0), 2, 1));
        backlog.settle(0);
        assert_eq!((backlog.first(), backlog.len(), backlog.bytes()), (None, 0, 0));
    }
}
