//! The reliable channel: numbers, acknowledges, sends again, puts in order, pauses. One direction is ours, one the
//! peer's; both sides of a session are this machine.
//!
//! ```text
//!   sending    send ─► sent, un-acknowledged ─ack─► gone
//!                        │  ▲
//!                timeout,│  │ poll_transmit: the same bytes
//!                attach  ▼  │
//!                      to be sent again, lowest first
//!
//!   receiving  number < expected   acknowledge again
//!              number = expected   acknowledge, deliver, then what waited
//!              number > expected   acknowledge, keep; if there is no room: drop
//! ```
//!
//! Every well-formed data message is acknowledged, duplicates too: the official agent sends only its oldest message
//! again, so one lost acknowledgement would stall it for ever (ssm.md section 7.5).

mod backlog;
mod flight;
mod incoming;
mod outgoing;
mod stamps;
mod window;

use std::time::{Duration, Instant};

use bytes::Bytes;

pub(crate) use self::incoming::Duplicates;
use self::incoming::{Ack, Incoming};
use self::outgoing::Outgoing;
pub(crate) use self::stamps::Stamps;
pub(crate) use self::window::Window;
use super::message::{self, Draft, Kind, Message, PayloadType};
use super::payload::{self, LONGEST_ACKNOWLEDGE};
use super::policy::{Pace, Policy, Resend};
use super::probe::PayloadProbe;

/// Which side of the session a channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Agent,
}

/// While paused, one message is sent again this often, to learn of the end of the pause.
const PAUSE_PROBE: Duration = Duration::from_secs(1);

/// The reliable channel of one side.
pub(crate) struct Channel {
    role: Role,
    stamps: Stamps,
    presence: Presence,
    outgoing: Outgoing,
    incoming: Incoming,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// There is no websocket.
    Away,
    /// There is one.
    Here,
    /// There is one, and the service says that the other side is away.
    Paused { since: Instant, probe: Instant },
}

impl Channel {
    pub(crate) fn new(role: Role, policy: Policy, stamps: Stamps) -> Self {
        Self {
            role,
            stamps,
            presence: Presence::Away,
            outgoing: Outgoing::new(policy),
            incoming: Incoming::default(),
        }
    }

    /// There is a websocket. A client sends everything un-acknowledged again, lowest first, and repeats its latest
    /// acknowledgements; nothing tells the agent of a resume.
    pub(crate) fn attach(&mut self, now: Instant) {
        self.presence = Presence::Here;
        self.outgoing.restart_waiting(now);
        match self.outgoing.resend() {
            Resend::All => {
                self.outgoing.send_all_again();
                self.incoming.repeat_acks();
            }
            Resend::Oldest => self.incoming.forget_acks(),
        }
    }

    /// The websocket is gone.
    pub(crate) fn detach(&mut self) {
        if self.presence != Presence::Away {
            self.outgoing.trouble();
        }
        self.presence = Presence::Away;
        self.outgoing.rest();
    }

    /// The service says that the other side is away: new data stops.
    pub(crate) fn pause(&mut self, now: Instant) {
        if self.presence == Presence::Here {
            self.presence = Presence::Paused {
                since: now,
                probe: now + PAUSE_PROBE,
            };
            self.outgoing.trouble();
            self.outgoing.rest();
        }
    }

    /// The other side is there, as the service says or a frame of it shows. What it can't have is sent again.
    pub(crate) fn resume(&mut self, now: Instant) {
        if matches!(self.presence, Presence::Paused { .. }) {
            self.presence = Presence::Here;
            self.peer_is_back(now);
        }
    }

    /// The service says that the other side has just come: what it can't have is sent again.
    pub(crate) fn peer_is_back(&mut self, now: Instant) {
        if self.presence == Presence::Here && self.outgoing.resend() == Resend::All {
            self.outgoing.send_overdue_again(now);
        }
    }

