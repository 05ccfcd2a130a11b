//! The fake AWS that all clients talk to: one child process for the whole run.
//!
//! ```text
//!                 ┌─ agent ─────────────────────────► target        SSM, without TLS
//!   client ═line══┤
//!                 └─ endpoint ─► port 22 ─┬─────────► target        Instance Connect, with TLS
//!                                         └─ sshd ──► target
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::process::Process;

/// The host that tunnels lead to, as the instances see it.
pub(crate) const HOST: &str = "10.0.0.7";
/// Its port.
pub(crate) const PORT: u16 = 7_000;

/// The endpoint of Instance Connect.
pub(crate) const ENDPOINT: &str = "eice-0123456789abcdef0";
/// Its name, which the emulator makes of its id and region.
pub(crate) const ENDPOINT_NAME: &str =
    "eice-0123456789abcdef0.b67b86ba.ec2-instance-connect-endpoint.ap-northeast-1.amazonaws.com";

/// What is behind the line, and leads to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Far {
    /// The SSM agent of an instance.
    Agent(Agent),
    /// An endpoint of Instance Connect, in front of an instance whose port 22 is the target.
    Endpoint,
    /// An SSH server on port 22 of an instance behind that endpoint.
    Server,
    /// Nothing: the target itself is at the other end.
    Target,
}

impl Far {
    /// Returns the instance; empty where there is none.
    pub(crate) fn instance(self) -> &'static str {
        match self {
            Self::Agent(agent) => agent.instance(),
            Self::Endpoint => "i-00000000000000004",
            Self::Server => "i-00000000000000005",
            Self::Target => "",
        }
    }

    /// Returns the instance's address; empty where there is none.
    pub(crate) fn address(self) -> &'static str {
        match self {
            Self::Agent(_) => "10.0.0.1",
            Self::Endpoint => "10.0.0.4",
            Self::Server => "10.0.0.5",
            Self::Target => "",
        }
    }
}

impl fmt::Display for Far {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(agent) => write!(f, "agent {agent}"),
            Self::Endpoint => f.write_str("endpoint"),
            Self::Server => f.write_str("SSH server"),
            Self::Target => f.write_str("target itself"),
        }
    }
}

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
    /// The certificate of its authority, as a file.
    authority: PathBuf,
}

impl Emulator {
    /// Starts the emulator with one instance for each kind of agent, all of which reach the target, and with an endpoint
    /// in front of two more: port 22 of the one is the target, of the other an SSH server.
    pub(crate) fn start(
        programs: &Path,
        folder: &Path,
        target: SocketAddr,
        server: SocketAddr,
    ) -> anyhow::Result<Self> {
        let account = folder.join("account.toml");
        let authority = folder.join("authority.pem");
        std::fs::write(&account, configuration(target, server))?;
        let mut command = Command::new(programs.join("tunneld-emulator"));
        command
            .env_clear()
            .env("RUST_LOG", "warn")
            .arg("--config")
            .arg(account)
            .arg("--ca-file")
            .arg(&authority);
        let mut process = Process::start(&mut command, "emulator", folder)?;
        let environment = read_environment(&mut process)
            .with_context(|| format!("the emulator did not start: {}", process.last_words()))?;
        let url = environment.get("AWS_ENDPOINT_URL").map_or("", String::as_str);
        let address = url.trim_start_matches("http://").parse();
        Ok(Self {
            _process: process,
            address: address.with_context(|| format!("the emulator is at `{url}`"))?,
            environment,
            authority,
        })
    }

    /// Returns the environment that points a client at it: calls and sessions without TLS, tunnels through the endpoint
    /// with it.
    pub(crate) fn environment(&self, far: Far) -> BTreeMap<String, String> {
        let mut environment = self.environment.clone();
        match far {
            Far::Agent(_) | Far::Target => {}
            Far::Endpoint | Far::Server => {
                let authority = self.authority.display().to_string();
                environment.extend([
                    ("AWS_CA_BUNDLE".to_owned(), authority),
                    (
                        "TUNNELD_ENDPOINT_URL_EICE".to_owned(),
                        format!("wss://{}", self.address),
                    ),
                ]);
            }
        }
        environment
    }

    /// Returns the environment of the official AWS CLI, whose tunnels go to port 443 of the endpoint's name whatever it
    /// is told: so they come through the emulator's proxy.
    pub(crate) fn official_environment(&self) -> BTreeMap<String, String> {
        let mut environment = self.environment.clone();
        let url = format!("http://{}", self.address);
        environment.extend([
            ("HTTPS_PROXY".to_owned(), url),
            ("SSL_CERT_FILE".to_owned(), self.authority.display().to_string()),
        ]);
        environment
    }

    /// Delays every frame of every session and tunnel, half of it each way.
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

/// Returns what the fake account holds.
fn configuration(target: SocketAddr, server: SocketAddr) -> String {
    let instance = |far: Far, more: String| {
        let (id, address) = (far.instance(), far.address());
        format!("[[instances]]\nid = \"{id}\"\nprivate_address = \"{address}\"\n{more}\n")
    };
    let agents =
        Agent::ALL.map(|agent| instance(Far::Agent(agent), format!("ssm = {{ agent = \"{agent}\" }}")));
    let port_22 = |address| format!("ports = {{ 22 = \"{address}\" }}");
    agents.concat()
        + &instance(Far::Endpoint, port_22(target))
        + &instance(Far::Server, port_22(server))
        + &format!("[[endpoints]]\nid = \"{ENDPOINT}\"\n")
        + &format!("[[hosts]]\nhost = \"{HOST}\"\nport = {PORT}\naddress = \"{target}\"\n")
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
