//! The set of tunnels: one handle per configured tunnel. It changes on reload only; `up` and `down` are messages.
//!
//! A reload compares specifications: equal ones are the same tunnel and are left alone. All listeners that go are
//! closed before any new one is bound, so that two tunnels can swap their ports.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::aws::{Aws, FoundInstance};
use crate::config::{Config, Defaults, Instance, Problems, Target, TunnelName, TunnelSpec, Wanted, Written};
use crate::failure::{Failure, Reason, Remedy};
use crate::limits::Allowance;
use crate::near::near;
use crate::status::{Board, Changes, Status};
use crate::transport::Transports;
use crate::tunnel::{Finished, Handle, Wish};
use crate::visit::{self, Visit, Visits};

/// How long connections of a tunnel that a reload removed or changed may take to end by themselves. New ones go the
/// new way at once, so that nobody keeps working on the former target without knowing.
const RELOAD_GRACE: Duration = Duration::from_secs(10);

/// The tunnels, and what can be asked of them.
pub(crate) struct Daemon {
    path: PathBuf,
    transports: Transports,
    board: Arc<Board>,
    /// In the configuration's order.
    handles: Mutex<Vec<Handle>>,
    /// Held by whoever changes the set.
    changing: tokio::sync::Mutex<()>,
    supervisors: TaskTracker,
    allowance: Allowance,
    stopping: AtomicBool,
    aws: Arc<Aws>,
    /// What a tunnel has that does not say otherwise.
    defaults: Mutex<Arc<Defaults>>,
    /// Connections without a tunnel.
    visits: Arc<Visits>,
}

/// Why the daemon did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There are no such tunnels. Nothing was done, also for names that exist.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Unknown(Vec<UnknownName>),
    /// The configuration file has problems.
    #[error("the configuration has problems; everything runs on as before\n{0}")]
    Problems(Problems),
    /// The tunnel was removed or changed meanwhile.
    #[error("the tunnel `{0}` was just reloaded; try again")]
    Reloaded(TunnelName),
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

/// A name that no tunnel has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownName {
    name: String,
    near: Vec<String>,
}

impl std::fmt::Display for UnknownName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "there is no tunnel `{}`", self.name)?;
        for (index, near) in self.near.iter().enumerate() {
            write!(
                f,
                "{} `{near}`",
                if index == 0 { "; did you mean" } else { " or" }
            )?;
        }
        Ok(())
    }
}

/// An instance, and the way to it.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// The instance.
    pub(crate) found: FoundInstance,
    /// The route as it can be asked for.
    pub(crate) route: String,
    /// Why routes that would have been better were passed over, a sentence each.
    pub(crate) passed_over: Vec<String>,
}

/// What a reload did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reloaded {
    /// Tunnels that are new.
    pub(crate) added: Vec<TunnelName>,
    /// Tunnels that were started anew.
    pub(crate) changed: Vec<TunnelName>,
    /// Tunnels that are gone.
    pub(crate) removed: Vec<TunnelName>,
}

impl Daemon {
    /// Starts a supervisor for each tunnel. Returns when those that start by themselves are bound or blocked.
    pub(crate) async fn start(config: Config, aws: Arc<Aws>, transports: Transports) -> Arc<Self> {
        let daemon = Arc::new(Self {
            path: config.path,
            visits: Visits::new(Arc::clone(&aws), Arc::clone(&transports)),
            transports,
            aws,
            defaults: Mutex::new(config.defaults),
            board: Arc::new(Board::new()),
            handles: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            supervisors: TaskTracker::new(),
            allowance: Allowance::of_process(),
            stopping: AtomicBool::new(false),
        });
        daemon.adopt(config.tunnels).await;
        daemon
    }

    /// Returns the configuration file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Wants the tunnels up. Answers when their addresses are bound, or known to be taken.
    pub(crate) async fn up(&self, names: &[String], wish: Wish) -> Result<Vec<Arc<Status>>, Error> {
        self.each(names, async move |handle| handle.up(wish).await).await
    }

    /// Wants the tunnels down. Answers when they are.
    pub(crate) async fn down(&self, names: &[String]) -> Result<Vec<Arc<Status>>, Error> {
        self.each(names, async |handle| handle.down().await).await
    }

