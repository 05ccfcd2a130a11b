//! What the figures must come to, as ratios within one run wherever there is something to compare with.

use std::fmt;

use crate::cases::{CROWD, MANY_TUNNELS};
use crate::client::{OUR_RATE, Who};
use crate::emulator::{Agent, Far, Payload};
use crate::figures::{Company, Figures, Holding, Quantity, Setting, Share};
use crate::load::Direction;

/// A value that is held against a bound.
#[derive(Debug)]
pub(crate) struct Goal {
    pub(crate) name: String,
    pub(crate) bound: Bound,
    pub(crate) value: Result<f64, Lack>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// Why a value is lacking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lack {
    /// The case was not chosen, or the machine lacks the client to compare with.
    NotMeasured,
    /// Our client failed.
    WeFailed,
    /// Another client failed, so there is nothing to compare with.
    OtherFailed(Who),
}

/// What came of a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// There is nothing to judge by.
    Open,
}

impl Goal {
    pub(crate) fn verdict(&self) -> Verdict {
        let value = match &self.value {
            Ok(value) => *value,
            Err(Lack::WeFailed) => return Verdict::Missed,
            Err(Lack::NotMeasured | Lack::OtherFailed(_)) => return Verdict::Open,
        };
        let met = match self.bound {
            Bound::AtLeast(bound) => value >= bound,
            Bound::AtMost(bound) => value <= bound,
        };
        if met { Verdict::Met } else { Verdict::Missed }
    }
}

/// Holds the figures against every goal.
pub(crate) fn judge(figures: &Figures, round_trips: &[u32]) -> Vec<Goal> {
    let judge = Judge { figures };
    let mut goals = Vec::new();
    for round_trip in round_trips {
        let before = |far| Setting {
            far,
            round_trip: *round_trip,
        };
        for agent in [Agent::Unpaced, Agent::Fast] {
            goals.extend(judge.unpaced_bulk(before(Far::Agent(agent))));
        }
        let stock = before(Far::Agent(Agent::Stock));
        goals.extend(judge.paced_bulk(stock));
        goals.push(judge.ping(stock));
        goals.extend(judge.ping_beside_bulk(stock));
        goals.push(judge.ping_beside_a_stalled_reader(stock));
        goals.extend(judge.endpoint_bulk(before(Far::Endpoint)));
        let server = before(Far::Server);
        goals.extend(judge.server_bulk(server));
        goals.push(judge.ping_beside_a_stalled_reader(server));
    }
    goals.extend(judge.once());
    goals
}

/// The bulk transfers that goals are about: which way, and over how many connections.
const TRANSFERS: [(Direction, u32); 4] = [
    (Direction::Down, 1),
    (Direction::Down, 4),
    (Direction::Up, 1),
    (Direction::Up, 4),
];

struct Judge<'a> {
    figures: &'a Figures,
}