    /// The other side was away until now: what is un-acknowledged has been waited for since now.
    pub(crate) fn restart_waiting(&mut self, now: Instant) {
        self.outgoing.restart_waiting(now);
    }

    /// Returns since when the channel has been paused.
    pub(crate) fn paused_since(&self) -> Option<Instant> {
        match self.presence {
            Presence::Paused { since, .. } => Some(since),
            Presence::Away | Presence::Here => None,
        }
    }

    /// The peer discards duplicates without a word: agents before 3.2.1041.0 do.
    pub(crate) fn peer_is_silent_on_duplicates(&mut self) {
        self.outgoing.peer_is_silent_on_duplicates();
    }

    /// Says what this side does with a message that has come before.
    pub(crate) fn treat_duplicates(&mut self, duplicates: Duplicates) {
        self.incoming.treat_duplicates(duplicates);
    }

    /// New data messages leave at this pace from now on.
    pub(crate) fn set_pace(&mut self, pace: Pace) {
        self.outgoing.set_pace(pace);
    }

    /// Returns how many bytes a new data message may carry now; `None` when none may be sent.
    pub(crate) fn room(&mut self, now: Instant) -> Option<usize> {
        if self.takes_new() {
            self.outgoing.room(now)
        } else {
            None
        }
    }

    /// Returns when pacing lets the next message be sent again that waits for it.
    pub(crate) fn again_at(&self, now: Instant) -> Option<Instant> {
        self.outgoing.again_at(now).filter(|_| self.is_attached())
    }

    /// Returns when pacing lets the next data message leave, if nothing else stands in its way.
    pub(crate) fn room_at(&self, now: Instant) -> Option<Instant> {
        if self.takes_new() {
            self.outgoing.room_at(now)
        } else {
            None
        }
    }

    /// Returns whether new data messages may be sent. While paused, one may where there is no other to ask with whether
    /// the pause has ended.
    fn takes_new(&self) -> bool {
        match self.presence {
            Presence::Away => false,
            Presence::Here => true,
            Presence::Paused { .. } => self.role == Role::Client && self.outgoing.is_drained(),
        }
    }

    /// Returns whether both sides are there, as far as is known.
    pub(crate) fn is_open(&self) -> bool {
        self.presence == Presence::Here
    }

    /// Returns whether messages that steer the session, which know no window, may be sent.
    pub(crate) fn is_attached(&self) -> bool {
        self.presence != Presence::Away
    }

