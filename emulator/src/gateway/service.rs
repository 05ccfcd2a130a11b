//! What the service does by itself: closes websockets, polices clients, ends sessions.
//!
//! ```text
//!   connected ─ recycle, recycle_bytes ─► Bye
//!             ─ rate, payload ──────────► HangUp
//!             ─ pause_storm ────────────► Pause, Start
//!   always    ─ idle, max duration ─────► End
//! ```
//!
//! A pure machine: it is told of frames and of the time, and says what is to be done.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::sketch::{Sort, payload_length, sort};
use crate::conditions::ServiceConditions;

/// Seconds over its rate that a client is given.
const PATIENT_SECONDS: u32 = 2;
/// What rates are counted over.
const SECOND: Duration = Duration::from_secs(1);

/// What the service does of its own accord.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Sends pause_publication to the client.
    Pause,
    /// Sends start_publication to the client.
    Start,
    /// Closes the websocket with code 1000; the session can be resumed.
    Bye,
    /// Sends pause_publication and disconnects; the session can be resumed.
    HangUp,
    /// Ends the session.
    End {
        /// What is remembered of it.
        cause: &'static str,
        /// What the client is told.
        words: &'static str,
    },
}

/// The rules of one session's service.
pub(super) struct Service {
    conditions: ServiceConditions,
    began: Instant,
    last_data: Instant,
    websocket: Option<Websocket>,
    actions: VecDeque<Action>,
}

struct Websocket {
    since: Instant,
    /// Both ways.
    bytes: u64,
    rate: Rate,
    storm: Option<Instant>,
}

/// Data messages of the client, counted by seconds.
struct Rate {
    second: Instant,
    count: u32,
    /// Seconds in a row with too many.
    over: u32,
}

impl Service {
    pub(super) fn new(began: Instant) -> Self {
        Self {
            conditions: ServiceConditions::default(),
            began,
            last_data: began,
            websocket: None,
            actions: VecDeque::new(),
        }
    }

    /// Changes the rules.
    pub(super) fn set(&mut self, conditions: ServiceConditions, now: Instant) {
        if let Some(websocket) = &mut self.websocket
            && conditions.pause_storm != self.conditions.pause_storm
        {
            websocket.storm = conditions.pause_storm.map(|interval| now + interval);
        }
        self.conditions = conditions;
    }

    pub(super) fn conditions(&self) -> &ServiceConditions {
        &self.conditions
    }

    /// The client has a new websocket.
    pub(super) fn connected(&mut self, now: Instant) {
        self.websocket = Some(Websocket {
            since: now,
            bytes: 0,
            rate: Rate {
                second: now,
                count: 0,
                over: 0,
            },
            storm: self.conditions.pause_storm.map(|interval| now + interval),
        });
    }

    /// The client's websocket is gone.
    pub(super) fn disconnected(&mut self) {
        self.websocket = None;
    }

    /// A frame of the client came; returns whether it is relayed.
    pub(super) fn relays_up(&mut self, frame: &Bytes, now: Instant) -> bool {
        if sort(frame) == Sort::Input {
            self.last_data = now;
            let too_large = self
                .conditions
                .largest_payload
                .is_some_and(|largest| payload_length(frame) > largest);
            let too_many = match (self.conditions.rate_limit, &mut self.websocket) {
                (Some(limit), Some(websocket)) => websocket.rate.exceeds(limit, now),
                (_, _) => false,
            };
            if too_large || too_many {
                self.actions.push_back(Action::HangUp);
                return false;
            }
        }
        self.count(frame);
        true
    }

    /// A frame reaches the client.
    pub(super) fn relays_down(&mut self, frame: &Bytes, now: Instant) {
        if sort(frame) == Sort::Output {
            self.last_data = now;
        }
        self.count(frame);
    }

