//! What was measured: each figure has a name, the conditions it was taken under, and whose it is.

use std::collections::BTreeMap;
use std::fmt;

use crate::client::Who;
use crate::emulator::Far;
use crate::load::Direction;
use crate::statistics::median;

/// What a figure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Quantity {
    /// Bytes per second of a bulk transfer over connections opened together.
    Rate { direction: Direction, connections: u32 },
    /// What moving them cost the client.
    Cpu { direction: Direction, connections: u32 },
    /// From the opening of a bulk download to its first byte.
    FirstByte,
    /// From the wish for a tunnel until it is up.
    Connecting,
    /// Ping-pong of 64 bytes, in some company.
    Ping { company: Company, share: Share },
    /// Resident memory.
    Memory(Holding),
    /// From the network's return until bytes flow again.
    Recovery,
    /// From the daemon's start until it shows so many on-demand tunnels as idle.
    Starting { tunnels: u32 },
    /// The share of a core that the daemon takes while nobody uses them.
    IdleCpu { tunnels: u32 },
    /// Of `tunnelctl status`, from its start to its end.
    Status { tunnels: u32 },
    /// Of so many connections that are opened at once, those that were not served.
    Refused { connections: u32 },
    /// From their opening until each of them has carried bytes both ways.
    Serving { connections: u32 },
    /// The memory that each of them takes once it is quiet.
    OfEach { connections: u32 },
    /// Bytes per second that the official agent's own pace gives an ideal client.
    AgentPace,
}

/// What goes on beside a ping-pong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Company {
    None,
    /// A bulk transfer that was there first.
    After(Direction),
    /// A bulk transfer that came later.
    Before(Direction),
    /// As many bulk downloads as a tunnel may have sessions.
    Crowd,
    /// A download whose reader has stopped reading.
    StalledReader,
}

/// A percentile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Share {
    P50,
    P99,
}

/// What a client holds while its memory is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Holding {
    /// No tunnel yet.
    Nothing,
    Tunnels(u32),
    /// On-demand tunnels that nobody uses.
    IdleTunnels(u32),
    Connections(u32),
}

/// The conditions of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Setting {
    pub(crate) far: Far,
    /// Milliseconds of round trip that the delay line adds.
    pub(crate) round_trip: u32,
}

/// What came of a measurement.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// A value for each run, never none.
    Runs(Vec<f64>),
    /// Why there is no value.
    Failed(String),
}

/// All figures of a run.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    outcomes: BTreeMap<(Setting, Quantity, Who), Outcome>,
    notes: Vec<String>,
}

impl Quantity {
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Rate { .. } | Self::AgentPace => "MB/s",
            Self::Cpu { .. } => "CPU s/GiB",
            Self::FirstByte
            | Self::Connecting
            | Self::Ping { .. }
            | Self::Recovery
            | Self::Starting { .. }
            | Self::Status { .. }
            | Self::Serving { .. } => "ms",
            Self::Memory(_) => "MiB",
            Self::IdleCpu { .. } => "% core",
            Self::Refused { .. } => "",
            Self::OfEach { .. } => "KiB",
        }
    }
}

impl Outcome {
    /// Returns the median of the runs.
    pub(crate) fn value(&self) -> Option<f64> {
        match self {
            Self::Runs(runs) => median(runs),
            Self::Failed(_) => None,
        }
    }
}

impl Figures {
    pub(crate) fn add(&mut self, setting: Setting, quantity: Quantity, who: Who, outcome: Outcome) {
        self.outcomes.insert((setting, quantity, who), outcome);
    }

    /// Puts down what a reader of the figures must know.
    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    pub(crate) fn get(&self, setting: Setting, quantity: Quantity, who: Who) -> Option<&Outcome> {
        self.outcomes.get(&(setting, quantity, who))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Setting, Quantity, Who, &Outcome)> {
        self.outcomes
            .iter()
            .map(|((setting, quantity, who), outcome)| (*setting, *quantity, *who, outcome))
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} ms added round trip", self.far, self.round_trip)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate {
                direction,
                connections,
            } => write!(f, "{direction}load, {}", counted(*connections, "connection")),
            Self::Cpu {
                direction,
                connections,
            } => write!(
                f,
                "cost of {direction}load, {}",
                counted(*connections, "connection")
            ),
            Self::FirstByte => f.write_str("first byte of a download"),
            Self::Connecting => f.write_str("tunnel up"),
            Self::Ping { company, share } => write!(f, "ping-pong {share}{company}"),
            Self::Memory(Holding::Nothing) => f.write_str("memory after start"),
            Self::Memory(Holding::Tunnels(tunnels)) => write!(f, "memory, {}", counted(*tunnels, "tunnel")),
            Self::Memory(Holding::IdleTunnels(tunnels)) => {
                write!(f, "memory, {}", counted(*tunnels, "idle tunnel"))
            }
            Self::Memory(Holding::Connections(connections)) => {
                write!(f, "memory, {}", counted(*connections, "connection"))
            }
            Self::Starting { tunnels } => {
                write!(f, "start until {} are shown", counted(*tunnels, "idle tunnel"))
            }
            Self::IdleCpu { tunnels } => write!(f, "CPU of {}", counted(*tunnels, "idle tunnel")),
            Self::Status { tunnels } => write!(f, "status of {}", counted(*tunnels, "tunnel")),
            Self::Refused { connections } => {
                write!(f, "refused of {} at once", counted(*connections, "connection"))
            }
            Self::Serving { connections } => {
                write!(f, "serving {} at once", counted(*connections, "connection"))
            }
            Self::OfEach { connections } => {
                write!(
                    f,
                    "memory of each of {}",
                    counted(*connections, "quiet connection")
                )
            }
            Self::Recovery => f.write_str("flowing again after an outage"),
            Self::AgentPace => f.write_str("pace of the agent itself"),
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "down",
            Self::Up => "up",
        })
    }
}

impl fmt::Display for Company {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::After(direction) => write!(f, ", opened after a bulk {direction}load"),
            Self::Before(direction) => write!(f, ", opened before a bulk {direction}load"),
            Self::Crowd => f.write_str(", more streams than sessions"),
            Self::StalledReader => f.write_str(", beside a stalled reader"),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::P50 => "p50",
            Self::P99 => "p99",
        })
    }
}

fn counted(count: u32, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
