//! Our direction of a channel: keeps what is un-acknowledged, and decides what is sent again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::backlog::Backlog;
use super::flight::{Flight, Sending};
use crate::ssm::policy::{Pace, Policy, Resend, SMALLEST_PAYLOAD};
use crate::ssm::probe::PayloadProbe;
use crate::ssm::rtt::RoundTrip;

/// The most messages un-acknowledged: the official client's list.
const MOST_SENT: usize = 10_000;
/// The official side looks at its oldest message this often.
const TICK: Duration = Duration::from_millis(100);
/// Later acknowledgements after which a message counts as lost.
const OVERTAKEN: u32 = 3;
/// How far behind the oldest un-acknowledged message later acknowledgements are compared.
const OVERTAKEN_REACH: usize = 64;
/// Early answers to repeats in succession, and to nothing else, after which the path counts as quicker than it was.
const QUICKER_AFTER: u32 = 2;
/// Sendings after which an agent that is silent on duplicates is believed to have the message.
const BELIEVED_AFTER: u32 = 6;

/// Our messages.
pub(super) struct Outgoing {
    policy: Policy,
    round_trip: RoundTrip,
    silent_on_duplicates: bool,
    sent: Backlog,
    /// Since when something has been un-acknowledged without any acknowledgement.
    waiting_since: Option<Instant>,
    highest_acknowledged: Option<u64>,
    flight: Flight,
    /// Acknowledgements of late that came too soon after a repeat to be of it.
    early_answers: u32,
    again: BTreeSet<u64>,
    last_tick: Option<Instant>,
    /// The message that finds out whether its size passes.
    trial: Option<u64>,
}

