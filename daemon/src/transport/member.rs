//! The members of a link that is a pool: what one has to say, and what it is told.
//!
//! ```text
//!   keeper ── Station ──► member ── Report ──► keeper
//!   link ──── Ask ──────► member
//! ```

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::pool::{Member, Need, Sharing};
use super::{LinkDetails, Stream};
use crate::config::PoolSize;
use crate::failure::Failure;

/// What the members of a link are.
pub(super) trait Kind: Send + Sync + 'static {
    /// What one is called in messages.
    const NAME: &'static str;
    /// What its task is told, by whoever has something to tell.
    type Command: From<Ask> + Send + 'static;

    /// Returns how many there are to be.
    fn limits(&self) -> PoolSize;

    /// Returns where the tasks live.
    fn tasks(&self) -> &TaskTracker;

    /// Brings one about, and keeps it to its end.
    fn run(self: Arc<Self>, station: Station<Self::Command>) -> impl Future<Output = ()> + Send;

    /// Returns what a person might want to know of what all have in common, a sentence each.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Ends what all had in common, once the last has ended.
    fn finish(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// What a member has to do with its keeper and its link.
pub(super) struct Station<C> {
    pub(super) need: Need,
    pub(super) reporter: Reporter,
    /// The way to itself, and what came by it.
    pub(super) commands: (mpsc::WeakUnboundedSender<C>, mpsc::UnboundedReceiver<C>),
    /// Cancelled when it is to end.
    pub(super) goodbye: CancellationToken,
}

/// What a link asks of a member.
pub(super) enum Ask {
    /// A stream. Where the answer is dropped, another member is looked for.
    Open {
        seat: Seat,
        /// What to call the stream in messages.
        client: String,
        answer: oneshot::Sender<Result<Box<dyn Stream>, Failure>>,
    },
    /// A sign of life of the far end.
    Probe,
}

/// What a member tells its keeper.
pub(super) enum Report {
    /// It can carry streams.
    Ready {
        sharing: Sharing,
        details: LinkDetails,
        /// Where it has an end that is known.
        term: Option<Term>,
    },
    /// It never came about.
    Failed(Failure),
    /// It takes new streams, or does not, and why.
    Judged(Judgement),
    /// One of its streams has ended, or was never opened.
    StreamEnded,
    /// It still works, and should be replaced.
    WornOut,
    /// It has ended.
    Ended(Arc<Failure>),
}

/// A member is replaced before half of its time is over: somewhere between these parts of it, so that those of a pool do
/// not go together. The other half is for the streams that it has then.
const EARLIEST: f64 = 0.40;
const LATEST: f64 = 0.50;
/// Whoever cuts may be a little early: by so much of the time that it gives, and no more than that.
const EARLY: f64 = 0.05;
const EARLIEST_CUT: Duration = Duration::from_secs(5);

/// How long a member lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Term {
    /// When it is to be replaced.
    pub(super) replace_at: Instant,
    /// When it will be cut.
    pub(super) ends_at: Instant,
    /// From when on it may have been cut.
    over_at: Instant,
}

impl Term {
    /// The term of a member that began and will be cut at these times.
    pub(super) fn between(began: Instant, ends_at: Instant) -> Self {
        let time = ends_at.saturating_duration_since(began);
        let part = EARLIEST + fastrand::f64() * (LATEST - EARLIEST);
        Self {
            replace_at: began + time.mul_f64(part),
            ends_at,
            over_at: ends_at - time.mul_f64(EARLY).min(EARLIEST_CUT),
        }
    }

    /// Returns whether a member that has ended was cut.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.over_at <= now
    }

    /// Tells when what is open at this moment will be cut.
    pub(super) fn farewell(&self, now: Instant) -> String {
        let until = wall_clock() + self.ends_at.saturating_duration_since(now);
        format!(
            "connections opened before {} will be cut at {} UTC",
            minute(wall_clock()),
            minute(until)
        )
    }
}

/// Whether a member takes new streams.
pub(super) enum Judgement {
    Fit,
    Impaired(Arc<Failure>),
    Stalled(Arc<Failure>),
}

/// A member's way to its keeper.
#[derive(Debug, Clone)]
pub(super) struct Reporter {
    member: Member,
    sender: mpsc::UnboundedSender<(Member, Report)>,
}

/// The place of one stream on a member; given back when it is dropped.
pub(super) struct Seat(Reporter);

impl Reporter {
    pub(super) fn new(member: Member, sender: mpsc::UnboundedSender<(Member, Report)>) -> Self {
        Self { member, sender }
    }

    /// Tells the keeper; one that is gone has no use for it.
    pub(super) fn tell(&self, report: Report) {
        let _ = self.sender.send((self.member, report));
    }
}

impl Seat {
    pub(super) fn new(reporter: Reporter) -> Self {
        Self(reporter)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.tell(Report::StreamEnded);
    }
}

#[expect(clippy::disallowed_methods, reason = "it is told to people, never compared")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// The hour and minute of a time of day in UTC.
fn minute(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.get(11..16).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_replaced_before_half_of_its_time_is_over() {
        let began = Instant::now();
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        for _ in 0..1_000 {
            let term = Term::between(began, began + minutes(60));
            let after = term.replace_at - began;
            assert!(minutes(24) <= after && after <= minutes(30), "{after:?}");
        }
    }
}
