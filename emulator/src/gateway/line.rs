//! The line between a client and the service: in each direction a delay that keeps order, and noise.
//!
//! ```text
//!   push ─► dropped
//!        ─► digest broken ─┐
//!        ─► twice ─────────┤
//!        ─► held back ─────┴─► under way, by time of arrival ─► poll
//! ```
//!
//! A frame is stamped when it is pushed and comes out a delay later, so that any number of them travel at once. What
//! travels is bounded in bytes: whoever pushes looks at [`Lane::has_room`] first.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::sketch::{self, Sort};
use crate::conditions::{LineConditions, Noise};

/// Most bytes under way: 300 MB/s at 100 ms, more than loopback carries.
const UNDER_WAY: usize = 32 << 20;
/// Longest that a frame is held back past later ones: twelve messages of the official agent.
const LONGEST_HOLD: Duration = Duration::from_millis(10);
/// Where a frame's digest is.
const DIGEST: usize = 80;

/// A session's line, both ways.
pub(super) struct Line {
    /// From the client.
    pub(super) up: Lane,
    /// To the client.
    pub(super) down: Lane,
    /// The number of the session.
    number: u64,
    /// What the noise is drawn from, if that is fixed.
    seed: Option<u64>,
}

impl Line {
    pub(super) fn new(number: u64) -> Self {
        Self {
            up: Lane::new(fastrand::u64(..)),
            down: Lane::new(fastrand::u64(..)),
            number,
            seed: None,
        }
    }

    /// Changes what happens to later frames.
    pub(super) fn set(&mut self, conditions: &LineConditions) {
        let LineConditions {
            delay,
            seed,
            up,
            down,
            junk,
        } = conditions;
        self.up.set(*delay, up.clone(), 0.0);
        self.down.set(*delay, down.clone(), *junk);
        if *seed != self.seed {
            self.seed = *seed;
            // Each session and each direction has noise of its own.
            let drawn = seed.map_or_else(|| fastrand::u64(..), |seed| seed ^ self.number.rotate_left(32));
            self.up.reseed(drawn);
            self.down.reseed(!drawn);
        }
    }
}

/// One direction of a session's line.
pub(super) struct Lane {
    random: fastrand::Rng,
    delay: Duration,
    noise: Noise,
    junk: f64,
    /// How much junk there has been: its kinds take turns.
    junk_made: usize,
    /// When the latest frame that was not held back arrives: no later one comes before it, whatever the delay is then.
    latest: Option<Instant>,
    /// By time of arrival.
    under_way: VecDeque<(Instant, Bytes)>,
    bytes: usize,
}

impl Lane {
    /// A lane without delay and noise. The same seed gives the same noise.
    fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            delay: Duration::ZERO,
            noise: Noise::default(),
            junk: 0.0,
            junk_made: 0,
            latest: None,
            under_way: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Changes what happens to later frames.
    pub(super) fn set(&mut self, delay: Duration, noise: Noise, junk: f64) {
        self.delay = delay;
        self.noise = noise;
        self.junk = junk;
    }

    fn reseed(&mut self, seed: u64) {
        self.random = fastrand::Rng::with_seed(seed);
    }

