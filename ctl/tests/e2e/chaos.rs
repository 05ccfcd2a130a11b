//! Chaos: random faults, all of which a correct far end can survive, under connections that move bytes both ways. Every
//! byte arrives, in order and once, no connection is lost, and nothing is left behind.
//!
//! ```text
//!   seed ─► plan ─► round: every connection asks ─► a part has arrived: the fault ─► all has arrived ─┐
//!                     ▲                                                                               │
//!                     └───────────────────── one connection is replaced ◄─────────────────────────────┘
//! ```
//!
//! A seed decides on all of it but the moments, which are the system's. `CHAOS_SEED=7` runs that seed alone;
//! `SOAK=10m`, which `make soak` sets, runs new ones for that long.

use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;
use tunneld_emulator::{
    AbsentClient, ChannelClosedForm, Conditions, Fragments, Noise, Outage, StartPublication,
};

use crate::load::{Connection, Load};
use crate::resources::Resources;
use crate::world::{World, free_port};
use crate::{account, configuration};

/// Seeds of an ordinary run.
const SEEDS: u64 = 10;
/// Seeds at a time. Most of a seed is waiting for a dead websocket to be noticed.
const LANES: usize = 5;
/// Connections at a time.
const CONNECTIONS: usize = 8;
/// Rounds of a seed, each with a fault of another kind.
const ROUNDS: usize = 6;
/// The most bytes of one connection in one round, each way.
const MOST_BYTES: u32 = 512 << 10;
/// How much more memory a daemon may have after its last seed than after its first: what its allocator keeps of
/// buffers, which differ with the seeds. In KiB.
const MORE_MEMORY: u64 = 32 << 10;

/// What goes wrong in a round.
#[derive(Debug)]
enum Fault {
    /// The websockets are reset.
    Cut,
    /// The websockets are closed as about hourly.
    Recycle,
    /// The websockets are half-open.
    Freeze,
    /// There is no network for a while.
    Outage(Outage, Duration),
    /// The agent is away for a while.
    AgentOutage(Duration),
    /// The websockets are reset, and so many calls to resume fail.
    ResumesFail(u32),
    /// Other conditions until the next fault, called so.
    Conditions(&'static str, Box<Conditions>),
}

/// All that a seed decides.
#[derive(Debug)]
struct Plan {
    /// Conditions that hold unless a fault has others.
    climate: Conditions,
    /// How many of the first sessions beside the tunnel's own are refused for coming too fast.
    throttled: u32,
    rounds: Vec<Round>,
}

#[derive(Debug)]
struct Round {
    /// For each connection.
    requests: Vec<(u32, u32)>,
    /// Which part of the round's bytes has arrived when the fault comes.
    part: f64,
    fault: Fault,
    /// The connection that ends afterwards; another one began with the fault.
    replaced: usize,
}

#[test]
fn seeds_of_chaos_lose_no_byte_and_no_connection_and_leave_nothing_behind() {
    let seeds = Seeds::from_environment();
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| run_lane(&seeds));
        }
    });
}

/// The seeds to run, one after the other.
struct Seeds {
    next: AtomicU64,
    end: End,
}

enum End {
    /// Before this seed.
    At(u64),
    /// Once this moment has passed.
    After(Instant),
}

impl Seeds {
    fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let (next, end) = match (variable("CHAOS_SEED"), variable("SOAK")) {
            (Some(seed), _) => {
                let seed = seed.parse().unwrap();
                (seed, End::At(seed + 1))
            }
            (None, Some(duration)) => {
                let duration = humantime::parse_duration(&duration).unwrap();
                (fastrand::u64(..1 << 32), End::After(Instant::now() + duration))
            }
            (None, None) => (0, End::At(SEEDS)),
        };
        Self {
            next: AtomicU64::new(next),
            end,
        }
    }

    fn take(&self) -> Option<u64> {
        let seed = self.next.fetch_add(1, Ordering::Relaxed);
        let is_over = match self.end {
            End::At(end) => seed >= end,
            End::After(moment) => Instant::now() >= moment,
        };
        (!is_over).then_some(seed)
    }
}

