//! What a session is at AWS: opening websockets to it, bringing it back, ending it for good.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tracing::{debug, info, warn};
use tunneld_wire::ssm::{End, HandshakeError, PayloadProbe};

use super::Context;
use super::ledger::Orphan;
use super::renewal::Schedule;
use super::spur::{Felt, Wait};
use crate::aws::{SessionGrant, Token};
use crate::config::AccountSpec;
use crate::connector::Socket;
use crate::failure::{Failure, Reason, Remedy};
use crate::transport::budget::Share;
use crate::transport::member::{Judgement, Report, Reporter};
use crate::transport::{LinkDetails, Shared, websocket};

/// The first delay between attempts to resume; drawn anew between zero and a bound that doubles.
pub(super) const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest such delay while nothing answers: half of all times, a session is on its way 0.45 s after the network's
/// return, and an attempt without a network costs nobody anything.
pub(super) const LONGEST_DELAY: Duration = Duration::from_millis(1_500);
/// The longest such delay where AWS answers, but with an error: it has to be spared.
const LONGEST_ANSWERED_DELAY: Duration = Duration::from_secs(10);
/// How long what only a person can mend is taken for something that is just being mended, with every stream at stake: a
/// clock that is set after a sleep, a profile that is written anew.
const PASSING: Duration = Duration::from_secs(60);
/// How long AWS may take to confirm the end of a session that we leave.
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);

/// A session at AWS, and how to reach it.
#[derive(Clone)]
pub(super) struct Upstream {
    context: Arc<Context>,
    session_id: Arc<str>,
    details: LinkDetails,
    /// What was remembered last of the payloads.
    remembered: PayloadProbe,
}

/// Why a session is not brought back.
pub(super) enum Hopeless {
    /// AWS says that it has ended.
    Gone(Failure),
    /// AWS has not said that, but does not let us have it.
    GivenUp(Failure),
}

/// A websocket to a session, and the token that opens the data channel on it.
pub(super) struct Resumed {
    pub(super) socket: Box<WebSocketStream<Socket>>,
    pub(super) token: Token,
}

impl Upstream {
    /// Takes note of a session that AWS has started, so that it is ended even after a crash.
    pub(super) fn new(context: Arc<Context>, session_id: &str, details: LinkDetails) -> Self {
        context.shared.ledger.opened(session_id, &context.account);
        Self {
            remembered: context.payloads(),
            context,
            session_id: session_id.into(),
            details,
        }
    }

    pub(super) fn session_id(&self) -> &str {
        &self.session_id
    }

    pub(super) fn details(&self) -> &LinkDetails {
        &self.details
    }

    pub(super) fn renewals(&self) -> Schedule {
        self.context.renewals
    }

    pub(super) fn stall_timeout(&self) -> Duration {
        self.context.settings.stall_timeout
    }

    /// Returns the share of a client's new stream in the memory for bytes that wait.
    pub(super) fn share(&self, client: &str) -> Arc<Share> {
        let limit = self.context.receive_buffer;
        self.context.shared.budget.share(limit, client)
    }

    /// Remembers how large payloads may be, for the next session to this target.
    pub(super) fn remember(&mut self, payloads: &PayloadProbe) {
        if !payloads.teaches_as(&self.remembered) {
            self.remembered = payloads.clone();
            self.context.remember(payloads);
        }
    }

    /// Opens a websocket for a grant.
    pub(super) async fn attach(&self, grant: SessionGrant) -> Result<Resumed, Failure> {
        let aws = &self.context.shared.aws;
        let account = aws.account(&self.context.account).await?;
        let request = account.sign_upgrade(&grant.stream_url).await?;
        let socket = Box::new(websocket::connect(aws.connector(), request).await?);
        Ok(Resumed {
            socket,
            token: grant.token,
        })
    }

    /// Brings the session back, however long it takes; fails once AWS says that it is gone, or if a reason that time does
    /// not mend outlasts [`PASSING`]. The first attempt comes after a part of `delay`. Where credentials are missing,
    /// nothing is asked of AWS before there may be others: the session lives on for its idle timeout.
    pub(super) async fn resume(
        self,
        reporter: Reporter,
        delay: Duration,
        mut felt: Felt,
    ) -> Result<Resumed, Hopeless> {
        let patient_until = Instant::now() + PASSING;
        felt.sleep(delay.mul_f64(fastrand::f64())).await;
        let mut bound = FIRST_DELAY;
        loop {
            let failure = match felt.unless_stranded(self.attempt()).await {
                None => continue,
                Some(Ok(Some(resumed))) => return Ok(resumed),
                Some(Ok(None)) => return Err(Hopeless::Gone(self.gone())),
                Some(Err(failure)) => failure,
            };
            debug!(
                cause = failure.in_one_line(),
                session = &*self.session_id,
                "resume failed"
            );
            let jittered = bound.mul_f64(fastrand::f64());
            let wait = match failure.remedy() {
                Remedy::Fix if Instant::now() >= patient_until => return Err(Hopeless::GivenUp(failure)),
                Remedy::Login { .. } => Wait::Login,
                Remedy::RetryAfter(asked) => Wait::Asked(*asked + jittered),
                Remedy::Fix | Remedy::Retry => Wait::Pause(jittered),
            };
            bound = (bound * 2).min(longest_delay(&failure));
            reporter.tell(Report::Judged(Judgement::Impaired(Arc::new(failure))));
            felt.wait(wait).await;
        }
    }

