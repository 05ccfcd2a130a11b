//! Visits: connections without a tunnel. A client of the control socket names a target, and its bytes pass through.
//!
//! ```text
//!   rpc ──open()──► Visits ──► Way, one for each destination: connect ─► keep while it is used ─► close
//!    │                          │
//!    └── bytes ══ Visit ════════╧══ a stream of its link ══► target
//! ```
//!
//! Visits to one destination share a link, which is kept for a while after the last, since a program that copies many
//! files comes again at once. What fails is told to whoever asked, and is not tried again behind its back: there is no
//! state that somebody could look at later.

mod choice;
mod far;
mod way;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, error, info, info_span};

use self::choice::Best;
pub(crate) use self::choice::choose;
use self::far::Far;
use self::way::{User, Way};
use crate::aws::Aws;
use crate::config::{Refusal, Wanted};
use crate::exchange::exchange;
use crate::failure::{Failure, Reason, Remedy, Scope};
use crate::transport::{LinkDetails, Stream, Transport, Transports, broken, io_error};

/// How long a visit may take to reach its target. Whatever fails is told at once, so this ends what hangs, and the wait
/// for one of the few connections that an endpoint carries: logins and copies of some files are done by then.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often a link is asked for a stream: the first may have been made long ago, and be lost without having noticed.
const ATTEMPTS: usize = 2;

/// How long visits may take to end once they are told to: they only have to be polled.
const STOPPING: Duration = Duration::from_secs(1);

/// All visits of a daemon, and the links they share.
pub(crate) struct Visits {
    aws: Arc<Aws>,
    transports: Transports,
    known: Mutex<Vec<Arc<Way>>>,
    /// Links are kept and visits are served in these.
    tasks: TaskTracker,
    /// Cancelled when nobody new is let in.
    closing: CancellationToken,
    /// Ends the visits.
    stop: CancellationToken,
    /// Visits so far, to tell them apart in the log.
    counted: AtomicU64,
}

/// A connection that has reached its target.
pub(crate) struct Visit {
    stream: Box<dyn Stream>,
    details: LinkDetails,
    began: Instant,
    span: Span,
    stop: CancellationToken,
    /// Keeps the link.
    _user: User,
}

impl Visits {
    /// No visits yet.
    pub(crate) fn new(aws: Arc<Aws>, transports: Transports) -> Arc<Self> {
        Arc::new(Self {
            aws,
            transports,
            known: Mutex::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            stop: CancellationToken::new(),
            counted: AtomicU64::new(0),
        })
    }

    /// Serves a visit in a task that the daemon waits for when it stops.
    pub(crate) fn spawn(&self, visit: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(visit);
    }

    /// Reaches a target. Dropping the future gives it up.
    pub(crate) async fn open(self: &Arc<Self>, wanted: Wanted) -> Result<Visit, Arc<Failure>> {
        let number = self.counted.fetch_add(1, Ordering::Relaxed) + 1;
        let span = info_span!("visit", number, target = %wanted.target);
        let opened = timeout(PATIENCE, self.reach(&wanted, number)).instrument(span.clone());
        let opened = tokio::select! {
            biased;
            () = self.closing.cancelled() => Err(Arc::new(stopping())),
            opened = opened => opened.unwrap_or_else(|_| Err(Arc::new(self.out_of_patience(&wanted)))),
        };
        let (stream, details, user) = opened
            .inspect_err(|failure| span.in_scope(|| info!("not reached: {}", failure.in_one_line())))?;
        Ok(Visit {
            stream,
            details,
            began: Instant::now(),
            span,
            stop: self.stop.clone(),
            _user: user,
        })
    }

    async fn reach(
        self: &Arc<Self>,
        wanted: &Wanted,
        number: u64,
    ) -> Result<(Box<dyn Stream>, LinkDetails, User), Arc<Failure>> {
        let client = format!("visit {number}");
        let mut attempt = 0;
        loop {
            attempt += 1;
            let user = self.user(wanted);
            let link = user.link().await?;
            let failure = match link.open(&client).await {
                Ok(stream) => {
                    let details = link.health().borrow().details.clone();
                    return Ok((stream, details, user));
                }
                Err(failure) => failure,
            };
            match failure.scope() {
                Scope::Stream => return Err(Arc::new(failure)),
                Scope::Link => user.retire(),
            }
            if attempt == ATTEMPTS {
                return Err(Arc::new(failure));
            }
        }
    }

