//! The task that owns the sessions of one link: it performs what the pool decides, and tells how the link is.
//!
//! ```text
//!   requests of the link ──┐             ┌─► start a session, end one, hand out a seat on one
//!   reports of sessions  ──┼─► Pool ─────┤
//!   timer                ──┘             └─► health, closed
//! ```
//!
//! A link is well as long as one of its sessions takes new streams, or one is on its way. It has ended when none is
//! left.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info};

use super::Context;
use super::driver::Command;
use super::link::SsmLink;
use super::start::Start;
use crate::failure::{Failure, Reason, Remedy};
use crate::transport::pool::{Action, Fitness, Member, Pool, Sharing, Ticket};
use crate::transport::{Health, Impaired, LinkDetails};

/// What a link asks for.
pub(super) enum Request {
    /// A place for one stream.
    Open(oneshot::Sender<Result<Seat, Failure>>),
    /// A sign of life of every session.
    Probe,
}

/// What a session tells its keeper.
pub(super) enum Report {
    /// It can carry streams.
    Ready { sharing: Sharing, details: LinkDetails },
    /// It never came about.
    Failed(Failure),
    /// It takes new streams, or does not, and why.
    Judged(Judgement),
    /// One of its streams has ended, or was never opened.
    StreamEnded,
    /// It has ended.
    Ended(Arc<Failure>),
}

/// Whether a session takes new streams.
pub(super) enum Judgement {
    Fit,
    Impaired(Arc<Failure>),
    Stalled(Arc<Failure>),
}

/// A session's way to its keeper.
#[derive(Debug, Clone)]
pub(super) struct Reporter {
    member: Member,
    sender: mpsc::UnboundedSender<(Member, Report)>,
}

/// The place of one stream on a session; given back when it is dropped.
pub(super) struct Seat {
    commands: mpsc::UnboundedSender<Command>,
    reporter: Reporter,
}

/// The task. See the module's documentation.
pub(super) struct Keeper {
    context: Arc<Context>,
    pool: Pool,
    sessions: BTreeMap<Member, Held>,
    /// Sessions that are ending; each is cancelled when it has.
    ending: Vec<CancellationToken>,
    tickets: BTreeMap<Ticket, oneshot::Sender<Result<Seat, Failure>>>,
    requests: mpsc::UnboundedReceiver<Request>,
    reporter: mpsc::UnboundedSender<(Member, Report)>,
    reports: mpsc::UnboundedReceiver<(Member, Report)>,
    health: watch::Sender<Health>,
    closed: watch::Sender<Option<Arc<Failure>>>,
    /// Told once the first session is ready, or was not to be had.
    ready: Option<oneshot::Sender<Result<(), Failure>>>,
    goodbye: CancellationToken,
    finished: CancellationToken,
    /// What is known of the far end.
    details: LinkDetails,
    /// Why the last session was not to be had, or ended.
    last: Option<Arc<Failure>>,
}

struct Held {
    commands: mpsc::UnboundedSender<Command>,
    goodbye: CancellationToken,
    finished: CancellationToken,
    trouble: Option<Trouble>,
}

enum Trouble {
    Impaired(Arc<Failure>),
    Stalled(Arc<Failure>),
}

enum Wake {
    Goodbye,
    Request(Request),
    Report(Member, Report),
    Timeout,
}

impl Keeper {
    /// A keeper whose first session is to be started, and its link. `ready` is told what came of that.
    pub(super) fn new(context: Arc<Context>, ready: oneshot::Sender<Result<(), Failure>>) -> (Self, SsmLink) {
        let (health, health_seen) = watch::channel(Health {
            impaired: None,
            ended: None,
            details: LinkDetails::default(),
        });
        let (closed, closed_seen) = watch::channel(None);
        let (asking, requests) = mpsc::unbounded_channel();
        let (reporter, reports) = mpsc::unbounded_channel();
        let (goodbye, finished) = (CancellationToken::new(), CancellationToken::new());
        let link = SsmLink {
            requests: asking,
            health: health_seen,
            closed: closed_seen,
            goodbye: goodbye.clone(),
            finished: finished.clone(),
            _ends: goodbye.clone().drop_guard(),
        };
        let keeper = Self {
            pool: Pool::new(context.settings.sessions),
            context,
            sessions: BTreeMap::new(),
            ending: Vec::new(),
            tickets: BTreeMap::new(),
            requests,
            reporter,
            reports,
            health,
            closed,
            ready: Some(ready),
            goodbye,
            finished,
            details: LinkDetails::default(),
            last: None,
        };
        (keeper, link)
    }

