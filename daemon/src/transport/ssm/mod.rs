//! The `ssm` route: Session Manager port sessions, their protocol spoken by us.
//!
//! ```text
//!   Ssm ──connect()──► link ──requests──► keeper ── Pool: which session takes a stream, how many there are
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

mod attachment;
mod channel;
mod destination;
mod driver;
mod happenings;
mod ledger;
mod renewal;
mod resume;
mod spur;
mod start;
mod stream;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::task::TaskTracker;
use tunneld_wire::ssm::{PayloadProbe, SMALLEST_PAYLOAD};

use self::destination::Directory;
use self::driver::Command;
use self::renewal::{HOURLY, Schedule};
use self::start::Start;
use super::member::{Kind, Station};
use super::{Link, Shared, Transport, keeper};
use crate::config::{AccountSpec, Instance, PoolSize, SsmSettings, Target, TunnelSpec};
use crate::failure::Failure;

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
        keeper::connect(Arc::clone(&self.0)).await
    }
}

impl Kind for Context {
    const NAME: &'static str = "the SSM session";
    type Command = Command;

    fn limits(&self) -> PoolSize {
        self.settings.sessions
    }

    fn tasks(&self) -> &TaskTracker {
        &self.shared.tasks
    }

    async fn run(self: Arc<Self>, station: Station<Command>) {
        let context = self;
        Start { context, station }.run().await;
    }
}

#[cfg(test)]
mod tests;
