//! The end of a connection: what a close frame, its absence and the time say together.
//!
//! An upgrade that was accepted says nothing of the target: it is dialled afterwards, and a failure is a close frame.

use std::time::Duration;

/// What AWS says of a target that it could not connect to (several field reports). The code beside it is not public.
const UNREACHABLE: &str = "unable to connect to target";

/// The code of a normal close (RFC 6455, section 7.4.1).
const NORMAL: u16 = 1000;

/// How long before its time a connection counts as cut for it: its clock began a little earlier than ours.
const EARLY: Duration = Duration::from_secs(5);

/// The part of a short time that is as long as that: most ends of a connection of some seconds are no expiry.
const EARLY_PART: u32 = 10;

/// How the websocket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End<'a> {
    /// By a close frame, which may be empty.
    Closed {
        /// Its code.
        code: Option<u16>,
        /// Its reason, empty where there is none.
        reason: &'a str,
    },
    /// Without one: the connection under it ended, or was reset.
    Cut,
}

/// What an end means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The target has ended the connection: everything it sent has come.
    TargetEnded,
    /// The endpoint could not connect to the target.
    TargetUnreachable,
    /// The connection's time was over; what the target wanted is not known.
    Expired,
    /// The connection was lost.
    Lost,
}

/// Returns what an end means for a connection of this `age` that may last for `duration`.
pub fn meaning(end: &End<'_>, age: Duration, duration: Duration) -> Meaning {
    // Which code and reason AWS gives at the end of the time is not public, and even a normal one would not say that
    // the target has ended anything.
    if age + EARLY.min(duration / EARLY_PART) >= duration {
        return Meaning::Expired;
    }
    match end {
        End::Closed {
            code: None | Some(NORMAL),
            ..
        } => Meaning::TargetEnded,
        End::Closed { reason, .. } if reason.to_ascii_lowercase().contains(UNREACHABLE) => {
            Meaning::TargetUnreachable
        }
        End::Closed { .. } | End::Cut => Meaning::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const YOUNG: Duration = Duration::from_secs(1);

    fn closed(code: u16, reason: &str) -> End<'_> {
        End::Closed {
            code: Some(code),
            reason,
        }
    }

    #[test]
    fn a_normal_or_empty_close_is_the_targets_end_and_everything_else_is_not() {
        let empty = End::Closed {
            code: None,
            reason: "",
        };
        for (end, expected) in [
            (empty, Meaning::TargetEnded),
            (closed(1000, ""), Meaning::TargetEnded),
            (closed(1000, "whatever"), Meaning::TargetEnded),
            (
                closed(1011, "Unable to connect to target"),
                Meaning::TargetUnreachable,
            ),
            (
                closed(4000, "Unable to connect to target."),
                Meaning::TargetUnreachable,
            ),
            (closed(1001, "going away"), Meaning::Lost),
            (closed(1011, ""), Meaning::Lost),
            (End::Cut, Meaning::Lost),
        ] {
            assert_eq!(meaning(&end, YOUNG, HOUR), expected, "{end:?}");
        }
    }

    #[test]
    fn any_end_from_five_seconds_before_the_time_is_its_expiry() {
        for end in [closed(1000, ""), closed(1011, "x"), End::Cut] {
            for age in [3595, 3600, 3601, 100_000] {
                let meaning = meaning(&end, Duration::from_secs(age), HOUR);
                assert_eq!(meaning, Meaning::Expired, "{end:?} {age}");
            }
            assert_ne!(
                meaning(&end, Duration::from_millis(3_594_999), HOUR),
                Meaning::Expired
            );
            let short = Duration::from_secs(10);
            assert_eq!(meaning(&end, Duration::from_secs(9), short), Meaning::Expired);
            assert_ne!(meaning(&end, Duration::from_secs(8), short), Meaning::Expired);
        }
    }
}
