//! The `ssm` route: Session Manager port sessions, their protocol spoken by us.
//!
//! ```text
//!   Ssm ──connect()──► SsmLink ──requests──► keeper ── Pool: which session takes a stream, how many there are
//!                        │                     │
//!                        │            starts ┌─┴──────────┐ reports
//!                        │                   ▼            │
//!                        └──commands──► driver (one a session) ── wire::ssm::Session
//!                                         │         │
//!                      one SsmStream a connection   └─ StartSession, ResumeSession, TerminateSession; websocket
//! ```
//!
//! One session downloads at about 0.85 MB/s whatever a client does, since the agent paces itself (ssm.md section 9). So
//! a link is a pool of sessions.

mod channel;
mod destination;
mod driver;
mod happenings;
mod keeper;
mod ledger;
mod link;
mod renewal;
mod resume;
mod start;
mod stream;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tunneld_wire::ssm::{PayloadProbe, SMALLEST_PAYLOAD};

use self::destination::Directory;
use self::keeper::Keeper;
use self::renewal::{HOURLY, Schedule};
use super::{Link, Shared, Transport};
use crate::config::{AccountSpec, Instance, SsmSettings, Target, TunnelSpec};
use crate::failure::{Failure, Reason, Remedy};

pub use self::ledger::{Ledger, Orphan};
pub use self::resume::end_orphans;

/// Follows the route `ssm` to one target.
pub(super) struct Ssm(Arc<Context>);

/// What all sessions of a tunnel have in common.
struct Context {
    directory: Directory,
    account: AccountSpec,
    half_close_grace: Duration,
    receive_buffer: usize,
    settings: SsmSettings,
    /// How large payloads may be on the way to this target, as the last session found out.
    payloads: Mutex<PayloadProbe>,
    /// When websockets are replaced.
    renewals: Schedule,
    shared: Arc<Shared>,
}

impl Ssm {
    pub(super) fn new(spec: &TunnelSpec, target: Target, via: Option<Instance>, shared: Arc<Shared>) -> Self {
        let settings = spec.ssm.clone();
        let payloads = PayloadProbe::between(SMALLEST_PAYLOAD, settings.largest_payload);
        Self(Arc::new(Context {
            directory: Directory::new(target, via),
            account: spec.account.clone(),
            half_close_grace: spec.half_close_grace,
            receive_buffer: spec.receive_buffer,
            settings,
            payloads: Mutex::new(payloads),
            renewals: HOURLY,
            shared,
        }))
    }
}

impl Context {
    fn payloads(&self) -> PayloadProbe {
        self.payloads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn remember(&self, payloads: &PayloadProbe) {
        *self.payloads.lock().unwrap_or_else(PoisonError::into_inner) = payloads.clone();
    }
}

#[async_trait]
impl Transport for Ssm {
    async fn connect(&self) -> Result<Arc<dyn Link>, Failure> {
        let (ready, is_ready) = oneshot::channel();
        let (keeper, link) = Keeper::new(Arc::clone(&self.0), ready);
        // In a task of its own from the first call on: AWS may have started a session although nobody waits for it any
        // more, and then somebody must end it.
        keeper.spawn();
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

#[cfg(test)]
mod tests;
