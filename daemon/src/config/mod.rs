//! The configuration: types in which nonsense cannot be written.
//!
//! ```text
//!   text ──► file ────────────► check ────────────────────────────► Config
//!            syntax, section:   grammar, instance, listen, quantity:
//!            tables and keys    the words in them
//!              ├── ssm, ssh, eice: ──┤
//!              │   keys of one route │     route, reach: how a route is
//!              │                     │     written, where it can lead
//!              └──────────┬──────────┘
//!                         ▼
//!                      problem ──► Problems: everything that is wrong
//! ```
//!
//! The file is hostile until checked. Nothing here binds, connects or asks AWS: a [`Config`] can be wrong about the
//! world, but not about itself.

mod check;
mod eice;
mod file;
mod grammar;
mod instance;
mod listen;
mod path;
mod pool;
mod problem;
mod quantity;
mod reach;
mod route;
mod section;
mod ssh;
mod ssm;
mod syntax;
#[cfg(test)]
mod tests;
mod wanted;

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tunneld_wire::ssm::{LARGEST_PAYLOAD, MESSAGE_RATE};

pub use self::check::Defaults;
pub use self::problem::{Problem, Problems, Refusal};
pub use self::wanted::{Wanted, Written};

/// What the daemon was told to hold: the tunnels, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    /// The tunnels; their names and local addresses are distinct.
    pub tunnels: Vec<TunnelSpec>,
    /// What a tunnel has that does not say otherwise.
    pub defaults: Arc<Defaults>,
}

impl Config {
    /// Reads and checks a file. Blocks for as long as the file system does.
    ///
    /// # Errors
    ///
    /// All problems of the file, also that it is not there.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        let text = check::read(path)?;
        Self::parse(path, &text)
    }

    /// Checks the text of a file.
    ///
    /// # Errors
    ///
    /// All problems of the text, sorted by line.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Problems> {
        check::check(path, text, check::home().as_deref())
    }
}

/// Returns where the configuration is looked for unless told otherwise: `config.toml` in the platform's configuration
/// folder. `None` for a user without a home.
pub fn default_path() -> Option<PathBuf> {
    let directories = directories::ProjectDirs::from("", "", "tunneld")?;
    Some(directories.config_dir().join("config.toml"))
}

/// A tunnel as configured. Two equal specs are the same tunnel: a reload leaves it alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelSpec {
    /// Its name.
    pub name: TunnelName,
    /// Where local clients connect.
    pub listen: Listen,
    /// What they finally reach.
    pub target: Target,
    /// How.
    pub route: Route,
    /// With whose credentials, and where.
    pub account: AccountSpec,
    /// When it has a link.
    pub mode: Mode,
    /// Whether it is wanted up when the daemon starts.
    pub autostart: bool,
    /// How long a new connection waits for a link.
    pub hold: Duration,
    /// How long, on routes without half-close, a client's FIN is held back after the far end's last byte.
    pub half_close_grace: Duration,
    /// The most bytes that wait in memory for one local client that does not read, on routes where it shares its way
    /// with others.
    pub receive_buffer: usize,
    /// How sessions of the route `ssm` behave.
    pub ssm: SsmSettings,
    /// How connections of the route `ssh` behave.
    pub ssh: SshSettings,
    /// How connections of the route `eice` behave.
    pub eice: EiceSettings,
}

/// When a tunnel that is up has a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// All the time.
    Always,
    /// From the first local connection until there has been none for a while.
    OnDemand {
        /// How long.
        idle_after: Duration,
    },
}

/// How sessions of the route `ssm` behave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SsmSettings {
    /// How many sessions carry a tunnel's connections.
    pub sessions: PoolSize,
    /// How long a target may take nothing before its connection is reset.
    pub stall_timeout: Duration,
    /// Sends a sign of life that often, which keeps an administrator's idle timeout from ending the session; `None`:
    /// never.
    pub keep_alive: Option<Duration>,
    /// After how long AWS ends a session, as an administrator has set it; `None`: it is not known.
    pub max_session_duration: Option<Duration>,
    /// Data messages a second of one session; `None`: as many as there are.
    pub message_rate: Option<NonZeroU32>,
    /// The largest payload of a data message, in bytes.
    pub largest_payload: usize,
}

