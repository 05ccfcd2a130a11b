//! tunneld as a client, by a configuration made for the far end.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Instant;
use std::{fs, io, thread};

use anyhow::bail;

use super::{Client, Place, free_address};
use crate::emulator::{Far, HOST, PORT};
use crate::process::{LOOK, Process, STARTING};

/// How many messages a second a session of tunneld sends, unless it is told otherwise.
pub(crate) const OUR_RATE: u32 = 900;

/// Starts tunneld. Its time to come up begins with `tunnelctl up`, since the daemon runs before it is needed.
pub(super) fn start(place: &Place<'_>, far: Far, tunnels: usize) -> anyhow::Result<Client> {
    let addresses = (0..tunnels)
        .map(|_| free_address())
        .collect::<io::Result<Vec<_>>>()?;
    let config = place.folder.join("config.toml");
    let defaults = defaults(far, place.sessions);
    fs::write(&config, configuration(&defaults, &tunnel(place, far), &addresses))?;
    let socket = place.folder.join("run/tunneld.sock");
    let program = |name| {
        let mut command = Command::new(place.programs.join(name));
        command
            .env_clear()
            .envs(place.emulator.environment(far))
            .env("HOME", place.folder)
            .env("TUNNELD_SOCKET", &socket);
        command
    };
    let mut daemon = program("tunneld");
    daemon
        .arg("--allow-root")
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
        processes: vec![process],
        connecting: began.elapsed(),
        addresses,
    })
}

/// Returns the settings that all tunnels share.
fn defaults(far: Far, sessions: Option<usize>) -> String {
    let agent = match far {
        Far::Agent(agent) => agent,
        Far::Endpoint | Far::Server => return String::new(),
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
    }
}

fn configuration(defaults: &str, tunnel: &str, addresses: &[SocketAddr]) -> String {
    let tunnels = addresses.iter().enumerate().map(|(at, address)| {
        format!("[tunnels.bench-{at}]\nlisten = \"{address}\"\nautostart = false\n{tunnel}")
    });
    tunnels.fold(format!("[defaults]\n{defaults}"), |text, tunnel| text + &tunnel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::Agent;

    #[test]
    fn each_tunnel_has_an_address_of_its_own() {
        let addresses = [free_address().unwrap(), free_address().unwrap()];
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
