//! `tunnelctl status NAME`: everything about one tunnel.

use tunneld_proto::v1::tunnel::State;
use tunneld_proto::v1::{Link, Tunnel};

use super::words::{Clock, count, engine, size, span};
use super::{address, one_line, said, sentence, trouble};
use crate::tunnel;

/// How much of the history is shown: about half a screen. `--json` has all of it.
const HISTORY: usize = 8;

/// Describes one tunnel, without a line end after the last line.
pub(crate) fn detail(tunnel: &Tunnel, clock: &Clock) -> String {
    let link = tunnel.link.as_ref();
    let mut lines = vec![headline(tunnel, clock)];
    let mut say = |label: &str, text: String| lines.push(format!("  {label:<8} {text}"));

    say("target", target(tunnel, link));
    say("route", route(tunnel, link));
    if let Some(now) = traffic(tunnel) {
        say("now", now);
    }
    if let Some(refused) = refused(tunnel) {
        say("refused", refused);
    }
    for note in link.into_iter().flat_map(|link| &link.notes) {
        say("note", note.clone());
    }
    if let Some(since) = tunnel.since.as_ref().and_then(|since| clock.age(since)) {
        say("since", span(since));
    }
    if tunnel::cause(tunnel).is_none()
        && let Some(failure) = &tunnel.last_error
    {
        let age = tunnel.last_error_at.as_ref().and_then(|at| clock.age(at));
        let age = age.map(|age| format!("{} ago: ", span(age))).unwrap_or_default();
        say("failed", format!("{age}{}", one_line(failure)));
    }
    let hidden = tunnel.history.len().saturating_sub(HISTORY);
    for (position, transition) in tunnel.history.iter().enumerate().skip(hidden) {
        let label = if position == hidden { "history" } else { "" };
        let time = transition.at.as_ref().and_then(|at| clock.time(at));
        let before = position
            .checked_sub(1)
            .and_then(|before| tunnel.history.get(before));
        say(
            label,
            format!("{} {}", time.unwrap_or_default(), said(before, transition)),
        );
    }
    lines.join("\n")
}

fn headline(tunnel: &Tunnel, clock: &Clock) -> String {
    if tunnel::cause(tunnel).is_some() {
        return trouble(tunnel, clock);
    }
    let sentence = sentence(tunnel);
    if !matches!(tunnel.state, Some(State::Up(_))) {
        return sentence;
    }
    let first = address(tunnel);
    tunnel.local.iter().skip(1).fold(sentence, |sentence, other| {
        format!("{sentence}, {}", beside(first, other))
    })
}

/// The second half of "127.0.0.1:15432, ::1 port 15432": the loopback address that a client may try first.
fn beside(first: &str, other: &str) -> String {
    let port = first.rsplit_once(':').map(|(_, port)| port);
    match (other.strip_prefix("[::1]:"), port) {
        (Some(other), Some(port)) if other == port => format!("::1 port {port}"),
        (Some(_) | None, _) => other.to_owned(),
    }
}

fn target(tunnel: &Tunnel, link: Option<&Link>) -> String {
    let spec = &tunnel.target;
    let Some(link) = link else { return spec.clone() };
    let found = format!("{}:{}", link.target_host, link.target_port);
    let found = if link.target_host.is_empty() || found == *spec {
        String::new()
    } else {
        format!(", that is {found}")
    };
    let engine = if link.engine.is_empty() {
        String::new()
    } else {
        format!(" ({})", engine(&link.engine))
    };
    format!("{spec}{found}{engine}")
}

fn route(tunnel: &Tunnel, link: Option<&Link>) -> String {
    let mut parts = vec![tunnel.route.clone()];
    if let Some(link) = link {
        if !link.via.is_empty() {
            parts.push(format!("through {}", link.via));
        }
        if link.sessions > 0 {
            parts.push(count(link.sessions.into(), "session"));
        }
        if !link.agent_version.is_empty() {
            parts.push(format!("agent {}", link.agent_version));
        }
    }
    parts.join(", ")
}

/// What went through since the daemon started; nothing for a tunnel that was never used.
fn traffic(tunnel: &Tunnel) -> Option<String> {
    let traffic = tunnel.traffic?;
    if traffic.connections_total == 0 && traffic.held == 0 && traffic.links_lost == 0 {
        return None;
    }
    let mut parts = vec![count(traffic.connections.into(), "connection")];
    if traffic.held > 0 {
        parts.push(format!("{} waiting for the link", traffic.held));
    }
    parts.push(format!("{} down", size(traffic.bytes_in)));
    parts.push(format!("{} up", size(traffic.bytes_out)));
    parts.push(format!(
        "{} in all",
        count(traffic.connections_total, "connection")
    ));
    if traffic.connections_failed > 0 {
        parts.push(format!("{} failed", traffic.connections_failed));
    }
    if traffic.connections_expired > 0 {
        parts.push(format!(
            "{} of them cut by the route's limit",
            traffic.connections_expired
        ));
    }
    if traffic.links_lost > 0 {
        parts.push(format!("{} lost", count(traffic.links_lost, "link")));
    }
    Some(parts.join(", "))
}