    /// A moment has come that [`Service::poll_timeout`] named.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.ages_out().is_some_and(|at| at <= now) {
            self.actions.push_back(Action::End {
                cause: "its maximum duration has passed",
                words: "Your session reached its maximum duration and has been terminated.",
            });
        } else if self.idles_out().is_some_and(|at| at <= now) {
            self.actions.push_back(Action::End {
                cause: "it timed out due to inactivity",
                words: "Your session timed out due to inactivity and has been terminated.",
            });
        }
        if self.recycles().is_some_and(|at| at <= now) {
            self.actions.push_back(Action::Bye);
        }
        if let Some(Websocket { storm, .. }) = &mut self.websocket
            && storm.is_some_and(|at| at <= now)
        {
            self.actions.extend([Action::Pause, Action::Start]);
            *storm = self.conditions.pause_storm.map(|interval| now + interval);
        }
    }

    /// Returns when [`Service::handle_timeout`] wants to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let storm = self.websocket.as_ref().and_then(|websocket| websocket.storm);
        let times = [self.ages_out(), self.idles_out(), self.recycles(), storm];
        times.into_iter().flatten().min()
    }

    /// Returns the next thing to do.
    pub(super) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns whether there is something to do, before anything else is relayed.
    pub(super) fn wants_to_act(&self) -> bool {
        !self.actions.is_empty()
    }

    fn count(&mut self, frame: &Bytes) {
        let Some(websocket) = &mut self.websocket else {
            return;
        };
        let before = websocket.bytes;
        websocket.bytes += frame.len() as u64;
        if let Some(limit) = self.conditions.recycle_bytes
            && (before..websocket.bytes).contains(&(limit - 1))
        {
            self.actions.push_back(Action::Bye);
        }
    }

    fn recycles(&self) -> Option<Instant> {
        Some(self.websocket.as_ref()?.since + self.conditions.recycle?)
    }

    fn idles_out(&self) -> Option<Instant> {
        Some(self.last_data + self.conditions.idle_timeout?)
    }

    fn ages_out(&self) -> Option<Instant> {
        Some(self.began + self.conditions.max_duration?)
    }
}

impl Rate {
    /// Counts a message; returns whether there have been too many for too long.
    fn exceeds(&mut self, limit: u32, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.second).as_secs();
        if seconds > 0 {
            let was_over = self.count > limit && seconds == 1;
            self.over = if was_over { self.over + 1 } else { 0 };
            self.second += SECOND * u32::try_from(seconds).unwrap_or(u32::MAX);
            self.count = 0;
        }
        self.count += 1;
        self.over >= PATIENT_SECONDS
    }
}