/// How many sessions, or connections to an SSH server, carry a tunnel's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSize {
    /// So many are kept while the tunnel is up; at least 1.
    pub min: usize,
    /// No more than this at a time; at least `min`.
    pub max: usize,
}

impl Default for SsmSettings {
    fn default() -> Self {
        Self {
            sessions: pool::DEFAULT,
            stall_timeout: Duration::from_secs(120),
            keep_alive: None,
            max_session_duration: None,
            message_rate: NonZeroU32::new(MESSAGE_RATE),
            largest_payload: LARGEST_PAYLOAD,
        }
    }
}

/// How connections of the route `ssh` behave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSettings {
    /// With what the user logs in.
    pub identity: Identity,
    /// Which keys of a host are accepted.
    pub host_keys: HostKeys,
    /// How many connections to the SSH server carry a tunnel's connections.
    pub connections: PoolSize,
}

/// With what a user logs in to an SSH server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A key made for one connection, which EC2 Instance Connect takes to the instance.
    InstanceConnect,
    /// The keys of the user's ssh-agent.
    Agent,
    /// The private key in a file.
    File(PathBuf),
}

/// Which keys of a host are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKeys {
    /// The one that it shows first, and no other after that.
    FirstUse,
    /// One that is known from elsewhere: the user's `known_hosts`, or the instance's console output.
    Strict,
}

impl Default for SshSettings {
    fn default() -> Self {
        Self {
            identity: Identity::InstanceConnect,
            host_keys: HostKeys::FirstUse,
            connections: pool::DEFAULT,
        }
    }
}

/// How connections of the route `eice` behave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EiceSettings {
    /// How long one may last, in whole seconds; `None` asks for nothing, and gets what AWS gives.
    pub max_tunnel_duration: Option<Duration>,
}

/// The name of a tunnel: 1 to 63 of `a-z A-Z 0-9 . _ -`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelName(pub(in crate::config) String);

/// A local address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// One or two TCP addresses (a bare port listens on 127.0.0.1 and ::1).
    Tcp(Vec<SocketAddr>),
    /// A Unix socket.
    Unix(PathBuf),
}

/// The host and port that bytes finally reach, as a person names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An RDS instance or Aurora cluster; host and port come from AWS.
    Rds {
        /// Its identifier.
        id: String,
    },
    /// A port of an instance.
    Instance {
        /// The instance.
        instance: Instance,
        /// The port.
        port: u16,
    },
    /// A host by name or address, seen from where the route ends.
    Host {
        /// Name or address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
}

/// What has an SSM agent, as a person names it: an instance, or a task of ECS, which stands wherever one can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instance {
    /// `i-…` or `mi-…`.
    Id(String),
    /// `tag:KEY=VALUE`.
    Tag {
        /// The tag's key.
        key: String,
        /// The tag's value.
        value: String,
    },
    /// The value of the tag `Name`.
    Name(String),
    /// `ecs:CLUSTER/SERVICE[/CONTAINER]`.
    Task(EcsTask),
}

/// A task of an ECS service, and a container of it: whichever task runs at the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcsTask {
    /// The cluster's name.
    pub cluster: String,
    /// The service's name.
    pub service: String,
    /// The container's name; `None`: the only one.
    pub container: Option<String>,
}

/// How to get to the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// From this machine.
    Direct,
    /// Through the SSM agent of an instance.
    Ssm {
        /// The instance; `None` goes straight to the target instance.
        via: Option<Instance>,
    },
    /// Through an EC2 Instance Connect Endpoint.
    Eice {
        /// Its id; `None`: the one that serves the target's VPC.
        endpoint: Option<String>,
    },
    /// Through an SSH server.
    Ssh(Box<SshRoute>),
}

/// Where SSH servers of instances listen.
pub const SSH_PORT: u16 = 22;

/// A route through an SSH server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshRoute {
    /// Who logs in.
    pub user: String,
    /// The instance with the server.
    pub host: Instance,
    /// How to get to its port 22.
    pub over: Route,
}

/// The profile and region that a tunnel's AWS calls use. `None` leaves it to the environment and profile.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct AccountSpec {
    /// A profile of `~/.aws/config`.
    pub profile: Option<String>,
    /// A region's name.
    pub region: Option<String>,
}

impl TunnelName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TunnelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
