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

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::message::{self, Kind, Message, PayloadType};
use super::payload::{self, Acknowledge};
use super::policy::{Policy, Resend};
use super::rtt::RoundTrip;

/// Which side of the session a channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Agent,
}

/// The most messages that may wait for an earlier one: after an outage an agent goes on at 900 a second while the hole
/// is filled at 10 a second (ssm.md trap 29).
const MOST_EARLY: usize = 20_000;
/// The most bytes of them.
const MOST_EARLY_BYTES: usize = 32 << 20;
/// The most messages un-acknowledged: the official client's list.
const MOST_SENT: usize = 10_000;
/// While paused, one message is sent again this often, to learn of the end of the pause.
const PAUSE_PROBE: Duration = Duration::from_secs(1);
/// The official side looks at its oldest message this often.
const TICK: Duration = Duration::from_millis(100);
/// Later acknowledgements after which a message counts as lost.
const OVERTAKEN: u32 = 3;
/// How far behind the oldest un-acknowledged message later acknowledgements are compared.
const OVERTAKEN_REACH: usize = 64;
/// Acknowledgements that are repeated when the websocket is back: what a cut may have swallowed of them.
const REPEATED_ACKS: usize = 256;
/// Sendings after which an agent that is silent on duplicates is believed to have the message.
const BELIEVED_AFTER: u32 = 6;

/// The reliable channel of one side.
#[derive(Debug)]
pub(crate) struct Channel {
    role: Role,
    policy: Policy,
    stamps: Stamps,
    presence: Presence,
    round_trip: RoundTrip,
    silent_on_duplicates: bool,

    next_sequence: u64,
    /// From the oldest un-acknowledged message on, without gaps in the numbers.
    sent: VecDeque<Sent>,
    unacknowledged: usize,
    highest_acknowledged: Option<u64>,
    /// Each sending with its time, oldest first; entries that a later sending or an acknowledgement made stale stay
    /// until they come to the front.
    flight: VecDeque<(Instant, u64)>,
    again: BTreeSet<u64>,
    last_tick: Option<Instant>,

    expected: u64,
    early: BTreeMap<u64, Message>,
    early_bytes: usize,
    delivered: VecDeque<Message>,
    acks: VecDeque<Ack>,
    recent_acks: VecDeque<Ack>,
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

#[derive(Debug)]
struct Sent {
    frame: Bytes,
    length: usize,
    last_sent: Instant,
    times_sent: u32,
    overtaken: u32,
    acknowledged: bool,
}

#[derive(Debug, Clone, Copy)]
struct Ack {
    id: Uuid,
    sequence: u64,
}

impl Channel {
    pub(crate) fn new(role: Role, policy: Policy, stamps: Stamps) -> Self {
        Self {
            role,
            round_trip: RoundTrip::new(policy.limits),
            policy,
            stamps,
            presence: Presence::Away,
            silent_on_duplicates: false,
            next_sequence: 0,
            sent: VecDeque::new(),
            unacknowledged: 0,
            highest_acknowledged: None,
            flight: VecDeque::new(),
            again: BTreeSet::new(),
            last_tick: None,
            expected: 0,
            early: BTreeMap::new(),
            early_bytes: 0,
            delivered: VecDeque::new(),
            acks: VecDeque::new(),
            recent_acks: VecDeque::new(),
        }
    }

    /// There is a websocket. A client sends everything un-acknowledged again, lowest first, and repeats its latest
    /// acknowledgements; nothing tells the agent of a resume.
    pub(crate) fn attach(&mut self) {
        self.presence = Presence::Here;
        match self.policy.resend {
            Resend::All => {
                self.send_all_again();
                self.acks = self.recent_acks.clone();
            }
            Resend::Oldest => self.acks.clear(),
        }
    }

