//! `tunnelctl status`: all tunnels at a glance.

use std::time::Duration;

use tunneld_proto::v1::Tunnel;
use tunneld_proto::v1::tunnel::State;

use super::words::{Clock, size, span};
use super::{address, one_line, retry};
use crate::tunnel;

const HEADER: [&str; COLUMNS] = [
    "NAME",
    "STATE",
    "LOCAL",
    "TARGET",
    "ROUTE",
    "CONNS",
    "↓ / ↑",
    "SINCE",
];
const COLUMNS: usize = 8;

/// Which column carries the state, is coloured by it and starts the lines below a row.
const STATE: usize = 1;

/// What stands between two columns.
const GAP: &str = "   ";

/// What a cell says that has nothing to say.
const NOTHING: &str = "–";

/// How long a failed connection is worth a line in the table while the tunnel itself is well: whoever saw the failure
/// looks within the hour, and the details keep it.
const RECENT: Duration = Duration::from_hours(1);

/// Draws the table, without a line end after its last line.
pub(crate) fn table(tunnels: &[&Tunnel], clock: &Clock, colour: bool) -> String {
    let rows: Vec<_> = tunnels.iter().map(|tunnel| cells(tunnel, clock)).collect();
    let mut widths = HEADER.map(width);
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            widths[column] = widths[column].max(width(cell));
        }
    }
    let indent = " ".repeat(widths[0] + GAP.len());

    let mut lines = vec![line(&HEADER.map(str::to_owned), &widths, None)];
    for (tunnel, row) in tunnels.iter().zip(&rows) {
        lines.push(line(row, &widths, paint(tunnel).filter(|_| colour)));
        lines.extend(
            remarks(tunnel, clock)
                .into_iter()
                .map(|remark| format!("{indent}{remark}")),
        );
    }
    lines.join("\n")
}

fn cells(tunnel: &Tunnel, clock: &Clock) -> [String; COLUMNS] {
    let traffic = tunnel.traffic.unwrap_or_default();
    let resting = matches!(tunnel.state, Some(State::Down(_) | State::Idle(_)));
    let since = tunnel
        .since
        .as_ref()
        .filter(|_| !resting)
        .and_then(|since| clock.age(since));
    let route = match tunnel.link.as_ref().map_or(0, |link| link.sessions) {
        0 | 1 => tunnel.route.clone(),
        sessions => format!("{} ×{sessions}", tunnel.route),
    };
    let connections = if resting && traffic.connections == 0 {
        NOTHING.to_owned()
    } else {
        traffic.connections.to_string()
    };
    let bytes = match (traffic.bytes_in, traffic.bytes_out) {
        (0, 0) => NOTHING.to_owned(),
        (down, up) => format!("{} / {}", size(down), size(up)),
    };
    [
        tunnel.name.clone(),
        tunnel::state_name(tunnel).to_owned(),
        address(tunnel).to_owned(),
        tunnel.target.clone(),
        route,
        connections,
        bytes,
        since.map_or_else(|| NOTHING.to_owned(), span),
    ]
}

/// The lines below a row: why the tunnel is not up, or what ended a connection lately.
fn remarks(tunnel: &Tunnel, clock: &Clock) -> Vec<String> {
    if let Some(cause) = tunnel::cause(tunnel) {
        let mut remarks = vec![one_line(cause)];
        remarks.extend(cause.hints.iter().cloned());
        remarks.extend(retry(tunnel, clock));
        return remarks;
    }
    let age = tunnel.last_error_at.as_ref().and_then(|at| clock.age(at));
    match (&tunnel.last_error, age) {
        (Some(failure), Some(age)) if age < RECENT => {
            vec![format!("{} ago: {}", span(age), one_line(failure))]
        }
        (Some(_) | None, _) => Vec::new(),
    }
}

/// The colour of the tunnel's state, as a terminal's escape sequence.
fn paint(tunnel: &Tunnel) -> Option<&'static str> {
    match tunnel.state {
        Some(State::Up(_)) => Some("\x1b[32m"),
        Some(State::Connecting(_) | State::Waiting(_)) => Some("\x1b[33m"),
        Some(State::Blocked(_)) => Some("\x1b[31m"),
        Some(State::Down(_) | State::Idle(_)) | None => None,
    }
}