#[cfg(test)]
mod tests {
    use tunneld_wire::ssm::message::{Kind, Message, PayloadType, digest};
    use uuid::Uuid;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an origin for invented time")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn frame(kind: Kind, length: usize) -> Bytes {
        let payload = Bytes::from(vec![0; length]);
        let message = Message {
            kind,
            created: 1,
            sequence: 0,
            flags: 0,
            id: Uuid::from_u128(1),
            digest: digest(&payload),
            payload_type: PayloadType::Output,
            payload,
        };
        message.encode()
    }

    fn input(length: usize) -> Bytes {
        frame(Kind::InputStreamData, length)
    }

    fn connected(conditions: ServiceConditions, now: Instant) -> Service {
        let mut service = Service::new(now);
        service.set(conditions, now);
        service.connected(now);
        service
    }

    fn actions(service: &mut Service) -> Vec<Action> {
        std::iter::from_fn(|| service.poll_action()).collect()
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_kind_service_wants_nothing() {
        let now = origin();
        let mut service = connected(ServiceConditions::default(), now);
        assert!(service.relays_up(&input(100_000), now));
        assert_eq!(service.poll_timeout(), None);
        assert_eq!(actions(&mut service), []);
    }

    #[test]
    fn each_websocket_is_recycled_after_its_own_time() {
        let start = origin();
        let recycle = ServiceConditions {
            recycle: Some(MINUTE),
            ..ServiceConditions::default()
        };
        let mut service = connected(recycle, start);
        service.handle_timeout(start + MINUTE);
        assert_eq!(actions(&mut service), [Action::Bye]);
        service.disconnected();
        assert_eq!(service.poll_timeout(), None);
        service.connected(start + MINUTE);
        assert_eq!(service.poll_timeout(), Some(start + MINUTE * 2));
    }

    #[test]
    fn the_frame_with_the_last_byte_recycles_once_and_is_relayed() {
        let now = origin();
        let one = input(80).len() as u64;
        let recycle = ServiceConditions {
            recycle_bytes: Some(one * 2),
            ..ServiceConditions::default()
        };
        let mut service = connected(recycle, now);
        assert!(service.relays_up(&input(80), now));
        assert_eq!(actions(&mut service), []);
        service.relays_down(&frame(Kind::OutputStreamData, 80), now);
        assert_eq!(actions(&mut service), [Action::Bye]);
        assert!(service.relays_up(&input(80), now));
        assert_eq!(actions(&mut service), []);
    }

    #[test]
    fn only_data_keeps_a_session_from_idling_out() {
        let start = origin();
        let idle = ServiceConditions {
            idle_timeout: Some(MINUTE),
            ..ServiceConditions::default()
        };
        let mut service = connected(idle, start);
        let later = start + Duration::from_secs(30);
        service.relays_up(&frame(Kind::Acknowledge, 10), later);
        assert_eq!(service.poll_timeout(), Some(start + MINUTE));
        service.relays_down(&frame(Kind::OutputStreamData, 10), later);
        assert_eq!(service.poll_timeout(), Some(later + MINUTE));
        service.disconnected();
        service.handle_timeout(later + MINUTE);
        let ended = actions(&mut service);
        assert!(
            matches!(ended.as_slice(), [Action::End { words, .. }] if words.contains("inactivity")),
            "{ended:?}"
        );
    }

    #[test]
    fn a_session_ends_at_its_maximum_duration_whatever_it_carries() {
        let start = origin();
        let longest = ServiceConditions {
            max_duration: Some(MINUTE),
            ..ServiceConditions::default()
        };
        let mut service = connected(longest, start);
        service.relays_up(&input(1), start + MINUTE / 2);
        service.handle_timeout(start + MINUTE);
        let ended = actions(&mut service);
        assert!(
            matches!(ended.as_slice(), [Action::End { words, .. }] if words.contains("maximum duration")),
            "{ended:?}"
        );
    }

    #[test]
    fn a_storm_pauses_and_starts_at_its_interval_from_when_it_is_switched_on() {
        let start = origin();
        let mut service = connected(ServiceConditions::default(), start);
        let storm = ServiceConditions {
            pause_storm: Some(MINUTE),
            ..ServiceConditions::default()
        };
        service.set(storm, start + MINUTE);
        assert_eq!(service.poll_timeout(), Some(start + MINUTE * 2));
        service.handle_timeout(start + MINUTE * 2);
        assert_eq!(actions(&mut service), [Action::Pause, Action::Start]);
        assert_eq!(service.poll_timeout(), Some(start + MINUTE * 3));
    }

    #[test]
    fn a_payload_that_is_too_large_is_not_relayed() {
        let now = origin();
        let police = ServiceConditions {
            largest_payload: Some(1_024),
            ..ServiceConditions::default()
        };
        let mut service = connected(police, now);
        assert!(service.relays_up(&input(1_024), now));
        assert!(!service.relays_up(&input(1_025), now));
        assert_eq!(actions(&mut service), [Action::HangUp]);
    }

    /// Sends so many messages in each second; returns in which second the service had enough.
    fn policed(limit: u32, seconds: &[u32]) -> Option<usize> {
        let start = origin();
        let police = ServiceConditions {
            rate_limit: Some(limit),
            ..ServiceConditions::default()
        };
        let mut service = connected(police, start);
        for (second, count) in seconds.iter().enumerate() {
            for message in 0..*count {
                let now = start + SECOND * second as u32 + SECOND * message / *count;
                if !service.relays_up(&input(10), now) {
                    return Some(second);
                }
            }
        }
        None
    }

    #[test]
    fn a_rate_is_policed_after_more_than_two_seconds() {
        assert_eq!(policed(100, &[100; 10]), None);
        assert_eq!(policed(100, &[101; 10]), Some(2));
        assert_eq!(policed(100, &[101, 101, 0, 101, 101, 0]), None);
        assert_eq!(policed(100, &[500, 50, 500, 50]), None);
    }
}