    /// Gets another websocket beside the present one.
    pub(super) async fn renew(self) -> Result<Resumed, Failure> {
        self.attempt().await?.ok_or_else(|| self.gone())
    }

    /// Tries once, with fresh credentials, token and StreamUrl; `None` if the session is gone.
    async fn attempt(&self) -> Result<Option<Resumed>, Failure> {
        let account = self.context.shared.aws.account(&self.context.account).await?;
        match account.resume_session(&self.session_id).await? {
            Some(grant) => self.attach(grant).await.map(Some),
            None => Ok(None),
        }
    }

    /// Makes sure that the session has ended at AWS, and forgets it.
    pub(super) async fn settle(&self, ended: bool) {
        if ended {
            self.context.shared.ledger.closed(&self.session_id);
        } else {
            terminate(&self.context.shared, &self.context.account, &self.session_id).await;
        }
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
            format!("{target_host}:{target_port} refused the connection, or can't be reached, from {via}");
        Failure::new(Reason::TargetRefused, Remedy::Retry, doing)
            .of_stream()
            .hint(format!(
                "check that {target_host}:{target_port} listens and lets {via} in (its security group)"
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
        let failure =
            Failure::new(reason, remedy, format!("the SSM session through {via} ended")).because(end.clone());
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    /// The failure of streams whose session AWS has ended because its time was over.
    pub(super) fn cut(&self, cause: Failure) -> Failure {
        let via = &self.details.via;
        let doing = format!("the SSM session through {via} was cut because its maximum duration was over");
        let cut = Failure::new(Reason::Expired, Remedy::Retry, doing);
        cut.of_stream().because(cause)
    }

    fn gone(&self) -> Failure {
        let via = &self.details.via;
        let doing = format!("AWS has ended the SSM session through {via} (idle too long, or terminated)");
        Failure::new(Reason::Unreachable, Remedy::Retry, doing)
    }
}

/// Returns the longest delay between attempts that fail like this.
fn longest_delay(failure: &Failure) -> Duration {
    match failure.reason() {
        Reason::Unreachable if !failure.is_answered() => LONGEST_DELAY,
        Reason::Unreachable
        | Reason::Throttled
        | Reason::Login
        | Reason::Denied
        | Reason::NotFound
        | Reason::PortInUse
        | Reason::AgentOffline
        | Reason::TargetRefused
        | Reason::Invalid
        | Reason::Expired => LONGEST_ANSWERED_DELAY,
    }
}

/// Ends the sessions that a daemon which is gone has left open.
pub async fn end_orphans(shared: Arc<Shared>, orphans: Vec<Orphan>) {
    for Orphan { session_id, account } in orphans {
        info!(
            session = session_id,
            "ending a session that an earlier daemon left open"
        );
        terminate(&shared, &account, &session_id).await;
    }
}

/// Has AWS end a session, and forgets it once it has.
async fn terminate(shared: &Shared, account: &AccountSpec, session_id: &str) {
    let ask = async {
        shared
            .aws
            .account(account)
            .await?
            .terminate_session(session_id)
            .await
    };
    match timeout(SETTLE_DEADLINE, ask).await {
        Ok(Ok(())) => shared.ledger.closed(session_id),
        Ok(Err(failure)) => {
            let cause = failure.in_one_line();
            warn!(
                session = session_id,
                cause, "cannot end the session; the next start will try"
            );
        }
        Err(_) => warn!(
            session = session_id,
            "AWS does not answer; the next start will end the session"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aws_in_trouble_is_spared_and_a_network_that_is_gone_is_not() {
        let unreachable = || Failure::new(Reason::Unreachable, Remedy::Retry, "resuming");
        assert_eq!(longest_delay(&unreachable()), LONGEST_DELAY);
        assert_eq!(longest_delay(&unreachable().answered()), LONGEST_ANSWERED_DELAY);
        let throttled = Failure::new(Reason::Throttled, Remedy::Retry, "resuming");
        assert_eq!(longest_delay(&throttled), LONGEST_ANSWERED_DELAY);
    }
}
