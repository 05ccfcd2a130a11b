//! Notices a target that takes nothing more. The agent then reads nothing of its session any more, whichever stream it
//! is for: acknowledgements stop while the service, which answers pings itself, goes on (ssm.md section 9.3).
//!
//! ```text
//!             3 s without an acknowledgement     a pong comes            stall_timeout          10 s
//!   flowing ─────────────────────────► unanswered ─────────► stalled ───────────────► expired ───────► given up
//!      ▲        something un-acknowledged   │                   │                        │
//!      └────────────────────────────────────┴───────────────────┴────────────────────────┘ an acknowledgement
//! ```
//!
//! smux v1 has no credit and acknowledgements don't mean that the target took the bytes, so which stream it is can only
//! be suspected: the one with the most bytes un-acknowledged.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::smux::{Decoder, Item, StreamId};

/// Without an acknowledgement for this long, the far end is asked for a sign of life. Round trips take a tenth of it,
/// and the agent dials and writes without answering meanwhile.
const PATIENCE: Duration = Duration::from_secs(3);
/// What the agent gets to read on once the suspected stream was reset.
const LAST_CHANCE: Duration = Duration::from_secs(10);

/// What became of the acknowledgements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// None for a while: whether the websocket lives has to be found out.
    Unanswered,
    /// None, although the websocket lives.
    Stalled,
    /// They come again.
    Flowing,
    /// None for the whole of the stall timeout.
    Expired,
    /// None even after the suspected stream was reset.
    GivenUp,
}

/// The machine. See the module's documentation.
#[derive(Debug)]
pub(super) struct Stall {
    timeout: Duration,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Flowing,
    Unanswered,
    Stalled { until: Instant },
    Expired { until: Instant },
}

impl Stall {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            state: State::Flowing,
        }
    }

    /// The far end acknowledged something, or nothing can be concluded any more from its silence.
    pub(super) fn handle_life(&mut self) -> Option<Notice> {
        match std::mem::replace(&mut self.state, State::Flowing) {
            State::Flowing | State::Unanswered => None,
            State::Stalled { .. } | State::Expired { .. } => Some(Notice::Flowing),
        }
    }

    /// The websocket answered.
    pub(super) fn handle_pong(&mut self, now: Instant) -> Option<Notice> {
        if self.state != State::Unanswered {
            return None;
        }
        self.state = State::Stalled {
            until: now + self.timeout,
        };
        Some(Notice::Stalled)
    }

    /// A moment has come that [`Stall::poll_timeout`] named. `waiting` is since when nothing was acknowledged.
    pub(super) fn handle_timeout(&mut self, waiting: Option<Instant>, now: Instant) -> Option<Notice> {
        if self.poll_timeout(waiting).is_none_or(|due| due > now) {
            return None;
        }
        match self.state {
            State::Flowing => {
                self.state = State::Unanswered;
                Some(Notice::Unanswered)
            }
            State::Unanswered => None,
            State::Stalled { .. } => {
                self.state = State::Expired {
                    until: now + LAST_CHANCE,
                };
                Some(Notice::Expired)
            }
            State::Expired { .. } => {
                self.state = State::Flowing;
                Some(Notice::GivenUp)
            }
        }
    }

    pub(super) fn poll_timeout(&self, waiting: Option<Instant>) -> Option<Instant> {
        match self.state {
            State::Flowing => waiting.map(|since| since + PATIENCE),
            State::Unanswered => None,
            State::Stalled { until } | State::Expired { until } => Some(until),
        }
    }
}

/// Returns the stream with the most bytes in these payloads, each of which holds whole smux frames.
pub(super) fn suspect(payloads: impl Iterator<Item = Bytes>) -> Option<StreamId> {
    let mut lengths: BTreeMap<StreamId, usize> = BTreeMap::new();
    let mut decoder = Decoder::default();
    for mut payload in payloads {
        while let Ok(Some(item)) = decoder.next(&mut payload) {
            if let Item::Data(id, bytes) = item {
                *lengths.entry(id).or_default() += bytes.len();
            }
        }
    }
    lengths
        .into_iter()
        .max_by_key(|(_, length)| *length)
        .map(|(id, _)| id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smux::Header;

    const TIMEOUT: Duration = Duration::from_secs(120);

    #[expect(clippy::disallowed_methods, reason = "an origin for invented time")]
    fn origin() -> Instant {
        Instant::now()
    }

    #[test]
    fn silence_is_a_stall_only_where_the_websocket_answers() {
        let start = origin();
        let mut stall = Stall::new(TIMEOUT);
        assert_eq!(stall.handle_pong(start), None, "a pong of every day");
        let due = stall.poll_timeout(Some(start)).unwrap();
        assert_eq!(
            stall.handle_timeout(Some(start), due - Duration::from_millis(1)),
            None
        );
        assert_eq!(stall.handle_timeout(Some(start), due), Some(Notice::Unanswered));
        assert_eq!(stall.poll_timeout(Some(start)), None, "the websocket's turn");
        assert_eq!(stall.handle_pong(due), Some(Notice::Stalled));
        assert_eq!(stall.handle_life(), Some(Notice::Flowing));
        assert_eq!(stall.poll_timeout(None), None);
    }

    #[test]
    fn a_stall_expires_and_is_given_up() {
        let start = origin();
        let mut stall = Stall::new(TIMEOUT);
        let next = |stall: &mut Stall| {
            let due = stall.poll_timeout(Some(start)).unwrap();
            (stall.handle_timeout(Some(start), due), due - start)
        };
        assert_eq!(next(&mut stall), (Some(Notice::Unanswered), PATIENCE));
        stall.handle_pong(start + PATIENCE);
        assert_eq!(next(&mut stall), (Some(Notice::Expired), PATIENCE + TIMEOUT));
        assert_eq!(
            next(&mut stall),
            (Some(Notice::GivenUp), PATIENCE + TIMEOUT + LAST_CHANCE)
        );
    }

    #[test]
    fn the_stream_with_the_most_bytes_is_suspected() {
        let frame = |id: u32, length: u16| {
            let mut bytes = Header::Psh(StreamId(id), length).encode().to_vec();
            bytes.resize(bytes.len() + usize::from(length), 0);
            Bytes::from(bytes)
        };
        let payloads = [frame(3, 10), frame(5, 900), frame(3, 500), frame(7, 3)];
        assert_eq!(suspect(payloads.into_iter()), Some(StreamId(5)));
        assert_eq!(suspect([].into_iter()), None);
    }
}
