//! What every request can see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::calls::Calls;
use crate::conditions::Conditions;
use crate::config::{Config, Endpoint, EndpointState, Task, TaskStatus};
use crate::eice::Tunnels;
use crate::faults::Faults;
use crate::keys::Keys;
use crate::network::Network;
use crate::pushed_keys::PushedKeys;
use crate::secrets::Secrets;
use crate::sessions::Sessions;

/// The whole fake account: what was configured, and what happened since.
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) keys: Keys,
    pub(crate) faults: Arc<Faults>,
    pub(crate) conditions: watch::Sender<Arc<Conditions>>,
    pub(crate) network: Arc<Network>,
    pub(crate) calls: Calls,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) sessions: Sessions,
    pub(crate) tunnels: Tunnels,
    pub(crate) pushed_keys: Arc<PushedKeys>,
    /// The states of endpoints that are not those configured any more, by id.
    endpoint_states: Mutex<BTreeMap<String, EndpointState>>,
    /// Until when every agent is away.
    agents_back: Mutex<Option<Instant>>,
    /// The ids of the ECS tasks that were stopped.
    stopped: Mutex<BTreeSet<String>>,
    /// Every task of the emulator but its accept loop; `Emulator::shutdown` waits for them.
    pub(crate) tasks: TaskTracker,
}

impl World {
    pub(crate) fn new(config: Config) -> Self {
        let faults = Arc::new(Faults::default());
        let tasks = TaskTracker::new();
        let conditions = watch::Sender::default();
        let secrets = Arc::new(Secrets::default());
        Self {
            keys: Keys::new(&config),
            config,
            faults: Arc::clone(&faults),
            network: Arc::default(),
            calls: Calls::default(),
            sessions: Sessions::new(tasks.clone(), conditions.subscribe(), Arc::clone(&secrets)),
            secrets,
            tunnels: Tunnels::default(),
            pushed_keys: Arc::default(),
            endpoint_states: Mutex::default(),
            conditions,
            agents_back: Mutex::default(),
            stopped: Mutex::default(),
            tasks,
        }
    }

    /// Makes every agent be away until then.
    pub(crate) fn send_agents_away(&self, until: Instant) {
        *self.agents_back.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Returns whether every agent is away at this moment.
    pub(crate) fn are_agents_away(&self) -> bool {
        let back = *self.agents_back.lock().unwrap_or_else(PoisonError::into_inner);
        back.is_some_and(|back| back > Instant::now())
    }

    /// Returns the state of an endpoint at this moment.
    pub(crate) fn state_of(&self, endpoint: &Endpoint) -> EndpointState {
        let states = self
            .endpoint_states
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        states.get(&endpoint.id).copied().unwrap_or(endpoint.state)
    }

    /// Changes the state of an endpoint; returns whether there is one.
    pub(crate) fn set_endpoint_state(&self, id: &str, state: EndpointState) -> bool {
        let is_there = self.config.endpoints.iter().any(|endpoint| endpoint.id == id);
        if is_there {
            self.endpoint_states
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(id.to_owned(), state);
        }
        is_there
    }

    /// Returns the public keys by which a user can log in to an instance at this moment.
    pub(crate) fn authorized_keys(&self, instance: &str, user: &str) -> Vec<String> {
        let is_known = self
            .config
            .instances
            .iter()
            .any(|known| known.id == instance && known.has_user(user));
        match is_known {
            true => self.pushed_keys.of(instance, user),
            false => Vec::new(),
        }
    }

    /// Returns how an ECS task is at this moment.
    pub(crate) fn status_of(&self, task: &Task) -> TaskStatus {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        if stopped.contains(&task.id) {
            TaskStatus::Stopped
        } else {
            task.status
        }
    }

    /// Stops an ECS task, and ends its sessions; returns how many those are. `None`: there is no such task.
    pub(crate) fn stop_task(&self, id: &str) -> Option<usize> {
        let task = self.config.tasks.iter().find(|task| task.id == id)?;
        self.stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(task.id.clone());
        let mut open = self.sessions.all();
        open.retain(|session| session.ended().is_none() && task.container_of(&session.target).is_some());
        for session in &open {
            session.terminate("its task was stopped");
        }
        Some(open.len())
    }
}