    /// Keeps the sessions until the link is closed or the last one has ended.
    pub(super) fn spawn(self) {
        let tasks = self.context.shared.tasks.clone();
        tasks.spawn(self.run().in_current_span());
    }

    async fn run(mut self) {
        let _finished = self.finished.clone().drop_guard();
        let failure = self.keep().await;
        self.finish(failure).await;
    }

    async fn keep(&mut self) -> Arc<Failure> {
        loop {
            self.perform();
            if self.pool.is_dead() {
                return self.last.take().unwrap_or_else(closed_by_us);
            }
            self.show();
            match self.wait().await {
                Wake::Goodbye => return closed_by_us(),
                Wake::Request(Request::Open(answer)) => {
                    let ticket = self.pool.open(Instant::now());
                    self.tickets.insert(ticket, answer);
                }
                Wake::Request(Request::Probe) => {
                    for held in self.sessions.values() {
                        // A driver that is gone has said so, or will.
                        let _ = held.commands.send(Command::Probe);
                    }
                }
                Wake::Report(member, report) => self.handle_report(member, report),
                Wake::Timeout => self.pool.handle_timeout(Instant::now()),
            }
            let pool = &mut self.pool;
            self.tickets.retain(|ticket, answer| {
                if answer.is_closed() {
                    pool.leave(*ticket);
                }
                !answer.is_closed()
            });
        }
    }

    async fn wait(&mut self) -> Wake {
        let due = self.pool.poll_timeout();
        let timer = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        // What happened to sessions comes first: a request that waits may have met one that has just ended.
        tokio::select! {
            biased;
            () = self.goodbye.cancelled() => Wake::Goodbye,
            Some((member, report)) = self.reports.recv() => Wake::Report(member, report),
            Some(request) = self.requests.recv() => Wake::Request(request),
            () = timer => Wake::Timeout,
        }
    }

    fn perform(&mut self) {
        while let Some(action) = self.pool.poll_action() {
            match action {
                Action::Start(member) => self.start(member),
                Action::Place(ticket, member) => self.place(ticket, member),
                Action::Refuse(ticket) => {
                    let failure = self.last.as_ref().map_or_else(not_to_be_had, Failure::again);
                    if let Some(answer) = self.tickets.remove(&ticket) {
                        // The connection may have left.
                        let _ = answer.send(Err(failure));
                    }
                }
                Action::Retire(member) => {
                    debug!("a session is not needed any more");
                    if let Some(held) = self.sessions.remove(&member) {
                        held.goodbye.cancel();
                        self.ending.push(held.finished);
                    }
                }
            }
        }
        self.ending.retain(|finished| !finished.is_cancelled());
    }

