//! The answers for people: sentences, the table and the details. Nothing here prints or reads a clock.

mod detail;
mod history;
mod log;
mod table;
pub(crate) mod words;

use tunneld_proto::v1::tunnel::State;
use tunneld_proto::v1::{Failure, Resolved, Tunnel};

pub(crate) use self::detail::detail;
pub(crate) use self::history::said;
pub(crate) use self::log::{level_name, log_line};
pub(crate) use self::table::table;
use self::words::{Clock, span};
use crate::error::report;
use crate::tunnel;

/// What takes the place of an address or cause that the daemon did not name.
const UNKNOWN: &str = "unknown";

/// Says in one line how a tunnel is; of a cause the outermost part.
pub(crate) fn sentence(tunnel: &Tunnel) -> String {
    let name = &tunnel.name;
    match &tunnel.state {
        Some(State::Down(_)) => format!("{name} is down"),
        Some(State::Idle(_)) => format!("{name} listens on {} and connects on first use", address(tunnel)),
        Some(State::Connecting(connecting)) if connecting.attempt > 1 => {
            format!("{name} is connecting (attempt {})", connecting.attempt)
        }
        Some(State::Connecting(_)) => format!("{name} is connecting"),
        Some(State::Up(_)) => format!("{name} is up on {}", address(tunnel)),
        Some(State::Waiting(waiting)) => format!("{name} is waiting: {}", headline(waiting.cause.as_ref())),
        Some(State::Blocked(blocked)) => format!("{name} is blocked: {}", headline(blocked.cause.as_ref())),
        None => format!("{name} is in a state that only a newer tunnelctl knows"),
    }
}

/// Says why a tunnel is waiting or blocked, and what happens or helps: the sentence, then a line for each of these.
pub(crate) fn trouble(tunnel: &Tunnel, clock: &Clock) -> String {
    let (causes, mut hints) = tunnel::cause(tunnel).map_or_else(Default::default, |cause| {
        (
            cause.chain.get(1..).unwrap_or_default().to_vec(),
            cause.hints.clone(),
        )
    });
    hints.extend(retry(tunnel, clock));
    report(&sentence(tunnel), &causes, &hints)
}

/// Says a failure in one line: every cause.
pub(crate) fn one_line(failure: &Failure) -> String {
    match failure.chain.as_slice() {
        [] => UNKNOWN.to_owned(),
        chain => chain.join(": "),
    }
}

/// Says what an instance is, which way leads to it, and why no other does.
pub(crate) fn instance(resolved: &Resolved) -> String {
    let Resolved {
        id,
        name,
        route,
        passed_over,
        ..
    } = resolved;
    let named = if name.is_empty() {
        id.clone()
    } else {
        format!("{name} ({id})")
    };
    let passed_over = passed_over.iter().map(|reason| format!("\n  not by {reason}"));
    passed_over.fold(format!("{named} by {route}"), |lines, line| lines + &line)
}

/// Returns the address that a person types into their program: the first.
pub(crate) fn address(tunnel: &Tunnel) -> &str {
    tunnel.local.first().map_or(UNKNOWN, String::as_str)
}

/// Says when the next attempt is, for a tunnel that waits for it.
fn retry(tunnel: &Tunnel, clock: &Clock) -> Option<String> {
    let Some(until) = &tunnel::waiting(tunnel)?.until else {
        return Some("resuming the present link; open connections live on".to_owned());
    };
    Some(format!("retrying in {}", span(clock.until(until)?)))
}

fn headline(cause: Option<&Failure>) -> &str {
    cause
        .and_then(|cause| cause.chain.first())
        .map_or(UNKNOWN, String::as_str)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tunneld_proto::v1::{Blocked, Connecting, Down, Idle, Up, Waiting};

    use super::*;

    fn in_state(state: Option<State>) -> Tunnel {
        Tunnel {
            name: "db".to_owned(),
            state,
            local: vec!["127.0.0.1:1".to_owned()],
            ..Tunnel::default()
        }
    }

    fn failure() -> Failure {
        let chain = vec!["the login expired".to_owned(), "ExpiredToken".to_owned()];
        Failure {
            chain,
            hints: vec!["aws sso login".to_owned()],
            ..Failure::default()
        }
    }

    #[test]
    fn every_state_has_its_sentence() {
        let cause = Some(failure());
        let states = [
            Some(State::Down(Down {})),
            Some(State::Idle(Idle {})),
            Some(State::Connecting(Connecting { attempt: 1 })),
            Some(State::Connecting(Connecting { attempt: 3 })),
            Some(State::Up(Up {})),
            Some(State::Waiting(Waiting {
                cause: cause.clone(),
                ..Waiting::default()
            })),
            Some(State::Blocked(Blocked { cause })),
            Some(State::Blocked(Blocked { cause: None })),
            None,
        ];
        let sentences = states.map(|state| sentence(&in_state(state))).join("\n");
        insta::assert_snapshot!(sentences, @r"
        db is down
        db listens on 127.0.0.1:1 and connects on first use
        db is connecting
        db is connecting (attempt 3)
        db is up on 127.0.0.1:1
        db is waiting: the login expired
        db is blocked: the login expired
        db is blocked: unknown
        db is in a state that only a newer tunnelctl knows
        ");
    }

    #[test]
    fn a_waiting_tunnel_tells_its_causes_its_hints_and_its_next_attempt() {
        let clock = Clock::standing_at("2025-11-24T09:00:00Z");
        let later = Clock::standing_at("2025-11-24T09:00:08Z").ago(Duration::ZERO);
        let waiting = Waiting {
            attempt: 2,
            until: Some(later),
            cause: Some(failure()),
        };
        insta::assert_snapshot!(trouble(&in_state(Some(State::Waiting(waiting))), &clock), @r"
        db is waiting: the login expired
          because ExpiredToken
          aws sso login
          retrying in 8 s
        ");
    }

    #[test]
    fn a_link_that_is_resumed_promises_no_attempt() {
        let clock = Clock::standing_at("2025-11-24T09:00:00Z");
        let waiting = Waiting {
            attempt: 0,
            until: None,
            cause: None,
        };
        insta::assert_snapshot!(trouble(&in_state(Some(State::Waiting(waiting))), &clock), @r"
        db is waiting: unknown
          resuming the present link; open connections live on
        ");
    }
}