/// Who was not let in since the daemon started; nothing where everybody was.
fn refused(tunnel: &Tunnel) -> Option<String> {
    let traffic = tunnel.traffic?;
    let mut parts = Vec::new();
    if traffic.connections_refused > 0 {
        let connections = count(traffic.connections_refused, "connection");
        parts.push(format!(
            "{connections} of other users, whom `allow_users` can let in"
        ));
    }
    if traffic.connections_unknown > 0 {
        let connections = count(traffic.connections_unknown, "connection");
        parts.push(format!("{connections} of nobody knows whom"));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tunneld_proto::v1::{Blocked, Failure, Traffic, Transition, Up};

    use super::*;

    fn clock() -> Clock {
        Clock::standing_at("2025-11-24T09:00:00Z")
    }

    fn transition(minutes: u64, state: &str, reason: &str) -> Transition {
        let at = Some(clock().ago(Duration::from_mins(minutes)));
        Transition {
            at,
            state: state.to_owned(),
            reason: reason.to_owned(),
            ..Transition::default()
        }
    }

    fn well() -> Tunnel {
        Tunnel {
            name: "prod-db".to_owned(),
            state: Some(State::Up(Up {})),
            local: vec!["127.0.0.1:15432".to_owned(), "[::1]:15432".to_owned()],
            target: "rds:prod-db".to_owned(),
            route: "ssm via bastion".to_owned(),
            since: Some(clock().ago(Duration::from_hours(2))),
            ..Tunnel::default()
        }
    }

    #[test]
    fn a_busy_tunnel_shows_where_it_leads_and_what_happened_to_it() {
        let tunnel = Tunnel {
            traffic: Some(Traffic {
                connections: 3,
                connections_total: 12,
                connections_failed: 1,
                bytes_in: 1_200_000_000,
                bytes_out: 4_100_000,
                held: 2,
                links_lost: 1,
                connections_expired: 1,
                connections_refused: 2,
                connections_unknown: 1,
            }),
            link: Some(Link {
                via: "bastion-a (i-0abc)".to_owned(),
                target_host: "prod.rds.example".to_owned(),
                target_port: 5432,
                sessions: 2,
                agent_version: "3.3.1142".to_owned(),
                engine: "postgres".to_owned(),
                notes: Vec::new(),
            }),
            last_error: Some(Failure {
                chain: vec!["prod.rds.example:5432 refused".to_owned()],
                ..Failure::default()
            }),
            last_error_at: Some(clock().ago(Duration::from_mins(3))),
            history: vec![
                transition(600, "up", ""),
                transition(10, "waiting", "the websocket was closed by AWS"),
                transition(9, "up", "resumed, no connection lost"),
            ],
            ..well()
        };
        insta::assert_snapshot!(detail(&tunnel, &clock()), @r"
        prod-db is up on 127.0.0.1:15432, ::1 port 15432
          target   rds:prod-db, that is prod.rds.example:5432 (PostgreSQL)
          route    ssm via bastion, through bastion-a (i-0abc), 2 sessions, agent 3.3.1142
          now      3 connections, 2 waiting for the link, 1.2 GB down, 4.1 MB up, 12 connections in all, 1 failed, 1 of them cut by the route's limit, 1 link lost
          refused  2 connections of other users, whom `allow_users` can let in; 1 connection of nobody knows whom
          since    2 h
          failed   3 min ago: prod.rds.example:5432 refused
          history  2025-11-23 23:00:00 up
                   08:50:00 lost: the websocket was closed by AWS
                   08:51:00 resumed, no connection lost
        ");
    }

    #[test]
    fn a_blocked_tunnel_says_first_what_to_do() {
        let cause = Failure {
            chain: vec!["127.0.0.1:15432 is held by postgres (pid 812)".to_owned()],
            hints: vec!["free the port, or give the tunnel another `listen`".to_owned()],
            ..Failure::default()
        };
        let state = Some(State::Blocked(Blocked {
            cause: Some(cause.clone()),
        }));
        let tunnel = Tunnel {
            state,
            last_error: Some(cause),
            ..well()
        };
        insta::assert_snapshot!(detail(&tunnel, &clock()), @r"
        prod-db is blocked: 127.0.0.1:15432 is held by postgres (pid 812)
          free the port, or give the tunnel another `listen`
          target   rds:prod-db
          route    ssm via bastion
          since    2 h
        ");
    }

    #[test]
    fn a_long_history_shows_its_end() {
        let history = (0..20)
            .rev()
            .map(|minutes| transition(minutes, "up", ""))
            .collect();
        let drawn = detail(&Tunnel { history, ..well() }, &clock());
        assert_eq!(drawn.lines().count(), 4 + HISTORY);
        assert!(drawn.ends_with(" 09:00:00 up"));
    }

    #[test]
    fn addresses_other_than_the_twin_are_written_in_full() {
        assert_eq!(beside("127.0.0.1:1", "[::1]:1"), "::1 port 1");
        assert_eq!(beside("127.0.0.1:1", "[::1]:2"), "[::1]:2");
        assert_eq!(beside("127.0.0.1:1", "unix:/run/db"), "unix:/run/db");
    }
}
