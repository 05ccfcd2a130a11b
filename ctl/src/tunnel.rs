//! What this client reads out of the daemon's `Tunnel` message.

use tunneld_proto::v1::tunnel::State;
use tunneld_proto::v1::{Failure, LogLine, Resolved, Tunnel, Waiting};

/// Returns the state's name, as in the glossary.
pub(crate) fn state_name(tunnel: &Tunnel) -> &'static str {
    match &tunnel.state {
        Some(State::Down(_)) => "down",
        Some(State::Idle(_)) => "idle",
        Some(State::Connecting(_)) => "connecting",
        Some(State::Up(_)) => "up",
        Some(State::Waiting(_)) => "waiting",
        Some(State::Blocked(_)) => "blocked",
        None => "unknown",
    }
}

/// Returns why the tunnel is waiting or blocked.
pub(crate) fn cause(tunnel: &Tunnel) -> Option<&Failure> {
    match &tunnel.state {
        Some(State::Waiting(waiting)) => waiting.cause.as_ref(),
        Some(State::Blocked(blocked)) => blocked.cause.as_ref(),
        Some(State::Down(_) | State::Idle(_) | State::Connecting(_) | State::Up(_)) | None => None,
    }
}

/// Returns what left an idle tunnel without a link; `None` if it ended for want of use, or never was.
pub(crate) fn setback(tunnel: &Tunnel) -> Option<&Failure> {
    let became_idle = matches!(tunnel.state, Some(State::Idle(_))) && tunnel.since == tunnel.last_error_at;
    tunnel.last_error.as_ref().filter(|_| became_idle)
}

/// Returns the details of waiting, for a tunnel that does.
pub(crate) fn waiting(tunnel: &Tunnel) -> Option<&Waiting> {
    match &tunnel.state {
        Some(State::Waiting(waiting)) => Some(waiting),
        Some(State::Down(_) | State::Idle(_) | State::Connecting(_) | State::Up(_) | State::Blocked(_))
        | None => None,
    }
}

/// Returns the number of the attempt that runs, or of the one that failed last.
pub(crate) fn attempt(tunnel: &Tunnel) -> Option<u32> {
    match &tunnel.state {
        Some(State::Connecting(connecting)) => Some(connecting.attempt),
        Some(State::Waiting(waiting)) => Some(waiting.attempt),
        Some(State::Down(_) | State::Idle(_) | State::Up(_) | State::Blocked(_)) | None => None,
    }
}

/// Makes every text that stems from a far end safe to print: a terminal obeys control characters.
pub(crate) fn disarm(tunnel: &mut Tunnel) {
    let cause = match &mut tunnel.state {
        Some(State::Waiting(waiting)) => waiting.cause.as_mut(),
        Some(State::Blocked(blocked)) => blocked.cause.as_mut(),
        Some(State::Down(_) | State::Idle(_) | State::Connecting(_) | State::Up(_)) | None => None,
    };
    cause
        .into_iter()
        .chain(tunnel.last_error.as_mut())
        .for_each(disarm_failure);
    if let Some(link) = &mut tunnel.link {
        [
            &mut link.via,
            &mut link.target_host,
            &mut link.agent_version,
            &mut link.engine,
        ]
        .into_iter()
        .chain(&mut link.notes)
        .for_each(disarm_line);
    }
    tunnel
        .history
        .iter_mut()
        .for_each(|transition| disarm_line(&mut transition.reason));
}

/// The same for a failure.
pub(crate) fn disarm_failure(failure: &mut Failure) {
    failure
        .chain
        .iter_mut()
        .chain(&mut failure.hints)
        .for_each(disarm_line);
}

/// The same for an instance.
pub(crate) fn disarm_resolved(resolved: &mut Resolved) {
    let Resolved {
        id,
        name,
        route,
        passed_over,
        addresses,
        platform,
    } = resolved;
    [id, name, route, platform]
        .into_iter()
        .chain(passed_over)
        .chain(addresses)
        .for_each(disarm_line);
}

/// The same for a line of the log.
pub(crate) fn disarm_log_line(line: &mut LogLine) {
    let LogLine {
        tunnel,
        message,
        source,
        at: _,
        level: _,
        connection: _,
    } = line;
    [tunnel, message, source].into_iter().for_each(disarm_line);
}

fn disarm_line(text: &mut String) {
    if text.contains(char::is_control) {
        *text = text.replace(char::is_control, " ");
    }
}

#[cfg(test)]
mod tests {
    use tunneld_proto::v1::Blocked;

    use super::*;

    #[test]
    fn control_characters_in_a_failure_do_not_reach_the_terminal() {
        let failure = Failure {
            chain: vec!["red\x1b[31m\nalert".to_owned()],
            ..Failure::default()
        };
        let state = State::Blocked(Blocked {
            cause: Some(failure.clone()),
        });
        let mut tunnel = Tunnel {
            state: Some(state),
            last_error: Some(failure),
            ..Tunnel::default()
        };
        disarm(&mut tunnel);
        assert_eq!(cause(&tunnel).unwrap().chain, ["red [31m alert"]);
        assert_eq!(tunnel.last_error.unwrap().chain, ["red [31m alert"]);
    }
}
