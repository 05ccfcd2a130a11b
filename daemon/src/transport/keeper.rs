//! The task that owns the members of one link: it performs what the pool decides, and tells how the link is. Members
//! are sessions of Session Manager, or SSH connections; a [`Kind`] says what they are.
//!
//! ```text
//!   requests of the link ──┐             ┌─► start a member, end one, hand out a seat on one
//!   reports of members   ──┼─► Pool ─────┤
//!   timer                ──┘             └─► health, closed
//! ```
//!
//! A link is well as long as one of its members takes new streams, or one is on its way. It has ended when none is
//! left.

mod held;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info};

use self::held::{Held, Trouble};
use super::member::{Ask, Judgement, Kind, Report, Reporter, Seat, Station};
use super::pool::{Action, Fitness, Hindrance, Member, Need, Pool, Sharing, Ticket};
use super::pooled::PooledLink;
use super::{Health, Impaired, Link, LinkDetails};
use crate::failure::{Failure, Reason, Remedy};

/// What a link asks its keeper for.
pub(super) enum Request<C> {
    /// A place for one stream, and the way to the member that has it.
    Open(oneshot::Sender<Choice<C>>),
    /// A sign of life of every member.
    Probe,
    /// Another attempt at whatever waits for a login.
    Retry,
}

/// A place for one stream and the way to its member, or why there is none.
pub(super) type Choice<C> = Result<(Seat, mpsc::UnboundedSender<C>), Failure>;

/// The task. See the module's documentation.
pub(super) struct Keeper<K: Kind> {
    kind: Arc<K>,
    pool: Pool,
    members: BTreeMap<Member, Held<K::Command>>,
    /// Members that are ending; each is cancelled when it has.
    ending: Vec<CancellationToken>,
    tickets: BTreeMap<Ticket, oneshot::Sender<Choice<K::Command>>>,
    requests: mpsc::UnboundedReceiver<Request<K::Command>>,
    reporter: mpsc::UnboundedSender<(Member, Report)>,
    reports: mpsc::UnboundedReceiver<(Member, Report)>,
    health: watch::Sender<Health>,
    closed: watch::Sender<Option<Arc<Failure>>>,
    /// Told once the first member is ready, or was not to be had.
    ready: Option<oneshot::Sender<Result<(), Failure>>>,
    goodbye: CancellationToken,
    finished: CancellationToken,
    /// What is known of the far end.
    details: LinkDetails,
    /// Why the last member was not to be had, or ended.
    last: Option<Arc<Failure>>,
}

enum Wake<C> {
    Goodbye,
    Request(Request<C>),
    Report(Member, Report),
    Timeout,
}

/// Makes a link, and returns it once its first member is ready.
pub(super) async fn connect<K: Kind>(kind: Arc<K>) -> Result<Arc<dyn Link>, Failure> {
    let (ready, is_ready) = oneshot::channel();
    let (keeper, link) = Keeper::new(kind, ready);
    // In a task of its own from the first call on: AWS may have started a session although nobody waits for it any
    // more, and then somebody must end it.
    keeper.spawn();
    match is_ready.await {
        Ok(Ok(())) => Ok(Arc::new(link)),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(not_to_be_had::<K>()),
    }
}

impl<K: Kind> Keeper<K> {
    /// A keeper whose first member is to be started, and its link. `ready` is told what came of that.
    fn new(kind: Arc<K>, ready: oneshot::Sender<Result<(), Failure>>) -> (Self, PooledLink<K::Command>) {
        let (health, health_seen) = watch::channel(Health {
            impaired: None,
            ended: None,
            details: LinkDetails::default(),
        });
        let (closed, closed_seen) = watch::channel(None);
        let (asking, requests) = mpsc::unbounded_channel();
        let (reporter, reports) = mpsc::unbounded_channel();
        let (goodbye, finished) = (CancellationToken::new(), CancellationToken::new());
        let link = PooledLink {
            name: K::NAME,
            requests: asking,
            health: health_seen,
            closed: closed_seen,
            goodbye: goodbye.clone(),
            finished: finished.clone(),
            _ends: goodbye.clone().drop_guard(),
        };
        let keeper = Self {
            pool: Pool::new(kind.limits()),
            kind,
            members: BTreeMap::new(),
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

    /// Keeps the members until the link is closed or the last one has ended.
    fn spawn(self) {
        let tasks = self.kind.tasks().clone();
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
                    self.ask_all(|| Ask::Probe);
                    self.pool.hurry(Instant::now());
                }
                Wake::Request(Request::Retry) => {
                    self.ask_all(|| Ask::Retry);
                    for held in self.members.values_mut() {
                        held.renewed = true;
                    }
                    self.pool.log_in(Instant::now());
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

    fn ask_all(&self, ask: impl Fn() -> Ask) {
        for held in self.members.values() {
            // A member that is gone has said so, or will.
            let _ = held.commands.send(ask().into());
        }
    }

    async fn wait(&mut self) -> Wake<K::Command> {
        let due = self.pool.poll_timeout();
        let timer = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        // What happened to members comes first: a request that waits may have met one that has just ended.
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
                Action::Start(member, need) => self.start(member, need),
                Action::Place(ticket, member) => self.place(ticket, member),
                Action::Refuse(ticket) => {
                    let failure = self.last.as_ref().map_or_else(not_to_be_had::<K>, Failure::again);
                    if let Some(answer) = self.tickets.remove(&ticket) {
                        // The connection may have left.
                        let _ = answer.send(Err(failure));
                    }
                }
                Action::Drain(member) => {
                    if let Some(held) = self.members.get_mut(&member) {
                        held.farewell = held.term.map(|term| term.farewell(Instant::now()));
                        debug!("{} is replaced before its time is over", K::NAME);
                    }
                }
                Action::Retire(member) => {
                    debug!("{} is not needed any more", K::NAME);
                    if let Some(held) = self.members.remove(&member) {
                        held.goodbye.cancel();
                        self.ending.push(held.finished);
                    }
                }
            }
        }
        self.ending.retain(|finished| !finished.is_cancelled());
    }

    fn start(&mut self, member: Member, need: Need) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (goodbye, finished) = (CancellationToken::new(), CancellationToken::new());
        let station = Station {
            need,
            reporter: self.reporter(member),
            commands: (commands.downgrade(), receiver),
            goodbye: goodbye.clone(),
        };
        let guard = finished.clone().drop_guard();
        let kind = Arc::clone(&self.kind);
        let task = async move {
            let _finished = guard;
            kind.run(station).await;
        };
        self.kind.tasks().spawn(task.in_current_span());
        self.members
            .insert(member, Held::new(commands, goodbye, finished));
    }

