//! The `ssm` route: a Session Manager port session, its protocol spoken by us.
//!
//! ```text
//!   Ssm ──connect()──► StartSession ─► websocket ─► handshake ─► SsmLink
//!                                                                  │ commands
//!                        AWS ◄──ResumeSession, TerminateSession── driver ── wire::ssm::Session
//!                                                                  │
//!                                                           one SsmStream a connection
//! ```

mod channel;
mod driver;
mod ledger;
mod link;
mod resume;
mod stream;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info};
use tunneld_wire::ssm::{Origin, Policy, Session};

use self::driver::{Driver, Outside};
use self::link::SsmLink;
use self::resume::Upstream;
use super::{Health, Link, LinkDetails, Shared, Transport};
use crate::aws::{Account, Document, FoundInstance};
use crate::config::{AccountSpec, Instance, Target, TunnelSpec};
use crate::failure::{Failure, Reason, Remedy};

pub use self::ledger::{Ledger, Orphan};
pub use self::resume::end_orphans;

/// Follows the route `ssm` to one target.
pub(super) struct Ssm {
    target: Target,
    via: Option<Instance>,
    account: AccountSpec,
    half_close_grace: Duration,
    shared: Arc<Shared>,
}

/// Where a session goes, once names have been looked up.
struct Destination {
    instance: FoundInstance,
    document: Document,
    details: LinkDetails,
}

impl Ssm {
    pub(super) fn new(spec: &TunnelSpec, via: Option<Instance>, shared: Arc<Shared>) -> Self {
        Self {
            target: spec.target.clone(),
            via,
            account: spec.account.clone(),
            half_close_grace: spec.half_close_grace,
            shared,
        }
    }

    async fn destination(&self, account: &Account) -> Result<Destination, Failure> {
        let target_instance = match &self.target {
            Target::Instance { instance, .. } => Some(account.find_instance(instance).await?),
            Target::Rds { .. } | Target::Host { .. } => None,
        };
        let via = match (&self.via, &target_instance) {
            (Some(via), _) => account.find_instance(via).await?,
            (None, Some(target)) => target.clone(),
            (None, None) => {
                return Err(Failure::new(
                    Reason::Invalid,
                    Remedy::Fix,
                    "the route `ssm` needs an instance to go through",
                )
                .hint("use: route = { ssm = \"INSTANCE\" }"));
            }
        };
        let (host, port, engine) = match (&self.target, target_instance) {
            (Target::Rds { id }, _) => {
                let database = account.find_database(id).await?;
                (Some(database.host), database.port, database.engine)
            }
            (Target::Host { host, port }, _) => (Some(host.clone()), *port, String::new()),
            // The plain document where the target is the instance itself: policies often allow only one of the two.
            (Target::Instance { port, .. }, Some(target)) if target.id() == via.id() => {
                (None, *port, String::new())
            }
            (Target::Instance { port, .. }, target) => {
                let address = target.as_ref().and_then(FoundInstance::private_address);
                let address = address.ok_or_else(|| {
                    Failure::new(
                        Reason::NotFound,
                        Remedy::Fix,
                        "the target instance has no private address",
                    )
                })?;
                (Some(address.to_owned()), *port, String::new())
            }
        };
        let details = LinkDetails {
            via: via.to_string(),
            target_host: host.clone().unwrap_or_else(|| via.to_string()),
            target_port: port,
            sessions: 1,
            agent_version: String::new(),
            engine,
        };
        let document = match host {
            Some(host) => Document::RemoteHost { host, port },
            None => Document::Port { port },
        };
        Ok(Destination {
            instance: via,
            document,
            details,
        })
    }
}

#[async_trait]
impl Transport for Ssm {
    async fn connect(&self) -> Result<Arc<dyn Link>, Failure> {
        let account = self.shared.aws.account(&self.account).await?;
        let destination = self.destination(&account).await?;
        let Destination {
            instance,
            document,
            details,
        } = destination;
        let (health, health_seen) = watch::channel(Health {
            impaired: None,
            details: details.clone(),
        });
        let (closed, closed_seen) = watch::channel(None);
        let (sender, receiver) = mpsc::unbounded_channel();
        let (ready, is_ready) = oneshot::channel();
        let (goodbye, finished) = (CancellationToken::new(), CancellationToken::new());
        let link = SsmLink {
            commands: sender.clone(),
            health: health_seen,
            closed: closed_seen,
            goodbye: goodbye.clone(),
            finished: finished.clone(),
            _ends: goodbye.clone().drop_guard(),
        };
        let session = Session::client(Policy::client(), self.origin());
        let outside = Outside { health, closed };
        let commands = (sender.downgrade(), receiver);
        let (shared, spec) = (Arc::clone(&self.shared), self.account.clone());
        // In a task of its own from the first call on: AWS may have started a session although nobody waits for it any
        // more, and then somebody must end it.
        let task = async move {
            let _finished = finished.drop_guard();
            let grant = match account.start_session(&instance, &document).await {
                Ok(grant) => grant,
                Err(failure) => {
                    // Whoever waited may be gone.
                    let _ = ready.send(Err(failure));
                    return;
                }
            };
            info!(session = grant.session_id, via = details.via, "session started");
            let upstream = Upstream::new(shared, spec, &grant.session_id, details);
            let first = tokio::select! {
                () = goodbye.cancelled() => return upstream.settle(false).await,
                first = upstream.attach(grant) => first,
            };
            match first {
                Ok(first) => {
                    Driver::new(session, first, upstream, outside, ready, commands, goodbye)
                        .run()
                        .await
                }
                Err(failure) => {
                    // Whoever waited may be gone.
                    let _ = ready.send(Err(failure));
                    upstream.settle(false).await;
                }
            }
        };
        self.shared.tasks.spawn(task.in_current_span());

        match is_ready.await {
            Ok(Ok(())) => Ok(Arc::new(link)),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::new(
                Reason::Unreachable,
                Remedy::Retry,
                "the SSM session ended before it was ready",
            )),
        }
    }
}

impl Ssm {
    #[expect(
        clippy::disallowed_methods,
        reason = "the edge where wire's dates and seeds come from"
    )]
    fn origin(&self) -> Origin {
        Origin {
            seed: fastrand::u64(..),
            began: Instant::now().into_std(),
            began_unix: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default(),
            half_close_grace: self.half_close_grace,
        }
    }
}
