//! What changes around the daemon, brought to all whom it concerns.

use std::sync::Arc;

use futures_util::future::join_all;
use tracing::{debug, info};

use super::Daemon;
use crate::surroundings::{Change, Surroundings};

impl Daemon {
    /// Minds what changes around the daemon, for ever: tells all whom it concerns. Cancel-safe.
    pub(crate) async fn mind(self: Arc<Self>, mut surroundings: Surroundings) {
        loop {
            let change = surroundings.changed().await;
            match change {
                Change::Woke(woke) => {
                    info!("{woke}: asking all links for a sign of life");
                    self.network_changed();
                }
                Change::Network => {
                    debug!("the network changed: asking all links for a sign of life");
                    self.network_changed();
                }
                Change::Credentials => {
                    debug!("the files of AWS credentials changed: reading them anew");
                    self.aws.forget_accounts();
                    self.visits.retry();
                }
            }
            let handles = self.handles();
            // A supervisor that has finished has nothing to mind.
            join_all(handles.iter().map(|handle| handle.around(change))).await;
        }
    }

    fn network_changed(&self) {
        // First, so that nobody's next call waits for an answer on a connection that died.
        self.aws.network_changed();
        self.visits.probe();
    }
}