/// Runs seeds on one machine, whose daemon has in the end what it had in the beginning.
fn run_lane(seeds: &Seeds) {
    let port = free_port();
    let load = Load::start();
    let configuration = configuration(port) + "hold = \"2m\"\n";
    let world = World::started(&account("fast", load.port), &configuration);
    let before = Resources::of(&world);
    let mut first = None;
    while let Some(seed) = seeds.take() {
        let run = AssertUnwindSafe(|| run_seed(seed, &world, &load, port));
        if let Err(panic) = catch_unwind(run) {
            report(&format!(
                "seed {seed} failed; to run it alone:\n  \
                 CHAOS_SEED={seed} cargo test --workspace --test e2e chaos -- --nocapture"
            ));
            resume_unwind(panic);
        }
        let memory = Resources::of(&world).memory;
        let first = *first.get_or_insert(memory);
        assert!(
            memory <= first + MORE_MEMORY,
            "seed {seed}: {memory} KiB of memory after {first}"
        );
    }
    // The SDK keeps connections for its next call for a while.
    world.wait_for("the daemon has what it had in the beginning", |world| {
        let now = Resources::of(world);
        (now.files <= before.files && now.threads <= before.threads).then_some(())
    });
}

fn run_seed(seed: u64, world: &World, load: &Load, port: u16) {
    let began = Instant::now();
    let moved = load.arrived();
    let plan = Plan::new(seed);
    world.emulator.set_conditions(plan.climate.clone());
    world.ok(&["up", "prod-db"]);
    let throttled = format!("throttle-start-session*{}", plan.throttled);
    world.emulator.faults().set(&throttled).unwrap();
    let mut connections: Vec<Connection> = (0..CONNECTIONS).map(|_| load.connect(port)).collect();
    for round in &plan.rounds {
        for (connection, (up, down)) in connections.iter().zip(&round.requests) {
            connection.exchange(*up, *down);
        }
        let left = (load.asked() - load.arrived()) as f64;
        wait_for_bytes(world, load, load.asked() - (left * round.part) as u64);
        round.fault.begin(world, &plan.climate);
        connections.push(load.connect(port));
        for connection in &connections {
            // Whoever says something notices a websocket that is half-open.
            connection.exchange(1, 1);
        }
        round.fault.end(world);
        wait_for_bytes(world, load, load.asked());
        connections.remove(round.replaced);
    }
    world.emulator.set_conditions(Conditions::default());
    world.emulator.faults().clear_all();
    let tunnel = world.wait_for("AWS and status agree on the sessions", |world| {
        let tunnel = world.tunnel("prod-db");
        (tunnel["link"]["sessions"] == world.emulator.sessions().len()).then_some(tunnel)
    });
    assert_eq!(
        tunnel["traffic"]["connections_failed"],
        0,
        "{tunnel}\n{}",
        world.log()
    );
    drop(connections);
    world.wait_for("the target has seen all connections end", |_| {
        (load.served() == 0).then_some(())
    });
    world.ok(&["down", "prod-db"]);
    assert_eq!(world.emulator.sessions(), [], "sessions are left open");
    assert!(load.troubles().is_empty(), "{:?}", load.troubles());
    let resources = Resources::of(world);
    report(&format!(
        "seed {seed}: {:.1} s, {} MiB carried; {resources:?}; {}",
        began.elapsed().as_secs_f64(),
        (load.arrived() - moved) >> 20,
        plan.faults().join(", ")
    ));
}

/// Waits until so many bytes have arrived in all.
fn wait_for_bytes(world: &World, load: &Load, mark: u64) {
    world.wait_for("bytes arrive", |world| {
        let troubles = load.troubles();
        assert!(troubles.is_empty(), "{troubles:?}\n{}", world.log());
        (load.arrived() >= mark).then_some(())
    });
}

impl Plan {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let climate = climate(&mut random);
        let mut faults = faults(&climate, &mut random);
        random.shuffle(&mut faults);
        faults.truncate(ROUNDS);
        let round = |fault| Round {
            requests: (0..CONNECTIONS)
                .map(|_| (random.u32(1..=MOST_BYTES), random.u32(1..=MOST_BYTES)))
                .collect(),
            part: random.f64(),
            fault,
            replaced: random.usize(..CONNECTIONS),
        };
        Self {
            rounds: faults.into_iter().map(round).collect(),
            throttled: random.u32(0..=3),
            climate,
        }
    }

    fn faults(&self) -> Vec<String> {
        let faults = self.rounds.iter().map(|round| match &round.fault {
            Fault::Conditions(name, _) => (*name).to_owned(),
            fault @ (Fault::Cut
            | Fault::Recycle
            | Fault::Freeze
            | Fault::Outage(..)
            | Fault::AgentOutage(_)
            | Fault::ResumesFail(_)) => format!("{fault:?}"),
        });
        faults.collect()
    }
}

