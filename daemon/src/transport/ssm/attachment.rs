//! How a session comes to a websocket: the first, another one for the one that was lost, or one that replaces it in time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info};

use super::channel::{Channel, Lost};
use super::driver::{Driver, Phase};
use super::renewal::Renewal;
use super::resume::{FIRST_DELAY, LONGEST_DELAY, Resumed};
use crate::failure::{Failure, Reason, Remedy};
use crate::transport::member::Judgement;

/// Frames after which a websocket counts as one that works: more than the hint that the service sends by itself.
const ENOUGH_FRAMES: usize = 3;

impl Driver {
    pub(super) fn handle_loss(&mut self, lost: Lost) {
        self.session.detach();
        self.doubted |= matches!(lost, Lost::Paused);
        let cause = Failure::new(
            Reason::Unreachable,
            Remedy::Retry,
            "the SSM session lost its websocket",
        )
        .because(lost);
        info!(
            cause = cause.in_one_line(),
            session = self.upstream.session_id(),
            "resuming the session"
        );
        let cause = Arc::new(cause);
        self.judge(if self.doubted {
            Judgement::Stalled(cause)
        } else {
            Judgement::Impaired(cause)
        });
        self.calm = if self.frames >= ENOUGH_FRAMES {
            Duration::ZERO
        } else {
            (self.calm * 2).clamp(FIRST_DELAY, LONGEST_DELAY)
        };
        self.resume(self.calm);
    }

    pub(super) fn resume(&mut self, delay: Duration) {
        let resumed = self
            .upstream
            .clone()
            .resume(self.reporter.clone(), delay, self.spur.felt());
        self.phase = Phase::Resuming(Box::pin(resumed));
    }

    pub(super) fn handle_resumed(&mut self, resumed: Resumed) {
        self.attach(resumed);
        info!(
            session = self.upstream.session_id(),
            streams = self.streams.len(),
            "session resumed"
        );
        // An agent that was said to be away has to be heard first.
        if !self.session.is_peer_away() {
            self.judge(Judgement::Fit);
        }
    }

    pub(super) fn attach(&mut self, resumed: Resumed) {
        let now = Instant::now();
        self.frames = 0;
        self.session.attach(resumed.token.reveal(), now.into_std());
        self.phase = Phase::Attached {
            channel: Box::new(Channel::new(*resumed.socket)),
            plan: Renewal::new(self.upstream.renewals(), now),
            renewed: None,
        };
    }

    /// Starts to replace the websocket, if this is the moment for it.
    pub(super) fn renew_if_due(&mut self) {
        let now = Instant::now();
        if let Phase::Attached { plan, renewed, .. } = &mut self.phase
            && plan.is_due(self.session.is_drained(), self.heard.unwrap_or(now), now)
        {
            debug!("replacing the websocket before AWS closes it");
            *renewed = Some(Box::pin(self.upstream.clone().renew()));
        }
    }

    pub(super) fn handle_renewed(&mut self, renewed: Result<Resumed, Failure>) {
        match renewed {
            Ok(resumed) => {
                // What has come on the present one would have to be sent again.
                self.take_what_has_come();
                let Phase::Attached { plan, renewed, .. } = &mut self.phase else {
                    return;
                };
                if !self.session.is_drained() {
                    // A transfer began meanwhile. The next quiet moment will do.
                    *renewed = None;
                    plan.put_off(Instant::now());
                    return;
                }
                self.session.detach();
                self.attach(resumed);
                info!(
                    session = self.upstream.session_id(),
                    "replaced the websocket before AWS closes it"
                );
            }
            Err(failure) => {
                // The present one is as good as before.
                debug!(cause = failure.in_one_line(), "the websocket was not replaced");
                if let Phase::Attached { plan, renewed, .. } = &mut self.phase {
                    *renewed = None;
                    plan.leave_to_aws();
                }
            }
        }
    }
}
