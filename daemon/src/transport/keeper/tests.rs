//! Keepers of members that take their time to end.

use tokio::time::{Duration, timeout};
use tokio_util::task::TaskTracker;

use super::*;
use crate::config::PoolSize;

/// Longer than anything takes that is to happen by itself.
const LONG: Duration = Duration::from_secs(60);

/// Members that start or do not, and end when they are let go.
struct Lingering {
    starts: bool,
    let_go: CancellationToken,
    /// Cancelled when what they had in common is ended.
    over: CancellationToken,
    tasks: TaskTracker,
}

impl Lingering {
    fn new(starts: bool) -> Arc<Self> {
        Arc::new(Self {
            starts,
            let_go: CancellationToken::new(),
            over: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    async fn is_over(&self) -> bool {
        timeout(LONG, self.over.cancelled()).await.is_ok()
    }
}

impl Kind for Lingering {
    const NAME: &'static str = "a lingering member";
    type Command = Ask;

    fn limits(&self) -> PoolSize {
        PoolSize { min: 1, max: 1 }
    }

    fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    async fn run(self: Arc<Self>, station: Station<Ask>) {
        if self.starts {
            station.reporter.tell(Report::Ready {
                sharing: Sharing::Shared,
                details: LinkDetails::default(),
                term: None,
            });
            station.goodbye.cancelled().await;
        } else {
            let failure = Failure::new(Reason::Unreachable, Remedy::Retry, "it did not start");
            station.reporter.tell(Report::Failed(failure));
        }
        self.let_go.cancelled().await;
    }

    async fn finish(&self) {
        self.over.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_a_link_that_is_being_closed_does_not_wait_for_its_members() {
    let kind = Lingering::new(true);
    let link = connect(Arc::clone(&kind)).await.unwrap();
    let asked = async {
        let opened = timeout(LONG, link.open("127.0.0.1:9")).await;
        assert!(opened.expect("an answer").is_err());
        kind.let_go.cancel();
    };
    tokio::join!(biased; link.close(), asked);
    assert!(kind.is_over().await);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_did_not_start_is_waited_for_like_any_other() {
    let kind = Lingering::new(false);
    assert!(connect(Arc::clone(&kind)).await.is_err());
    assert!(!kind.is_over().await, "it is still at work");
    kind.let_go.cancel();
    assert!(kind.is_over().await);
}