impl Fault {
    fn begin(&self, world: &World, climate: &Conditions) {
        let conditions = match self {
            Self::Conditions(_, conditions) => conditions,
            Self::Cut
            | Self::Recycle
            | Self::Freeze
            | Self::Outage(..)
            | Self::AgentOutage(_)
            | Self::ResumesFail(_) => climate,
        };
        let emulator = &world.emulator;
        emulator.set_conditions(conditions.clone());
        match self {
            Self::Cut => {
                emulator.cut();
            }
            Self::Recycle => {
                emulator.recycle();
            }
            Self::Freeze => {
                emulator.freeze();
            }
            Self::Outage(kind, _) => emulator.begin_outage(*kind),
            Self::AgentOutage(duration) => {
                emulator.agent_outage(*duration);
            }
            Self::ResumesFail(times) => {
                emulator.faults().set(&format!("resume-fails*{times}")).unwrap();
                emulator.cut();
            }
            Self::Conditions(..) => {}
        }
    }

    fn end(&self, world: &World) {
        match self {
            Self::Outage(_, duration) => {
                // How long it lasts is all there is to an outage.
                thread::sleep(*duration);
                world.emulator.end_outage();
            }
            Self::Cut
            | Self::Recycle
            | Self::Freeze
            | Self::AgentOutage(_)
            | Self::ResumesFail(_)
            | Self::Conditions(..) => {}
        }
    }
}

/// Conditions that change nothing for a correct client.
fn climate(random: &mut Rng) -> Conditions {
    let mut climate = Conditions::default();
    let line = &mut climate.line;
    line.seed = Some(random.u64(..));
    line.delay = millis(random, 0..=20);
    let service = &mut climate.service;
    let publications = [
        StartPublication::First,
        StartPublication::AfterHandshake,
        StartPublication::Never,
    ];
    service.start_publication = one_of(publications, random);
    service.rate_limit = one_of([None, Some(1_000)], random);
    service.fragments = Fragments::Refuse;
    service.channel_closed = one_of([ChannelClosedForm::Hl116, ChannelClosedForm::Hl112], random);
    service.absent_client = one_of([AbsentClient::Lose, AbsentClient::Keep], random);
    let agent = &mut climate.agent;
    agent.dial_delay = millis(random, 0..=100);
    agent.handshake_requests = random.u32(1..=3);
    agent.late_handshake_ack = random.bool();
    climate
}

/// One fault of each kind.
fn faults(climate: &Conditions, random: &mut Rng) -> Vec<Fault> {
    let noise = |random: &mut Rng| Noise {
        drop_data: random.f64() * 0.05,
        drop_acks: random.f64() * 0.05,
        duplicate: random.f64() * 0.05,
        reorder: random.f64() * 0.05,
        corrupt: random.f64() * 0.05,
    };
    let mut noisy = climate.clone();
    noisy.line.up = noise(random);
    noisy.line.down = noise(random);
    noisy.line.junk = random.f64() * 0.05;
    let mut slow = climate.clone();
    slow.line.delay = millis(random, 50..=200);
    let mut stormy = climate.clone();
    stormy.service.pause_storm = Some(millis(random, 10..=300));
    let mut restless = climate.clone();
    // Each time more than a resume repeats.
    restless.service.recycle_bytes = Some(random.u64(500_000..=4_000_000));
    let mut silent = climate.clone();
    silent.service.pongs = false;
    // One of these is enough for a seed: each is noticed after eight seconds.
    let silence = match random.bool() {
        true => Fault::Freeze,
        false => Fault::Outage(Outage::Frozen, millis(random, 100..=3_000)),
    };
    vec![
        silence,
        Fault::Cut,
        Fault::Recycle,
        Fault::Outage(Outage::Reset, millis(random, 100..=3_000)),
        Fault::AgentOutage(millis(random, 100..=3_000)),
        Fault::ResumesFail(random.u32(1..=8)),
        Fault::Conditions("noise", Box::new(noisy)),
        Fault::Conditions("delay", Box::new(slow)),
        Fault::Conditions("pause storm", Box::new(stormy)),
        Fault::Conditions("recycled often", Box::new(restless)),
        Fault::Conditions("no pongs", Box::new(silent)),
    ]
}

fn millis(random: &mut Rng, range: RangeInclusive<u64>) -> Duration {
    Duration::from_millis(random.u64(range))
}

fn one_of<T, const COUNT: usize>(choices: [T; COUNT], random: &mut Rng) -> T {
    let chosen = random.usize(..COUNT);
    choices.into_iter().nth(chosen).unwrap()
}

#[expect(clippy::print_stdout, reason = "what a person who runs seeds reads")]
fn report(line: &str) {
    println!("{line}");
}
