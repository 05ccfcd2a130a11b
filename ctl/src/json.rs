//! The answers for programs: schema 1, described in `tunnelctl --help`.
//!
//! Within a schema fields are only added: none is renamed, removed or given another meaning. Every field is always
//! there, `null` where its value is unknown or does not apply.

use std::borrow::Cow;
use std::path::Path;

use serde::Serialize;
use tunneld_proto::v1::{self, Reason, VersionResponse};

use crate::client::VERSION;
use crate::render::level_name;
use crate::render::words::rfc3339;
use crate::tunnel;

/// A document or line of its own: the value with the number of the schema before it.
#[derive(Serialize)]
pub(crate) struct Versioned<T> {
    schema: u32,
    #[serde(flatten)]
    value: T,
}

impl<T> Versioned<T> {
    /// The value, under the schema that this program writes.
    pub(crate) fn new(value: T) -> Self {
        Self { schema: 1, value }
    }
}

/// The answer of `status`.
#[derive(Serialize)]
pub(crate) struct Tunnels<'a> {
    pub(crate) tunnels: Vec<Tunnel<'a>>,
}

/// A tunnel and how it is.
#[derive(Serialize)]
pub(crate) struct Tunnel<'a> {
    name: &'a str,
    state: &'static str,
    local: &'a [String],
    target: Target<'a>,
    route: &'a str,
    since: Option<String>,
    /// Number of the attempt that runs, or of the one that failed last.
    attempt: Option<u32>,
    retry_at: Option<String>,
    /// Why it is waiting or blocked.
    cause: Option<Failure<'a>>,
    traffic: Traffic,
    last_error: Option<LastError<'a>>,
    link: Option<Link<'a>>,
    history: Vec<Transition<'a>>,
}

/// A tunnel that a reload removed.
#[derive(Serialize)]
pub(crate) struct Removed<'a> {
    name: &'a str,
    state: &'static str,
}

#[derive(Serialize)]
struct Target<'a> {
    /// As configured.
    spec: &'a str,
    host: Option<&'a str>,
    port: Option<u32>,
    engine: Option<&'a str>,
}

#[derive(Serialize)]
struct Failure<'a> {
    reason: &'static str,
    chain: &'a [String],
    hints: &'a [String],
}

#[derive(Serialize)]
struct LastError<'a> {
    at: Option<String>,
    #[serde(flatten)]
    failure: Failure<'a>,
}

#[derive(Serialize)]
struct Traffic {
    connections: u32,
    connections_total: u64,
    connections_failed: u64,
    bytes_in: u64,
    bytes_out: u64,
    held: u32,
    links_lost: u64,
    connections_expired: u64,
    connections_refused: u64,
    connections_unknown: u64,
}

#[derive(Serialize)]
struct Link<'a> {
    via: Option<&'a str>,
    sessions: u32,
    agent_version: Option<&'a str>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct Transition<'a> {
    at: Option<String>,
    state: &'a str,
    reason: Option<&'a str>,
    connections_lost: Option<u64>,
}

/// A transition of a tunnel, of `events`.
#[derive(Serialize)]
pub(crate) struct Event<'a> {
    at: Option<String>,
    name: &'a str,
    state: &'a str,
    reason: Option<&'a str>,
    connections_lost: Option<u64>,
}

/// A line of the daemon's log, of `logs`.
#[derive(Serialize)]
pub(crate) struct LogLine<'a> {
    at: Option<String>,
    level: &'static str,
    tunnel: Option<&'a str>,
    connection: Option<u64>,
    message: &'a str,
    source: &'a str,
}

/// Lines that came too fast to be read.
#[derive(Serialize)]
pub(crate) struct Missed {
    pub(crate) missed: u64,
}

/// An instance and the way to it, of `ssh --verbose`.
#[derive(Serialize)]
pub(crate) struct Instance<'a> {
    id: &'a str,
    name: Option<&'a str>,
    route: &'a str,
    passed_over: &'a [String],
    addresses: &'a [String],
    platform: Option<&'a str>,
}

