//! `make bench`: tunneld beside other clients against the same emulator in one run.
//!
//! ```text
//!   load ──TCP──► tunneld ─────────┐                         ┌─ agent ────────────TCP──► target
//!   load ──TCP──► bench-peer ══ws══╡                         │                          (source, sink, echo)
//!                                  ├══► tunneld-emulator ────┤
//!   load ──TCP──► bench-relay ═wss═╡       delay line        └─ endpoint ─┬───────TCP──► target
//!   load ──TCP──► ssh, aws ════════┘                                      └─ sshd ─TCP──► target
//! ```
//!
//! Load and target are threads of this process; the others are its children, one client at a time. Everything is on
//! loopback; what goes through the endpoint is in TLS, as any client needs it there, and the rest is not. Prints a
//! table, writes JSON, and fails when a goal is missed.

mod cases;
mod client;
mod emulator;
mod figures;
mod goals;
mod load;
mod pace;
mod pattern;
mod process;
mod report;
mod server;
mod statistics;
mod target;

use std::io::{Write, stderr, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use serde_json::json;

use crate::cases::{Bench, Effort};
use crate::client::{Place, Who};
use crate::emulator::{Agent, Emulator, Far};
use crate::figures::{Company, Figures, Setting};
use crate::goals::Verdict;
use crate::load::Direction;
use crate::server::Server;

/// Measure tunneld beside other clients against the same emulator
#[derive(Parser)]
struct Arguments {
    /// What to measure; everything, unless named
    #[arg(value_name = "CASE")]
    cases: Vec<Case>,

    /// Measure roughly: few and short runs, without added round trips
    #[arg(long)]
    quick: bool,

    /// Let tunneld spread a tunnel's connections over so many sessions at most, instead of as many as it does by itself
    #[arg(long, value_name = "COUNT")]
    sessions: Option<usize>,

    /// Write all figures to this file
    #[arg(long, value_name = "FILE")]
    json: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    /// Bulk downloads, and what they cost
    Download,
    /// Bulk uploads, and what they cost
    Upload,
    /// The first byte of a download
    FirstByte,
    /// The way up of a tunnel
    Connecting,
    /// Ping-pong alone
    Ping,
    /// Ping-pong beside bulk transfers
    Beside,
    /// Ping-pong beside as many downloads as there are sessions
    Crowd,
    /// Ping-pong beside a reader that has stopped
    Stall,
    /// Resident memory
    Memory,
    /// A thousand tunnels that nobody uses
    Many,
    /// Thousands of connections at once, straight to their target
    Throng,
    /// The way back after an outage
    Outage,
    /// Bulk transfers and ping-pong through an endpoint of Instance Connect
    Eice,
    /// Bulk transfers through an SSH server behind such an endpoint
    Ssh,
    /// Ping-pong through that server, alone and beside a reader that has stopped
    SshStall,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let effort = if arguments.quick {
        &Effort::QUICK
    } else {
        &Effort::FULL
    };
    let cases = if arguments.cases.is_empty() {
        Case::value_variants()
    } else {
        &arguments.cases
    };
    let began = Instant::now();
    let save = |figures: &Figures| {
        let conditions = json!({
            "quick": arguments.quick,
            "cases": cases.iter().map(|case| name(*case)).collect::<Vec<_>>(),
            "sessions": arguments.sessions,
            "cores": available_parallelism()?.get(),
            "seconds": began.elapsed().as_secs(),
        });
        let goals = goals::judge(figures, effort.round_trips);
        let json = report::json(figures, &goals, &conditions);
        std::fs::write(&arguments.json, format!("{json:#}\n"))
            .with_context(|| format!("cannot write `{}`", arguments.json.display()))
    };
    let figures = measure(effort, cases, arguments.sessions, save)?;
    let goals = goals::judge(&figures, effort.round_trips);
    writeln!(
        stdout(),
        "{}\n\n{}",
        report::table(&figures),
        report::goals(&goals)
    )?;
    let missed = goals
        .iter()
        .filter(|goal| goal.verdict() == Verdict::Missed)
        .count();
    if missed > 0 {
        writeln!(stderr(), "{missed} of {} goals are missed", goals.len())?;
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures every case under all its conditions; `save` gets what there is after each.
fn measure(
    effort: &Effort,
    cases: &[Case],
    sessions: Option<usize>,
    save: impl Fn(&Figures) -> anyhow::Result<()>,
) -> anyhow::Result<Figures> {
    let program = std::env::current_exe()?;
    let programs = program.parent().context("this program is in no folder")?;
    for name in [
        "tunneld",
        "tunnelctl",
        "tunneld-emulator",
        "bench-crowd",
        "bench-peer",
        "bench-relay",
    ] {
        let path = programs.join(name);
        anyhow::ensure!(path.exists(), "{} is not built: run `make bench`", path.display());
    }
    let folder = tempfile::tempdir()?;
    let target = target::start()?;
    let server =
        Server::start(folder.path()).context("an SSH server is needed: run `scripts/setup bench`")?;
    let emulator = Emulator::start(programs, folder.path(), target, server.address)?;
    let absent: Vec<Who> = Who::ALL.into_iter().filter(|who| !who.is_installed()).collect();
    let mut bench = Bench {
        place: Place {
            programs,
            folder: folder.path(),
            emulator: &emulator,
            server: &server,
            target,
            sessions,
        },
        absent: &absent,
        effort,
        figures: Figures::default(),
    };
    for note in notes(cases, &absent) {
        bench.figures.note(note);
    }
    for case in cases {
        for round_trip in round_trips(*case, effort) {
            emulator.set_round_trip(Duration::from_millis(u64::from(*round_trip)))?;
            for far in fars(*case) {
                let setting = Setting {
                    far: *far,
                    round_trip: *round_trip,
                };
                writeln!(stderr(), "measuring {}: {setting}", name(*case))?;
                run(&mut bench, *case, setting);
                save(&bench.figures)?;
            }
        }
    }
    Ok(bench.figures)
}

fn run(bench: &mut Bench<'_>, case: Case, setting: Setting) {
    const CONNECTIONS: [u32; 2] = [1, 4];
    const AT_HOME: Setting = Setting {
        far: Far::Agent(Agent::Stock),
        round_trip: 0,
    };
    let bulk = |bench: &mut Bench<'_>, direction| {
        for connections in CONNECTIONS {
            bench.bulk(setting, direction, connections);
        }
    };
    match case {
        Case::Download => {
            if setting == AT_HOME {
                bench.pace(setting);
            }
            bulk(bench, Direction::Down);
        }
        Case::Upload => bulk(bench, Direction::Up),
        Case::FirstByte => bench.first_byte(setting),
        Case::Connecting => bench.connecting(setting),
        Case::Ping => bench.ping(setting, Company::None),
        Case::Beside => {
            for direction in [Direction::Down, Direction::Up] {
                bench.ping(setting, Company::After(direction));
                bench.ping(setting, Company::Before(direction));
            }
        }
        Case::Crowd => bench.ping(setting, Company::Crowd),
        Case::Stall => bench.ping(setting, Company::StalledReader),
        Case::Memory => bench.memory(setting),
        Case::Many => bench.many(setting),
        Case::Throng => bench.crowd(setting),
        Case::Outage => bench.outage(setting),
        Case::Eice => {
            bulk(bench, Direction::Down);
            bulk(bench, Direction::Up);
            bench.ping(setting, Company::None);
        }
        Case::Ssh => {
            bulk(bench, Direction::Down);
            bulk(bench, Direction::Up);
        }
        Case::SshStall => {
            bench.ping(setting, Company::None);
            bench.ping(setting, Company::StalledReader);
        }
    }
}

/// Says which clients are not measured, and what must be known about those that are.
fn notes(cases: &[Case], absent: &[Who]) -> Vec<String> {
    let is_chosen = |who| {
        let mut fars = cases.iter().flat_map(|case| fars(*case));
        fars.any(|far| Who::facing(*far).contains(&who))
    };
    Who::ALL
        .into_iter()
        .filter(|who| is_chosen(*who))
        .filter_map(|who| match who {
            _ if absent.contains(&who) => Some(format!("{who} is not installed, and so not measured")),
            Who::OfficialCli => Some(format!(
                "{who} comes through the emulator's proxy, which costs it speed: its port is fixed"
            )),
            Who::Ours | Who::Peer | Who::Relay | Who::OpenSsh => None,
        })
        .collect()
}

/// The far ends that make a difference to a case.
fn fars(case: Case) -> &'static [Far] {
    const AGENTS: [Far; 3] = [
        Far::Agent(Agent::Stock),
        Far::Agent(Agent::Unpaced),
        Far::Agent(Agent::Fast),
    ];
    match case {
        Case::Download | Case::Upload => &AGENTS,
        Case::FirstByte
        | Case::Connecting
        | Case::Ping
        | Case::Beside
        | Case::Crowd
        | Case::Stall
        | Case::Memory
        | Case::Many
        | Case::Outage => &[Far::Agent(Agent::Stock)],
        Case::Throng => &[Far::Target],
        Case::Eice => &[Far::Endpoint],
        Case::Ssh | Case::SshStall => &[Far::Server],
    }
}

/// The added round trips that make a difference to a case.
fn round_trips(case: Case, effort: &Effort) -> &'static [u32] {
    match case {
        Case::Download
        | Case::Upload
        | Case::FirstByte
        | Case::Connecting
        | Case::Ping
        | Case::Beside
        | Case::Crowd
        | Case::Stall
        | Case::Eice
        | Case::Ssh
        | Case::SshStall => effort.round_trips,
        Case::Memory | Case::Many | Case::Throng | Case::Outage => &[0],
    }
}

fn name(case: Case) -> String {
    case.to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_client_is_noted_where_it_would_have_been_measured() {
        let absent = [Who::OfficialCli, Who::OpenSsh];
        let eice = ["open-tunnel is not installed, and so not measured"];
        assert_eq!(notes(&[Case::Download, Case::Eice], &absent), eice);
        assert!(notes(&[Case::Download], &absent).is_empty());
        assert!(notes(&[Case::Ssh, Case::SshStall], &[]).is_empty());
    }
}
