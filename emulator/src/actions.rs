//! What can be done to clients at a moment, beside the conditions that hold: by a test, or by the admin endpoints.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::wall_clock;
use crate::config::Credentials;
use crate::sessions::Session;
use crate::world::World;

impl World {
    /// Resets the websocket of every open session; returns how many sessions those are.
    pub(crate) fn cut(&self) -> usize {
        self.for_each_open(Session::cut)
    }

    /// Closes the websocket of every open session as the service does about hourly.
    pub(crate) fn recycle(&self) -> usize {
        self.for_each_open(Session::recycle)
    }

    /// Makes the present websocket of every open session half-open for ever.
    pub(crate) fn freeze(&self) -> usize {
        self.for_each_open(Session::freeze)
    }

    /// Takes every agent's own websocket away for that long.
    pub(crate) fn agent_outage(&self, duration: Duration) -> usize {
        self.for_each_open(|session| session.agent_outage(duration))
    }

    /// Ends every open session, and has no agent online for that long.
    pub(crate) fn restart_agents(&self, away: Duration) -> usize {
        self.send_agents_away(Instant::now() + away);
        self.for_each_open(|session| session.terminate("its agent restarted"))
    }

    /// Makes new keys valid, and lets the present ones expire at once.
    pub(crate) fn rotate_credentials(&self) -> Credentials {
        self.keys.rotate(wall_clock())
    }

    fn for_each_open(&self, act: impl Fn(&Session)) -> usize {
        let open: Vec<Arc<Session>> = self
            .sessions
            .all()
            .into_iter()
            .filter(|session| session.ended().is_none())
            .collect();
        open.iter().for_each(|session| act(session));
        open.len()
    }
}
