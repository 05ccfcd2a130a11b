//! What is measured, one function a case: it starts fresh clients, so that no case feels what an earlier one did to
//! them, and puts its figures down, or why there are none.

use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::client::{Client, Place, Who, time_of_a_status};
use crate::emulator::Far;
use crate::figures::{Company, Figures, Holding, Outcome, Quantity, Setting, Share};
use crate::load::{self, Bulk, Direction, Echo};
use crate::pace;
use crate::process::Process;
use crate::statistics::percentile;

/// How thoroughly to measure.
pub(crate) struct Effort {
    /// Added round trips, in milliseconds.
    pub(crate) round_trips: &'static [u32],
    /// Of a bulk transfer, whose median counts.
    pub(crate) runs: usize,
    /// How long each of them should take.
    pub(crate) run: Duration,
    /// How long pings are counted.
    pub(crate) pings: Duration,
    /// How long a reader has been stalled when others' pings are counted.
    pub(crate) stalled: Duration,
    /// Of a tunnel's way up, and of its first byte.
    pub(crate) starts: usize,
    /// Of `tunnelctl status`.
    pub(crate) statuses: usize,
    /// How long idle tunnels are watched.
    pub(crate) idle: Duration,
    pub(crate) outages: usize,
    /// In seconds.
    pub(crate) longest_outage: f64,
}

impl Effort {
    /// Enough for figures that one may publish; some 20 minutes.
    pub(crate) const FULL: Self = Self {
        round_trips: &[0, 20, 100],
        runs: 3,
        run: Duration::from_secs(3),
        pings: Duration::from_secs(4),
        // The agent's pace fills what the official client holds, 12.4 MB, in 15 s.
        stalled: Duration::from_secs(20),
        starts: 5,
        statuses: 21,
        idle: Duration::from_secs(10),
        outages: 9,
        longest_outage: 8.0,
    };

    /// Enough to see where one stands during work; a few minutes.
    pub(crate) const QUICK: Self = Self {
        round_trips: &[0],
        runs: 1,
        run: Duration::from_secs(1),
        pings: Duration::from_secs(1),
        stalled: Duration::from_secs(3),
        starts: 3,
        statuses: 5,
        idle: Duration::from_secs(10),
        outages: 3,
        longest_outage: 3.0,
    };
}

/// Bytes that a tunnel moves before it is measured, so that payloads have grown and its speed is known.
const WARM_UP: u64 = 128 << 10;
/// How many seconds a warm-up must take for its speed to be believed.
const BELIEVABLE: f64 = 0.4;
/// The share of its time that a run must have taken not to be followed by one more transfer.
const MOST_OF_IT: f64 = 0.5;
/// The most that a connection moves in one transfer, whatever the speed.
const LONGEST: u64 = 1 << 30;
const GIBIBYTE: f64 = (1 << 30) as f64;
/// Of a mebibyte.
const KIBIBYTES: f64 = 1024.0;
/// More tunnels than anybody has.
pub(crate) const MANY_TUNNELS: u32 = 1_000;
/// More connections than any pool opens.
pub(crate) const CROWD: u32 = 5_000;

/// One run of the bench.
pub(crate) struct Bench<'a> {
    pub(crate) place: Place<'a>,
    /// The clients that this machine has not.
    pub(crate) absent: &'a [Who],
    pub(crate) effort: &'a Effort,
    pub(crate) figures: Figures,
}