impl Judge<'_> {
    fn unpaced_bulk(&self, setting: Setting) -> Vec<Goal> {
        let mut goals = Vec::new();
        for (direction, connections) in TRANSFERS {
            let rate = Quantity::Rate {
                direction,
                connections,
            };
            let cpu = Quantity::Cpu {
                direction,
                connections,
            };
            goals.push(Goal {
                name: format!("{setting}: {rate}, of the peer's"),
                bound: Bound::AtLeast(1.5),
                value: self.of_the(Who::Peer, setting, rate),
            });
            goals.push(Goal {
                name: format!("{setting}: {cpu}, of the peer's"),
                bound: Bound::AtMost(0.5),
                value: self.of_the(Who::Peer, setting, cpu),
            });
        }
        goals
    }

    /// Through an endpoint, and nothing more.
    fn endpoint_bulk(&self, setting: Setting) -> Vec<Goal> {
        self.bulk(setting, Who::Relay, 0.8)
    }

    /// Through an SSH server behind an endpoint: where the round trip is long it is windows that count, where it is
    /// none the cost of a byte. In between there is no goal.
    fn server_bulk(&self, setting: Setting) -> Vec<Goal> {
        match setting.round_trip {
            0 => self.bulk(setting, Who::OpenSsh, 0.7),
            100 => self.bulk(setting, Who::OpenSsh, 0.9),
            _ => Vec::new(),
        }
    }

    /// Bulk transfers as fast as this share of another client's.
    fn bulk(&self, setting: Setting, other: Who, share: f64) -> Vec<Goal> {
        let goal = |(direction, connections)| {
            let rate = Quantity::Rate {
                direction,
                connections,
            };
            Goal {
                name: format!("{setting}: {rate}, of what {other} reaches"),
                bound: Bound::AtLeast(share),
                value: self.of_the(other, setting, rate),
            }
        };
        TRANSFERS.map(goal).into()
    }

    fn paced_bulk(&self, setting: Setting) -> Vec<Goal> {
        let rate = |direction, connections| {
            self.value(
                setting,
                Quantity::Rate {
                    direction,
                    connections,
                },
                Who::Ours,
            )
        };
        // The pace is the agent's alone, and measured once.
        let at_home = Setting {
            far: Far::Agent(Agent::Stock),
            round_trip: 0,
        };
        let pace = self.value(at_home, Quantity::AgentPace, Who::Ours);
        // What a message carries besides one smux header.
        let our_pace = f64::from(OUR_RATE) * f64::from(Payload::Large.bytes() - 8) / 1e6;
        vec![
            Goal {
                name: format!("{setting}: single download, of the agent's own pace"),
                bound: Bound::AtLeast(0.95),
                value: quotient(rate(Direction::Down, 1), pace),
            },
            Goal {
                name: format!("{setting}: download of 4 connections, of one session's"),
                bound: Bound::AtLeast(3.5),
                value: quotient(rate(Direction::Down, 4), rate(Direction::Down, 1)),
            },
            Goal {
                // The warm-up is not perfect, and the last receipt takes a round trip.
                name: format!("{setting}: single upload, of {OUR_RATE} full messages a second"),
                bound: Bound::AtLeast(0.9),
                value: rate(Direction::Up, 1).map(|rate| rate / our_pace),
            },
        ]
    }

    fn ping(&self, setting: Setting) -> Goal {
        let above = |who| {
            let quantity = Quantity::Ping {
                company: Company::None,
                share: Share::P50,
            };
            let round_trip = f64::from(setting.round_trip);
            self.value(setting, quantity, who).map(|value| value - round_trip)
        };
        Goal {
            name: format!("{setting}: ping-pong p50 above the round trip, of the peer's"),
            bound: Bound::AtMost(0.1),
            value: quotient(above(Who::Ours), above(Who::Peer)),
        }
    }

    fn ping_beside_bulk(&self, setting: Setting) -> Vec<Goal> {
        [Direction::Down, Direction::Up]
            .into_iter()
            .flat_map(|direction| [Company::After(direction), Company::Before(direction)])
            .map(|company| self.ping_in(company, Share::P50, setting))
            .collect()
    }

    fn ping_beside_a_stalled_reader(&self, setting: Setting) -> Goal {
        self.ping_in(Company::StalledReader, Share::P99, setting)
    }

    /// Ping-pong in company, held against itself without.
    fn ping_in(&self, company: Company, share: Share, setting: Setting) -> Goal {
        let value = |company| self.value(setting, Quantity::Ping { company, share }, Who::Ours);
        Goal {
            name: format!(
                "{setting}: {}, of its quiet value",
                Quantity::Ping { company, share }
            ),
            bound: Bound::AtMost(3.0),
            value: quotient(value(company), value(Company::None)),
        }
    }

    /// What is measured without any added round trip alone.
    fn once(&self) -> Vec<Goal> {
        let setting = Setting {
            far: Far::Agent(Agent::Stock),
            round_trip: 0,
        };
        let memory = Quantity::Memory(Holding::Tunnels(10));
        let tunnels = MANY_TUNNELS;
        let idle = Quantity::Memory(Holding::IdleTunnels(tunnels));
        let connections = CROWD;
        let directly = Setting {
            far: Far::Target,
            round_trip: 0,
        };
        let at_most = |setting, quantity: Quantity, bound| Goal {
            name: format!("{quantity}, in {}", quantity.unit()),
            bound: Bound::AtMost(bound),
            value: self.value(setting, quantity, Who::Ours),
        };
        vec![
            at_most(setting, Quantity::Starting { tunnels }, 1_000.0),
            at_most(setting, idle, 60.0),
            at_most(setting, Quantity::IdleCpu { tunnels }, 0.5),
            at_most(setting, Quantity::Status { tunnels }, 50.0),
            Goal {
                name: Quantity::Refused { connections }.to_string(),
                bound: Bound::AtMost(0.0),
                value: self.value(directly, Quantity::Refused { connections }, Who::Ours),
            },
            at_most(directly, Quantity::OfEach { connections }, 64.0),
            Goal {
                name: format!("{memory}, in MiB"),
                bound: Bound::AtMost(40.0),
                value: self.value(setting, memory, Who::Ours),
            },
            Goal {
                name: format!("{}, in ms", Quantity::Recovery),
                bound: Bound::AtMost(1_000.0),
                value: self.value(setting, Quantity::Recovery, Who::Ours),
            },
        ]
    }

    /// Returns our value as a multiple of another client's.
    fn of_the(&self, other: Who, setting: Setting, quantity: Quantity) -> Result<f64, Lack> {
        let value = |who| self.value(setting, quantity, who);
        quotient(value(Who::Ours), value(other))
    }

    fn value(&self, setting: Setting, quantity: Quantity, who: Who) -> Result<f64, Lack> {
        let outcome = self
            .figures
            .get(setting, quantity, who)
            .ok_or(Lack::NotMeasured)?;
        outcome.value().ok_or(match who {
            Who::Ours => Lack::WeFailed,
            Who::Peer | Who::Relay | Who::OfficialCli | Who::OpenSsh => Lack::OtherFailed(who),
        })
    }
}

