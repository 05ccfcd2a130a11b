//! A line of the daemon's log, for people.

use tunneld_proto::v1::{LogLevel, LogLine};

use super::words::Clock;

/// Whose a line is that belongs to no tunnel.
const DAEMON: &str = "tunneld";

/// Writes a line: when, how much it matters, which tunnel and connection, what happened.
pub(crate) fn log_line(line: &LogLine, clock: &Clock, colour: bool) -> String {
    let time = line.at.as_ref().and_then(|at| clock.time(at)).unwrap_or_default();
    let level = format!("{:<5}", level_name(line.level()));
    let level = match paint(line.level()).filter(|_| colour) {
        Some(paint) => format!("{paint}{level}\x1b[0m"),
        None => level,
    };
    let tunnel = if line.tunnel.is_empty() {
        DAEMON
    } else {
        &line.tunnel
    };
    let connection = match line.connection {
        0 => String::new(),
        number => format!(" #{number}"),
    };
    format!("{time} {level} {tunnel}{connection}: {}", line.message)
}

/// Returns the name of a level.
pub(crate) fn level_name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Unspecified => "?",
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}

/// The colour of a level, as a terminal's escape sequence.
fn paint(level: LogLevel) -> Option<&'static str> {
    match level {
        LogLevel::Error => Some("\x1b[31m"),
        LogLevel::Warn => Some("\x1b[33m"),
        LogLevel::Debug | LogLevel::Trace => Some("\x1b[2m"),
        LogLevel::Unspecified | LogLevel::Info => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line(level: LogLevel) -> LogLine {
        LogLine {
            at: Some(clock().ago(Duration::from_secs(60))),
            level: level.into(),
            tunnel: "db".to_owned(),
            connection: 7,
            message: "connection ended: client closed bytes_in=1".to_owned(),
            source: "tunneld::tunnel::proxy".to_owned(),
        }
    }

    fn clock() -> Clock {
        Clock::standing_at("2025-11-24T09:00:00Z")
    }

    #[test]
    fn a_line_says_when_how_bad_whose_and_what() {
        assert_eq!(
            log_line(&line(LogLevel::Info), &clock(), false),
            "08:59:00 info  db #7: connection ended: client closed bytes_in=1"
        );
        let own = LogLine {
            tunnel: String::new(),
            connection: 0,
            message: "stopping".to_owned(),
            ..line(LogLevel::Error)
        };
        assert_eq!(
            log_line(&own, &clock(), false),
            "08:59:00 error tunneld: stopping"
        );
    }

    #[test]
    fn colour_is_for_the_level_alone() {
        let plain = log_line(&line(LogLevel::Warn), &clock(), false);
        let coloured = log_line(&line(LogLevel::Warn), &clock(), true);
        assert_eq!(coloured, plain.replace("warn ", "\x1b[33mwarn \x1b[0m"));
        assert_eq!(
            log_line(&line(LogLevel::Info), &clock(), true),
            log_line(&line(LogLevel::Info), &clock(), false)
        );
    }
}