    /// Whether a frame may be pushed.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < UNDER_WAY
    }

    /// Puts a frame on its way.
    pub(super) fn push(&mut self, frame: Bytes, now: Instant) {
        let arrival = (now + self.delay).max(self.latest.unwrap_or(now));
        self.latest = Some(arrival);
        let (dropped, corrupt) = match sketch::sort(&frame) {
            Sort::Input | Sort::Output => (self.noise.drop_data, self.noise.corrupt),
            Sort::Acknowledge => (self.noise.drop_acks, 0.0),
            Sort::Other => return self.insert(arrival, frame),
        };
        if self.strikes(self.junk) {
            let junk = self.make_junk(&frame);
            self.insert(arrival, junk);
        }
        if self.strikes(dropped) {
            return;
        }
        if self.strikes(self.noise.duplicate) {
            self.insert(arrival, frame.clone());
        }
        let frame = match self.strikes(corrupt) {
            true => with_a_wrong_digest(&frame),
            false => frame,
        };
        let held_back = match self.strikes(self.noise.reorder) {
            true => LONGEST_HOLD.mul_f64(self.random.f64()),
            false => Duration::ZERO,
        };
        self.insert(arrival + held_back, frame);
    }

    /// Returns whether a frame has arrived.
    pub(super) fn has_arrived(&self, now: Instant) -> bool {
        self.under_way.front().is_some_and(|(arrival, _)| *arrival <= now)
    }

    /// Returns the next frame that has arrived.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Bytes> {
        let (_, frame) = self.under_way.pop_front_if(|(arrival, _)| *arrival <= now)?;
        self.bytes -= frame.len();
        Some(frame)
    }

    /// Returns when the next frame arrives.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.under_way.front().map(|(arrival, _)| *arrival)
    }

    /// Loses everything that is under way.
    pub(super) fn clear(&mut self) {
        self.under_way.clear();
        self.bytes = 0;
    }

    fn insert(&mut self, arrival: Instant, frame: Bytes) {
        self.bytes += frame.len();
        // Only frames that were held back are behind: a few at the end.
        let behind = self.under_way.iter().rev();
        let behind = behind.take_while(|(later, _)| *later > arrival).count();
        let place = self.under_way.len() - behind;
        self.under_way.insert(place, (arrival, frame));
    }

    fn strikes(&mut self, share: f64) -> bool {
        share > 0.0 && self.random.f64() < share
    }

    /// A frame that a correct client ignores without an answer.
    fn make_junk(&mut self, model: &Bytes) -> Bytes {
        self.junk_made += 1;
        match self.junk_made % 3 {
            0 => model.slice(..self.random.usize(..sketch::HEADER)),
            1 => {
                let mut frame = BytesMut::from(&model[..]);
                frame[..4].copy_from_slice(&u32::MAX.to_be_bytes());
                frame.freeze()
            }
            _ => {
                let mut frame = BytesMut::from(&model[..]);
                frame[sketch::TYPE].fill(b' ');
                frame[4..12].copy_from_slice(b"greeting");
                frame.freeze()
            }
        }
    }
}