impl Bench<'_> {
    /// Returns the clients to measure, tunneld first.
    fn clients(&self, far: Far) -> Vec<Who> {
        let all = Who::facing(far).iter().copied();
        all.filter(|who| !self.absent.contains(who)).collect()
    }

    fn start(&self, who: Who, far: Far, tunnels: usize) -> anyhow::Result<Client> {
        Client::start(&self.place, who, far, tunnels)
    }

    /// Measures a client that was started for it; an error is told with the client's last words.
    fn with<T>(
        &self,
        who: Who,
        far: Far,
        tunnels: usize,
        measure: impl FnOnce(&Client) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let client = self.start(who, far, tunnels)?;
        measure(&client).with_context(|| format!("`{}`", client.last_words()))
    }

    /// Puts down the same figures for each client.
    fn for_each<const N: usize>(
        &mut self,
        setting: Setting,
        quantities: [Quantity; N],
        measure: impl Fn(&Self, Who) -> anyhow::Result<[Vec<f64>; N]>,
    ) {
        for who in self.clients(setting.far) {
            let measured = measure(self, who);
            self.put(setting, quantities, who, measured);
        }
    }

    /// Puts down what came of a measurement; a failure loses all figures of it.
    fn put<const N: usize>(
        &mut self,
        setting: Setting,
        quantities: [Quantity; N],
        who: Who,
        measured: anyhow::Result<[Vec<f64>; N]>,
    ) {
        let outcomes = match measured {
            Ok(runs) => runs.map(Outcome::Runs),
            Err(error) => std::array::from_fn(|_| Outcome::Failed(format!("{error:#}"))),
        };
        for (quantity, outcome) in quantities.into_iter().zip(outcomes) {
            self.figures.add(setting, quantity, who, outcome);
        }
    }

    /// Bulk transfers, and the CPU time they cost. The peer, which loses long ones where the agent is not paced, is
    /// measured by such as it carries.
    pub(crate) fn bulk(&mut self, setting: Setting, direction: Direction, connections: u32) {
        let rate = Quantity::Rate {
            direction,
            connections,
        };
        let cpu = Quantity::Cpu {
            direction,
            connections,
        };
        for who in self.clients(setting.far) {
            let mut longest = LONGEST;
            let measured = loop {
                let mut length = WARM_UP;
                let measured = self.with(who, setting.far, 1, |client| {
                    self.bulk_runs(client, direction, connections, longest, &mut length)
                });
                match who {
                    Who::Peer if measured.is_err() && length > WARM_UP => longest = length / 2,
                    Who::Ours | Who::Peer | Who::Relay | Who::OfficialCli | Who::OpenSsh => break measured,
                }
            };
            if measured.is_ok() && longest < LONGEST {
                self.figures.note(format!(
                    "{who} failed with more than {} KiB a connection: {rate}, {setting}",
                    longest >> 10
                ));
            }
            self.put(setting, [rate, cpu], who, measured);
        }
    }

    /// Has the client open whatever it opens for so many connections, sessions or further SSH connections, which would
    /// pass for slowness. Then moves more and more bytes until a transfer takes long enough to tell how many take as
    /// long as a run should, and makes the runs, of several transfers where one may not be that long. `length` is what
    /// each connection moved last.
    fn bulk_runs(
        &self,
        client: &Client,
        direction: Direction,
        connections: u32,
        longest: u64,
        length: &mut u64,
    ) -> anyhow::Result<[Vec<f64>; 2]> {
        let transfer = |length| load::transfer(client.address(), direction, connections, length);
        let run = self.effort.run.as_secs_f64();
        transfer(*length)?;
        loop {
            let took = transfer(*length)?.as_secs_f64();
            if took > BELIEVABLE || *length >= longest {
                let bytes = *length as f64 / took * run;
                *length = (bytes as u64).clamp(WARM_UP, longest);
                break;
            }
            *length = (*length * 2).min(longest);
        }
        let (mut rates, mut costs) = (Vec::new(), Vec::new());
        for _ in 0..self.effort.runs {
            let before = client.cpu()?;
            let began = Instant::now();
            let (mut bytes, mut took) = (0.0, 0.0);
            while took < MOST_OF_IT * run && began.elapsed() < self.effort.run {
                took += transfer(*length)?.as_secs_f64();
                bytes += *length as f64 * f64::from(connections);
            }
            let spent = client.cpu()? - before;
            rates.push(bytes / took / 1e6);
            costs.push(spent / bytes * GIBIBYTE);
        }
        Ok([rates, costs])
    }

    /// From opening a download to its first byte.
    pub(crate) fn first_byte(&mut self, setting: Setting) {
        self.for_each(setting, [Quantity::FirstByte], |bench, who| {
            bench.with(who, setting.far, 1, |client| {
                let times =
                    (0..bench.effort.starts).map(|_| Ok(ms(load::time_to_first_byte(client.address())?)));
                Ok([times.collect::<anyhow::Result<_>>()?])
            })
        });
    }

    /// From the wish for a tunnel until it is up.
    pub(crate) fn connecting(&mut self, setting: Setting) {
        self.for_each(setting, [Quantity::Connecting], |bench, who| {
            let times =
                (0..bench.effort.starts).map(|_| Ok(ms(bench.start(who, setting.far, 1)?.connecting)));
            Ok([times.collect::<anyhow::Result<_>>()?])
        });
    }

    /// Ping-pong in some company.
    pub(crate) fn ping(&mut self, setting: Setting, company: Company) {
        let quantities = [Share::P50, Share::P99].map(|share| Quantity::Ping { company, share });
        self.for_each(setting, quantities, |bench, who| {
            let times = bench.with(who, setting.far, 1, |client| {
                bench.pings(client.address(), company)
            })?;
            let of = |share| percentile(&times, share).context("no ping came back");
            Ok([vec![of(0.5)?], vec![of(0.99)?]])
        });
    }

    fn pings(&self, address: SocketAddr, company: Company) -> anyhow::Result<Vec<f64>> {
        /// As many sessions as tunneld spreads a tunnel's connections over by itself.
        const MOST_SESSIONS: usize = 4;
        let duration = self.effort.pings;
        match company {
            Company::None => Ok(Echo::open(address)?.pings(duration)?),
            Company::Before(direction) => {
                let mut echo = Echo::open(address)?;
                beside(address, &[direction], || Ok(echo.pings(duration)?))
            }
            Company::After(direction) => {
                beside(
                    address,
                    &[direction],
                    || Ok(Echo::open(address)?.pings(duration)?),
                )
            }
            Company::Crowd => {
                let crowd = vec![Direction::Down; self.place.sessions.unwrap_or(MOST_SESSIONS)];
                beside(address, &crowd, || Ok(Echo::open(address)?.pings(duration)?))
            }
            Company::StalledReader => {
                let mut echo = Echo::open(address)?;
                let stalled = load::connect(address, load::ENDLESS)?;
                let began = Instant::now();
                while began.elapsed() < self.effort.stalled {
                    echo.ping().context("while the other reader was stalled")?;
                }
                let times = echo.pings(duration)?;
                drop(stalled);
                Ok(times)
            }
        }
    }

    /// Resident memory after start, with tunnels, and with connections.
    pub(crate) fn memory(&mut self, setting: Setting) {
        const TUNNELS: u32 = 10;
        const CONNECTIONS: u32 = 100;
        // The peer is its sessions: it has nothing that runs without any.
        let started = self
            .start(Who::Ours, setting.far, 0)
            .and_then(|client| client.resident());
        let started = started.map_or_else(
            |error| Outcome::Failed(format!("{error:#}")),
            |resident| Outcome::Runs(vec![resident]),
        );
        let after_start = Quantity::Memory(Holding::Nothing);
        self.figures.add(setting, after_start, Who::Ours, started);
        for tunnels in [1, TUNNELS] {
            let quantity = Quantity::Memory(Holding::Tunnels(tunnels));
            self.for_each(setting, [quantity], |bench, who| {
                bench.with(who, setting.far, tunnels as usize, |client| {
                    for address in client.addresses() {
                        Echo::open(*address)?;
                    }
                    Ok([vec![client.resident()?]])
                })
            });
        }
        let quantity = Quantity::Memory(Holding::Connections(CONNECTIONS));
        self.for_each(setting, [quantity], |bench, who| {
            bench.with(who, setting.far, 1, |client| {
                let mut open = Vec::new();
                for _ in 0..CONNECTIONS {
                    open.push(Echo::open(client.address())?);
                }
                Ok([vec![client.resident()?]])
            })
        });
    }

    /// Many tunnels that nobody uses: how soon they are there, what they cost, and how soon they are shown.
    pub(crate) fn many(&mut self, setting: Setting) {
        let tunnels = MANY_TUNNELS;
        let quantities = [
            Quantity::Starting { tunnels },
            Quantity::Memory(Holding::IdleTunnels(tunnels)),
            Quantity::IdleCpu { tunnels },
            Quantity::Status { tunnels },
        ];
        let measured = self.idle_tunnels(setting.far, tunnels as usize);
        self.put(setting, quantities, Who::Ours, measured);
    }

    fn idle_tunnels(&self, far: Far, tunnels: usize) -> anyhow::Result<[Vec<f64>; 4]> {
        let mut starts = Vec::new();
        for _ in 1..self.effort.starts {
            starts.push(ms(Client::start_idle(&self.place, far, tunnels)?.connecting));
        }
        let client = Client::start_idle(&self.place, far, tunnels)?;
        starts.push(ms(client.connecting));
        let statuses = (0..self.effort.statuses)
            .map(|_| Ok(ms(time_of_a_status(&self.place, far)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let before = client.cpu()?;
        thread::sleep(self.effort.idle);
        let spent = client.cpu()? - before;
        let share = spent / self.effort.idle.as_secs_f64() * 100.0;
        Ok([starts, vec![client.resident()?], vec![share], statuses])
    }

    /// A crowd of connections that come at once, carry some bytes and stay.
    pub(crate) fn crowd(&mut self, setting: Setting) {
        let connections = CROWD;
        let quantities = [
            Quantity::Refused { connections },
            Quantity::Serving { connections },
            Quantity::OfEach { connections },
        ];
        let measured = self.crowded(setting.far, connections);
        self.put(setting, quantities, Who::Ours, measured);
    }

    fn crowded(&self, far: Far, connections: u32) -> anyhow::Result<[Vec<f64>; 3]> {
        let program = |arguments: &[&str], name| {
            let mut command = Command::new(self.place.programs.join("bench-crowd"));
            Process::start(command.env_clear().args(arguments), name, self.place.folder)
        };
        let mut target = program(&["target"], "target")?;
        let place = Place {
            target: target.lines()?.next()?.parse()?,
            ..self.place
        };
        let client = Client::start(&place, Who::Ours, far, 1)?;
        let (address, count) = (client.address().to_string(), connections.to_string());
        // A first connection has what all of them share made.
        let first = served(&mut program(&["clients", &address, "1"], "first")?)?;
        anyhow::ensure!(first == [1, 0], "the first connection was not served");
        let before = client.resident()?;
        let began = Instant::now();
        let mut clients = program(&["clients", &address, &count], "clients")?;
        let [_, refused] = served(&mut clients)?;
        let took = began.elapsed();
        let of_each = (client.resident()? - before) * KIBIBYTES / f64::from(connections);
        Ok([vec![refused as f64], vec![ms(took)], vec![of_each]])
    }

    /// From the network's return until a download flows again, whose every byte is checked.
    pub(crate) fn outage(&mut self, setting: Setting) {
        let outcome = self
            .with(Who::Ours, setting.far, 1, |client| self.outages(client.address()))
            .map_or_else(|error| Outcome::Failed(format!("{error:#}")), Outcome::Runs);
        self.figures.add(setting, Quantity::Recovery, Who::Ours, outcome);
    }

    fn outages(&self, address: SocketAddr) -> anyhow::Result<Vec<f64>> {
        let emulator = self.place.emulator;
        // The lengths are the same in every run, and unrelated to any timer of the daemon.
        let mut lengths = fastrand::Rng::with_seed(1);
        with_bulk(address, &[Direction::Down], |bulks| {
            (0..self.effort.outages)
                .map(|_| {
                    let length = 1.0 + lengths.f64() * (self.effort.longest_outage - 1.0);
                    emulator.begin_outage()?;
                    thread::sleep(Duration::from_secs_f64(length));
                    let before = bulks[0].moved();
                    emulator.end_outage()?;
                    let returned = Instant::now();
                    bulks[0].wait_beyond(before)?;
                    let took = returned.elapsed();
                    bulks[0].wait_until_it_flows()?;
                    Ok(ms(took))
                })
                .collect()
        })
    }

    /// The agent's pace without any client.
    pub(crate) fn pace(&mut self, setting: Setting) {
        let pace = pace::of_the_stock_agent(self.effort.run);
        let outcome = pace.map_or_else(
            |error| Outcome::Failed(format!("{error:#}")),
            |pace| Outcome::Runs(vec![pace / 1e6]),
        );
        self.figures.add(setting, Quantity::AgentPace, Who::Ours, outcome);
    }
}

/// Returns how many of a crowd were served and refused.
fn served(clients: &mut Process) -> anyhow::Result<[u32; 2]> {
    let said = clients.lines()?.next()?;
    let counts = said.split_once(' ').context("the crowd said something else")?;
    Ok([counts.0.parse()?, counts.1.parse()?])
}

/// Does something while bulk transfers flow.
fn beside<T>(
    address: SocketAddr,
    directions: &[Direction],
    act: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    with_bulk(address, directions, |bulks| {
        let acted = act()?;
        for bulk in bulks {
            bulk.must_flow()?;
        }
        Ok(acted)
    })
}

/// Starts bulk transfers, waits until they flow, and stops them afterwards.
fn with_bulk<T>(
    address: SocketAddr,
    directions: &[Direction],
    act: impl FnOnce(&[Bulk]) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let bulks: Vec<Bulk> = directions.iter().map(|_| Bulk::default()).collect();
    thread::scope(|scope| {
        for (bulk, direction) in bulks.iter().zip(directions) {
            scope.spawn(|| bulk.run(address, *direction));
        }
        let flowing = bulks.iter().try_for_each(Bulk::wait_until_it_flows);
        let acted = flowing.and_then(|()| act(&bulks));
        for bulk in &bulks {
            bulk.stop();
        }
        acted
    })
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