    /// The websocket is gone.
    pub(crate) fn detach(&mut self) {
        if self.presence != Presence::Away {
            self.policy.chunk.trouble();
        }
        self.presence = Presence::Away;
        self.again.clear();
        self.flight.clear();
    }

    /// The service says that the other side is away: new data stops.
    pub(crate) fn pause(&mut self, now: Instant) {
        if self.presence == Presence::Here {
            self.presence = Presence::Paused { since: now, probe: now + PAUSE_PROBE };
            self.policy.chunk.trouble();
            self.again.clear();
        }
    }

    /// The other side is there, as the service says or a frame of it shows.
    pub(crate) fn resume(&mut self) {
        if matches!(self.presence, Presence::Paused { .. }) {
            self.presence = Presence::Here;
            if self.policy.resend == Resend::All {
                self.send_all_again();
            }
        }
    }

    /// The service says that the other side has just come: what it can't have is sent again at once.
    pub(crate) fn peer_is_back(&mut self, now: Instant) {
        self.resume();
        if self.presence == Presence::Here && self.policy.resend == Resend::All {
            self.expire_flight(self.round_trip.smoothed(), now);
        }
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
        self.silent_on_duplicates = true;
    }

    /// Returns how many bytes a new data message may carry now; `None` when none may be sent.
    pub(crate) fn room(&self, now: Instant) -> Option<usize> {
        (self.has_room() && self.policy.pace.wait_until(now).is_none()).then(|| self.policy.chunk.size())
    }

    /// Returns when pacing lets the next data message leave, if nothing else stands in its way.
    pub(crate) fn room_at(&self, now: Instant) -> Option<Instant> {
        if self.has_room() { self.policy.pace.wait_until(now) } else { None }
    }

    /// Returns whether messages that steer the session, which know no window, may be sent.
    pub(crate) fn is_attached(&self) -> bool {
        self.presence != Presence::Away
    }

    /// Returns whether everything sent was acknowledged.
    pub(crate) fn is_drained(&self) -> bool {
        self.sent.is_empty()
    }

    /// Numbers and keeps a data message; returns its frame, to be sent now.
    pub(crate) fn send(&mut self, payload_type: PayloadType, payload: Bytes, now: Instant) -> Bytes {
        let length = payload.len();
        let sequence = self.next_sequence;
        // Only the agent marks its first message; no known peer reads it.
        let flags = u64::from(self.role == Role::Agent && sequence == 0);
        let (kind, _) = self.role.kinds();
        let frame = self.stamps.message(kind, sequence, flags, payload_type, payload, now).encode();
        self.next_sequence += 1;
        self.unacknowledged += length;
        self.sent.push_back(Sent {
            frame: frame.clone(),
            length,
            last_sent: now,
            times_sent: 1,
            overtaken: 0,
            acknowledged: false,
        });
        self.flight.push_back((now, sequence));
        self.policy.pace.sent(now);
        frame
    }

    /// Returns the next acknowledgement, or message to be sent again.
    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        if self.presence == Presence::Away {
            return None;
        }
        if let Some(ack) = self.acks.pop_front() {
            return Some(self.acknowledgement(ack, now));
        }
        while let Some(sequence) = self.again.pop_first() {
            if let Some(frame) = self.send_again(sequence, now) {
                return Some(frame);
            }
        }
        None
    }

