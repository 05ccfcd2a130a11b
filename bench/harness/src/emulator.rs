//! The fake AWS that both clients talk to: one child process for the whole run.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::process::Process;

/// The host that tunnels lead to, as the instances see it.
pub(crate) const HOST: &str = "10.0.0.7";
/// Its port.
pub(crate) const PORT: u16 = 7_000;

/// How the far end of a session sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Agent {
    /// As the official agent: 1,024 bytes, 838 times a second.
    Stock,
    /// The same messages, as fast as it can.
    Unpaced,
    /// Messages of 16 KiB, as fast as it can.
    Fast,
}

/// Bytes that a message carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload {
    /// As the official client and agent.
    Small,
    /// The most that tunneld sends.
    Large,
}

impl Payload {
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Self::Small => 1_024,
            Self::Large => 16_384,
        }
    }
}

impl Agent {
    pub(crate) const ALL: [Self; 3] = [Self::Stock, Self::Unpaced, Self::Fast];

    /// Returns the instance with such an agent.
    pub(crate) fn instance(self) -> &'static str {
        match self {
            Self::Stock => "i-00000000000000001",
            Self::Unpaced => "i-00000000000000002",
            Self::Fast => "i-00000000000000003",
        }
    }

    /// Returns the payload of both directions where nobody but the machine sets the pace; `None`: each client sends as
    /// large a payload and as often as it does unless it is told otherwise.
    pub(crate) fn unpaced(self) -> Option<Payload> {
        match self {
            Self::Stock => None,
            Self::Unpaced => Some(Payload::Small),
            Self::Fast => Some(Payload::Large),
        }
    }
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stock => "stock",
            Self::Unpaced => "unpaced",
            Self::Fast => "fast",
        })
    }
}

/// The peer ends its session at the service's start_publication, whose header names a payload that is not there. So
/// none is sent, to either client; neither waits for it.
const ALWAYS: &str = "[service]\nstart_publication = \"never\"\n";

pub(crate) struct Emulator {
    /// Ended with the emulator.
    _process: Process,
    address: SocketAddr,
    environment: BTreeMap<String, String>,
}

impl Emulator {
    /// Starts the emulator with one instance for each kind of agent, all of which reach the target.
    pub(crate) fn start(programs: &Path, folder: &Path, target: SocketAddr) -> anyhow::Result<Self> {
        let account = folder.join("account.toml");
        let instances = Agent::ALL.map(|agent| {
            format!(
                "[[instances]]\nid = \"{}\"\nprivate_address = \"10.0.0.1\"\nssm = {{ agent = \"{agent}\" }}\n",
                agent.instance()
            )
        });
        let host = format!("[[hosts]]\nhost = \"{HOST}\"\nport = {PORT}\naddress = \"{target}\"\n");
        std::fs::write(&account, instances.concat() + &host)?;
        let mut command = Command::new(programs.join("tunneld-emulator"));
        command
            .env_clear()
            .env("RUST_LOG", "warn")
            .arg("--config")
            .arg(account);
        let mut process = Process::start(&mut command, "emulator", folder)?;
        let environment = read_environment(&mut process)
            .with_context(|| format!("the emulator did not start: {}", process.last_words()))?;
        let url = environment.get("AWS_ENDPOINT_URL").map_or("", String::as_str);
        let address = url.trim_start_matches("http://").parse();
        Ok(Self {
            _process: process,
            address: address.with_context(|| format!("the emulator is at `{url}`"))?,
            environment,
        })
    }

    /// Returns the environment that points a client at it.
    pub(crate) fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// Delays every frame of every session, half of it each way.
    pub(crate) fn set_round_trip(&self, added: Duration) -> anyhow::Result<()> {
        let delay = (added / 2).as_micros();
        let conditions = format!("{ALWAYS}[line]\ndelay = \"{delay}us\"\n");
        self.ask("PUT", "conditions", &conditions)
    }

    /// Resets all that is open, and whatever comes, until [`Emulator::end_outage`].
    pub(crate) fn begin_outage(&self) -> anyhow::Result<()> {
        self.ask("POST", "outage", "")
    }

    pub(crate) fn end_outage(&self) -> anyhow::Result<()> {
        self.ask("DELETE", "outage", "")
    }

    /// Sends a request to the emulator's own endpoints.
    fn ask(&self, method: &str, path: &str, body: &str) -> anyhow::Result<()> {
        let mut socket = TcpStream::connect(self.address)?;
        // In one write: during an outage the emulator spares what it sees at once to be meant for itself.
        let request = format!(
            "{method} /_emulator/{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        socket.write_all(request.as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        if !answer.starts_with("HTTP/1.1 200 ") {
            bail!("the emulator refused {method} {path}: {answer}");
        }
        Ok(())
    }
}

/// Reads the lines `export NAME='VALUE'` that the emulator prints, in alphabetical order: where tunnels are comes last.
fn read_environment(process: &mut Process) -> anyhow::Result<BTreeMap<String, String>> {
    let mut lines = process.lines()?;
    let mut environment = BTreeMap::new();
    while !environment.contains_key("TUNNELD_ENDPOINT_URL_EICE") {
        let line = lines.next()?;
        if let Some((name, value)) = line.strip_prefix("export ").and_then(|line| line.split_once('=')) {
            environment.insert(name.to_owned(), value.trim_matches('\'').to_owned());
        }
    }
    Ok(environment)
}
