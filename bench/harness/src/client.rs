//! The two clients that are measured: what each is started as, and where its tunnels are.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fmt, fs, io, thread};

use anyhow::{Context, bail};

use crate::emulator::{Agent, Emulator, HOST, PORT};
use crate::process::Process;

/// Which client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Ours,
    Peer,
}

impl Who {
    pub(crate) const BOTH: [Self; 2] = [Self::Ours, Self::Peer];
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ours => "tunneld",
            Self::Peer => "aws-ssm-bridge",
        })
    }
}

/// How many messages a second a session of tunneld sends, unless it is told otherwise.
pub(crate) const OUR_RATE: u32 = 900;
/// How long a daemon may take until it answers.
const STARTING: Duration = Duration::from_secs(10);
/// Between two looks at whether it does.
const LOOK: Duration = Duration::from_millis(5);

/// What starting a client takes.
pub(crate) struct Place<'a> {
    pub(crate) programs: &'a Path,
    pub(crate) folder: &'a Path,
    pub(crate) emulator: &'a Emulator,
    /// The most sessions that tunneld may spread a tunnel's connections over; `None`: as many as it does by itself.
    pub(crate) sessions: Option<usize>,
}

/// A client that runs, with its tunnels up.
pub(crate) struct Client {
    pub(crate) process: Process,
    /// How long its tunnels took to come up.
    pub(crate) connecting: Duration,
    addresses: Vec<SocketAddr>,
}

impl Client {
    /// Starts a client and brings that many tunnels up, all through the one instance with such an agent.
    pub(crate) fn start(place: &Place<'_>, who: Who, agent: Agent, tunnels: usize) -> anyhow::Result<Self> {
        match who {
            Who::Ours => start_ours(place, agent, tunnels),
            Who::Peer => start_peer(place, agent, tunnels),
        }
    }

    /// Returns the address of its first tunnel.
    pub(crate) fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Returns the addresses of all its tunnels.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

/// Starts tunneld. Its time to come up begins with `tunnelctl up`, since the daemon runs before it is needed.
fn start_ours(place: &Place<'_>, agent: Agent, tunnels: usize) -> anyhow::Result<Client> {
    let addresses = (0..tunnels)
        .map(|_| free_address())
        .collect::<io::Result<Vec<_>>>()?;
    let config = place.folder.join("config.toml");
    fs::write(&config, configuration(agent, place.sessions, &addresses))?;
    let socket = place.folder.join("run/tunneld.sock");
    let program = |name| {
        let mut command = Command::new(place.programs.join(name));
        command
            .env_clear()
            .envs(place.emulator.environment())
            .env("HOME", place.folder)
            .env("TUNNELD_SOCKET", &socket);
        command
    };
    let mut daemon = program("tunneld");
    daemon
        .arg("--config")
        .arg(&config)
        .arg("--state")
        .arg(place.folder.join("state"));
    let mut process = Process::start(&mut daemon, "tunneld", place.folder)?;
    let deadline = Instant::now() + STARTING;
    while !program("tunnelctl").arg("version").output()?.status.success() {
        process.must_live()?;
        if Instant::now() > deadline {
            bail!("tunneld does not answer: {}", process.last_words());
        }
        thread::sleep(LOOK);
    }
    let began = Instant::now();
    if tunnels > 0 {
        let up = program("tunnelctl").args(["up", "--all"]).output()?;
        if !up.status.success() {
            bail!("tunnelctl up: {}", String::from_utf8_lossy(&up.stderr).trim());
        }
    }
    Ok(Client {
        process,
        connecting: began.elapsed(),
        addresses,
    })
}

fn configuration(agent: Agent, sessions: Option<usize>, addresses: &[SocketAddr]) -> String {
    let sessions = sessions.map(|most| format!("sessions = {{ min = 1, max = {most} }}\n"));
    let pace = agent.unpaced().map(|payload| {
        let kibibytes = payload.bytes() / 1_024;
        format!("message_rate = \"unlimited\"\nlargest_payload = \"{kibibytes}KiB\"\n")
    });
    let settings = sessions.into_iter().chain(pace);
    let defaults = settings.fold("[defaults]\n".to_owned(), |text, setting| text + &setting);
    let tunnel = |(at, address): (usize, &SocketAddr)| {
        format!(
            "[tunnels.bench-{at}]\nlisten = \"{address}\"\ntarget = \"{HOST}:{PORT}\"\n\
             route = {{ ssm = \"{}\" }}\nautostart = false\n",
            agent.instance()
        )
    };
    addresses
        .iter()
        .enumerate()
        .map(tunnel)
        .fold(defaults, |text, tunnel| text + &tunnel)
}

/// Starts the peer. Its time to come up is that of the process, which makes its sessions first of all.
fn start_peer(place: &Place<'_>, agent: Agent, tunnels: usize) -> anyhow::Result<Client> {
    let mut command = Command::new(place.programs.join("bench-peer"));
    command
        .env_clear()
        .envs(place.emulator.environment())
        .env("HOME", place.folder)
        .args(["--instance", agent.instance(), "--host", HOST])
        .args(["--port", &PORT.to_string(), "--sessions", &tunnels.to_string()]);
    if let Some(payload) = agent.unpaced() {
        command.args(["--payload", &payload.bytes().to_string()]);
    }
    let began = Instant::now();
    let mut process = Process::start(&mut command, "peer", place.folder)?;
    let mut lines = process.lines()?;
    let addresses = (0..tunnels)
        .map(|_| Ok(lines.next()?.parse()?))
        .collect::<anyhow::Result<_>>()
        .with_context(|| format!("the peer did not start: {}", process.last_words()))?;
    Ok(Client {
        process,
        connecting: began.elapsed(),
        addresses,
    })
}

/// Returns an address of loopback that nobody listens on at the moment.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tunnel_has_an_address_of_its_own() {
        let addresses = [free_address().unwrap(), free_address().unwrap()];
        let text = configuration(Agent::Fast, Some(1), &addresses);
        for (at, address) in addresses.iter().enumerate() {
            assert!(text.contains(&format!("[tunnels.bench-{at}]\nlisten = \"{address}\"\n")));
        }
        assert!(text.contains(Agent::Fast.instance()));
        assert!(text.contains("largest_payload = \"16KiB\""));
        assert!(text.contains("sessions = { min = 1, max = 1 }"));
        let text = configuration(Agent::Stock, None, &addresses);
        assert!(!text.contains("message_rate") && !text.contains("sessions"));
    }
}