fn line(cells: &[String; COLUMNS], widths: &[usize; COLUMNS], paint: Option<&str>) -> String {
    let mut line = String::new();
    for (column, cell) in cells.iter().enumerate() {
        match paint {
            Some(paint) if column == STATE => line.extend([paint, cell, "\x1b[0m"]),
            Some(_) | None => line.push_str(cell),
        }
        // The last column ends the line: nothing trails behind it.
        if column + 1 < COLUMNS {
            line.push_str(&" ".repeat(widths[column] - width(cell)));
            line.push_str(GAP);
        }
    }
    line
}

fn width(text: impl AsRef<str>) -> usize {
    text.as_ref().chars().count()
}

#[cfg(test)]
mod tests {
    use tunneld_proto::v1::{Blocked, Failure, Idle, Link, Traffic, Up, Waiting};

    use super::*;

    fn clock() -> Clock {
        Clock::standing_at("2025-11-24T09:00:00Z")
    }

    fn tunnel(name: &str, state: State) -> Tunnel {
        Tunnel {
            name: name.to_owned(),
            state: Some(state),
            local: vec!["127.0.0.1:15432".to_owned(), "[::1]:15432".to_owned()],
            target: format!("rds:{name}"),
            route: "ssm via bastion".to_owned(),
            since: Some(clock().ago(Duration::from_mins(6))),
            ..Tunnel::default()
        }
    }

    fn failure(chain: &[&str], hints: &[&str]) -> Option<Failure> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Some(Failure {
            chain: owned(chain),
            hints: owned(hints),
            ..Failure::default()
        })
    }

    #[test]
    fn the_table_shows_every_state_with_its_remarks() {
        let mut busy = tunnel("prod-db", State::Up(Up {}));
        busy.traffic = Some(Traffic {
            connections: 3,
            bytes_in: 1_200_000_000,
            bytes_out: 4_100_000,
            ..Traffic::default()
        });
        busy.link = Some(Link {
            sessions: 2,
            ..Link::default()
        });
        let idle = tunnel("billing", State::Idle(Idle {}));
        let cause = failure(
            &["the login of profile stage expired"],
            &["aws sso login --profile stage"],
        );
        let blocked = tunnel("stage-db", State::Blocked(Blocked { cause }));
        let cause = failure(&["cannot start a session", "connection refused"], &[]);
        let until = Some(Clock::standing_at("2025-11-24T09:00:08Z").ago(Duration::ZERO));
        let waiting = tunnel(
            "x",
            State::Waiting(Waiting {
                attempt: 2,
                until,
                cause,
            }),
        );

        let drawn = table(&[&busy, &idle, &blocked, &waiting], &clock(), false);
        insta::assert_snapshot!(drawn, @r"
        NAME       STATE     LOCAL             TARGET         ROUTE                CONNS   ↓ / ↑             SINCE
        prod-db    up        127.0.0.1:15432   rds:prod-db    ssm via bastion ×2   3       1.2 GB / 4.1 MB   6 min
        billing    idle      127.0.0.1:15432   rds:billing    ssm via bastion      –       –                 –
        stage-db   blocked   127.0.0.1:15432   rds:stage-db   ssm via bastion      0       –                 6 min
                   the login of profile stage expired
                   aws sso login --profile stage
        x          waiting   127.0.0.1:15432   rds:x          ssm via bastion      0       –                 6 min
                   cannot start a session: connection refused
                   retrying in 8 s
        ");
    }

    #[test]
    fn a_failed_connection_of_a_tunnel_that_is_well_is_shown_for_an_hour() {
        let mut well = tunnel("db", State::Up(Up {}));
        well.last_error = failure(&["db.internal:5432 refused the connection"], &[]);
        well.last_error_at = Some(clock().ago(Duration::from_mins(2)));
        assert!(
            table(&[&well], &clock(), false)
                .ends_with("\n       2 min ago: db.internal:5432 refused the connection")
        );

        well.last_error_at = Some(clock().ago(Duration::from_hours(2)));
        assert_eq!(table(&[&well], &clock(), false).lines().count(), 2);
    }

    #[test]
    fn colour_changes_the_state_alone_and_no_alignment() {
        let well = tunnel("db", State::Up(Up {}));
        let plain = table(&[&well], &clock(), false);
        let coloured = table(&[&well], &clock(), true);
        assert_eq!(coloured, plain.replace("up   ", "\x1b[32mup\x1b[0m   "));
        assert!(!plain.contains('\x1b'));
    }
}
