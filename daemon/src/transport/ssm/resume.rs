//! What a session is at AWS: opening websockets to it, bringing it back, ending it for good.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tracing::{debug, info, warn};
use tunneld_wire::ssm::{End, HandshakeError};

use super::driver::Outside;
use super::ledger::Orphan;
use crate::aws::{SessionGrant, Token};
use crate::config::AccountSpec;
use crate::connector::Socket;
use crate::failure::{Failure, Reason, Remedy};
use crate::transport::{Impaired, LinkDetails, Shared, websocket};

/// The first delay between attempts to resume; drawn anew between zero and a bound that doubles.
pub(super) const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest such delay: with it a session is back within 5 s of the network's return.
pub(super) const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// The delay where credentials are missing: the session lives on for its idle timeout, and a person needs a while.
const LOGIN_DELAY: Duration = Duration::from_secs(30);
/// How long AWS may take to confirm the end of a session that we leave.
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);

/// A session at AWS, and how to reach it.
#[derive(Clone)]
pub(super) struct Upstream {
    shared: Arc<Shared>,
    account: AccountSpec,
    session_id: Arc<str>,
    details: LinkDetails,
}

/// A websocket to a session, and the token that opens the data channel on it.
pub(super) struct Resumed {
    pub(super) socket: Box<WebSocketStream<Socket>>,
    pub(super) token: Token,
}

impl Upstream {
    /// Takes note of a session that AWS has started, so that it is ended even after a crash.
    pub(super) fn new(
        shared: Arc<Shared>,
        account: AccountSpec,
        session_id: &str,
        details: LinkDetails,
    ) -> Self {
        shared.ledger.opened(session_id, &account);
        Self {
            shared,
            account,
            session_id: session_id.into(),
            details,
        }
    }

    pub(super) fn session_id(&self) -> &str {
        &self.session_id
    }

    /// Opens a websocket for a grant.
    pub(super) async fn attach(&self, grant: SessionGrant) -> Result<Resumed, Failure> {
        let account = self.shared.aws.account(&self.account).await?;
        let request = account.sign_upgrade(&grant.stream_url).await?;
        let socket = Box::new(websocket::connect(self.shared.aws.connector(), request).await?);
        Ok(Resumed {
            socket,
            token: grant.token,
        })
    }

    /// Brings the session back, however long it takes; fails once AWS says that it is gone, or refuses for a reason
    /// that time does not mend. The first attempt comes after a part of `delay`.
    pub(super) async fn resume(self, outside: Outside, delay: Duration) -> Result<Resumed, Failure> {
        sleep(delay.mul_f64(fastrand::f64())).await;
        let mut bound = FIRST_DELAY;
        loop {
            let failure = match self.attempt().await {
                Ok(Some(resumed)) => return Ok(resumed),
                Ok(None) => return Err(self.gone()),
                Err(failure) => failure,
            };
            debug!(
                cause = failure.in_one_line(),
                session = &*self.session_id,
                "resume failed"
            );
            let delay = match failure.remedy() {
                Remedy::Fix => return Err(failure),
                Remedy::Login { .. } => LOGIN_DELAY,
                Remedy::RetryAfter(delay) => *delay,
                Remedy::Retry => bound.mul_f64(fastrand::f64()),
            };
            bound = (bound * 2).min(LONGEST_DELAY);
            let cause = Arc::new(failure);
            outside.health.send_modify(|health| {
                let since = health
                    .impaired
                    .as_ref()
                    .map_or_else(Instant::now, |impaired| impaired.since);
                health.impaired = Some(Impaired { since, cause });
            });
            sleep(delay).await;
        }
    }

    /// Tries once, with fresh credentials, token and StreamUrl; `None` if the session is gone.
    async fn attempt(&self) -> Result<Option<Resumed>, Failure> {
        let account = self.shared.aws.account(&self.account).await?;
        match account.resume_session(&self.session_id).await? {
            Some(grant) => self.attach(grant).await.map(Some),
            None => Ok(None),
        }
    }

    async fn terminate(&self) -> Result<(), Failure> {
        self.shared
            .aws
            .account(&self.account)
            .await?
            .terminate_session(&self.session_id)
            .await
    }

    /// Makes sure that the session has ended at AWS, and forgets it.
    pub(super) async fn settle(&self, ended: bool) {
        if !ended {
            match timeout(SETTLE_DEADLINE, self.terminate()).await {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => {
                    let cause = failure.in_one_line();
                    warn!(
                        session = &*self.session_id,
                        cause, "cannot end the session; the next start will try"
                    );
                    return;
                }
                Err(_) => {
                    warn!(
                        session = &*self.session_id,
                        "AWS does not answer; the next start will end the session"
                    );
                    return;
                }
            }
        }
        self.shared.ledger.closed(&self.session_id);
    }

    /// The failure of a stream whose target refused.
    pub(super) fn refused(&self) -> Failure {
        let LinkDetails {
            via,
            target_host,
            target_port,
            ..
        } = &self.details;
        let doing =
            format!("{target_host}:{target_port} refused the connection, or can't be reached, from `{via}`");
        Failure::new(Reason::TargetRefused, Remedy::Retry, doing)
            .of_stream()
            .hint(format!(
                "check that {target_host}:{target_port} listens and lets `{via}` in (its security group)"
            ))
    }

    /// The failure of a link whose session has ended.
    pub(super) fn ended(&self, end: &End) -> Failure {
        let via = &self.details.via;
        let (reason, remedy, hint) = match end {
            End::ChannelClosed(_) | End::HandshakeTimeout | End::Hole { .. } | End::Stalled => {
                (Reason::Unreachable, Remedy::Retry, None)
            }
            End::Handshake(HandshakeError::AgentTooOld(_)) => (
                Reason::Invalid,
                Remedy::Fix,
                Some("update the SSM agent: AWS Systems Manager, Run Command, AWS-UpdateSSMAgent"),
            ),
            End::Handshake(_) | End::Protocol(_) | End::TooEarly(_) => (Reason::Invalid, Remedy::Fix, None),
        };
        let failure = Failure::new(reason, remedy, format!("the SSM session through `{via}` ended"))
            .because(end.clone());
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    fn gone(&self) -> Failure {
        let via = &self.details.via;
        let doing = format!("AWS has ended the SSM session through `{via}` (idle too long, or terminated)");
        Failure::new(Reason::Unreachable, Remedy::Retry, doing)
    }
}

/// Ends the sessions that a daemon which is gone has left open.
pub async fn end_orphans(shared: Arc<Shared>, orphans: Vec<Orphan>) {
    for orphan in orphans {
        info!(
            session = orphan.session_id,
            "ending a session that an earlier daemon left open"
        );
        let upstream = Upstream {
            shared: Arc::clone(&shared),
            account: orphan.account,
            session_id: orphan.session_id.into(),
            details: LinkDetails::default(),
        };
        upstream.settle(false).await;
    }
}