    /// Joins those who use the way to a destination, or is the first of them.
    fn user(self: &Arc<Self>, wanted: &Wanted) -> User {
        let mut known = self.known();
        if let Some(way) = known.iter().find(|way| way.leads_to(wanted)) {
            return User::of(way);
        }
        let way = Way::new(wanted.clone(), self.closing.child_token());
        known.push(Arc::clone(&way));
        let user = User::of(&way);
        let keeping = way.keep(self.transport(wanted), Arc::clone(self));
        self.tasks.spawn(keeping.in_current_span());
        user
    }

    fn transport(&self, wanted: &Wanted) -> Arc<dyn Transport> {
        match &wanted.named {
            Some(spec) => (self.transports)(spec),
            None => Arc::new(Best {
                wanted: wanted.clone(),
                aws: Arc::clone(&self.aws),
                transports: Arc::clone(&self.transports),
            }),
        }
    }

    /// Lets nobody else use a way.
    fn forget(&self, way: &Arc<Way>) {
        self.known().retain(|known| !Arc::ptr_eq(known, way));
    }

    /// The same, unless somebody uses it; returns whether nobody did.
    fn forget_unused(&self, way: &Arc<Way>) -> bool {
        let mut known = self.known();
        if way.is_unused() {
            known.retain(|known| !Arc::ptr_eq(known, way));
        }
        way.is_unused()
    }

    /// Says that a visit took too long, and what its link says of that.
    fn out_of_patience(&self, wanted: &Wanted) -> Failure {
        let doing = format!(
            "`{}` was not reached within {} s",
            wanted.target,
            PATIENCE.as_secs()
        );
        let failure = Failure::new(Reason::Unreachable, Remedy::Retry, doing).of_stream();
        let known = self.known();
        let way = known.iter().find(|way| way.leads_to(wanted));
        let notes = way.map(|way| way.notes()).unwrap_or_default();
        notes.into_iter().fold(failure, Failure::hint)
    }

    fn known(&self) -> MutexGuard<'_, Vec<Arc<Way>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends everything, in this order: visits that have not reached their target, the others (by themselves within
    /// `grace`, else reset), links.
    pub(crate) async fn shutdown(&self, grace: Duration) {
        self.closing.cancel();
        self.tasks.close();
        // Links end with their last user, so all that is waited for is those.
        if timeout(grace, self.tasks.wait()).await.is_ok() {
            return;
        }
        self.stop.cancel();
        if timeout(STOPPING + way::GOODBYE, self.tasks.wait()).await.is_err() {
            error!(open = self.tasks.len(), "visits do not end");
        }
    }
}

impl Visit {
    /// Returns what is known of the link that carries it.
    pub(crate) fn details(&self) -> &LinkDetails {
        &self.details
    }

    /// Carries bytes both ways until both ends have said that no more come. What goes wrong with the client's own end
    /// is a failure as well, which nobody is there to read.
    pub(crate) async fn carry(
        self,
        client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> Result<(), Arc<Failure>> {
        let aborted = self.stream.aborted();
        let mut far = Far::new(self.stream);
        let copied = tokio::select! {
            copied = exchange(client, &mut far) => copied,
            failure = aborted => Err(io_error(&failure)),
            () = self.stop.cancelled() => Err(io_error(&Arc::new(stopping()))),
        };
        let end = match copied {
            // A target that closed completely while the client was still sending did so by right.
            Err(error) if !far.has_ended() => Err(broken(error)),
            Ok(()) | Err(_) => Ok(()),
        };
        let said = match &end {
            Ok(()) => "both ends closed".to_owned(),
            Err(failure) => failure.in_one_line(),
        };
        self.span.in_scope(|| {
            info!(
                duration = ?self.began.elapsed(),
                bytes_in = far.received(),
                bytes_out = far.sent(),
                "visit ended: {said}"
            );
        });
        end
    }
}

/// What was asked for cannot be.
pub(crate) fn refused(refusal: Refusal) -> Failure {
    let failure = Failure::new(Reason::Invalid, Remedy::Fix, refusal.message).of_stream();
    match refusal.hint {
        Some(hint) => failure.hint(format!("use: {hint}")),
        None => failure,
    }
}

fn stopping() -> Failure {
    Failure::new(Reason::Unreachable, Remedy::Retry, "the daemon is stopping").of_stream()
}

#[cfg(test)]
mod tests;
