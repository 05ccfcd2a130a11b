//! tunneld as a client, by a configuration made for the far end.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::bail;

use super::{Client, Place, free_addresses};
use crate::emulator::{Far, HOST, PORT};
use crate::process::{LOOK, Process, STARTING};

/// How many messages a second a session of tunneld sends, unless it is told otherwise.
pub(crate) const OUR_RATE: u32 = 900;

/// Starts tunneld. Its time to come up begins with `tunnelctl up`, since the daemon runs before it is needed.
pub(super) fn start(place: &Place<'_>, far: Far, tunnels: usize) -> anyhow::Result<Client> {
    let addresses = free_addresses(tunnels)?;
    let text = configuration(
        &defaults(far, place.sessions),
        &(tunnel(place, far) + "autostart = false\n"),
        &addresses,
    );
    let mut process = launch(place, far, &text)?;
    wait_for(&mut process, || {
        Ok(program(place, far, "tunnelctl")
            .arg("version")
            .output()?
            .status
            .success())
    })?;
    let began = Instant::now();
    if tunnels > 0 {
        let up = program(place, far, "tunnelctl").args(["up", "--all"]).output()?;
        if !up.status.success() {
            bail!("tunnelctl up: {}", String::from_utf8_lossy(&up.stderr).trim());
        }
    }
    Ok(Client {
        processes: vec![process],
        connecting: began.elapsed(),
        addresses,
    })
}

/// Starts tunneld with tunnels that are connected on demand. Its time to come up is until it shows all of them as idle.
pub(super) fn start_idle(place: &Place<'_>, far: Far, tunnels: usize) -> anyhow::Result<Client> {
    let addresses = free_addresses(tunnels)?;
    let on_demand = tunnel(place, far) + "mode = \"on-demand\"\n";
    let text = configuration(&defaults(far, place.sessions), &on_demand, &addresses);
    let began = Instant::now();
    let mut process = launch(place, far, &text)?;
    wait_for(&mut process, || {
        let status = program(place, far, "tunnelctl").arg("status").output()?;
        let table = String::from_utf8_lossy(&status.stdout);
        let is_idle = |line: &&str| line.split_whitespace().nth(1) == Some("idle");
        Ok(table.lines().filter(is_idle).count() == tunnels)
    })?;
    Ok(Client {
        processes: vec![process],
        connecting: began.elapsed(),
        addresses,
    })
}

/// Returns how long `tunnelctl status` takes from its start to its end.
pub(crate) fn time_of_a_status(place: &Place<'_>, far: Far) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let status = program(place, far, "tunnelctl").arg("status").output()?;
    let took = began.elapsed();
    if !status.status.success() {
        bail!(
            "tunnelctl status: {}",
            String::from_utf8_lossy(&status.stderr).trim()
        );
    }
    Ok(took)
}

/// Starts a daemon with a configuration.
fn launch(place: &Place<'_>, far: Far, configuration: &str) -> anyhow::Result<Process> {
    let config = place.folder.join("config.toml");
    fs::write(&config, configuration)?;
    let mut daemon = program(place, far, "tunneld");
    daemon
        .arg("--config")
        .arg(&config)
        .arg("--state")
        .arg(place.folder.join("state"));
    Process::start(&mut daemon, "tunneld", place.folder)
}

/// One of our programs, in the environment that both of them have.
fn program(place: &Place<'_>, far: Far, name: &str) -> Command {
    let mut command = Command::new(place.programs.join(name));
    command
        .env_clear()
        .envs(place.emulator.environment(far))
        .env("HOME", place.folder)
        .env("TUNNELD_SOCKET", place.folder.join("run/tunneld.sock"));
    command
}

/// Waits until the daemon is as wanted.
fn wait_for(process: &mut Process, is_as_wanted: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + STARTING;
    while !is_as_wanted()? {
        process.must_live()?;
        if Instant::now() > deadline {
            bail!("tunneld does not answer as it should: {}", process.last_words());
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// Returns the settings that all tunnels share.
fn defaults(far: Far, sessions: Option<usize>) -> String {
    let agent = match far {
        Far::Agent(agent) => agent,
        Far::Endpoint | Far::Server | Far::Target => return String::new(),
    };
    let sessions = sessions.map(|most| format!("sessions = {{ min = 1, max = {most} }}\n"));
    let pace = agent.unpaced().map(|payload| {
        let kibibytes = payload.bytes() / 1_024;
        format!("message_rate = \"unlimited\"\nlargest_payload = \"{kibibytes}KiB\"\n")
    });
    sessions.into_iter().chain(pace).collect()
}

/// Returns where a tunnel leads, and how.
fn tunnel(place: &Place<'_>, far: Far) -> String {
    let instance = far.instance();
    match far {
        Far::Agent(_) => format!("target = \"{HOST}:{PORT}\"\nroute = {{ ssm = \"{instance}\" }}\n"),
        Far::Endpoint => format!("target = \"ec2:{instance}:22\"\nroute = \"eice\"\n"),
        Far::Server => format!(
            "target = \"{}\"\nroute = {{ ssh = \"{}@{instance}\", over = \"eice\" }}\nidentity = \"{}\"\n",
            place.target,
            place.server.user,
            place.server.identity.display()
        ),
        Far::Target => format!("target = \"{}\"\nroute = \"direct\"\n", place.target),
    }
}

fn configuration(defaults: &str, tunnel: &str, addresses: &[SocketAddr]) -> String {
    let tunnels = addresses
        .iter()
        .enumerate()
        .map(|(at, address)| format!("[tunnels.bench-{at}]\nlisten = \"{address}\"\n{tunnel}"));
    tunnels.fold(format!("[defaults]\n{defaults}"), |text, tunnel| text + &tunnel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::Agent;

    #[test]
    fn each_tunnel_has_an_address_of_its_own() {
        let addresses = free_addresses(2).unwrap();
        assert_ne!(addresses[0], addresses[1]);
        let text = configuration("", "route = \"eice\"\n", &addresses);
        for (at, address) in addresses.iter().enumerate() {
            assert!(text.contains(&format!("[tunnels.bench-{at}]\nlisten = \"{address}\"\n")));
        }
        assert_eq!(text.matches("route = \"eice\"").count(), 2);
    }

    #[test]
    fn only_agents_have_a_pace_and_sessions() {
        let fast = defaults(Far::Agent(Agent::Fast), Some(1));
        assert!(fast.contains("largest_payload = \"16KiB\""));
        assert!(fast.contains("sessions = { min = 1, max = 1 }"));
        for far in [Far::Endpoint, Far::Server] {
            assert_eq!(defaults(far, Some(1)), "");
        }
        assert_eq!(defaults(Far::Agent(Agent::Stock), None), "");
    }
}
