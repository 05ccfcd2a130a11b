//! The clients that tunneld is compared with.
//!
//! ```text
//!   aws-ssm-bridge   load ──► bench-peer ══════════════════════════► agent
//!   plain relay      load ──► bench-relay ═════════════════════════► endpoint
//!   open-tunnel      load ──► aws ══► the emulator's proxy ════════► endpoint
//!   ssh -L           load ──► ssh ──TCP──► bench-relay ════════════► endpoint ──► sshd
//! ```
//!
//! `ssh` reaches its server by the relay and not by `tunnelctl stdio`: nothing of tunneld is in its way, and nothing
//! could be leaner. By TCP, because a pipe to a `ProxyCommand` holds less. What it costs includes the relay, as what
//! tunneld costs includes its websockets.

use std::process::Command;
use std::time::Instant;

use anyhow::Context;

use super::{Client, Place, free_address};
use crate::emulator::{ENDPOINT, ENDPOINT_NAME, Far, HOST, PORT};
use crate::process::Process;

/// Starts the peer. Its time to come up is that of the process, which makes its sessions first of all.
pub(super) fn start_peer(place: &Place<'_>, far: Far, tunnels: usize) -> anyhow::Result<Client> {
    let mut command = Command::new(place.programs.join("bench-peer"));
    command
        .env_clear()
        .envs(place.emulator.environment(far))
        .env("HOME", place.folder)
        .args(["--instance", far.instance(), "--host", HOST])
        .args(["--port", &PORT.to_string(), "--sessions", &tunnels.to_string()]);
    if let Far::Agent(agent) = far
        && let Some(payload) = agent.unpaced()
    {
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
        processes: vec![process],
        connecting: began.elapsed(),
        addresses,
    })
}

/// Starts the relay to port 22 of the instance.
pub(super) fn start_relay(place: &Place<'_>, far: Far) -> anyhow::Result<Client> {
    let mut command = Command::new(place.programs.join("bench-relay"));
    command
        .env_clear()
        .envs(place.emulator.environment(far))
        .args(["--endpoint", ENDPOINT, "--name", ENDPOINT_NAME])
        .args(["--address", far.address(), "--port", "22"]);
    let began = Instant::now();
    let mut process = Process::start(&mut command, "relay", place.folder)?;
    let address = process
        .lines()?
        .next()
        .with_context(|| format!("the relay did not start: {}", process.last_words()))?;
    Ok(Client {
        processes: vec![process],
        connecting: began.elapsed(),
        addresses: vec![address.parse()?],
    })
}

/// Starts the official AWS CLI, which looks instance and endpoint up by itself.
pub(super) fn start_official_cli(place: &Place<'_>, far: Far) -> anyhow::Result<Client> {
    let address = free_address()?;
    let mut command = in_path("aws");
    command
        .envs(place.emulator.official_environment())
        .env("HOME", place.folder)
        .args([
            "ec2-instance-connect",
            "open-tunnel",
            "--instance-id",
            far.instance(),
        ])
        .args(["--local-port", &address.port().to_string()]);
    let began = Instant::now();
    let mut process = Process::start(&mut command, "open-tunnel", place.folder)?;
    // It says when it listens, but into a buffer.
    process.wait_until_it_listens(address)?;
    Ok(Client {
        processes: vec![process],
        connecting: began.elapsed(),
        addresses: vec![address],
    })
}

/// Starts the system's `ssh`, without anybody's configuration, and a relay for it.
pub(super) fn start_open_ssh(place: &Place<'_>, far: Far) -> anyhow::Result<Client> {
    let relay = start_relay(place, far)?;
    let address = free_address()?;
    let mut command = in_path("ssh");
    command
        .args([
            "-N",
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "ExitOnForwardFailure=yes",
        ])
        // The server is known by nothing but its address here, which is the relay's.
        .args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ])
        .args(["-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes", "-i"])
        .arg(&place.server.identity)
        .args(["-L", &format!("{address}:{}", place.target)])
        .args([
            "-l",
            &place.server.user,
            "-p",
            &relay.address().port().to_string(),
        ])
        .arg(relay.address().ip().to_string());
    let began = Instant::now();
    let mut process = Process::start(&mut command, "ssh", place.folder)?;
    process.wait_until_it_listens(address)?;
    let mut processes = vec![process];
    processes.extend(relay.processes);
    Ok(Client {
        processes,
        connecting: relay.connecting + began.elapsed(),
        addresses: vec![address],
    })
}

/// Returns the command that starts a program of the system, with nothing of the environment but the path.
fn in_path(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}
