//! The `eice` route: one websocket through an EC2 Instance Connect Endpoint for each stream.
//!
//! ```text
//!   Eice ──connect()──► EiceLink ──open()──► slot ──► sign, upgrade ──► EiceStream
//!     │                    │                  one of the 20           bytes are the frames' bytes
//!     └─ credentials?      └─ directory: target's address, endpoint
//! ```
//!
//! A link holds nothing open, so it is never lost. What goes wrong shows when a stream is opened, or on the stream: the
//! endpoint accepts it before it has tried to reach the target. No endpoint carries anything for longer than an hour; a
//! stream says when its time is over.

mod directory;
mod pulse;
mod slots;
mod stream;
mod upgrade;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tunneld_wire::eice::{CONNECTIONS, LONGEST_DURATION, Opening};

use self::directory::{Destination, Directory};
pub use self::slots::Slots;
use self::slots::{Patience, Slot};
use self::stream::{EiceStream, Finish, Terms};
use self::upgrade::Error;
use super::{Carried, Delays, Health, Link, LinkDetails, Shared, Stream, Transport};
use crate::aws::{Account, SignedOpening};
use crate::config::{AccountSpec, Target, TunnelSpec};
use crate::failure::{Failure, Reason, Remedy};

/// Follows the route `eice` to one target.
pub(super) struct Eice(Arc<Context>);

/// What all links of a transport have in common.
struct Context {
    target: Target,
    /// The endpoint's id; `None`: the one of the target's VPC.
    endpoint: Option<String>,
    account: AccountSpec,
    /// How long a stream may last; `None` asks for nothing.
    duration: Option<Duration>,
    finish: Finish,
    patience: Patience,
    shared: Arc<Shared>,
    delays: Delays,
}

/// How long an SSH connection waits for a place: a tunnel needs it, so others may end meanwhile; but a successor has to
/// come well before its predecessor's hour is over, and whoever is held should learn of it.
const SSH_PATIENCE: Duration = Duration::from_secs(60);

impl Eice {
    /// The route to a target, through the endpoint of this id or the one of its VPC.
    pub(super) fn new(
        spec: &TunnelSpec,
        target: Target,
        endpoint: Option<String>,
        carried: Carried,
        shared: Arc<Shared>,
        delays: Delays,
    ) -> Self {
        let (finish, patience) = match carried {
            Carried::Clients => (Finish::After(spec.half_close_grace), Patience::Callers),
            Carried::Ssh => (Finish::AtOnce, Patience::Limited(SSH_PATIENCE)),
        };
        Self(Arc::new(Context {
            target,
            endpoint,
            account: spec.account.clone(),
            duration: spec.eice.max_tunnel_duration,
            finish,
            patience,
            shared,
            delays,
        }))
    }
}

#[async_trait]
impl Transport for Eice {
    async fn connect(&self) -> Result<Arc<dyn Link>, Failure> {
        let context = Arc::clone(&self.0);
        let account = context.shared.aws.account(&context.account).await?;
        account.check_credentials().await?;
        let directory = Directory::new(context.target.clone(), context.endpoint.clone());
        let destination = directory.find(&account).await?;
        Ok(Arc::new(EiceLink {
            context,
            directory: Arc::new(directory),
            health: watch::Sender::new(Health {
                impaired: None,
                ended: None,
                details: destination.details.clone(),
            }),
            waiting: AtomicUsize::new(0),
        }))
    }

    fn delays(&self) -> watch::Receiver<Vec<Arc<Failure>>> {
        self.0.delays.watch()
    }
}

/// Always well: it holds nothing open.
struct EiceLink {
    context: Arc<Context>,
    directory: Arc<Directory>,
    health: watch::Sender<Health>,
    /// Streams that wait for a slot.
    waiting: AtomicUsize,
}

#[async_trait]
impl Link for EiceLink {
    async fn open(&self, _: &str) -> Result<Box<dyn Stream>, Failure> {
        self.open_within(self.context.patience).await
    }

    async fn open_at_once(&self, _: &str) -> Result<Box<dyn Stream>, Failure> {
        self.open_within(Patience::None).await
    }

    async fn closed(&self) -> Arc<Failure> {
        std::future::pending().await
    }

    async fn close(&self) {}

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn probe(&self) {}
}

impl EiceLink {
    async fn open_within(&self, patience: Patience) -> Result<Box<dyn Stream>, Failure> {
        let account = self.account().await?;
        let destination = self.directory.find(&account).await?;
        match self.attempt(&account, &destination, patience).await {
            Ok(stream) => Ok(stream),
            Err(failure) => self.again(&account, &destination, patience, failure).await,
        }
    }

    async fn account(&self) -> Result<Arc<Account>, Failure> {
        self.context.shared.aws.account(&self.context.account).await
    }