/// The answer of `reload`.
#[derive(Serialize)]
pub(crate) struct Reload<'a> {
    path: &'a str,
    problems: Vec<Problem<'a>>,
    added: &'a [String],
    changed: &'a [String],
    removed: &'a [String],
}

#[derive(Serialize)]
struct Problem<'a> {
    path: &'a str,
    line: Option<u32>,
    message: &'a str,
    hint: Option<&'a str>,
}

/// The answer of `version`.
#[derive(Serialize)]
pub(crate) struct Versions<'a> {
    tunnelctl: &'static str,
    tunneld: Option<Daemon<'a>>,
}

/// The answer of `service`.
#[derive(Serialize)]
pub(crate) struct Service<'a> {
    pub(crate) manager: &'static str,
    pub(crate) installed: bool,
    pub(crate) enabled: bool,
    pub(crate) running: bool,
    pub(crate) file: Option<Cow<'a, str>>,
    pub(crate) socket: Option<Cow<'a, str>>,
    /// What the daemon told the manager of itself.
    pub(crate) status: Option<&'a str>,
    /// Whether it goes on while its user is logged out.
    pub(crate) lingering: Option<bool>,
    pub(crate) ssh_auth_sock: Option<&'a str>,
    pub(crate) tunneld: Option<Daemon<'a>>,
}

/// The answer of `restart-daemon`.
#[derive(Serialize)]
pub(crate) struct Restarted<'a> {
    pub(crate) before: Daemon<'a>,
    pub(crate) after: Daemon<'a>,
}

/// A running daemon.
#[derive(Serialize)]
pub(crate) struct Daemon<'a> {
    version: &'a str,
    pid: u32,
    started: Option<String>,
    config: Option<&'a str>,
    socket: String,
}

impl<'a> From<&'a v1::Tunnel> for Tunnel<'a> {
    fn from(tunnel: &'a v1::Tunnel) -> Self {
        let link = tunnel.link.as_ref();
        let waiting = tunnel::waiting(tunnel);
        let traffic = tunnel.traffic.unwrap_or_default();
        Self {
            name: &tunnel.name,
            state: tunnel::state_name(tunnel),
            local: &tunnel.local,
            target: Target {
                spec: &tunnel.target,
                host: link.and_then(|link| known(&link.target_host)),
                port: link.map(|link| link.target_port).filter(|port| *port != 0),
                engine: link.and_then(|link| known(&link.engine)),
            },
            route: &tunnel.route,
            since: tunnel.since.as_ref().and_then(rfc3339),
            attempt: tunnel::attempt(tunnel),
            retry_at: waiting
                .and_then(|waiting| waiting.until.as_ref())
                .and_then(rfc3339),
            cause: tunnel::cause(tunnel).map(Failure::from),
            traffic: Traffic {
                connections: traffic.connections,
                connections_total: traffic.connections_total,
                connections_failed: traffic.connections_failed,
                bytes_in: traffic.bytes_in,
                bytes_out: traffic.bytes_out,
                held: traffic.held,
                links_lost: traffic.links_lost,
                connections_expired: traffic.connections_expired,
                connections_refused: traffic.connections_refused,
                connections_unknown: traffic.connections_unknown,
            },
            last_error: tunnel.last_error.as_ref().map(|failure| LastError {
                at: tunnel.last_error_at.as_ref().and_then(rfc3339),
                failure: failure.into(),
            }),
            link: link.map(|link| Link {
                via: known(&link.via),
                sessions: link.sessions,
                agent_version: known(&link.agent_version),
                notes: &link.notes,
            }),
            history: tunnel
                .history
                .iter()
                .map(|transition| Transition {
                    at: transition.at.as_ref().and_then(rfc3339),
                    state: &transition.state,
                    reason: known(&transition.reason),
                    connections_lost: transition.connections_lost,
                })
                .collect(),
        }
    }
}

