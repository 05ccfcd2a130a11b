//! Domain to proto and back: the only place that knows both.

use std::path::Path;
use std::sync::Arc;

use tracing::Level;
use tunneld_proto::v1;

use crate::config::{Problem, Problems, TunnelName, Written};
use crate::daemon::{Reloaded, Resolved};
use crate::failure::{Failure, Reason};
use crate::logging::{Batch, Line};
use crate::meter::Traffic;
use crate::status::{State, Status, Transition};
use crate::transport::LinkDetails;
use crate::tunnel::Wish;

pub(crate) fn wish(request: &v1::UpRequest) -> Wish {
    if request.connect {
        Wish::Connect
    } else {
        Wish::Listen
    }
}

pub(crate) fn tunnels(statuses: &[Arc<Status>]) -> Vec<v1::Tunnel> {
    statuses.iter().map(|status| tunnel(status)).collect()
}

fn tunnel(status: &Status) -> v1::Tunnel {
    v1::Tunnel {
        name: status.name.to_string(),
        local: status.local.clone(),
        target: status.target.clone(),
        route: status.route.clone(),
        since: Some(status.since.into()),
        traffic: Some(traffic(status.meter.read())),
        last_error: status.last_error.as_ref().map(|last| failure(&last.failure)),
        last_error_at: status.last_error.as_ref().map(|last| last.at.into()),
        generation: status.generation,
        link: status.link.as_ref().map(link),
        history: status.history.iter().map(transition).collect(),
        state: Some(state(&status.state)),
    }
}

fn state(state: &State) -> v1::tunnel::State {
    match state {
        State::Down => v1::tunnel::State::Down(v1::Down {}),
        State::Idle { .. } => v1::tunnel::State::Idle(v1::Idle {}),
        State::Connecting { attempt } => v1::tunnel::State::Connecting(v1::Connecting { attempt: *attempt }),
        State::Up => v1::tunnel::State::Up(v1::Up {}),
        State::Waiting {
            attempt,
            until,
            cause,
        } => v1::tunnel::State::Waiting(v1::Waiting {
            attempt: *attempt,
            until: until.map(Into::into),
            cause: Some(failure(cause)),
        }),
        State::Blocked { cause } => v1::tunnel::State::Blocked(v1::Blocked {
            cause: Some(failure(cause)),
        }),
    }
}

pub(crate) fn failure(failure: &Failure) -> v1::Failure {
    let reason = match failure.reason() {
        Reason::Unreachable => v1::Reason::Unreachable,
        Reason::Throttled => v1::Reason::Throttled,
        Reason::Login => v1::Reason::Login,
        Reason::Denied => v1::Reason::Denied,
        Reason::NotFound => v1::Reason::NotFound,
        Reason::PortInUse => v1::Reason::PortInUse,
        Reason::AgentOffline => v1::Reason::AgentOffline,
        Reason::TargetRefused => v1::Reason::TargetRefused,
        Reason::Invalid => v1::Reason::Invalid,
        Reason::Expired => v1::Reason::Expired,
    };
    v1::Failure {
        reason: reason.into(),
        chain: failure.chain(),
        hints: failure.hints().to_vec(),
    }
}

fn traffic(traffic: Traffic) -> v1::Traffic {
    let Traffic {
        connections,
        connections_total,
        connections_failed,
        connections_expired,
        connections_refused,
        connections_unknown,
        bytes_in,
        bytes_out,
        held,
        links_lost,
    } = traffic;
    v1::Traffic {
        connections,
        connections_total,
        connections_failed,
        bytes_in,
        bytes_out,
        held,
        links_lost,
        connections_expired,
        connections_refused,
        connections_unknown,
    }
}

pub(crate) fn link(details: &LinkDetails) -> v1::Link {
    v1::Link {
        via: details.via.clone(),
        target_host: details.target_host.clone(),
        target_port: details.target_port.into(),
        sessions: details.sessions,
        agent_version: details.agent_version.clone(),
        engine: details.engine.clone(),
        notes: details.notes.clone(),
    }
}