impl Outgoing {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            round_trip: RoundTrip::new(policy.limits),
            policy,
            silent_on_duplicates: false,
            sent: Backlog::default(),
            waiting_since: None,
            highest_acknowledged: None,
            flight: Flight::default(),
            early_answers: 0,
            again: BTreeSet::new(),
            last_tick: None,
            trial: None,
        }
    }

    /// Returns which un-acknowledged messages this side sends again.
    pub(super) fn resend(&self) -> Resend {
        self.policy.resend
    }

    /// The peer discards duplicates without a word: agents before 3.2.1041.0 do.
    pub(super) fn peer_is_silent_on_duplicates(&mut self) {
        self.silent_on_duplicates = true;
    }

    /// New messages leave at this pace from now on.
    pub(super) fn set_pace(&mut self, pace: Pace) {
        self.policy.pace = pace;
    }

    /// The service paused or the websocket was lost: large messages that were under way may be why.
    pub(super) fn trouble(&mut self) {
        self.policy.window.trouble();
        if self
            .sent
            .unacknowledged()
            .any(|sent| sent.length > SMALLEST_PAYLOAD)
        {
            self.policy.probe.trouble();
            self.trial = None;
        }
    }

    /// Returns how large payloads may be.
    pub(super) fn payloads(&self) -> &PayloadProbe {
        &self.policy.probe
    }

    /// Returns since when something has been un-acknowledged without any acknowledgement.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.waiting_since
    }

    /// The peer is there again: what is un-acknowledged has been waited for since now.
    pub(super) fn restart_waiting(&mut self, now: Instant) {
        self.waiting_since = (!self.sent.is_empty()).then_some(now);
    }

    /// Returns the frames that are un-acknowledged.
    pub(super) fn unacknowledged(&self) -> impl Iterator<Item = &Bytes> {
        self.sent.unacknowledged().map(|sent| &sent.frame)
    }

    /// Returns how many bytes a new message may carry now; `None` when none may be sent.
    pub(super) fn room(&mut self, now: Instant) -> Option<usize> {
        if !self.has_room() {
            self.policy.window.limits();
            return None;
        }
        self.policy
            .pace
            .wait_until(now)
            .is_none()
            .then(|| self.policy.probe.size())
    }

    /// Returns how many bytes the next message is to carry only to find out whether they pass, if it is time for that.
    /// A message may be sent now, as [`Outgoing::room`] has said.
    pub(super) fn trial(&self) -> Option<usize> {
        let size = self.policy.probe.next_trial()?;
        (self.sent.bytes().saturating_add(size) <= self.policy.window.limit()).then_some(size)
    }

    /// Keeps what a trial is when it has to be sent again; the trial itself, of that length, is sent now.
    pub(super) fn keep_trial(&mut self, again: Bytes, length: usize, now: Instant) {
        self.trial = Some(self.next_sequence());
        self.policy.probe.try_size(length);
        self.keep(again, length, now);
    }

    /// Returns when pacing lets the next message leave, if nothing else stands in its way.
    pub(super) fn room_at(&self, now: Instant) -> Option<Instant> {
        if self.has_room() {
            self.policy.pace.wait_until(now)
        } else {
            None
        }
    }

    /// Returns whether everything sent was acknowledged.
    pub(super) fn is_drained(&self) -> bool {
        self.sent.is_empty()
    }

    /// Returns the number that the next new message has.
    pub(super) fn next_sequence(&self) -> u64 {
        self.sent.next()
    }

    /// Keeps a new message with [`Outgoing::next_sequence`], which is sent now.
    pub(super) fn keep(&mut self, frame: Bytes, length: usize, now: Instant) {
        let sequence = self.next_sequence();
        self.flight.launch(Sending { at: now, sequence });
        self.waiting_since.get_or_insert(now);
        self.sent.push(frame, length, now);
        self.policy.pace.sent(now);
    }

    /// Returns the next message to be sent again, lowest first, if pacing lets it leave.
    pub(super) fn poll_again(&mut self, now: Instant) -> Option<Bytes> {
        while let Some(sequence) = self.again.first().copied() {
            let is_live = self.sent.get_mut(sequence).is_some();
            if is_live && self.again_at(now).is_some() {
                return None;
            }
            self.again.pop_first();
            if is_live {
                return self.send_again(sequence, now);
            }
        }
        None
    }

    /// Returns when pacing lets the next message be sent again that waits for it. The official agent paces what it reads
    /// from its target alone.
    pub(super) fn again_at(&self, now: Instant) -> Option<Instant> {
        match self.policy.resend {
            Resend::All if !self.again.is_empty() => self.policy.pace.wait_until(now),
            Resend::All | Resend::Oldest => None,
        }
    }

    /// Everything un-acknowledged is to be sent again.
    pub(super) fn send_all_again(&mut self) {
        let Some(first) = self.sent.first() else {
            return;
        };
        self.again = (first..self.next_sequence()).collect();
        self.flight.clear();
    }

    /// What can't have arrived, were it still under way, is to be sent again.
    pub(super) fn send_overdue_again(&mut self, now: Instant) {
        self.expire_flight(self.round_trip.smoothed(), now);
        while let Some(sending) = self.flight.take_overdue() {
            if self.is_latest(sending) {
                self.again.insert(sending.sequence);
            }
        }
    }

    /// The oldest un-acknowledged message is to be sent again.
    pub(super) fn send_oldest_again(&mut self) {
        self.again.extend(self.sent.first());
    }

    /// Nothing is sent for now: what was to be sent again is as good as overdue.
    pub(super) fn rest(&mut self) {
        for sequence in std::mem::take(&mut self.again) {
            if let Some(at) = self.sent.get_mut(sequence).map(|sent| sent.last_sent) {
                self.flight.keep_overdue(Sending { at, sequence });
            }
        }
    }

    /// A moment has come that [`Outgoing::poll_timeout`] named.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        match self.policy.resend {
            Resend::All => {
                let timeout = self.round_trip.timeout();
                self.expire_flight(timeout, now);
                if self.flight.asks(timeout, now) {
                    self.ask(now);
                }
            }
            Resend::Oldest => {
                if self.next_tick().is_some_and(|due| due <= now) {
                    self.last_tick = Some(now);
                    self.send_oldest_again();
                }
            }
        }
    }

    /// Returns when [`Outgoing::handle_timeout`] wants to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self.policy.resend {
            Resend::All => self.flight.poll_timeout(self.round_trip.timeout()),
            Resend::Oldest => self.next_tick(),
        }
    }

    /// The peer has one of our messages. Numbers that are unknown, or known to have arrived, tell only that it reads.
    pub(super) fn handle_ack(&mut self, sequence: u64, now: Instant) {
        self.acknowledge(sequence, now);
        self.restart_waiting(now);
    }

    fn acknowledge(&mut self, sequence: u64, now: Instant) {
        let is_oldest = self.sent.first() == Some(sequence);
        let Some(sent) = self.sent.get_mut(sequence) else {
            return;
        };
        let (sent_at, length) = (sent.last_sent, sent.length);
        let sent_once = sent.times_sent == 1;
        self.sent.settle(sequence);
        // What comes this soon after a repeat tells of an earlier sending, unless nothing but repeats is answered.
        let early = now.saturating_duration_since(sent_at) < self.round_trip.smoothed() / 2;
        self.early_answers = if early && !sent_once {
            self.early_answers + 1
        } else {
            0
        };
        if self.early_answers == 0 || self.early_answers >= QUICKER_AFTER {
            self.again.extend(self.flight.handle_arrival(sent_at));
        }
        if sent_once {
            let round_trip = now.saturating_duration_since(sent_at);
            self.round_trip.sample(round_trip);
            self.policy.window.sample(round_trip, now);
        }
        match (self.trial == Some(sequence), sent_once) {
            (true, true) => self.policy.probe.trial_passed(),
            (true, false) => self.policy.probe.trial_failed(),
            (false, true) => self.policy.probe.acknowledged(length),
            (false, false) => {}
        }
        self.highest_acknowledged = self.highest_acknowledged.max(Some(sequence));
        if self.policy.resend == Resend::All && !is_oldest {
            self.notice_overtaken(sequence, sent_at);
        }
        self.rest_if_drained();
    }

    fn has_room(&self) -> bool {
        let next = self.sent.bytes().saturating_add(self.policy.probe.size());
        // However large it is, one message is always under way.
        let fits = self.sent.bytes() == 0 || next <= self.policy.window.limit();
        let fits = fits && self.sent.len() < MOST_SENT;
        self.again.is_empty() && (fits || self.needs_witness())
    }

    /// Returns whether only a new message can show that the old ones arrived: their acknowledgements were lost, and the
    /// peer doesn't repeat them.
    pub(super) fn needs_witness(&self) -> bool {
        self.silent_on_duplicates
            && self
                .sent
                .latest()
                .is_some_and(|sent| sent.times_sent >= BELIEVED_AFTER)
    }

    fn send_again(&mut self, sequence: u64, now: Instant) -> Option<Bytes> {
        let sent = self.sent.get_mut(sequence)?;
        sent.last_sent = now;
        sent.times_sent += 1;
        sent.overtaken = 0;
        let frame = sent.frame.clone();
        self.flight.launch(Sending { at: now, sequence });
        match self.policy.resend {
            Resend::All => self.policy.pace.sent(now),
            Resend::Oldest => {}
        }
        Some(frame)
    }

    /// Looks at what was sent `timeout` ago or earlier, and marks what is lost of it to be sent again.
    fn expire_flight(&mut self, timeout: Duration, now: Instant) {
        while let Some(oldest) = self.flight.oldest() {
            let live = self.is_latest(oldest);
            if live && oldest.at + timeout > now {
                break;
            }
            self.flight.drop_oldest();
            if !live || self.believe(oldest.sequence, now) {
                continue;
            }
            if self.flight.is_lost(oldest) {
                self.again.insert(oldest.sequence);
            } else {
                self.flight.keep_overdue(oldest);
            }
        }
    }

    /// Sends the oldest overdue message again; all of them to a peer that is silent on duplicates and can't be asked.
    fn ask(&mut self, now: Instant) {
        while let Some(sending) = self.flight.take_overdue() {
            if self.is_latest(sending) {
                self.again.insert(sending.sequence);
                self.flight.asked(now);
                self.round_trip.back_off();
                if !self.silent_on_duplicates {
                    return;
                }
            }
        }
    }

    /// Returns whether a message is un-acknowledged and was sent then for the last time.
    fn is_latest(&mut self, sending: Sending) -> bool {
        self.sent
            .get_mut(sending.sequence)
            .is_some_and(|sent| sent.last_sent == sending.at)
    }

    /// With an agent that never acknowledges twice, a message sent often while later ones were acknowledged must have
    /// arrived: only its acknowledgement was lost.
    fn believe(&mut self, sequence: u64, now: Instant) -> bool {
        let overtaken = self
            .highest_acknowledged
            .is_some_and(|highest| highest > sequence);
        let sent = self.sent.get_mut(sequence);
        let sent_often = sent.is_some_and(|sent| sent.times_sent >= BELIEVED_AFTER);
        if !self.silent_on_duplicates || !overtaken || !sent_often {
            return false;
        }
        self.sent.settle(sequence);
        if self.trial == Some(sequence) {
            self.policy.probe.trial_failed();
        }
        self.rest_if_drained();
        self.restart_waiting(now);
        true
    }

    fn notice_overtaken(&mut self, by: u64, sent_at: Instant) {
        for (sequence, sent) in self.sent.before(by, OVERTAKEN_REACH) {
            if sent.last_sent > sent_at {
                continue;
            }
            sent.overtaken += 1;
            if sent.overtaken == OVERTAKEN && sent.times_sent == 1 {
                self.again.insert(sequence);
            }
        }
    }

    fn rest_if_drained(&mut self) {
        if self.sent.is_empty() {
            self.flight.clear();
        }
    }

    fn next_tick(&self) -> Option<Instant> {
        let oldest = self.sent.oldest()?;
        let due = oldest.last_sent + self.round_trip.timeout();
        Some(self.last_tick.map_or(due, |last| due.max(last + TICK)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an origin for invented time")]
    fn origin() -> Instant {
        Instant::now()
    }

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// A client's messages 0 to `count`, sent a millisecond apart; and the present.
    fn sent(count: u8) -> (Outgoing, Instant) {
        let mut outgoing = Outgoing::new(Policy::client());
        let mut now = origin();
        for number in 0..count {
            now += MILLISECOND;
            outgoing.keep(Bytes::from(vec![number]), 1, now);
        }
        (outgoing, now)
    }

    fn again(outgoing: &mut Outgoing, now: Instant) -> Vec<u8> {
        std::iter::from_fn(|| outgoing.poll_again(now))
            .map(|frame| frame[0])
            .collect()
    }

    #[test]
    fn a_message_is_lost_when_three_later_ones_have_arrived() {
        let (mut outgoing, now) = sent(6);
        outgoing.handle_ack(1, now);
        outgoing.handle_ack(2, now);
        assert!(again(&mut outgoing, now).is_empty());
        outgoing.handle_ack(3, now);
        assert_eq!(again(&mut outgoing, now), [0]);
        outgoing.handle_ack(4, now);
        outgoing.handle_ack(5, now);
        assert!(
            again(&mut outgoing, now).is_empty(),
            "once; then it has its timer"
        );
    }

    #[test]
    fn acknowledgements_of_what_was_sent_earlier_say_nothing_of_a_repeat() {
        let (mut outgoing, now) = sent(6);
        outgoing.send_all_again();
        let later = now + MILLISECOND;
        outgoing.poll_again(later);
        for number in [1, 2, 3] {
            outgoing.handle_ack(number, later);
        }
        assert_eq!(outgoing.sent.oldest().unwrap().overtaken, 0);
    }

    #[test]
    fn one_overdue_message_asks_for_all_and_each_timeout_doubles_the_next() {
        let (mut outgoing, now) = sent(3);
        let first = outgoing.poll_timeout().unwrap();
        assert_eq!(first, now - MILLISECOND * 2 + Duration::from_millis(300));
        outgoing.handle_timeout(first);
        assert_eq!(again(&mut outgoing, first), [0]);
        let second = first + Duration::from_millis(600);
        while let Some(due) = outgoing.poll_timeout().filter(|due| *due < second) {
            outgoing.handle_timeout(due);
            assert!(again(&mut outgoing, due).is_empty());
        }
        assert_eq!(outgoing.poll_timeout(), Some(second));
        outgoing.handle_timeout(second);
        assert_eq!(again(&mut outgoing, second), [1], "0 was sent again after 1");
    }

    #[test]
    fn what_is_overdue_is_lost_when_something_sent_later_arrives() {
        let (mut outgoing, _) = sent(5);
        let mut now = outgoing.poll_timeout().unwrap();
        outgoing.handle_timeout(now);
        assert_eq!(again(&mut outgoing, now), [0]);
        // All of them are overdue; the acknowledgement is one of the first sending, and tells of none.
        now += Duration::from_millis(40);
        for _ in 0..10 {
            outgoing.handle_timeout(outgoing.poll_timeout().unwrap().min(now));
        }
        outgoing.handle_ack(1, now);
        assert!(again(&mut outgoing, now).is_empty());
        // That of the repeat does.
        now += Duration::from_millis(600);
        outgoing.handle_timeout(now);
        let asked = again(&mut outgoing, now);
        assert_eq!(asked, [2]);
        now += Duration::from_millis(100);
        outgoing.handle_ack(2, now);
        assert_eq!(again(&mut outgoing, now), [0, 3, 4]);
    }

    #[test]
    fn the_acknowledgement_of_a_repeated_message_is_no_sample() {
        let (mut outgoing, now) = sent(1);
        outgoing.send_all_again();
        outgoing.poll_again(now + MILLISECOND);
        let before = outgoing.round_trip.smoothed();
        outgoing.handle_ack(0, now + Duration::from_secs(50));
        assert_eq!(outgoing.round_trip.smoothed(), before);
        assert!(outgoing.is_drained());
    }

    #[test]
    fn nothing_new_is_sent_before_what_is_sent_again() {
        let (mut outgoing, now) = sent(3);
        assert!(outgoing.room(now).is_some());
        outgoing.send_all_again();
        assert_eq!(outgoing.room(now), None);
        assert_eq!(again(&mut outgoing, now), [0, 1, 2]);
        assert!(outgoing.room(now).is_some());
    }

    #[test]
    fn what_was_acknowledged_in_the_meantime_is_not_sent_again() {
        let (mut outgoing, now) = sent(3);
        outgoing.send_all_again();
        outgoing.handle_ack(1, now);
        assert_eq!(again(&mut outgoing, now), [0, 2]);
    }

    #[test]
    fn there_is_no_room_beyond_the_list_of_the_official_client() {
        let mut outgoing = Outgoing::new(Policy::fast_agent());
        let now = origin();
        for _ in 0..MOST_SENT {
            assert!(outgoing.room(now).is_some());
            outgoing.keep(Bytes::from_static(b"x"), 1, now);
        }
        assert_eq!(outgoing.room(now), None);
        outgoing.handle_ack(0, now);
        assert!(outgoing.room(now).is_some());
    }

    #[test]
    fn what_was_lost_comes_again_at_once_although_the_path_has_become_quicker() {
        let (mut outgoing, mut now) = sent(1);
        now += MILLISECOND * 400;
        outgoing.handle_ack(0, now);
        for number in 1..10 {
            outgoing.keep(Bytes::from(vec![number]), 1, now);
        }
        let mut repeated = Vec::new();
        for _ in 0..2 {
            while repeated.is_empty() {
                now = outgoing.poll_timeout().unwrap();
                outgoing.handle_timeout(now);
                repeated = again(&mut outgoing, now);
            }
            let [asked] = repeated[..] else {
                panic!("{repeated:?}")
            };
            now += MILLISECOND * 20;
            outgoing.handle_ack(asked.into(), now);
            repeated = again(&mut outgoing, now);
        }
        assert_eq!(repeated, [3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_repeat_has_a_timer_of_its_own() {
        let (mut outgoing, now) = sent(4);
        for number in [1, 2, 3] {
            outgoing.handle_ack(number, now);
        }
        let first = outgoing.poll_timeout().unwrap();
        assert_eq!(again(&mut outgoing, first - MILLISECOND), [0]);
        outgoing.handle_timeout(first);
        assert!(
            again(&mut outgoing, first).is_empty(),
            "the first sending's timer is void"
        );
    }

    #[test]
    fn a_full_window_opens_for_one_message_when_nobody_will_acknowledge_the_old_ones() {
        let mut outgoing = Outgoing::new(Policy::client());
        outgoing.peer_is_silent_on_duplicates();
        let mut now = origin();
        for _ in 0..2 {
            outgoing.keep(Bytes::from_static(b"x"), 1 << 19, now);
        }
        for _ in 1..BELIEVED_AFTER {
            assert_eq!(outgoing.room(now), None);
            now += Duration::from_secs(2);
            outgoing.handle_timeout(now);
            assert_eq!(again(&mut outgoing, now).len(), 2);
        }
        assert!(outgoing.room(now).is_some());
        outgoing.keep(Bytes::from_static(b"y"), 1_024, now);
        assert_eq!(outgoing.room(now), None, "one is enough");
        outgoing.handle_ack(2, now);
        outgoing.handle_timeout(now + Duration::from_secs(2));
        assert!(
            outgoing.is_drained(),
            "its acknowledgement speaks for all before it"
        );
    }
}