/// Our failure weighs more than that there is nothing to compare with.
fn quotient(ours: Result<f64, Lack>, other: Result<f64, Lack>) -> Result<f64, Lack> {
    let ours = ours?;
    Ok(ours / other?)
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "at least {bound}"),
            Self::AtMost(bound) => write!(f, "at most {bound}"),
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMeasured => f.write_str("not measured"),
            Self::WeFailed => f.write_str("tunneld failed"),
            Self::OtherFailed(who) => write!(f, "{who} failed"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Open => "open",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Outcome;

    const STOCK: Setting = Setting {
        far: Far::Agent(Agent::Stock),
        round_trip: 20,
    };
    const UNPACED: Setting = Setting {
        far: Far::Agent(Agent::Unpaced),
        round_trip: 0,
    };
    const DOWNLOAD: Quantity = Quantity::Rate {
        direction: Direction::Down,
        connections: 1,
    };
    const PING: Quantity = Quantity::Ping {
        company: Company::None,
        share: Share::P50,
    };

    fn with(entries: &[(Setting, Quantity, Who, Option<f64>)]) -> Figures {
        let mut figures = Figures::default();
        for (setting, quantity, who, value) in entries {
            let outcome = value.map_or(Outcome::Failed("no".to_owned()), |value| {
                Outcome::Runs(vec![value])
            });
            figures.add(*setting, *quantity, *who, outcome);
        }
        figures
    }

    /// The verdict on the one goal of this name.
    fn verdict(figures: &Figures, name: &str) -> Verdict {
        let goals = judge(figures, &[0, 20, 100]);
        let mut named = goals.iter().filter(|goal| goal.name == name);
        let goal = named.next().unwrap_or_else(|| panic!("no goal `{name}`"));
        assert!(named.next().is_none());
        goal.verdict()
    }

    #[test]
    fn an_unpaced_download_must_be_half_as_fast_again_as_the_peers() {
        let name = "agent unpaced, 0 ms added round trip: download, 1 connection, of the peer's";
        for (ours, wanted) in [(150.0, Verdict::Met), (149.0, Verdict::Missed)] {
            let figures = with(&[
                (UNPACED, DOWNLOAD, Who::Ours, Some(ours)),
                (UNPACED, DOWNLOAD, Who::Peer, Some(100.0)),
            ]);
            assert_eq!(verdict(&figures, name), wanted, "{ours}");
        }
    }

    #[test]
    fn our_failure_is_a_miss_and_the_peers_leaves_it_open() {
        let name = "agent unpaced, 0 ms added round trip: download, 1 connection, of the peer's";
        let verdict_of = |ours, peer| {
            let figures = with(&[
                (UNPACED, DOWNLOAD, Who::Ours, ours),
                (UNPACED, DOWNLOAD, Who::Peer, peer),
            ]);
            verdict(&figures, name)
        };
        assert_eq!(verdict_of(None, Some(1.0)), Verdict::Missed);
        assert_eq!(verdict_of(None, None), Verdict::Missed);
        assert_eq!(verdict_of(Some(1.0), None), Verdict::Open);
        assert_eq!(verdict(&Figures::default(), name), Verdict::Open);
    }

    #[test]
    fn pings_are_compared_above_the_round_trip_that_both_must_pay() {
        let name = "agent stock, 20 ms added round trip: ping-pong p50 above the round trip, of the peer's";
        let figures = with(&[
            (STOCK, PING, Who::Ours, Some(24.0)),
            (STOCK, PING, Who::Peer, Some(60.0)),
        ]);
        assert_eq!(verdict(&figures, name), Verdict::Met);
    }

    #[test]
    fn an_endpoint_is_held_against_the_relay_and_an_ssh_server_against_openssh_for_its_round_trip() {
        let at = |far, round_trip| Setting { far, round_trip };
        for (setting, other, rate, wanted) in [
            (at(Far::Endpoint, 20), Who::Relay, 80.0, Verdict::Met),
            (at(Far::Endpoint, 20), Who::Relay, 79.0, Verdict::Missed),
            (at(Far::Server, 0), Who::OpenSsh, 70.0, Verdict::Met),
            (at(Far::Server, 0), Who::OpenSsh, 69.0, Verdict::Missed),
            (at(Far::Server, 100), Who::OpenSsh, 90.0, Verdict::Met),
            (at(Far::Server, 100), Who::OpenSsh, 89.0, Verdict::Missed),
        ] {
            let figures = with(&[
                (setting, DOWNLOAD, Who::Ours, Some(rate)),
                (setting, DOWNLOAD, other, Some(100.0)),
            ]);
            let name = format!("{setting}: {DOWNLOAD}, of what {other} reaches");
            assert_eq!(verdict(&figures, &name), wanted, "{name}, {rate}");
        }
    }

    #[test]
    fn what_the_machine_has_not_leaves_its_goals_open() {
        let server = Setting {
            far: Far::Server,
            round_trip: 0,
        };
        let figures = with(&[(server, DOWNLOAD, Who::Ours, Some(1_000.0))]);
        let name = format!("{server}: {DOWNLOAD}, of what ssh -L reaches");
        assert_eq!(verdict(&figures, &name), Verdict::Open);
    }

    #[test]
    fn every_goal_of_the_issue_is_there() {
        let goals = judge(&Figures::default(), &[0, 20, 100]);
        // Per round trip: 16 of unpaced bulk, 3 of paced bulk, 6 of pings; 4 of bulk through an endpoint, 1 of pings
        // through an SSH server. Without round trip, and with the longest, 4 of bulk through the latter; and once 2, and
        // 6 of many tunnels and connections.
        assert_eq!(goals.len(), 3 * (16 + 3 + 6 + 4 + 1) + 2 * 4 + 2 + 6);
        assert!(goals.iter().all(|goal| goal.verdict() == Verdict::Open));
    }
}
