//! The path between both sides: what it does to frames, and what is under way on it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::common::damage;
use crate::common::raw::Raw;

/// How late a straggler is at most: longer than any resend timeout.
const LATEST: Duration = Duration::from_secs(3);

/// What the path does to frames. The shares are of all frames, from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Network {
    pub(crate) delay: Duration,
    /// Up to this is added to the delay of each frame, so that frames overtake each other.
    pub(crate) jitter: Duration,
    pub(crate) loss: f64,
    /// The share of acknowledgements that is lost, beside what is lost of all frames.
    pub(crate) lost_acknowledgements: f64,
    pub(crate) copies: f64,
    /// The share that comes seconds too late.
    pub(crate) stragglers: f64,
    /// The share that is preceded by a copy which no receiver may take.
    pub(crate) damage: f64,
    /// The share that comes in another encoding than ours.
    pub(crate) dressed: f64,
    /// How many bytes a second leave the client; `None` for as many as there are.
    pub(crate) uplink: Option<usize>,
    /// The largest payload of the client that is not lost; `None` for any.
    pub(crate) largest: Option<usize>,
}

impl Network {
    pub(crate) fn perfect(delay: Duration) -> Self {
        Self {
            delay,
            jitter: Duration::ZERO,
            loss: 0.0,
            lost_acknowledgements: 0.0,
            copies: 0.0,
            stragglers: 0.0,
            damage: 0.0,
            dressed: 0.0,
            uplink: None,
            largest: None,
        }
    }
}

/// What a receiver gets.
pub(crate) enum Arrival {
    /// A frame as it was sent, and the same in the encoding in which it came.
    Whole { sent: Bytes, came: Bytes },
    /// What no receiver may take.
    Damaged(Bytes),
}

/// One direction of the path: what was sent and has not arrived, by the time it will.
#[derive(Default)]
pub(crate) struct Path {
    under_way: BTreeMap<(Instant, u64), Arrival>,
    launched: u64,
    /// When everything that was launched will have passed the slowest place.
    passed: Option<Instant>,
}

impl Path {
    /// Puts a frame on the way, or loses it. `rate` is how many bytes a second pass.
    pub(crate) fn launch(
        &mut self,
        frame: Bytes,
        network: &Network,
        rate: Option<usize>,
        random: &mut fastrand::Rng,
        now: Instant,
    ) {
        let mut happens = |share: f64| share > 0.0 && random.f64() < share;
        let raw = Raw::read(&frame);
        let too_large = network
            .largest
            .is_some_and(|largest| raw.kind == "input_stream_data" && raw.payload.len() > largest);
        let lost = happens(network.loss)
            || happens(network.lost_acknowledgements) && raw.acknowledged().is_some()
            || too_large;
        let (twice, late) = (happens(network.copies), happens(network.stragglers));
        let (damaged, dressed) = (happens(network.damage), happens(network.dressed));
        let left = self.pass(frame.len(), rate, now);
        if damaged {
            let damaged = Arrival::Damaged(damage::damaged(&frame, random));
            self.put(left + network.delay, damaged);
        }
        if lost {
            return;
        }
        for _ in 0..if twice { 2 } else { 1 } {
            let longest = if late { LATEST } else { network.jitter };
            let at = left + network.delay + longest.mul_f64(random.f64());
            let came = match dressed {
                true => damage::dressed(&frame, random),
                false => frame.clone(),
            };
            let sent = frame.clone();
            self.put(at, Arrival::Whole { sent, came });
        }
    }

    /// Loses everything that is under way.
    pub(crate) fn clear(&mut self) {
        self.under_way.clear();
        self.passed = None;
    }

    /// Returns when something arrives next.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.under_way.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes what has arrived.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Arrival> {
        self.next().filter(|at| *at <= now)?;
        self.under_way.pop_first().map(|(_, arrival)| arrival)
    }

    fn pass(&mut self, length: usize, rate: Option<usize>, now: Instant) -> Instant {
        let Some(rate) = rate else { return now };
        let begins = self.passed.map_or(now, |passed| passed.max(now));
        let passed = begins + Duration::from_secs_f64(length as f64 / rate as f64);
        self.passed = Some(passed);
        passed
    }

    fn put(&mut self, at: Instant, arrival: Arrival) {
        self.launched += 1;
        self.under_way.insert((at, self.launched), arrival);
    }
}