fn transition(transition: &Transition) -> v1::Transition {
    v1::Transition {
        at: Some(transition.at.into()),
        state: transition.state.to_owned(),
        reason: transition.reason.clone(),
        number: transition.number,
        connections_lost: transition.connections_lost,
    }
}

pub(crate) fn log_lines(batch: &Batch) -> v1::LogsResponse {
    v1::LogsResponse {
        lines: batch.lines.iter().map(|line| log_line(line)).collect(),
        missed: batch.missed,
    }
}

fn log_line(line: &Line) -> v1::LogLine {
    v1::LogLine {
        at: Some(line.at.into()),
        level: log_level(line.level).into(),
        tunnel: line.tunnel.as_deref().unwrap_or_default().to_owned(),
        connection: line.connection.unwrap_or(0),
        message: line.message.clone(),
        source: line.source.to_owned(),
    }
}

fn log_level(level: Level) -> v1::LogLevel {
    match level {
        Level::ERROR => v1::LogLevel::Error,
        Level::WARN => v1::LogLevel::Warn,
        Level::INFO => v1::LogLevel::Info,
        Level::DEBUG => v1::LogLevel::Debug,
        Level::TRACE => v1::LogLevel::Trace,
    }
}

pub(crate) fn reloaded(path: &Path, reloaded: &Reloaded) -> v1::ReloadResponse {
    let names = |names: &[TunnelName]| names.iter().map(ToString::to_string).collect();
    v1::ReloadResponse {
        problems: Vec::new(),
        added: names(&reloaded.added),
        changed: names(&reloaded.changed),
        removed: names(&reloaded.removed),
        path: path.display().to_string(),
    }
}

pub(crate) fn problems(path: &Path, problems: &Problems) -> v1::ReloadResponse {
    v1::ReloadResponse {
        problems: problems.as_slice().iter().map(problem).collect(),
        path: path.display().to_string(),
        ..v1::ReloadResponse::default()
    }
}

fn problem(problem: &Problem) -> v1::Problem {
    v1::Problem {
        path: problem.path.display().to_string(),
        line: problem.line.unwrap_or(0),
        message: problem.message.clone(),
        hint: problem.hint.clone().unwrap_or_default(),
    }
}

/// What a client wants to reach, as it wrote it.
pub(crate) fn written(account: Option<v1::Account>, target: String, route: String) -> Written {
    let v1::Account { profile, region } = account.unwrap_or_default();
    Written {
        target,
        route,
        profile,
        region,
    }
}

/// The target that is a port of an instance.
pub(crate) fn port_of(instance: &str, port: u32) -> String {
    if instance.starts_with("ecs:") {
        format!("{instance}:{port}")
    } else {
        format!("ec2:{instance}:{port}")
    }
}

pub(crate) fn to_resolve(request: v1::ResolveRequest) -> Written {
    let target = port_of(&request.instance, request.port);
    written(request.account, target, request.route)
}

pub(crate) fn to_open(opening: v1::Opening) -> Written {
    written(opening.account, opening.target, opening.route)
}

pub(crate) fn resolved(resolved: Result<Resolved, Failure>) -> v1::ResolveResponse {
    let outcome = match resolved {
        Ok(resolved) => v1::resolve_response::Outcome::Resolved(v1::Resolved {
            id: resolved.found.id().to_owned(),
            name: resolved.found.name().unwrap_or_default().to_owned(),
            route: resolved.route,
            passed_over: resolved.passed_over,
            addresses: resolved.found.addresses(),
            platform: resolved
                .found
                .place()
                .and_then(|place| place.platform.clone())
                .unwrap_or_default(),
        }),
        Err(failed) => v1::resolve_response::Outcome::Failure(failure(&failed)),
    };
    v1::ResolveResponse {
        outcome: Some(outcome),
    }
}