    /// Returns since when the other side, which is there as far as is known, has acknowledged nothing although something
    /// is un-acknowledged.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.outgoing.waiting_since().filter(|_| self.is_open())
    }

    /// Returns whether only a new message can show that the old ones arrived.
    pub(crate) fn needs_witness(&self) -> bool {
        self.is_open() && self.outgoing.needs_witness()
    }

    /// Returns the payloads of data messages that carry bytes of streams and are un-acknowledged.
    pub(crate) fn unacknowledged_output(&self) -> impl Iterator<Item = Bytes> {
        let messages = self.outgoing.unacknowledged().cloned().map(Message::decode);
        messages
            .flatten()
            .filter(|message| message.payload_type == PayloadType::Output)
            .map(|message| message.payload)
    }

    /// Returns how large payloads may be, as far as is known.
    pub(crate) fn payloads(&self) -> &PayloadProbe {
        self.outgoing.payloads()
    }

    /// Returns how many of the peer's messages are missing, and the number of the first of them.
    pub(crate) fn hole(&self) -> (u64, u64) {
        (self.incoming.missing(), self.incoming.expected())
    }

    /// Returns whether everything sent was acknowledged.
    pub(crate) fn is_drained(&self) -> bool {
        self.outgoing.is_drained()
    }

    /// Numbers and keeps a data message; returns its frame, to be sent now.
    pub(crate) fn send(&mut self, payload_type: PayloadType, draft: Draft, now: Instant) -> Bytes {
        let length = draft.written().len();
        let sequence = self.outgoing.next_sequence();
        // Only the agent marks its first message; no known peer reads it.
        let flags = u64::from(self.role == Role::Agent && sequence == 0);
        let (kind, _) = self.role.kinds();
        let frame = self.stamps.frame(kind, sequence, flags, payload_type, draft, now);
        self.outgoing.keep(frame.clone(), length, now);
        frame
    }

    /// Returns how many bytes the next data message is to carry only to find out whether they pass, if it is time for
    /// that. A data message may be sent now, as [`Channel::room`] has said.
    pub(crate) fn trial(&self) -> Option<usize> {
        self.outgoing.trial().filter(|_| self.is_open())
    }

    /// Numbers a data message that says nothing; returns its frame, to be sent now. Sent again, it is as good in the
    /// short form.
    pub(crate) fn send_trial(&mut self, payload: Bytes, short: Bytes, now: Instant) -> Bytes {
        let length = payload.len();
        let (kind, _) = self.role.kinds();
        let sequence = self.outgoing.next_sequence();
        let trial = self
            .stamps
            .message(kind, sequence, 0, PayloadType::Output, payload, now);
        let again = Message {
            digest: message::digest(&short),
            payload: short,
            ..trial.clone()
        };
        self.outgoing.keep_trial(again.encode(), length, now);
        trial.encode()
    }

    /// Returns the next acknowledgement, or message to be sent again.
    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        if self.presence == Presence::Away {
            return None;
        }
        if let Some(ack) = self.incoming.poll_ack() {
            return Some(self.acknowledgement(ack, now));
        }
        self.outgoing.poll_again(now)
    }

    /// A moment has come that [`Channel::poll_timeout`] named.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        match self.presence {
            Presence::Away => {}
            Presence::Here => self.outgoing.handle_timeout(now),
            Presence::Paused { since, probe } => {
                if probe <= now && self.role == Role::Client {
                    self.presence = Presence::Paused {
                        since,
                        probe: now + PAUSE_PROBE,
                    };
                    self.outgoing.send_oldest_again();
                }
            }
        }
    }

    /// Returns when [`Channel::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.presence {
            Presence::Away => None,
            Presence::Here => self.outgoing.poll_timeout(),
            Presence::Paused { probe, .. } => {
                (self.role == Role::Client && !self.outgoing.is_drained()).then_some(probe)
            }
        }
    }

    /// Takes a data message of the peer.
    pub(crate) fn receive(&mut self, message: Message) {
        self.incoming.receive(message);
    }

    /// Returns the peer's next message in order.
    pub(crate) fn poll_delivery(&mut self) -> Option<Message> {
        self.incoming.poll_delivery()
    }

    /// The peer has one of our messages. Numbers that are unknown, or known to have arrived, tell only that it reads.
    pub(crate) fn handle_ack(&mut self, sequence: u64, now: Instant) {
        self.outgoing.handle_ack(sequence, now);
    }

    /// Returns what dates and names the messages of this side.
    pub(crate) fn stamps(&mut self) -> &mut Stamps {
        &mut self.stamps
    }

    fn acknowledgement(&mut self, ack: Ack, now: Instant) -> Bytes {
        let (_, kind) = self.role.kinds();
        let mut draft = Draft::with_room(LONGEST_ACKNOWLEDGE);
        payload::write_acknowledge(kind.name(), ack.id, ack.sequence, draft.payload());
        // Flags 3: some Windows agents were seen to reject acknowledgements with SYN alone (ssm.md section 3.5).
        self.stamps
            .frame(Kind::Acknowledge, 0, 3, PayloadType::Undefined, draft, now)
    }
}

impl Role {
    /// The kinds of our data messages and of the peer's.
    pub(crate) fn kinds(self) -> (Kind, Kind) {
        match self {
            Self::Client => (Kind::InputStreamData, Kind::OutputStreamData),
            Self::Agent => (Kind::OutputStreamData, Kind::InputStreamData),
        }
    }
}