    /// Tries once more where something is known anew: other credentials, or another endpoint or address.
    async fn again(
        &self,
        account: &Account,
        destination: &Destination,
        patience: Patience,
        failure: Failure,
    ) -> Result<Box<dyn Stream>, Failure> {
        let may_have_moved =
            [Reason::Unreachable, Reason::NotFound, Reason::Invalid].contains(&failure.reason());
        if may_have_moved {
            self.directory.forget();
        } else if !account.is_rejected() {
            return Err(failure);
        }
        let account = self.account().await?;
        let found = self.directory.find(&account).await?;
        if may_have_moved && *found == *destination {
            return Err(failure);
        }
        self.attempt(&account, &found, patience).await
    }

    async fn attempt(
        &self,
        account: &Account,
        destination: &Arc<Destination>,
        patience: Patience,
    ) -> Result<Box<dyn Stream>, Failure> {
        self.tell(destination);
        let slot = self.slot(destination, patience).await?;
        let Context { duration, shared, .. } = &*self.context;
        let opening = Opening {
            endpoint: &destination.endpoint,
            port: destination.port,
            address: &destination.address,
            duration: *duration,
        };
        // Signed when its turn has come: the signature is good for a minute.
        let signed = account.sign_opening(&destination.host, &opening).await?;
        match upgrade::connect(shared.aws.connector(), &signed.request).await {
            Ok(socket) => Ok(Box::new(EiceStream::new(
                socket,
                Terms {
                    duration: duration.unwrap_or(LONGEST_DURATION),
                    finish: self.context.finish,
                    destination: Arc::clone(destination),
                    directory: Arc::clone(&self.directory),
                    tasks: shared.tasks.clone(),
                },
                slot,
            ))),
            Err(error) => Err(self.refused(account, destination, &signed, error)),
        }
    }

    fn refused(
        &self,
        account: &Account,
        destination: &Destination,
        signed: &SignedOpening,
        error: Error,
    ) -> Failure {
        let refused = match error {
            Error::Failed(failure) => return failure,
            Error::Refused(refused) => refused,
        };
        let failure = account.refused_opening(format!("cannot open {destination}"), &refused, signed);
        match (failure.reason(), self.context.duration) {
            (Reason::Denied, None) => failure.hint(
                "a policy may permit less than an hour to who asks for it alone: max_tunnel_duration = \"30m\"",
            ),
            (Reason::Throttled, _) => failure.hint(format!(
                "an endpoint carries {CONNECTIONS} connections at a time, for everybody in its VPC"
            )),
            _ => failure,
        }
    }

    /// Waits for one of the endpoint's slots, visibly.
    async fn slot(&self, destination: &Destination, patience: Patience) -> Result<Slot, Failure> {
        let gate = self.context.shared.endpoints.gate(&destination.endpoint);
        if let Some(slot) = gate.try_take() {
            return Ok(slot);
        }
        let waiting = match patience {
            Patience::None => None,
            Patience::Limited(_) | Patience::Callers => Some((
                Waiting::new(self, destination),
                self.context.delays.begin(crowded(destination)),
            )),
        };
        let slot = gate.take(patience).await;
        drop(waiting);
        slot.ok_or_else(|| crowded(destination))
    }

    /// Tells where streams go, and how many wait for a slot.
    fn tell(&self, destination: &Destination) {
        let waiting = self.waiting.load(Ordering::Relaxed);
        let note = match waiting {
            0 => None,
            1 => Some("1 connection waits".to_owned()),
            _ => Some(format!("{waiting} connections wait")),
        };
        let note =
            note.map(|wait| format!("{wait} for one of the {CONNECTIONS} of {}", destination.endpoint));
        let details = LinkDetails {
            notes: note.into_iter().collect(),
            ..destination.details.clone()
        };
        self.health.send_if_modified(|health| {
            let is_news = health.details != details;
            health.details = details;
            is_news
        });
    }
}

/// There is no slot.
fn crowded(destination: &Destination) -> Failure {
    let doing = format!(
        "all {CONNECTIONS} connections of the endpoint `{}` are in use",
        destination.endpoint
    );
    Failure::new(Reason::Throttled, Remedy::Retry, doing)
        .of_stream()
        .hint("a tunnel over SSH takes one alone with: connections = { min = 1, max = 1 }")
}

/// A stream that waits for a slot, counted for as long as this lives.
struct Waiting<'l> {
    link: &'l EiceLink,
    destination: &'l Destination,
}

impl<'l> Waiting<'l> {
    fn new(link: &'l EiceLink, destination: &'l Destination) -> Self {
        link.waiting.fetch_add(1, Ordering::Relaxed);
        link.tell(destination);
        Self { link, destination }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.link.waiting.fetch_sub(1, Ordering::Relaxed);
        self.link.tell(self.destination);
    }
}

#[cfg(test)]
mod tests;
