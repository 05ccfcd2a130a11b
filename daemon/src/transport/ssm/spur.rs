//! What hurries an attempt to resume a session: another network, other credentials.
//!
//! ```text
//!   Spur (the driver's) ── network, login ──► Felt (the attempt's): waits end early, attempts begin anew
//! ```

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::surroundings::HURRY_AGAIN;

/// An attempt that is younger than this when the network changes has begun on the network as it is. An older one may
/// wait for one that is gone.
const YOUNG: Duration = Duration::from_millis(500);

/// The driver's end.
#[derive(Debug)]
pub(super) struct Spur {
    network: watch::Sender<()>,
    login: watch::Sender<()>,
}

/// The end of an attempt to resume.
#[derive(Debug)]
pub(super) struct Felt {
    network: watch::Receiver<()>,
    login: watch::Receiver<()>,
    /// When a change of network hurried it, the latest time.
    hurried: Option<Instant>,
}

/// How long to wait before the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// For so long, or until the network or the credentials change.
    Pause(Duration),
    /// For so long, because AWS asked for it.
    Asked(Duration),
    /// Until the credentials change, also if they did during the attempt.
    Login,
}

impl Default for Spur {
    fn default() -> Self {
        Self {
            network: watch::Sender::new(()),
            login: watch::Sender::new(()),
        }
    }
}

impl Spur {
    /// The machine woke, or its network is another one.
    pub(super) fn network(&self) {
        self.network.send_replace(());
    }

    /// Credentials may be others than before.
    pub(super) fn login(&self) {
        self.login.send_replace(());
    }

    /// Returns the end of an attempt that begins now.
    pub(super) fn felt(&self) -> Felt {
        Felt {
            network: self.network.subscribe(),
            login: self.login.subscribe(),
            hurried: None,
        }
    }
}

impl Felt {
    /// Waits for so long, or until the network changes.
    pub(super) async fn sleep(&mut self, time: Duration) {
        tokio::select! {
            () = sleep(time) => {}
            () = hurry(&mut self.network, &mut self.hurried) => {}
        }
    }

    /// Makes an attempt; `None` if it was given up because the network changed under it, and none was a moment ago.
    pub(super) async fn unless_stranded<T>(&mut self, attempt: impl Future<Output = T>) -> Option<T> {
        let began = Instant::now();
        self.network.mark_unchanged();
        self.login.mark_unchanged();
        let stranded = async {
            loop {
                changed(&mut self.network).await;
                if began.elapsed() >= YOUNG {
                    return calm(&mut self.hurried).await;
                }
            }
        };
        tokio::select! {
            biased;
            outcome = attempt => Some(outcome),
            () = stranded => None,
        }
    }

    /// Waits before the next attempt.
    pub(super) async fn wait(&mut self, wait: Wait) {
        match wait {
            Wait::Pause(time) => {
                tokio::select! {
                    () = sleep(time) => {}
                    () = hurry(&mut self.network, &mut self.hurried) => {}
                    () = changed(&mut self.login) => {}
                }
            }
            Wait::Asked(time) => sleep(time).await,
            Wait::Login => changed(&mut self.login).await,
        }
    }
}

/// Waits for a change of network that hurries: not soon after the last one that did.
async fn hurry(network: &mut watch::Receiver<()>, hurried: &mut Option<Instant>) {
    changed(network).await;
    calm(hurried).await;
}

/// Waits until a change of network may hurry again, and notes that it does.
async fn calm(hurried: &mut Option<Instant>) {
    if let Some(hurried) = *hurried {
        sleep_until(hurried + HURRY_AGAIN).await;
    }
    *hurried = Some(Instant::now());
}

/// Waits for a change. The driver's end lives as long as the attempt, which the driver holds.
async fn changed(receiver: &mut watch::Receiver<()>) {
    if receiver.changed().await.is_err() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::FutureExt;
    use tokio::time::advance;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn another_network_ends_a_pause_and_nothing_that_somebody_asked_for() {
        let spur = Spur::default();
        let mut felt = spur.felt();
        for (wait, ends) in [
            (Wait::Pause(MINUTE), true),
            (Wait::Asked(MINUTE), false),
            (Wait::Login, false),
        ] {
            let mut waiting = Box::pin(felt.wait(wait));
            assert!(waiting.as_mut().now_or_never().is_none());
            spur.network();
            assert_eq!(waiting.now_or_never().is_some(), ends, "{wait:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_other_credentials_end_the_wait_for_a_login() {
        let spur = Spur::default();
        let mut felt = spur.felt();
        let mut waiting = Box::pin(felt.wait(Wait::Login));
        assert!(waiting.as_mut().now_or_never().is_none());
        advance(60 * MINUTE).await;
        assert!(waiting.as_mut().now_or_never().is_none());
        spur.login();
        assert!(waiting.now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_that_changed_during_the_attempt_are_tried_at_once() {
        let spur = Spur::default();
        let mut felt = spur.felt();
        felt.unless_stranded(async { spur.login() }).await;
        assert!(felt.wait(Wait::Login).now_or_never().is_some());
        felt.unless_stranded(async {}).await;
        assert!(felt.wait(Wait::Login).now_or_never().is_none(), "once");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_is_given_up_with_its_network_and_a_young_one_is_not() {
        let spur = Spur::default();
        let mut felt = spur.felt();
        let mut attempt = Box::pin(felt.unless_stranded(pending::<()>()));
        assert!(attempt.as_mut().now_or_never().is_none());
        spur.network();
        assert!(
            attempt.as_mut().now_or_never().is_none(),
            "it began on the new one"
        );
        advance(YOUNG).await;
        assert!(attempt.as_mut().now_or_never().is_none());
        spur.network();
        assert_eq!(attempt.now_or_never(), Some(None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_that_changes_all_the_time_leaves_attempts_their_time() {
        let spur = Spur::default();
        let mut felt = spur.felt();
        for given_up_before in [false, true] {
            let mut attempt = Box::pin(felt.unless_stranded(pending::<()>()));
            assert!(attempt.as_mut().now_or_never().is_none());
            advance(YOUNG).await;
            spur.network();
            if given_up_before {
                assert!(attempt.as_mut().now_or_never().is_none(), "a moment ago");
                advance(HURRY_AGAIN - YOUNG).await;
            }
            assert_eq!(attempt.now_or_never(), Some(None));
        }
    }
}
