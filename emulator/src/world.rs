//! What every request can see.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::calls::Calls;
use crate::config::Config;
use crate::faults::Faults;
use crate::keys::Keys;
use crate::sessions::Sessions;

/// The whole fake account: what was configured, and what happened since.
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) keys: Keys,
    pub(crate) faults: Arc<Faults>,
    pub(crate) calls: Calls,
    pub(crate) sessions: Sessions,
    /// Every task of the emulator but its accept loop; `Emulator::shutdown` waits for them.
    pub(crate) tasks: TaskTracker,
}

impl World {
    pub(crate) fn new(config: Config) -> Self {
        let faults = Arc::new(Faults::default());
        let tasks = TaskTracker::new();
        Self {
            keys: Keys::new(&config),
            config,
            faults: Arc::clone(&faults),
            calls: Calls::default(),
            sessions: Sessions::new(tasks.clone()),
            tasks,
        }
    }
}