    /// Returns how the tunnels are; without names, how all are.
    pub(crate) fn list(&self, names: &[String]) -> Result<Vec<Arc<Status>>, Error> {
        let snapshot = self.board.snapshot();
        if names.is_empty() {
            return Ok(snapshot.to_vec());
        }
        let known: Vec<_> = snapshot.iter().map(|status| status.name.clone()).collect();
        let find = |name: &str| {
            snapshot
                .iter()
                .find(|status| status.name.as_str() == name)
                .cloned()
        };
        all_or_unknown(names, &known, find)
    }

    /// Follows how the tunnels are.
    pub(crate) fn watch(&self) -> Changes {
        self.board.subscribe()
    }

    /// Reads the configuration again. With problems in it nothing changes.
    pub(crate) async fn reload(&self) -> Result<Reloaded, Error> {
        let path = self.path.clone();
        let loaded = tokio::task::spawn_blocking(move || Config::load(&path)).await;
        // Joining fails only when the runtime ends.
        let config = loaded.map_err(|_| Error::Stopping)?.map_err(Error::Problems)?;
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Error::Stopping);
        }
        *self.defaults.lock().unwrap_or_else(PoisonError::into_inner) = config.defaults;
        Ok(self.adopt(config.tunnels).await)
    }

    /// Finds an instance, and the way to one of its ports.
    pub(crate) async fn resolve(&self, written: Written) -> Result<Resolved, Failure> {
        let wanted = self.read(written)?;
        let account = self.aws.account(&wanted.account).await?;
        let (instance, port) = port_of_instance(&wanted)?;
        let found = account.find_instance(instance).await?;
        let (route, passed_over) = match &wanted.named {
            Some(spec) => (spec.route.written(), Vec::new()),
            None => {
                let choice = visit::choose(&account, &found, port).await?;
                (choice.route.written(), choice.passed_over)
            }
        };
        Ok(Resolved {
            found,
            route,
            passed_over,
        })
    }

    /// Has an instance accept an SSH public key for a minute.
    pub(crate) async fn push_key(
        &self,
        written: Written,
        user: &str,
        public_key: &str,
    ) -> Result<(), Failure> {
        let wanted = self.read(written)?;
        let account = self.aws.account(&wanted.account).await?;
        let found = account.find_instance(port_of_instance(&wanted)?.0).await?;
        if !found.id().starts_with("i-") {
            let doing = format!("{found} is no instance of EC2, which alone accept pushed keys");
            return Err(
                Failure::new(Reason::Invalid, Remedy::Fix, doing).hint("use a key of your own: ssh -i FILE")
            );
        }
        let zone = found.place().and_then(|place| place.availability_zone.as_deref());
        account
            .send_ssh_public_key(found.id(), zone, user, public_key)
            .await
    }

    /// Reaches a target without a tunnel. Dropping the future gives it up.
    pub(crate) async fn visit(&self, written: Written) -> Result<Visit, Arc<Failure>> {
        let wanted = self.read(written).map_err(Arc::new)?;
        self.visits.open(wanted).await
    }

    /// Serves a visit in a task that ends before the daemon does.
    pub(crate) fn spawn_visit(&self, visit: impl Future<Output = ()> + Send + 'static) {
        self.visits.spawn(visit);
    }

    fn read(&self, written: Written) -> Result<Wanted, Failure> {
        let defaults = Arc::clone(&self.defaults.lock().unwrap_or_else(PoisonError::into_inner));
        Wanted::read(written, defaults).map_err(visit::refused)
    }

    /// Ends every tunnel: listeners at once, connections within `grace`, then links. Likewise the visits.
    pub(crate) async fn shutdown(&self, grace: Duration) {
        self.stopping.store(true, Ordering::Relaxed);
        let _changing = self.changing.lock().await;
        let handles = self.handles();
        let tunnels = async {
            // A supervisor that has finished already is as it should be.
            join_all(handles.iter().map(|handle| handle.finish(grace))).await;
            self.supervisors.close();
            self.supervisors.wait().await;
        };
        tokio::join!(tunnels, self.visits.shutdown(grace));
    }

    /// Makes the set of tunnels what these specifications say.
    async fn adopt(&self, specs: Vec<TunnelSpec>) -> Reloaded {
        let _changing = self.changing.lock().await;
        let mut reloaded = Reloaded::default();
        let names: Vec<_> = specs.iter().map(|spec| spec.name.clone()).collect();
        let by_name: HashMap<_, _> = specs.iter().map(|spec| (&spec.name, spec)).collect();
        let (mut kept, mut former) = (HashMap::new(), Vec::new());
        for handle in self.handles() {
            let name = &handle.spec().name;
            match by_name.get(name) {
                Some(spec) if **spec == **handle.spec() => _ = kept.insert(name.clone(), handle),
                Some(_) | None => former.push(handle),
            }
        }

        let finishing = former.iter().map(|handle| async {
            // One that has finished was not wanted.
            let wanted = handle.finish(RELOAD_GRACE).await.unwrap_or(false);
            (handle.spec().name.clone(), wanted)
        });
        let finished: HashMap<TunnelName, bool> = join_all(finishing).await.into_iter().collect();
        let gone = former.iter().map(|handle| &handle.spec().name);
        reloaded.removed = gone.filter(|name| !by_name.contains_key(name)).cloned().collect();

        let mut handles = Vec::with_capacity(specs.len());
        let mut wanted = Vec::new();
        for spec in specs {
            if let Some(handle) = kept.get(&spec.name) {
                handles.push(handle.clone());
                continue;
            }
            let (changes, wants) = match finished.get(&spec.name) {
                Some(wanted) => (&mut reloaded.changed, *wanted),
                None => (&mut reloaded.added, spec.autostart),
            };
            changes.push(spec.name.clone());
            let transport = (self.transports)(&spec);
            let entry = self.board.enter(&spec);
            let handle = Handle::start(
                Arc::new(spec),
                transport,
                entry,
                self.allowance.clone(),
                &self.supervisors,
            );
            if wants {
                wanted.push(handle.clone());
            }
            handles.push(handle);
        }
        self.board.arrange(&names);
        *self.handles.lock().unwrap_or_else(PoisonError::into_inner) = handles;

        // A supervisor that does not answer has ended, and says so to whoever asks next.
        join_all(wanted.iter().map(|handle| handle.up(Wish::Listen))).await;
        join_all(kept.values().map(Handle::reloaded)).await;
        let Reloaded {
            added,
            changed,
            removed,
        } = &reloaded;
        info!(
            added = added.len(),
            changed = changed.len(),
            removed = removed.len(),
            "configuration adopted"
        );
        reloaded
    }

    async fn each(
        &self,
        names: &[String],
        ask: impl AsyncFn(&Handle) -> Result<(), Finished>,
    ) -> Result<Vec<Arc<Status>>, Error> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Error::Stopping);
        }
        let handles = self.handles();
        let known: Vec<_> = handles.iter().map(|handle| handle.spec().name.clone()).collect();
        let find = |name: &str| handles.iter().find(|handle| handle.spec().name.as_str() == name);
        let asked = all_or_unknown(names, &known, find)?;
        let answers = join_all(asked.iter().map(|handle| ask(handle))).await;
        for (handle, answer) in asked.iter().zip(answers) {
            answer.map_err(|Finished| match self.stopping.load(Ordering::Relaxed) {
                true => Error::Stopping,
                false => Error::Reloaded(handle.spec().name.clone()),
            })?;
        }
        self.list(names)
    }

    fn handles(&self) -> Vec<Handle> {
        self.handles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn port_of_instance(wanted: &Wanted) -> Result<(&Instance, u16), Failure> {
    match &wanted.target {
        Target::Instance { instance, port } => Ok((instance, *port)),
        Target::Rds { .. } | Target::Host { .. } => {
            let doing = format!("`{}` is no port of an instance", wanted.target);
            Err(Failure::new(Reason::Invalid, Remedy::Fix, doing))
        }
    }
}

/// Finds something for each name, or tells of every name for which there is nothing.
fn all_or_unknown<T>(
    names: &[String],
    known: &[TunnelName],
    find: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let mut unknown = Vec::new();
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        match find(name) {
            Some(value) => found.push(value),
            None => unknown.push(UnknownName {
                name: name.clone(),
                near: near(name, known.iter().map(TunnelName::as_str)),
            }),
        }
    }
    if unknown.is_empty() {
        Ok(found)
    } else {
        Err(Error::Unknown(unknown))
    }
}

#[cfg(test)]
mod tests;
