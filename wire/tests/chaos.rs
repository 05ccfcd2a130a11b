//! Everything at once that a correct far end can survive, for tens of seconds and a hundred seeds.
//!
//! ```text
//!   users      8 slots: open ─► write a while, both ways ─► close, finish or reset ─► gone on both sides ─► open…
//!   strikes    one at a time: cuts, half-open spells, an agent that is away or does not read, until mended
//!   hints      pauses and their ends, with and without a reason
//!   weather    loss, copies, stragglers, damage, other encodings, a slow uplink: changed every few seconds
//!   police     large payloads are answered by a pause and a cut, and may be lost
//! ```
//!
//! All bytes arrive in order and once, no stream is lost, and in the end neither side holds anything.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use tunneld_wire::smux::{Framing, StreamId};
use tunneld_wire::ssm::message::Kind;
use tunneld_wire::ssm::{Event, SMALLEST_PAYLOAD};

use crate::common::agent::Agent;
use crate::common::load::bytes;
use crate::common::network::Network;
use crate::common::raw::{Piece, Streams};
use crate::common::rig::{Act, Reach, Rig, Told};
use crate::common::seeds::for_seeds;

const SEEDS: u64 = 100;
const SLOTS: usize = 8;
/// The most bytes that are written at once on a stream, each way.
const MOST: usize = 50_000;
const TOLD: [Told; 3] = [Told::Pause, Told::Nothing, Told::Detached];
const MINUTE: Duration = Duration::from_secs(60);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn must_hold_chaos_loses_no_byte_and_no_stream() {
    for_seeds(SEEDS, |seed| Chaos::new(seed).run());
}

struct Chaos {
    rig: Rig,
    random: fastrand::Rng,
    /// Until when there is chaos.
    until: Instant,
    plan: BTreeMap<(Instant, u64), Step>,
    planned: u64,
    slots: [Slot; SLOTS],
    /// The largest payload that passes unpunished.
    largest: Option<usize>,
    /// The largest that passes at all.
    passing: Option<usize>,
    /// Whether a strike is not mended yet.
    struck: bool,
    /// How many events of either side were looked at.
    looked: [usize; 2],
}

/// What happens at its time.
#[derive(Clone, Copy)]
enum Step {
    Use(usize),
    Strike,
    Mend(Strike),
    Hint,
    Start,
    RouseAgent,
    Weather,
    Police,
}

#[derive(Clone, Copy)]
enum Strike {
    /// The websocket is lost, so many times in all.
    Cut {
        times: u32,
        told: Told,
    },
    /// Nothing passes until the client gives the websocket up.
    HalfOpen,
    AgentAway,
    AgentReadsNothing,
}

/// What a user does.
#[derive(Debug, Clone, Copy)]
enum Slot {
    Idle,
    Writing { id: StreamId, times: u32 },
    Ending { id: StreamId, end: End },
}

/// How a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The client's user closes it behind its last bytes.
    ClientCloses,
    /// The client's user has said all, and the target ends it.
    ClientFinishes,
    /// The target closes it behind its last bytes.
    AgentCloses,
    /// The client's user is gone in the midst.
    ClientResets,
    /// The target is.
    AgentResets,
}

impl End {
    const ALL: [Self; 5] = [
        Self::ClientCloses,
        Self::ClientFinishes,
        Self::AgentCloses,
        Self::ClientResets,
        Self::AgentResets,
    ];