impl<'a> Removed<'a> {
    /// The tunnel of that name is gone.
    pub(crate) fn new(name: &'a str) -> Self {
        Self {
            name,
            state: "removed",
        }
    }
}

impl<'a> Event<'a> {
    /// What happened to the tunnel of that name.
    pub(crate) fn of(name: &'a str, transition: &'a v1::Transition) -> Self {
        Self {
            at: transition.at.as_ref().and_then(rfc3339),
            name,
            state: &transition.state,
            reason: known(&transition.reason),
            connections_lost: transition.connections_lost,
        }
    }

    /// The tunnel of that name is gone.
    pub(crate) fn removed(name: &'a str, at: String) -> Self {
        Self {
            at: Some(at),
            name,
            state: "removed",
            reason: None,
            connections_lost: None,
        }
    }
}

impl<'a> From<&'a v1::LogLine> for LogLine<'a> {
    fn from(line: &'a v1::LogLine) -> Self {
        Self {
            at: line.at.as_ref().and_then(rfc3339),
            level: level_name(line.level()),
            tunnel: known(&line.tunnel),
            connection: Some(line.connection).filter(|number| *number != 0),
            message: &line.message,
            source: &line.source,
        }
    }
}

impl<'a> From<&'a v1::Failure> for Failure<'a> {
    fn from(failure: &'a v1::Failure) -> Self {
        Self {
            reason: reason_name(failure.reason()),
            chain: &failure.chain,
            hints: &failure.hints,
        }
    }
}

impl<'a> From<&'a v1::Resolved> for Instance<'a> {
    fn from(resolved: &'a v1::Resolved) -> Self {
        Self {
            id: &resolved.id,
            name: known(&resolved.name),
            route: &resolved.route,
            passed_over: &resolved.passed_over,
            addresses: &resolved.addresses,
            platform: known(&resolved.platform),
        }
    }
}

impl<'a> From<&'a v1::ReloadResponse> for Reload<'a> {
    fn from(response: &'a v1::ReloadResponse) -> Self {
        Self {
            path: &response.path,
            problems: response
                .problems
                .iter()
                .map(|problem| Problem {
                    path: &problem.path,
                    line: (problem.line != 0).then_some(problem.line),
                    message: &problem.message,
                    hint: known(&problem.hint),
                })
                .collect(),
            added: &response.added,
            changed: &response.changed,
            removed: &response.removed,
        }
    }
}

impl<'a> Versions<'a> {
    /// This program alone: no daemon answers.
    pub(crate) fn alone() -> Self {
        Self {
            tunnelctl: VERSION,
            tunneld: None,
        }
    }

    /// This program and the daemon on `socket`.
    pub(crate) fn with(daemon: &'a VersionResponse, socket: &Path) -> Self {
        Self {
            tunnelctl: VERSION,
            tunneld: Some(Daemon::new(daemon, socket)),
        }
    }
}

impl<'a> Daemon<'a> {
    /// The daemon on `socket`, as it said of itself.
    pub(crate) fn new(daemon: &'a VersionResponse, socket: &Path) -> Self {
        Self {
            version: &daemon.version,
            pid: daemon.pid,
            started: daemon.started.as_ref().and_then(rfc3339),
            config: known(&daemon.config_path),
            socket: socket.display().to_string(),
        }
    }
}

fn reason_name(reason: Reason) -> &'static str {
    match reason {
        Reason::Unspecified => "unspecified",
        Reason::Unreachable => "unreachable",
        Reason::Throttled => "throttled",
        Reason::Login => "login",
        Reason::Denied => "denied",
        Reason::NotFound => "not_found",
        Reason::PortInUse => "port_in_use",
        Reason::AgentOffline => "agent_offline",
        Reason::TargetRefused => "target_refused",
        Reason::Invalid => "invalid",
        Reason::Expired => "expired",
    }
}

/// Proto3 says "unknown" with an empty text, JSON with `null`.
fn known(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}
