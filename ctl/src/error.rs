//! How a command ended: the exit code, and what is told to the person.

use std::process::ExitCode;

use tunneld_proto::socket::SocketPathError;
use tunneld_proto::v1::{Failure, Reason};

use crate::output::Output;
use crate::tunnel;

/// The outcome of a command; with several names the greatest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// Failed in a way that fits none of the others.
    Failed = 1,
    /// The command line or the configuration file is wrong.
    Usage = 2,
    /// No daemon answers.
    NoDaemon = 3,
    /// A person has to do something first: log in, free a port, change the configuration.
    MustAct = 4,
    /// The time given has passed.
    TimedOut = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A command that could not be carried out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Error {
    exit: Exit,
    /// What failed; several lines where the daemon said as many. `None`: there is nobody left to tell.
    message: Option<String>,
    /// Why, outermost first.
    causes: Vec<String>,
    /// What to do about it, a line each.
    hints: Vec<String>,
}

impl Error {
    /// An error that ends the program with `exit`. `message` has no full stop.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: Some(message.into()),
            causes: Vec::new(),
            hints: Vec::new(),
        }
    }

    /// An error with the exit code for everything that has none of its own.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// The reader of the answer went away. That is its right, so nothing is said about it.
    pub(crate) fn reader_left() -> Self {
        Self {
            exit: Exit::Ok,
            message: None,
            causes: Vec::new(),
            hints: Vec::new(),
        }
    }

    /// The same error with what caused it.
    pub(crate) fn because(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// The same error as what caused another.
    pub(crate) fn leads_to(mut self, message: impl Into<String>) -> Self {
        let cause = self.message.replace(message.into());
        self.causes.splice(0..0, cause);
        self
    }

    /// The same error with one more line that says what to do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The same error, which says whose it is: for what runs behind another program.
    pub(crate) fn signed(mut self) -> Self {
        self.message = self.message.map(|message| format!("tunnelctl: {message}"));
        self
    }

    /// Returns the code that the program ends with.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// Says what failed, why, and what to do.
    pub(crate) fn tell(&self, output: &Output) {
        if let Some(message) = &self.message {
            output.talk(&report(message, &self.causes, &self.hints));
        }
    }
}

impl From<Failure> for Error {
    fn from(mut failure: Failure) -> Self {
        tunnel::disarm_failure(&mut failure);
        let exit = match failure.reason() {
            Reason::Login | Reason::Denied => Exit::MustAct,
            Reason::Invalid => Exit::Usage,
            Reason::Unspecified
            | Reason::Unreachable
            | Reason::Throttled
            | Reason::NotFound
            | Reason::PortInUse
            | Reason::AgentOffline
            | Reason::TargetRefused
            | Reason::Expired => Exit::Failed,
        };
        let mut chain = failure.chain.into_iter();
        Self {
            exit,
            message: Some(
                chain
                    .next()
                    .unwrap_or_else(|| "tunneld does not say what failed".to_owned()),
            ),
            causes: chain.collect(),
            hints: failure.hints,
        }
    }
}

impl From<SocketPathError> for Error {
    fn from(error: SocketPathError) -> Self {
        let told = Self::failed(error.to_string()).hint(error.hint());
        match std::error::Error::source(&error) {
            Some(source) => told.because(source.to_string()),
            None => told,
        }
    }
}

/// Lays out a trouble: the headline, then each cause, then each hint.
pub(crate) fn report(headline: &str, causes: &[String], hints: &[String]) -> String {
    let causes = causes.iter().map(|cause| format!("\n  because {cause}"));
    let hints = hints.iter().map(|hint| format!("\n  {hint}"));
    causes
        .chain(hints)
        .fold(headline.to_owned(), |report, line| report + &line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greater_exit_code_is_the_greater_value() {
        let mut ascending = [
            Exit::TimedOut,
            Exit::Ok,
            Exit::NoDaemon,
            Exit::Failed,
            Exit::MustAct,
            Exit::Usage,
        ];
        ascending.sort();
        assert_eq!(ascending.map(|exit| exit as u8), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_report_names_what_failed_then_why_then_what_to_do() {
        let report = report(
            "it failed",
            &["of this".to_owned(), "and that".to_owned()],
            &["do so".to_owned()],
        );
        assert_eq!(
            report,
            "it failed\n  because of this\n  because and that\n  do so"
        );
    }
}