fn with_a_wrong_digest(frame: &Bytes) -> Bytes {
    let mut frame = BytesMut::from(&frame[..]);
    frame[DIGEST] ^= 1;
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use tunneld_wire::ssm::message::{Kind, Malformed, Message, PayloadType, digest};
    use uuid::Uuid;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an origin for invented time")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn frame(kind: Kind, sequence: u64) -> Bytes {
        let payload = Bytes::from_static(b"payload");
        let message = Message {
            kind,
            created: 1,
            sequence,
            flags: 0,
            id: Uuid::from_u128(1),
            digest: digest(&payload),
            payload_type: PayloadType::Output,
            payload,
        };
        message.encode()
    }

    fn data(sequence: u64) -> Bytes {
        frame(Kind::OutputStreamData, sequence)
    }

    fn lane(noise: Noise) -> Lane {
        let mut lane = Lane::new(7);
        lane.set(Duration::ZERO, noise, 0.0);
        lane
    }

    /// Sends so many frames, one a millisecond, and returns what has come out in the end.
    fn carried(lane: &mut Lane, kind: Kind, count: u64) -> Vec<Bytes> {
        let start = origin();
        let mut out = Vec::new();
        for sequence in 0..count {
            let now = start + Duration::from_millis(sequence);
            lane.push(frame(kind, sequence), now);
            out.extend(std::iter::from_fn(|| lane.poll(now)));
        }
        let end = start + Duration::from_secs(3600);
        out.extend(std::iter::from_fn(|| lane.poll(end)));
        out
    }

    fn sequences(frames: &[Bytes]) -> Vec<u64> {
        frames
            .iter()
            .map(|frame| Message::decode(frame.clone()).unwrap().sequence)
            .collect()
    }

    #[test]
    fn a_perfect_lane_hands_over_at_once_and_in_order() {
        let out = carried(&mut lane(Noise::default()), Kind::OutputStreamData, 100);
        assert_eq!(sequences(&out), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_delay_keeps_order_and_costs_no_throughput() {
        let start = origin();
        let mut lane = Lane::new(1);
        lane.set(Duration::from_millis(50), Noise::default(), 0.0);
        for sequence in 0..1_000 {
            lane.push(data(sequence), start);
        }
        assert_eq!(lane.poll(start + Duration::from_millis(49)), None);
        assert_eq!(lane.poll_timeout(), Some(start + Duration::from_millis(50)));
        let due = start + Duration::from_millis(50);
        let out: Vec<Bytes> = std::iter::from_fn(|| lane.poll(due)).collect();
        assert_eq!(sequences(&out), (0..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_shorter_delay_keeps_order_too() {
        let start = origin();
        let mut lane = Lane::new(1);
        lane.set(Duration::from_millis(50), Noise::default(), 0.0);
        lane.push(data(0), start);
        lane.set(Duration::ZERO, Noise::default(), 0.0);
        lane.push(data(1), start);
        let due = start + Duration::from_millis(50);
        let out: Vec<Bytes> = std::iter::from_fn(|| lane.poll(due)).collect();
        assert_eq!(sequences(&out), [0, 1]);
    }

    #[test]
    fn what_is_under_way_is_bounded_in_bytes() {
        let start = origin();
        let mut lane = Lane::new(1);
        lane.set(Duration::from_secs(1), Noise::default(), 0.0);
        let mut pushed = 0;
        while lane.has_room() {
            lane.push(data(pushed), start);
            pushed += 1;
        }
        assert_eq!(pushed as usize, UNDER_WAY.div_ceil(data(0).len()));
        lane.poll(start + Duration::from_secs(1));
        assert!(lane.has_room());
        lane.clear();
        assert_eq!(lane.poll_timeout(), None);
    }

    #[test]
    fn data_and_acknowledgements_are_dropped_by_shares_of_their_own() {
        let noise = Noise {
            drop_data: 1.0,
            ..Noise::default()
        };
        assert_eq!(
            carried(&mut lane(noise.clone()), Kind::OutputStreamData, 10).len(),
            0
        );
        assert_eq!(carried(&mut lane(noise), Kind::Acknowledge, 10).len(), 10);
        let noise = Noise {
            drop_acks: 0.5,
            ..Noise::default()
        };
        let left = carried(&mut lane(noise.clone()), Kind::Acknowledge, 1_000).len();
        assert!((400..600).contains(&left), "{left}");
        assert_eq!(carried(&mut lane(noise), Kind::InputStreamData, 10).len(), 10);
    }

    #[test]
    fn duplicates_follow_their_original() {
        let noise = Noise {
            duplicate: 1.0,
            ..Noise::default()
        };
        let out = carried(&mut lane(noise), Kind::OutputStreamData, 2);
        assert_eq!(sequences(&out), [0, 0, 1, 1]);
    }

    #[test]
    fn held_back_frames_come_after_later_ones_and_none_is_lost() {
        let noise = Noise {
            reorder: 0.2,
            ..Noise::default()
        };
        let mut out = sequences(&carried(&mut lane(noise), Kind::OutputStreamData, 1_000));
        let overtaken = out.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!((50..300).contains(&overtaken), "{overtaken}");
        out.sort_unstable();
        assert_eq!(out, (0..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_corrupt_frame_has_a_wrong_digest_and_its_payload() {
        let noise = Noise {
            corrupt: 1.0,
            ..Noise::default()
        };
        let out = carried(&mut lane(noise), Kind::OutputStreamData, 1);
        let message = Message::decode(out[0].clone()).unwrap();
        assert_eq!(message.verify(), Err(Malformed::Digest));
        assert_eq!(message.payload, "payload");
    }

    #[test]
    fn junk_comes_beside_the_data_and_no_decoder_takes_it() {
        let mut lane = lane(Noise::default());
        lane.set(Duration::ZERO, Noise::default(), 1.0);
        let out = carried(&mut lane, Kind::OutputStreamData, 30);
        let (good, bad): (Vec<_>, Vec<_>) = out
            .into_iter()
            .partition(|frame| Message::decode(frame.clone()).is_ok());
        assert_eq!(sequences(&good), (0..30).collect::<Vec<_>>());
        assert_eq!(bad.len(), 30);
        let unknown =
            |frame: &&Bytes| matches!(Message::decode((*frame).clone()), Err(Malformed::UnknownKind(_)));
        assert_eq!(bad.iter().filter(unknown).count(), 10);
    }

    #[test]
    fn the_service_s_own_messages_are_spared() {
        let noise = Noise {
            drop_data: 1.0,
            drop_acks: 1.0,
            duplicate: 1.0,
            reorder: 1.0,
            corrupt: 1.0,
        };
        let out = carried(&mut lane(noise), Kind::PausePublication, 5);
        assert_eq!(out.len(), 5);
    }

    #[test]
    fn the_same_seed_gives_the_same_noise() {
        let noise = Noise {
            drop_data: 0.3,
            duplicate: 0.3,
            reorder: 0.3,
            ..Noise::default()
        };
        let run = |seed| {
            let mut lane = Lane::new(seed);
            lane.set(Duration::ZERO, noise.clone(), 0.0);
            sequences(&carried(&mut lane, Kind::OutputStreamData, 100))
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }
}
