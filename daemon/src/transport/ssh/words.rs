//! What went wrong with an SSH connection, in words.

use russh::ChannelOpenFailure;

use super::connection::HANDSHAKE;
use super::greeting::Greeting;
use super::handler::{Ended, Trouble};
use super::host::{Places, Server};
use crate::connector::authority;
use crate::failure::{Cause, Failure, Reason, Remedy, Scope};
use crate::transport::failure_of;

/// The server could not be reached by the route below.
pub(super) fn unreachable(server: &Server, failure: Failure) -> Failure {
    let doing = format!("cannot reach the SSH server of {server}");
    passed_on(failure, doing)
}

/// The server did not say a word, or not all that it should have.
pub(super) fn silent(server: &Server) -> Failure {
    let doing = format!("cannot talk to the SSH server of {server}");
    let why = format!("it did not answer within {} s", HANDSHAKE.as_secs());
    Failure::new(Reason::Unreachable, Remedy::Retry, doing).because(why)
}

/// The key exchange failed.
pub(super) fn not_shaken(server: &Server, trouble: Trouble, greeting: &Greeting) -> Failure {
    let doing = format!("cannot talk to the SSH server of {server}");
    let error = match trouble {
        Trouble::Refused(failure) => return *failure,
        Trouble::Ssh(error) => error,
    };
    let words = greeting.words();
    if let russh::Error::NoCommonAlgo { kind, ours, theirs } = &error {
        let why = format!(
            "it has no {kind:?} algorithm in common with us: it knows {}, we know {}",
            theirs.join(" "),
            ours.join(" ")
        );
        return Failure::new(Reason::Invalid, Remedy::Fix, doing)
            .because(why)
            .hint("a newer OpenSSH there has safe ones");
    }
    if matches!(error, russh::Error::Version) {
        return Failure::new(Reason::Invalid, Remedy::Fix, doing)
            .because(format!("what answers there is no SSH server: it says `{words}`"));
    }
    let failure = Failure::new(Reason::Unreachable, Remedy::Retry, doing);
    if words.contains("MaxStartups") {
        return failure
            .because(format!("it has too many logins under way, and says `{words}`"))
            .hint("a larger MaxStartups in its sshd_config lets more log in at the same time");
    }
    if !is_end(&error) {
        return failure.because(error);
    }
    if words.is_empty() {
        return failure
            .because("it closed the connection before it said a word")
            .hint("it does so when too many log in at once (MaxStartups), and while it starts or stops");
    }
    failure.because(format!("it closed the connection after it had said `{words}`"))
}

/// The server ended the connection during the login.
pub(super) fn hung_up(server: &Server, ended: Ended) -> Failure {
    let doing = format!("cannot log in to {server} as `{}`", server.user);
    Failure::new(Reason::Unreachable, Remedy::Retry, doing).because(cause(ended))
}

/// A connection that stood was lost. `is_over`: its route's time was.
pub(super) fn lost(server: &Server, ended: Option<Ended>, is_over: bool) -> Failure {
    let doing = format!("the SSH connection to {server} was lost");
    let Some(ended) = ended else {
        return Failure::new(Reason::Unreachable, Remedy::Retry, doing);
    };
    let below = match &ended {
        Ended::Broke(Trouble::Ssh(russh::Error::IO(error))) => failure_of(error).cloned(),
        Ended::Broke(_) | Ended::Said(_) => None,
    };
    let expired = is_over
        || below
            .as_ref()
            .is_some_and(|failure| failure.reason() == Reason::Expired);
    if expired {
        let doing = format!("the SSH connection to {server} was cut because its route's time was over");
        let failure = Failure::new(Reason::Expired, Remedy::Retry, doing).of_stream();
        return failure.because(cause(ended));
    }
    match below {
        Some(below) => passed_on(below.again(), doing),
        None => Failure::new(Reason::Unreachable, Remedy::Retry, doing).because(cause(ended)),
    }
}

/// A server that was asked for a sign of life has given none so far.
pub(super) fn doubtful(server: &Server) -> Failure {
    let doing = format!("{server} does not answer a ping");
    Failure::new(Reason::Unreachable, Remedy::Retry, doing)
}

/// A server that was asked for a sign of life gave none.
pub(super) fn unanswered(server: &Server) -> Failure {
    let doing = format!("the SSH connection to {server} was lost");
    let why = "the server did not answer a ping";
    Failure::new(Reason::Unreachable, Remedy::Retry, doing).because(why)
}

/// Our side closes the link.
pub(super) fn closed_by_us() -> Failure {
    Failure::new(Reason::Unreachable, Remedy::Retry, "the link was closed")
}

/// The server did not open a stream to the destination. `text` is what it said.
pub(super) fn refused(places: &Places, reason: &ChannelOpenFailure, text: &str) -> Failure {
    let Places {
        server, host, port, ..
    } = places;
    let target = authority(host, *port);
    let said: Cause = if text.is_empty() {
        format!("{reason:?}").into()
    } else {
        format!("it says `{text}`").into()
    };
    let failure = match reason {
        ChannelOpenFailure::AdministrativelyProhibited => {
            let doing = format!("{server} does not forward to `{target}`");
            Failure::new(Reason::TargetRefused, Remedy::Fix, doing)
                .hint("its sshd_config must allow it: AllowTcpForwarding yes or local, no DisableForwarding")
                .hint(format!(
                    "where it has PermitOpen, that must name the target: PermitOpen {target}"
                ))
        }
        ChannelOpenFailure::ConnectFailed => {
            let doing = format!("{server} cannot connect to the target `{target}`");
            Failure::new(Reason::TargetRefused, Remedy::Retry, doing)
        }
        ChannelOpenFailure::UnknownChannelType
        | ChannelOpenFailure::ResourceShortage
        | ChannelOpenFailure::Other { .. } => {
            let doing = format!("{server} did not open a stream to the target `{target}`");
            Failure::new(Reason::TargetRefused, Remedy::Retry, doing)
        }
    };
    failure.of_stream().because(said)
}

fn cause(ended: Ended) -> Cause {
    match ended {
        Ended::Said(words) => format!("the server said goodbye: `{words}`").into(),
        Ended::Broke(Trouble::Refused(failure)) => failure,
        Ended::Broke(Trouble::Ssh(error)) if is_end(&error) => "the server closed it without a word".into(),
        Ended::Broke(Trouble::Ssh(russh::Error::KeepaliveTimeout)) => {
            "the server gave no sign of life".into()
        }
        Ended::Broke(Trouble::Ssh(error)) => Box::new(error),
    }
}

/// Whether the far end just closed the bytes below.
fn is_end(error: &russh::Error) -> bool {
    if let russh::Error::IO(error) = error {
        return failure_of(error).is_none();
    }
    matches!(error, russh::Error::Disconnect | russh::Error::HUP)
}

/// A failure of the route below, which ends what stands on it.
fn passed_on(failure: Failure, doing: String) -> Failure {
    let passed = Failure::new(failure.reason(), failure.remedy().clone(), doing);
    let hints = failure.hints().to_vec();
    debug_assert_eq!(passed.scope(), Scope::Link);
    hints.into_iter().fold(passed, Failure::hint).because(failure)
}
