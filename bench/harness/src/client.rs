//! The clients that are measured: who they are, what each is started as, and where its tunnels are.

mod others;
mod ours;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{fmt, io};

pub(crate) use self::ours::{OUR_RATE, time_of_a_status};
use crate::emulator::{Emulator, Far};
use crate::process::Process;
use crate::server::Server;

/// Which client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Ours,
    /// The crate aws-ssm-bridge.
    Peer,
    /// Of a websocket, which does nothing else.
    Relay,
    /// `aws ec2-instance-connect open-tunnel`.
    OfficialCli,
    /// `ssh -L`, which reaches the server by the relay.
    OpenSsh,
}

impl Who {
    pub(crate) const ALL: [Self; 5] = [
        Self::Ours,
        Self::Peer,
        Self::Relay,
        Self::OfficialCli,
        Self::OpenSsh,
    ];

    /// Returns who can be measured before such a far end, tunneld first.
    pub(crate) fn facing(far: Far) -> &'static [Self] {
        match far {
            Far::Agent(_) => &[Self::Ours, Self::Peer],
            Far::Endpoint => &[Self::Ours, Self::Relay, Self::OfficialCli],
            Far::Server => &[Self::Ours, Self::OpenSsh],
            Far::Target => &[Self::Ours],
        }
    }

    /// Returns whether this machine has it.
    pub(crate) fn is_installed(self) -> bool {
        match self {
            Self::Ours | Self::Peer | Self::Relay => true,
            // Version 1 cannot open tunnels.
            Self::OfficialCli => Command::new("aws")
                .arg("--version")
                .output()
                .is_ok_and(|version| version.stdout.starts_with(b"aws-cli/2.")),
            Self::OpenSsh => Command::new("ssh").arg("-V").output().is_ok(),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "tunneld",
            Self::Peer => "aws-ssm-bridge",
            Self::Relay => "plain relay",
            Self::OfficialCli => "open-tunnel",
            Self::OpenSsh => "ssh -L",
        })
    }
}

/// What starting a client takes.
pub(crate) struct Place<'a> {
    pub(crate) programs: &'a Path,
    pub(crate) folder: &'a Path,
    pub(crate) emulator: &'a Emulator,
    /// The SSH server behind the endpoint.
    pub(crate) server: &'a Server,
    /// Where the target listens, as that server sees it.
    pub(crate) target: SocketAddr,
    /// The most sessions that tunneld may spread a tunnel's connections over; `None`: as many as it does by itself.
    pub(crate) sessions: Option<usize>,
}

/// A client that runs, with its tunnels up.
pub(crate) struct Client {
    /// The first is the client itself; the others are there for it alone.
    processes: Vec<Process>,
    /// How long its tunnels took to come up.
    pub(crate) connecting: Duration,
    addresses: Vec<SocketAddr>,
}

impl Client {
    /// Starts a client and brings that many tunnels up, all through the one instance with such a far end; only tunneld
    /// and the peer can have any number of them but one.
    pub(crate) fn start(place: &Place<'_>, who: Who, far: Far, tunnels: usize) -> anyhow::Result<Self> {
        match who {
            Who::Ours => ours::start(place, far, tunnels),
            Who::Peer => others::start_peer(place, far, tunnels),
            Who::Relay => others::start_relay(place, far),
            Who::OfficialCli => others::start_official_cli(place, far),
            Who::OpenSsh => others::start_open_ssh(place, far),
        }
    }

    /// Starts tunneld with that many tunnels that listen and are connected on demand, and waits until it shows them.
    pub(crate) fn start_idle(place: &Place<'_>, far: Far, tunnels: usize) -> anyhow::Result<Self> {
        ours::start_idle(place, far, tunnels)
    }

    /// Returns the address of its first tunnel.
    pub(crate) fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Returns the addresses of all its tunnels.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Returns the CPU time that all of it has used, in seconds.
    pub(crate) fn cpu(&self) -> anyhow::Result<f64> {
        self.processes.iter().map(Process::cpu).sum()
    }

    /// Returns the memory that all of it has resident, in MiB.
    pub(crate) fn resident(&self) -> anyhow::Result<f64> {
        self.processes.iter().map(Process::resident).sum()
    }

    /// Returns the end of what the client has complained about.
    pub(crate) fn last_words(&self) -> String {
        self.processes[0].last_words()
    }
}

/// Returns an address of loopback that nobody listens on at the moment.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// Returns so many of them, all different.
fn free_addresses(count: usize) -> io::Result<Vec<SocketAddr>> {
    let held = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let held = held.collect::<io::Result<Vec<_>>>()?;
    held.iter().map(TcpListener::local_addr).collect()
}
