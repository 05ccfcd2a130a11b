//! What a tunnel's streams wait for, told for as long as they do: also while there is no link yet that could tell it.

use std::sync::Arc;

use tokio::sync::watch;

use crate::failure::Failure;

/// What is waited for at the moment, the oldest wait first. Clones tell the same readers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Delays(watch::Sender<Vec<Arc<Failure>>>);

/// One wait, told of until this is dropped.
pub(crate) struct Delay {
    delays: Delays,
    cause: Arc<Failure>,
}

impl Delays {
    /// Tells of a wait.
    pub(crate) fn begin(&self, cause: Failure) -> Delay {
        let cause = Arc::new(cause);
        self.0.send_modify(|waits| waits.push(Arc::clone(&cause)));
        Delay {
            delays: self.clone(),
            cause,
        }
    }

    /// Follows what is waited for.
    pub(crate) fn watch(&self) -> watch::Receiver<Vec<Arc<Failure>>> {
        self.0.subscribe()
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.delays
            .0
            .send_modify(|waits| waits.retain(|wait| !Arc::ptr_eq(wait, &self.cause)));
    }
}