    fn place(&mut self, ticket: Ticket, member: Member) {
        let reporter = self.reporter(member);
        let (Some(answer), Some(held)) = (self.tickets.remove(&ticket), self.members.get(&member)) else {
            return reporter.tell(Report::StreamEnded);
        };
        let commands = held.commands.clone();
        // Where the connection has left, the seat comes back at once.
        let _ = answer.send(Ok((Seat::new(reporter), commands)));
    }

    fn reporter(&self, member: Member) -> Reporter {
        let sender = self.reporter.clone();
        Reporter::new(member, sender)
    }

    fn handle_report(&mut self, member: Member, report: Report) {
        let now = Instant::now();
        match report {
            Report::Ready {
                sharing,
                details,
                term,
            } => {
                self.details = details;
                if let Some(held) = self.members.get_mut(&member) {
                    held.trouble = None;
                    held.term = term;
                }
                let replace_at = term.map(|term| term.replace_at);
                self.pool.started(member, sharing, replace_at, now);
                if let Some(ready) = self.ready.take() {
                    // Whoever waited is gone: then the link was dropped, and `goodbye` is on the way.
                    let _ = ready.send(Ok(()));
                }
            }
            Report::Failed(failure) => {
                info!("{} did not start: {}", K::NAME, failure.in_one_line());
                let held = self.members.remove(&member);
                let renewed = held.as_ref().is_some_and(|held| held.renewed);
                self.ending.extend(held.map(|held| held.finished));
                let hindrance = match failure.remedy() {
                    Remedy::Login { .. } if !renewed => Hindrance::Login,
                    Remedy::Login { .. } | Remedy::Retry | Remedy::RetryAfter(_) | Remedy::Fix => {
                        Hindrance::Passing
                    }
                };
                self.last = Some(Arc::new(failure));
                self.pool.failed(member, hindrance, now);
            }
            Report::Judged(judgement) => {
                let (fitness, trouble) = match judgement {
                    Judgement::Fit => (Fitness::Fit, None),
                    Judgement::Suspect => (Fitness::Suspect, None),
                    Judgement::Impaired(cause) => (Fitness::Impaired, Some(Trouble::Impaired(cause))),
                    Judgement::Stalled(cause) => (Fitness::Stalled, Some(Trouble::Stalled(cause))),
                };
                if let Some(held) = self.members.get_mut(&member) {
                    held.trouble = trouble;
                    self.pool.judge(member, fitness, now);
                }
            }
            Report::StreamEnded => self.pool.stream_ended(member, now),
            Report::WornOut => self.pool.wear_out(member, now),
            Report::Ended(failure) => {
                if let Some(held) = self.members.remove(&member) {
                    self.ending.push(held.finished);
                    self.last = Some(Arc::clone(&failure));
                    // A member that carries one stream ends with it, and the stream has said why.
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
        details.notes.extend(self.kind.notes());
        let mut impairment = None;
        for held in self.members.values() {
            match &held.trouble {
                Some(Trouble::Impaired(cause)) => impairment = Some(cause),
                Some(Trouble::Stalled(cause)) => details.notes.push(cause.in_one_line()),
                None => {}
            }
            details.notes.extend(held.farewell.clone());
        }
        let stalled = self.members.values().find_map(Held::stall);
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

    /// Ends everything in this order: the outside and whoever waits learn of it; the members end, all at the same time;
    /// then what they had in common.
    async fn finish(mut self, failure: Arc<Failure>) {
        self.requests.close();
        // Whoever asked in the last moment learns of it by the lack of an answer.
        while self.requests.try_recv().is_ok() {}
        self.tickets.clear();
        if let Some(ready) = self.ready.take() {
            // Whoever waited may be gone.
            let _ = ready.send(Err(failure.again()));
        }
        self.closed.send_replace(Some(failure));
        for held in self.members.values() {
            held.goodbye.cancel();
        }
        let members = self.members.into_values().map(|held| held.finished);
        for finished in members.chain(self.ending) {
            finished.cancelled().await;
        }
        self.kind.finish().await;
    }
}

fn closed_by_us() -> Arc<Failure> {
    let doing = "the link was closed";
    Arc::new(Failure::new(Reason::Unreachable, Remedy::Retry, doing))
}

fn not_to_be_had<K: Kind>() -> Failure {
    let doing = format!("{} did not become ready", K::NAME);
    Failure::new(Reason::Unreachable, Remedy::Retry, doing)
}

#[cfg(test)]
mod tests;
