//! How a session comes about: destination, StartSession, websocket; from then on its driver has it.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;
use tracing::info;
use tunneld_wire::ssm::{ClientOptions, Origin, Policy, Session};

use super::Context;
use super::destination::Destination;
use super::driver::{Command, Driver};
use super::resume::Upstream;
use crate::aws::{Account, SessionGrant};
use crate::failure::{Failure, Reason};
use crate::transport::member::{Report, Station, Term};

/// One session, to be started and driven to its end.
pub(super) struct Start {
    pub(super) context: Arc<Context>,
    pub(super) station: Station<Command>,
}

impl Start {
    pub(super) async fn run(self) {
        let prepared = tokio::select! {
            () = self.station.goodbye.cancelled() => return,
            prepared = self.prepare() => prepared,
        };
        // From here on it is not given up: AWS may have started the session already, and then it has to be ended.
        let granted = match prepared {
            Ok((account, destination)) => self.grant(&account, destination).await,
            Err(failure) => Err(failure),
        };
        let (destination, grant) = match granted {
            Ok(granted) => granted,
            Err(failure) => return self.station.reporter.tell(Report::Failed(failure)),
        };
        let began = Instant::now();
        let details = destination.details.clone();
        info!(session = grant.session_id, via = details.via, "session started");
        let upstream = Upstream::new(Arc::clone(&self.context), &grant.session_id, details);
        let first = tokio::select! {
            () = self.station.goodbye.cancelled() => return upstream.settle(false).await,
            first = upstream.attach(grant) => first,
        };
        let first = match first {
            Ok(first) => first,
            Err(failure) => {
                self.station.reporter.tell(Report::Failed(failure));
                return upstream.settle(false).await;
            }
        };
        let options = ClientOptions {
            policy: Policy::client()
                .with_payloads(self.context.payloads())
                .with_message_rate(self.context.settings.message_rate),
            keep_alive: self.context.settings.keep_alive,
            stall_timeout: self.context.settings.stall_timeout,
        };
        let session = Session::client(options, self.origin());
        let lasts = self.context.settings.max_session_duration;
        let term = lasts.map(|lasts| Term::between(began, began + lasts));
        Driver::new(session, first, upstream, term, self.station)
            .run()
            .await;
    }

    /// Finds out where the session goes, and waits for its turn.
    async fn prepare(&self) -> Result<(Arc<Account>, Arc<Destination>), Failure> {
        let account = self.context.shared.aws.account(&self.context.account).await?;
        let destination = self.context.directory.find(&account).await?;
        account.turn_to_start().await;
        Ok((account, destination))
    }

    async fn grant(
        &self,
        account: &Account,
        destination: Arc<Destination>,
    ) -> Result<(Arc<Destination>, SessionGrant), Failure> {
        let started = account
            .start_session(&destination.instance, &destination.document)
            .await;
        if let Err(failure) = &started
            && matches!(failure.reason(), Reason::AgentOffline | Reason::NotFound)
        {
            // The instance may have been replaced.
            self.context.directory.forget();
        }
        Ok((destination, started?))
    }

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
            half_close_grace: self.context.half_close_grace,
        }
    }
}
