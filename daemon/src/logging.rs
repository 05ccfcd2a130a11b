//! Logging: `tracing` to stderr, fit for a terminal and for the journal, and to a memory of the latest lines.
//!
//! ```text
//!   event ──► filter ──┬──► stderr
//!                      └──► RecentLines ──► RPC `Logs`
//! ```
//!
//! What is logged is chosen by `--log`, else by `RUST_LOG`, else it is `info`. Two rules stand above that:
//!
//! - Libraries below us log at `warn`, or at `info` when more was asked for in general; `RUST_LOG` can name one to see
//!   more of it.
//! - The targets in `SECRETIVE` never log below `info`, whatever was asked for: there they show signatures, tokens
//!   or payload.

mod recent;

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterExt, ParseError, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

pub use self::recent::RecentLines;
pub(crate) use self::recent::{Batch, Line, Reader};

/// Libraries that have much to say to their own developers; a target is every one that begins so.
const CHATTY: [&str; 10] = [
    "aws_",
    "h2",
    "hyper",
    "hyper_util",
    "reqwest",
    "russh",
    "rustls",
    "tokio_tungstenite",
    "tonic",
    "tungstenite",
];

/// Libraries that show secrets or payload below `info`: the canonical request and its signature (aws_sigv4), requests
/// with their headers (aws_smithy_runtime), whole messages (tungstenite), headers (h2, hyper),
/// what is signed (russh).
const SECRETIVE: [&str; 7] = [
    "aws_sigv4",
    "aws_smithy",
    "h2",
    "hyper",
    "russh",
    "tokio_tungstenite",
    "tungstenite",
];

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The words in `--log` or `RUST_LOG` say nothing.
    #[error("cannot understand the log level `{0}`")]
    Filter(String, #[source] ParseError),
    /// Something else logs already.
    #[error("cannot set up logging")]
    Init(#[from] TryInitError),
}

/// Sets up logging for the process, and returns what will hold its latest lines. `level` is what the command line said,
/// `from_environment` what `RUST_LOG` says.
///
/// # Errors
///
/// What was asked for cannot be understood, or logging is set up already.
pub fn init(level: Option<&str>, from_environment: Option<&str>) -> Result<RecentLines, LoggingError> {
    // With its own hint missing, every record of every library would be built to be thrown away.
    let harmless = filter_fn(is_harmless).with_max_level_hint(LevelFilter::TRACE);
    let filter = filter(level, from_environment)?.and(harmless);
    let terminal = std::io::stderr().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(colour);
    // The journal notes the time by itself.
    let lines = if in_journal() {
        lines.without_time().boxed()
    } else {
        lines.boxed()
    };
    let recent = RecentLines::default();
    tracing_subscriber::registry()
        .with(lines.and_then(recent.clone()).with_filter(filter))
        .try_init()?;
    Ok(recent)
}

fn filter(level: Option<&str>, from_environment: Option<&str>) -> Result<EnvFilter, LoggingError> {
    let asked = level
        .or(from_environment)
        .filter(|words| !words.is_empty())
        .unwrap_or("info");
    let cap = |asked: LevelFilter| if asked > LevelFilter::INFO { "info" } else { "warn" };
    let quiet = |cap: &str| CHATTY.map(|target| format!("{target}={cap}")).join(",");
    let parse = |words: &str| {
        EnvFilter::builder()
            .parse(words)
            .map_err(|error| LoggingError::Filter(asked.to_owned(), error))
    };
    match asked.parse::<LevelFilter>() {
        Ok(LevelFilter::OFF | LevelFilter::ERROR) => parse(asked),
        Ok(level) => parse(&format!("{level},{}", quiet(cap(level)))),
        // Words after the general ones win, so that naming a library shows more of it.
        Err(_) => parse(&format!("info,{},{asked}", quiet("warn"))),
    }
}

fn is_harmless(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO
        || !SECRETIVE
            .iter()
            .any(|target| metadata.target().starts_with(target))
}

/// Returns whether stderr is the journal: systemd names its device and inode, which a process started from a terminal
/// may have inherited without its stderr being there.
fn in_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Logs a line for each target and level through the filters, and returns those that came out.
    fn shown(level: Option<&str>, from_environment: Option<&str>) -> Vec<String> {
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<String>>>);
        impl<S: tracing::Subscriber> Layer<S> for Lines {
            fn on_event(
                &self,
                event: &tracing::Event<'_>,
                _context: tracing_subscriber::layer::Context<'_, S>,
            ) {
                let line = format!("{} {}", event.metadata().target(), event.metadata().level());
                self.0.lock().unwrap().push(line);
            }
        }
        let lines = Lines::default();
        let filter = filter(level, from_environment)
            .unwrap()
            .and(filter_fn(is_harmless).with_max_level_hint(LevelFilter::TRACE));
        let subscriber = tracing_subscriber::registry().with(lines.clone().with_filter(filter));
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!(target: "tunneld", "");
            tracing::trace!(target: "tunneld", "");
            tracing::info!(target: "aws_config::sso", "");
            tracing::debug!(target: "aws_config::sso", "");
            tracing::trace!(target: "aws_sigv4::http_request", "");
            tracing::trace!(target: "tungstenite::protocol", "");
            tracing::warn!(target: "hyper::client", "");
        });
        let lines = lines.0.lock().unwrap();
        lines.clone()
    }

    #[test]
    fn libraries_are_quiet_unless_something_is_wrong() {
        assert_eq!(shown(None, None), ["hyper::client WARN"]);
    }

    #[test]
    fn more_of_us_is_a_little_more_of_libraries() {
        let lines = shown(Some("trace"), None);
        assert_eq!(
            lines,
            [
                "tunneld DEBUG",
                "tunneld TRACE",
                "aws_config::sso INFO",
                "hyper::client WARN"
            ]
        );
    }

    #[test]
    fn a_library_that_is_named_speaks() {
        let lines = shown(None, Some("aws_config=debug"));
        assert_eq!(
            lines,
            [
                "aws_config::sso INFO",
                "aws_config::sso DEBUG",
                "hyper::client WARN"
            ]
        );
    }

    #[test]
    fn secrets_are_never_logged_whatever_was_asked_for() {
        let lines = shown(
            None,
            Some("trace,aws_sigv4::http_request=trace,tungstenite=trace"),
        );
        assert!(
            !lines
                .iter()
                .any(|line| line.starts_with("aws_sigv4") || line.starts_with("tungstenite"))
        );
        assert!(lines.contains(&"tunneld TRACE".to_owned()));
    }

    #[test]
    fn the_command_line_wins_over_the_environment() {
        assert_eq!(shown(Some("error"), Some("trace")), [""; 0]);
    }

    #[test]
    fn words_that_say_nothing_are_refused() {
        assert!(
            matches!(filter(Some("tunneld=loud"), None), Err(LoggingError::Filter(words, _)) if words == "tunneld=loud")
        );
    }
}