    /// Whether every byte must have come by then.
    fn is_whole(self) -> bool {
        match self {
            Self::ClientCloses | Self::ClientFinishes | Self::AgentCloses => true,
            Self::ClientResets | Self::AgentResets => false,
        }
    }
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let framing = random.choice([Framing::Fitted, Framing::Spanning]).unwrap();
        let rig = Rig::new(seed, Network::perfect(millis(20)), Agent::fast(framing));
        let until = rig.now + millis(random.u64(20_000..60_000));
        let policed = [None, None, Some(SMALLEST_PAYLOAD), Some(2_048), Some(8_192)];
        let largest = random.choice(policed).unwrap();
        let passing = largest.filter(|_| random.bool());
        Self {
            rig,
            until,
            random,
            plan: BTreeMap::new(),
            planned: 0,
            slots: [Slot::Idle; SLOTS],
            largest,
            passing,
            struck: false,
            looked: [0; 2],
        }
    }

    fn run(mut self) {
        self.greet();
        for slot in 0..SLOTS {
            self.plan(Step::Use(slot), 0..2_000);
        }
        for step in [Step::Strike, Step::Hint, Step::Weather] {
            self.plan(step, 0..5_000);
        }
        self.plan(Step::Police, 1_000..1_001);
        self.follow(self.until);
        self.calm();
        self.follow(self.until + MINUTE * 3);
        let idle = self.slots.iter().all(|slot| matches!(slot, Slot::Idle));
        assert!(idle, "streams are left: {:?}", self.slots);
        let rig = &mut self.rig;
        rig.run_until(MINUTE, "the end of all traffic", |rig| {
            [&rig.client, &rig.agent]
                .iter()
                .all(|end| end.session.is_drained())
        });
        assert_eq!(rig.client.session.streams(), []);
        assert_eq!(rig.agent.session.streams(), []);
        assert!(rig.client.witness.is_whole() && rig.agent.witness.is_whole());
    }

    /// The greeting, with all that is repeated, late and cut in it.
    fn greet(&mut self) {
        self.rig.network = Network {
            jitter: millis(30),
            loss: 0.1,
            copies: 0.3,
            stragglers: 0.2,
            damage: 0.1,
            dressed: 0.3,
            ..Network::perfect(millis(20))
        };
        self.rig.act(Act::Attach);
        for _ in 0..self.random.u32(0..4) {
            self.rig.run_for(millis(self.random.u64(0..300)));
            self.rig.act(Act::Cut(self.random.choice(TOLD).unwrap()));
            self.rig.run_for(millis(self.random.u64(0..2_000)));
            self.rig.act(Act::Attach);
        }
        self.rig.run_until(MINUTE, "the handshake", Rig::is_ready);
    }

    /// From here on everything is as it should be.
    fn calm(&mut self) {
        self.plan
            .retain(|_, step| matches!(step, Step::Use(_) | Step::Mend(_)));
        self.largest = None;
        self.rig.network = Network::perfect(millis(20));
        self.rig.rouse_agent();
        self.rig.announce(Kind::StartPublication);
    }

    fn plan(&mut self, step: Step, within: Range<u64>) {
        self.planned += 1;
        let at = self.rig.now + millis(self.random.u64(within));
        self.plan.insert((at, self.planned), step);
    }

    fn follow(&mut self, until: Instant) {
        while let Some(next) = self.plan.first_entry().filter(|next| next.key().0 <= until) {
            let ((at, _), step) = next.remove_entry();
            self.rig.run_for(at.saturating_duration_since(self.rig.now));
            self.look();
            match step {
                Step::Use(slot) => self.use_slot(slot),
                Step::Strike => self.strike(),
                Step::Mend(strike) => self.mend(strike),
                Step::Hint => self.hint(),
                Step::Start => self.rig.announce(Kind::StartPublication),
                Step::RouseAgent => self.rig.rouse_agent(),
                Step::Weather => self.weather(),
                Step::Police => self.police(),
            }
            self.rig.pump();
        }
    }

    /// Looks at what either side told since the last time.
    fn look(&mut self) {
        let [by_client, by_agent] = self.looked;
        let client = self.rig.client.events[by_client..].to_vec();
        let agent = self.rig.agent.events[by_agent..].to_vec();
        self.looked = [self.rig.client.events.len(), self.rig.agent.events.len()];
        for event in client {
            match event {
                Event::Finished(id) => {
                    self.finished(id, &[End::ClientFinishes, End::AgentCloses, End::AgentResets]);
                }
                // As a driver does: it asks AWS, which says that the session lives.
                Event::Doubtful if self.rig.is_attached() => {
                    self.rig.act(Act::Cut(Told::Nothing));
                    self.rig.act(Act::Attach);
                }
                Event::Ready { .. }
                | Event::Doubtful
                | Event::Paused
                | Event::Resumed
                | Event::Unanswered
                | Event::Stalled(_)
                | Event::Flowing => {}
                Event::Opened(_)
                | Event::Data(..)
                | Event::Abandoned(_)
                | Event::Refused(_)
                | Event::StallExpired(_)
                | Event::Terminate
                | Event::Ended(_) => panic!("the client tells of {event:?}"),
            }
        }
        for event in agent {
            match event {
                Event::Finished(id) => self.finished(id, &[End::ClientCloses, End::ClientResets]),
                Event::Ready { .. } | Event::Opened(_) | Event::Resumed => {}
                Event::Data(..)
                | Event::Doubtful
                | Event::Paused
                | Event::Unanswered
                | Event::Stalled(_)
                | Event::Flowing
                | Event::Abandoned(_)
                | Event::Refused(_)
                | Event::StallExpired(_)
                | Event::Terminate
                | Event::Ended(_) => panic!("the agent tells of {event:?}"),
            }
        }
    }

    /// One side heard of a stream's end: it must have been meant.
    fn finished(&mut self, id: StreamId, meant: &[End]) {
        let slot = self.slots.iter().find_map(|slot| match slot {
            Slot::Ending { id: ending, end } if *ending == id => Some(*end),
            Slot::Ending { .. } | Slot::Idle | Slot::Writing { .. } => None,
        });
        let end = slot.unwrap_or_else(|| panic!("stream {id} was lost"));
        assert!(
            meant.contains(&end),
            "stream {id} ended otherwise than by {end:?}"
        );
        let load = &self.rig.loads[&id];
        assert!(
            !end.is_whole() || load.is_done(),
            "stream {id} ended before its last byte"
        );
    }

    fn use_slot(&mut self, slot: usize) {
        match self.slots[slot] {
            Slot::Idle => {
                if self.rig.now >= self.until {
                    return;
                }
                let (up, down) = (self.some_bytes(), self.some_bytes());
                let id = self.rig.open(up, down);
                let times = self.random.u32(0..6);
                self.slots[slot] = Slot::Writing { id, times };
            }
            Slot::Writing { id, times: 0 } => self.begin_end(slot, id),
            Slot::Writing { id, times } => {
                let (up, down) = (self.some_bytes(), self.some_bytes());
                let load = self.rig.loads.get_mut(&id).unwrap();
                load.up.extend(up);
                load.down.extend(down);
                let times = times - 1;
                self.slots[slot] = Slot::Writing { id, times };
            }
            Slot::Ending { id, end } => self.look_for_end(slot, id, end),
        }
        self.plan(Step::Use(slot), 0..1_000);
    }

    fn some_bytes(&mut self) -> Vec<u8> {
        let length = match self.random.u8(0..4) {
            0 => 0,
            1 => self.random.usize(1..100),
            _ => self.random.usize(1..MOST),
        };
        bytes(self.random.u64(..), length)
    }

    /// Ends a stream, if it is far enough for that.
    fn begin_end(&mut self, slot: usize, id: StreamId) {
        let end = self.random.choice(End::ALL).unwrap();
        let load = &self.rig.loads[&id];
        let up_is_done = load.got_up.len() == load.up.len() && load.accepted;
        let down_is_done = load.got_down.len() == load.down.len();
        let now = self.rig.now;
        match end {
            End::ClientCloses if down_is_done => {
                self.rig.queue_upwards(id);
                self.rig.client.session.close(id);
            }
            End::ClientFinishes if up_is_done => {
                self.rig.client.session.finish(id, now);
                self.rig.queue_downwards(id);
                self.rig.agent.session.close(id);
            }
            End::AgentCloses if up_is_done => {
                self.rig.queue_downwards(id);
                self.rig.agent.session.close(id);
            }
            End::ClientResets if self.random.bool() => self.rig.client.session.reset(id),
            End::AgentResets if load.accepted => self.rig.agent.session.reset(id),
            End::ClientCloses
            | End::ClientFinishes
            | End::AgentCloses
            | End::ClientResets
            | End::AgentResets => return,
        }
        self.slots[slot] = Slot::Ending { id, end };
    }

    /// Frees a slot whose stream is gone on both sides, after a last look at it.
    fn look_for_end(&mut self, slot: usize, id: StreamId, end: End) {
        let rig = &mut self.rig;
        let ends = [&rig.client, &rig.agent];
        let gone = ends.iter().all(|end| !end.session.streams().contains(&id));
        let finished = Event::Finished(id);
        let number: u32 = id.to_string().parse().unwrap();
        let told = match end {
            End::ClientCloses => rig.agent.has(&finished),
            End::ClientFinishes | End::AgentCloses | End::AgentResets => rig.client.has(&finished),
            End::ClientResets => {
                let announced = rig.client.witness.pieces.contains(&Piece::Syn(number));
                rig.agent.has(&finished) || !announced
            }
        };
        if !gone || !told {
            return;
        }
        let load = rig.loads.remove(&id).unwrap();
        if end.is_whole() {
            let sent = |streams: &mut Streams| streams.0.remove(&number).unwrap_or_default();
            assert!(sent(&mut rig.client.witness.streams) == load.up);
            assert!(sent(&mut rig.agent.witness.streams) == load.down);
        }
        self.slots[slot] = Slot::Idle;
    }

    fn strike(&mut self) {
        self.plan(Step::Strike, 0..8_000);
        if std::mem::replace(&mut self.struck, true) {
            return;
        }
        let strike = match self.random.u8(0..6) {
            0..=2 => {
                let times = if self.random.u8(0..4) == 0 { 5 } else { 1 };
                let told = self.random.choice(TOLD).unwrap();
                self.rig.act(Act::Cut(told));
                Strike::Cut { times, told }
            }
            3 => {
                self.rig.reach = Reach::Nobody;
                Strike::HalfOpen
            }
            4 => {
                self.rig.lose_agent();
                Strike::AgentAway
            }
            _ => {
                self.rig.agent_reads = false;
                Strike::AgentReadsNothing
            }
        };
        self.plan_mending(strike);
    }

    fn plan_mending(&mut self, strike: Strike) {
        let longest = self.random.choice([20, 200, 2_000, 20_000]).unwrap();
        self.plan(Step::Mend(strike), 10..longest);
    }

    fn mend(&mut self, strike: Strike) {
        match strike {
            Strike::Cut { times, told } => {
                if !self.rig.is_attached() {
                    self.rig.act(Act::Attach);
                    if self.random.bool() {
                        self.rig.announce(Kind::StartPublication);
                    }
                }
                if times > 1 {
                    self.rig.run_for(millis(self.random.u64(0..200)));
                    self.rig.act(Act::Cut(told));
                    let times = times - 1;
                    return self.plan(Step::Mend(Strike::Cut { times, told }), 0..100);
                }
            }
            Strike::HalfOpen => {
                let told = self.random.choice([Told::Pause, Told::Nothing]).unwrap();
                self.rig.act(Act::Cut(told));
                return self.plan_mending(Strike::Cut { times: 1, told });
            }
            Strike::AgentAway => {
                self.rig.rouse_agent();
                if self.random.bool() {
                    self.rig.announce(Kind::StartPublication);
                }
            }
            Strike::AgentReadsNothing => self.rig.agent_reads = true,
        }
        self.struck = false;
    }

    /// The service says that somebody is away, or there, and it need not be true.
    fn hint(&mut self) {
        match self.random.u8(0..4) {
            0 => {
                self.rig.announce(Kind::PausePublication);
                if self.random.bool() {
                    self.plan(Step::Start, 0..3_000);
                }
            }
            1 => self.rig.announce(Kind::StartPublication),
            2 => {
                for _ in 0..self.random.u32(1..50) {
                    let kinds = [Kind::PausePublication, Kind::StartPublication];
                    self.rig.announce(self.random.choice(kinds).unwrap());
                    self.rig.run_for(millis(self.random.u64(0..20)));
                }
            }
            _ => {
                self.rig.pause_agent();
                self.plan(Step::RouseAgent, 0..3_000);
            }
        }
        self.plan(Step::Hint, 0..8_000);
    }

    fn weather(&mut self) {
        let random = &mut self.random;
        let mut share = |most: f64| if random.bool() { 0.0 } else { random.f64() * most };
        let mut network = Network {
            loss: share(0.05),
            lost_acknowledgements: share(0.3),
            copies: share(0.05),
            stragglers: share(0.01),
            damage: share(0.05),
            dressed: share(0.3),
            largest: self.passing,
            ..Network::perfect(millis(0))
        };
        network.delay = millis(random.u64(0..150));
        network.jitter = millis(random.choice([0, 5, 40]).unwrap());
        network.uplink = random.choice([None, None, None, Some(500_000)]).unwrap();
        self.rig.network = network;
        self.plan(Step::Weather, 0..5_000);
    }

    fn police(&mut self) {
        let witness = &self.rig.client.witness;
        let seen = witness.longest_since(millis(1_000), self.rig.now);
        let guilty = self
            .largest
            .is_some_and(|largest| seen.is_some_and(|seen| seen > largest));
        if guilty && !self.struck {
            self.struck = true;
            self.rig.announce(Kind::PausePublication);
            self.rig.run_for(millis(self.random.u64(0..100)));
            self.rig.act(Act::Cut(Told::Pause));
            self.plan(
                Step::Mend(Strike::Cut {
                    times: 1,
                    told: Told::Pause,
                }),
                10..500,
            );
        }
        self.plan(Step::Police, 1_000..1_001);
    }
}