    fn start(&mut self, member: Member) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (goodbye, finished) = (CancellationToken::new(), CancellationToken::new());
        let start = Start {
            context: Arc::clone(&self.context),
            reporter: self.reporter(member),
            commands: (commands.downgrade(), receiver),
            goodbye: goodbye.clone(),
        };
        let guard = finished.clone().drop_guard();
        let task = async move {
            let _finished = guard;
            start.run().await;
        };
        self.context.shared.tasks.spawn(task.in_current_span());
        let held = Held {
            commands,
            goodbye,
            finished,
            trouble: None,
        };
        self.sessions.insert(member, held);
    }

    fn place(&mut self, ticket: Ticket, member: Member) {
        let reporter = self.reporter(member);
        let (Some(answer), Some(held)) = (self.tickets.remove(&ticket), self.sessions.get(&member)) else {
            return reporter.tell(Report::StreamEnded);
        };
        let commands = held.commands.clone();
        // Where the connection has left, the seat comes back at once.
        let _ = answer.send(Ok(Seat { commands, reporter }));
    }

    fn reporter(&self, member: Member) -> Reporter {
        let sender = self.reporter.clone();
        Reporter { member, sender }
    }

    fn handle_report(&mut self, member: Member, report: Report) {
        let now = Instant::now();
        match report {
            Report::Ready { sharing, details } => {
                self.details = details;
                if let Some(held) = self.sessions.get_mut(&member) {
                    held.trouble = None;
                }
                self.pool.started(member, sharing, now);
                if let Some(ready) = self.ready.take() {
                    // Whoever waited is gone: then the link was dropped, and `goodbye` is on the way.
                    let _ = ready.send(Ok(()));
                }
            }
            Report::Failed(failure) => {
                info!("a session did not start: {}", failure.in_one_line());
                self.sessions.remove(&member);
                self.last = Some(Arc::new(failure));
                self.pool.failed(member, now);
            }
            Report::Judged(judgement) => {
                let (fitness, trouble) = match judgement {
                    Judgement::Fit => (Fitness::Fit, None),
                    Judgement::Impaired(cause) => (Fitness::Impaired, Some(Trouble::Impaired(cause))),
                    Judgement::Stalled(cause) => (Fitness::Stalled, Some(Trouble::Stalled(cause))),
                };
                if let Some(held) = self.sessions.get_mut(&member) {
                    held.trouble = trouble;
                    self.pool.judge(member, fitness, now);
                }
            }
            Report::StreamEnded => self.pool.stream_ended(member, now),
            Report::Ended(failure) => {
                if let Some(held) = self.sessions.remove(&member) {
                    self.ending.push(held.finished);
                    self.last = Some(Arc::clone(&failure));
                    // A session that carries one stream ends with it, and the stream has said why.
                    if self.pool.sharing() == Sharing::Shared {
                        self.health.send_modify(|health| health.ended = Some(failure));
                    }
                    self.pool.ended(member, now);
                }
            }
        }
    }

    /// Shows how the link is.
    fn show(&self) {
        let mut details = self.details.clone();
        details.sessions = u32::try_from(self.pool.running()).unwrap_or(u32::MAX);
        let mut impairment = None;
        for held in self.sessions.values() {
            match &held.trouble {
                Some(Trouble::Impaired(cause)) => impairment = Some(cause),
                Some(Trouble::Stalled(cause)) => details.notes.push(cause.in_one_line()),
                None => {}
            }
        }
        let stalled = self.sessions.values().find_map(Held::stall);
        let cause = impairment.or(stalled).or(self.last.as_ref());
        let cause = cause.filter(|_| !self.pool.is_able());
        self.health.send_if_modified(|health| {
            let same_details = health.details == details;
            health.details = details;
            let known = health.impaired.as_ref();
            let same_cause = match (known, cause) {
                (None, None) => true,
                (Some(known), Some(cause)) => Arc::ptr_eq(&known.cause, cause),
                (Some(_), None) | (None, Some(_)) => false,
            };
            let since = known.map_or_else(Instant::now, |impaired| impaired.since);
            health.impaired = cause.cloned().map(|cause| Impaired { since, cause });
            !same_details || !same_cause
        });
    }

    /// Ends everything in this order: the outside learns of it, then the sessions end, all at the same time.
    async fn finish(mut self, failure: Arc<Failure>) {
        self.requests.close();
        self.tickets.clear();
        if let Some(ready) = self.ready.take() {
            // Whoever waited may be gone.
            let _ = ready.send(Err(failure.again()));
        }
        self.closed.send_replace(Some(failure));
        for held in self.sessions.values() {
            held.goodbye.cancel();
        }
        let sessions = self.sessions.into_values().map(|held| held.finished);
        for finished in sessions.chain(self.ending) {
            finished.cancelled().await;
        }
    }
}

impl Held {
    fn stall(&self) -> Option<&Arc<Failure>> {
        match &self.trouble {
            Some(Trouble::Stalled(cause)) => Some(cause),
            Some(Trouble::Impaired(_)) | None => None,
        }
    }
}

impl Reporter {
    /// Tells the keeper; one that is gone has no use for it.
    pub(super) fn tell(&self, report: Report) {
        let _ = self.sender.send((self.member, report));
    }
}

impl Seat {
    /// Returns the way to the session's driver.
    pub(super) fn commands(&self) -> mpsc::UnboundedSender<Command> {
        self.commands.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.reporter.tell(Report::StreamEnded);
    }
}

fn closed_by_us() -> Arc<Failure> {
    let doing = "the link was closed";
    Arc::new(Failure::new(Reason::Unreachable, Remedy::Retry, doing))
}

fn not_to_be_had() -> Failure {
    let doing = "the SSM session did not become ready";
    Failure::new(Reason::Unreachable, Remedy::Retry, doing)
}