    /// A moment has come that [`Channel::poll_timeout`] named.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        match self.presence {
            Presence::Away => {}
            Presence::Paused { since, probe } => {
                if probe <= now && self.role == Role::Client {
                    self.presence = Presence::Paused { since, probe: now + PAUSE_PROBE };
                    self.again.extend(self.first_sequence());
                }
            }
            Presence::Here => match self.policy.resend {
                Resend::All => {
                    if self.expire_flight(self.round_trip.timeout(), now) {
                        self.round_trip.back_off();
                    }
                }
                Resend::Oldest => self.tick(now),
            },
        }
    }

    /// Returns when [`Channel::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match (self.presence, self.policy.resend) {
            (Presence::Away, _) => None,
            (Presence::Paused { probe, .. }, _) => {
                (self.role == Role::Client && !self.sent.is_empty()).then_some(probe)
            }
            (Presence::Here, Resend::All) => {
                let (sent, _) = self.flight.front()?;
                Some(*sent + self.round_trip.timeout())
            }
            (Presence::Here, Resend::Oldest) => self.next_tick(),
        }
    }

    /// Takes a data message of the peer.
    pub(crate) fn receive(&mut self, message: Message) {
        let ack = Ack { id: message.id, sequence: message.sequence };
        if message.sequence < self.expected {
            self.acknowledge(ack);
        } else if message.sequence == self.expected {
            self.acknowledge(ack);
            self.deliver(message);
            while let Some(next) = self.early.remove(&self.expected) {
                self.early_bytes -= next.payload.len();
                self.deliver(next);
            }
        } else if self.early.contains_key(&message.sequence) {
            self.acknowledge(ack);
        } else if self.early.len() < MOST_EARLY && self.early_bytes + message.payload.len() <= MOST_EARLY_BYTES {
            self.acknowledge(ack);
            self.early_bytes += message.payload.len();
            self.early.insert(message.sequence, message);
        }
    }

    /// Returns the peer's next message in order.
    pub(crate) fn poll_delivery(&mut self) -> Option<Message> {
        self.delivered.pop_front()
    }

    /// The peer has one of our messages. Numbers that are unknown, or known to have arrived, change nothing.
    pub(crate) fn handle_ack(&mut self, sequence: u64, now: Instant) {
        let Some(index) = self.first_sequence().and_then(|first| sequence.checked_sub(first)) else { return };
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let Some(sent) = self.sent.get_mut(index).filter(|sent| !sent.acknowledged) else { return };
        sent.acknowledged = true;
        let (sent_at, length) = (sent.last_sent, sent.length);
        if sent.times_sent == 1 {
            self.round_trip.sample(now.saturating_duration_since(sent_at));
            self.policy.chunk.acknowledged(length);
        }
        self.unacknowledged -= length;
        self.highest_acknowledged = self.highest_acknowledged.max(Some(sequence));
        if self.policy.resend == Resend::All && index > 0 {
            self.notice_overtaken(index, sent_at);
        }
        self.drop_acknowledged();
    }

    /// Makes a frame that is no data message, such as the service sends.
    pub(crate) fn stamps(&mut self) -> &mut Stamps {
        &mut self.stamps
    }

    fn has_room(&self) -> bool {
        self.presence == Presence::Here
            && self.again.is_empty()
            && self.unacknowledged < self.policy.window
            && self.sent.len() < MOST_SENT
    }

    fn first_sequence(&self) -> Option<u64> {
        (!self.sent.is_empty()).then(|| self.next_sequence - self.sent.len() as u64)
    }

    fn sent_mut(&mut self, sequence: u64) -> Option<&mut Sent> {
        let index = sequence.checked_sub(self.first_sequence()?)?;
        let sent = self.sent.get_mut(usize::try_from(index).ok()?)?;
        (!sent.acknowledged).then_some(sent)
    }

    fn send_all_again(&mut self) {
        let Some(first) = self.first_sequence() else { return };
        self.again = (first..self.next_sequence).collect();
        self.flight.clear();
    }

    fn send_again(&mut self, sequence: u64, now: Instant) -> Option<Bytes> {
        let sent = self.sent_mut(sequence)?;
        sent.last_sent = now;
        sent.times_sent += 1;
        sent.overtaken = 0;
        let frame = sent.frame.clone();
        self.flight.push_back((now, sequence));
        Some(frame)
    }

    /// Marks what was sent `timeout` ago or earlier to be sent again; returns whether there was any.
    fn expire_flight(&mut self, timeout: Duration, now: Instant) -> bool {
        let mut expired = false;
        while let Some((sent_at, sequence)) = self.flight.front().copied() {
            let live = self.sent_mut(sequence).is_some_and(|sent| sent.last_sent == sent_at);
            if live && sent_at + timeout > now {
                break;
            }
            self.flight.pop_front();
            if live && !self.believe(sequence) {
                self.again.insert(sequence);
                expired = true;
            }
        }
        expired
    }

    /// With an agent that never acknowledges twice, a message sent often while later ones were acknowledged must have
    /// arrived: only its acknowledgement was lost.
    fn believe(&mut self, sequence: u64) -> bool {
        let overtaken = self.highest_acknowledged.is_some_and(|highest| highest > sequence);
        if !self.silent_on_duplicates || !overtaken {
            return false;
        }
        let Some(sent) = self.sent_mut(sequence).filter(|sent| sent.times_sent >= BELIEVED_AFTER) else {
            return false;
        };
        sent.acknowledged = true;
        let length = sent.length;
        self.unacknowledged -= length;
        self.drop_acknowledged();
        true
    }

    fn notice_overtaken(&mut self, index: usize, by: Instant) {
        let Some(first) = self.first_sequence() else { return };
        let before = self.sent.iter_mut().take(index.min(OVERTAKEN_REACH)).enumerate();
        for (offset, sent) in before {
            if sent.acknowledged || sent.last_sent > by {
                continue;
            }
            sent.overtaken += 1;
            if sent.overtaken == OVERTAKEN && sent.times_sent == 1 {
                self.again.insert(first + offset as u64);
            }
        }
    }

    fn drop_acknowledged(&mut self) {
        while self.sent.front().is_some_and(|sent| sent.acknowledged) {
            self.sent.pop_front();
        }
        if self.sent.is_empty() {
            self.flight.clear();
        }
    }

    fn next_tick(&self) -> Option<Instant> {
        let oldest = self.sent.front()?;
        let due = oldest.last_sent + self.round_trip.timeout();
        Some(self.last_tick.map_or(due, |last| due.max(last + TICK)))
    }

    fn tick(&mut self, now: Instant) {
        if self.next_tick().is_some_and(|due| due <= now) {
            self.last_tick = Some(now);
            self.again.extend(self.first_sequence());
        }
    }

    fn deliver(&mut self, message: Message) {
        self.expected += 1;
        self.delivered.push_back(message);
    }

    fn acknowledge(&mut self, ack: Ack) {
        self.acks.push_back(ack);
        self.recent_acks.push_back(ack);
        if self.recent_acks.len() > REPEATED_ACKS {
            self.recent_acks.pop_front();
        }
    }

    fn acknowledgement(&mut self, ack: Ack, now: Instant) -> Bytes {
        let (_, kind) = self.role.kinds();
        let body = payload::json(&Acknowledge {
            acknowledged_message_type: kind.to_string(),
            acknowledged_message_id: ack.id,
            acknowledged_message_sequence_number: ack.sequence,
            is_sequential_message: true,
        });
        // Flags 3: some Windows agents were seen to reject acknowledgements with SYN alone (ssm.md section 3.5).
        self.stamps.message(Kind::Acknowledge, 0, 3, PayloadType::Undefined, body, now).encode()
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

/// Where message ids and dates come from: a seed and a pair of clock readings that the driver took.
#[derive(Debug)]
pub(crate) struct Stamps {
    random: fastrand::Rng,
    began: Instant,
    began_unix: Duration,
}

impl Stamps {
    /// `began_unix` is the time since 1970 at `began`.
    pub(crate) fn new(seed: u64, began: Instant, began_unix: Duration) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), began, began_unix }
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
        let since_1970 = self.began_unix + now.saturating_duration_since(self.began);
        let created = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX).max(1);
        let digest = message::digest(&payload);
        Message { kind, created, sequence, flags, id: self.id(), digest, payload_type, payload }
    }
}
