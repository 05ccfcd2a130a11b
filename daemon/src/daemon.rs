//! The set of tunnels: one handle per configured tunnel. It changes on reload only; `up` and `down` are messages.
//!
//! A daemon that a service manager starts with a bad file has no tunnels and refuses everything but a reload, until one
//! succeeds.
//!
//! A reload compares specifications: equal ones are the same tunnel and are left alone. All listeners that go are
//! offered before any new one is bound, so that two tunnels can swap their ports and no client is refused meanwhile.

mod error;
mod mind;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::info;

pub(crate) use self::error::Error;
use self::error::all_or_unknown;
use crate::aws::{Aws, FoundInstance};
use crate::config::{
    Config, DaemonSettings, Defaults, Instance, Problems, Target, TunnelName, TunnelSpec, Wanted, Written,
};
use crate::failure::{Failure, Reason, Remedy};
use crate::heritage::{Address, Heritage};
use crate::limits::Allowance;
use crate::status::{Board, Changes, Snapshot, Status};
use crate::transport::Transports;
use crate::tunnel::{Afterwards, Common, Finished, Handle, Wish};
use crate::visit::{self, Visit, Visits};
use crate::wishes::{self, Wishes};

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
    common: Common,
    stopping: AtomicBool,
    aws: Arc<Aws>,
    /// What a tunnel has that does not say otherwise.
    defaults: Mutex<Arc<Defaults>>,
    /// What the daemon does beside its tunnels.
    settings: watch::Sender<DaemonSettings>,
    /// Connections without a tunnel.
    visits: Arc<Visits>,
    wishes: Wishes,
    /// Why there are no tunnels.
    problems: Mutex<Option<Problems>>,
}

/// What a daemon works with.
pub(crate) struct Means {
    /// The way to AWS.
    pub(crate) aws: Arc<Aws>,
    /// Follows routes.
    pub(crate) transports: Transports,
    /// Sockets that were there before, and those that stay.
    pub(crate) heritage: Arc<Heritage>,
    /// What a person typed last.
    pub(crate) wishes: Wishes,
}

#[cfg(test)]
impl Means {
    /// Without AWS, and nothing that was there before.
    pub(crate) fn for_test(transports: Transports) -> Self {
        Self {
            aws: crate::tunnel::fake::aws(),
            transports,
            heritage: Arc::default(),
            wishes: Wishes::default(),
        }
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
    /// Starts a supervisor for each tunnel. Returns when those that are wanted are bound or blocked.
    pub(crate) async fn start(config: Config, means: Means) -> Arc<Self> {
        let daemon = Self::new(config.path, config.defaults, config.daemon, None, means);
        daemon.adopt(config.tunnels).await;
        daemon
    }

    /// A daemon without tunnels, because the configuration file has problems.
    pub(crate) fn without_tunnels(path: PathBuf, problems: Problems, means: Means) -> Arc<Self> {
        Self::new(
            path,
            Arc::default(),
            DaemonSettings::default(),
            Some(problems),
            means,
        )
    }

    fn new(
        path: PathBuf,
        defaults: Arc<Defaults>,
        settings: DaemonSettings,
        problems: Option<Problems>,
        means: Means,
    ) -> Arc<Self> {
        let Means {
            aws,
            transports,
            heritage,
            wishes,
        } = means;
        Arc::new(Self {
            path,
            visits: Visits::new(Arc::clone(&aws), Arc::clone(&transports)),
            transports,
            aws,
            defaults: Mutex::new(defaults),
            settings: watch::Sender::new(settings),
            board: Arc::new(Board::new()),
            handles: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            supervisors: TaskTracker::new(),
            common: Common {
                heritage,
                allowance: Allowance::of_process(),
                owners: Arc::default(),
            },
            stopping: AtomicBool::new(false),
            wishes,
            problems: Mutex::new(problems),
        })
    }

    /// Returns whether there is a configuration at all.
    pub(crate) fn ready(&self) -> Result<(), Error> {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems
            .clone()
            .map_or(Ok(()), |problems| Err(Error::NoTunnels(problems)))
    }

    /// Returns the configuration file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Wants the tunnels up. Answers when their addresses are bound, or known to be taken.
    pub(crate) async fn up(&self, names: &[String], wish: Wish) -> Result<Vec<Arc<Status>>, Error> {
        self.each(names, wishes::Wanted::Up, async move |handle| {
            handle.up(wish).await
        })
        .await
    }

    /// Wants the tunnels down. Answers when they are.
    pub(crate) async fn down(&self, names: &[String]) -> Result<Vec<Arc<Status>>, Error> {
        self.each(names, wishes::Wanted::Down, async |handle| handle.down().await)
            .await
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

    /// Returns how all tunnels are.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.board.snapshot()
    }

    /// Follows how the tunnels are.
    pub(crate) fn watch(&self) -> Changes {
        self.board.subscribe()
    }

    /// Follows what the daemon does beside its tunnels. Each reload tells of it, also when it is as before, so that
    /// what could not be done is tried again.
    pub(crate) fn settings(&self) -> watch::Receiver<DaemonSettings> {
        self.settings.subscribe()
    }

    /// Reads the configuration again. With problems in it nothing changes.
    pub(crate) async fn reload(&self) -> Result<Reloaded, Error> {
        let path = self.path.clone();
        let loaded = tokio::task::spawn_blocking(move || Config::load(&path)).await;
        // Joining fails only when the runtime ends.
        let config = loaded
            .map_err(|_| Error::Stopping)?
            .map_err(|problems| self.refused(problems))?;
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Error::Stopping);
        }
        *self.problems.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.defaults.lock().unwrap_or_else(PoisonError::into_inner) = config.defaults;
        self.settings.send_replace(config.daemon);
        Ok(self.adopt(config.tunnels).await)
    }

    /// What a reload says of a file with problems.
    fn refused(&self, problems: Problems) -> Error {
        let mut present = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        match present.as_mut() {
            Some(present) => {
                *present = problems.clone();
                Error::NoTunnels(problems)
            }
            None => Error::Problems(problems),
        }
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
    pub(crate) async fn shutdown(&self, grace: Duration, afterwards: Afterwards) {
        self.stopping.store(true, Ordering::Relaxed);
        let _changing = self.changing.lock().await;
        let handles = self.handles();
        let tunnels = async {
            // A supervisor that has finished already is as it should be.
            join_all(handles.iter().map(|handle| handle.finish(grace, afterwards))).await;
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

        let typed = former.iter().filter(|handle| self.wishes.has(handle.spec()));
        let typed: HashSet<TunnelName> = typed.map(|handle| handle.spec().name.clone()).collect();
        self.wishes.forget_all_but(&specs).await;
        let finishing = former.iter().map(|handle| async {
            // One that has finished was not wanted.
            let wanted = handle
                .finish(RELOAD_GRACE, Afterwards::Offer)
                .await
                .unwrap_or(false);
            (handle.spec().name.clone(), wanted)
        });
        let finished: HashMap<TunnelName, bool> = join_all(finishing).await.into_iter().collect();
        let addresses: Vec<_> = specs
            .iter()
            .flat_map(|spec| Address::all_of(&spec.listen))
            .collect();
        self.common.heritage.close_all_but(&addresses);
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
                None => (&mut reloaded.added, self.wishes.wants(&spec)),
            };
            changes.push(spec.name.clone());
            // As it is after the reload, so it is after a restart.
            if typed.contains(&spec.name) && wants != spec.autostart {
                let wish = if wants {
                    wishes::Wanted::Up
                } else {
                    wishes::Wanted::Down
                };
                self.wishes.typed(&[&spec], wish).await;
            }
            let transport = (self.transports)(&spec);
            let entry = self.board.enter(&spec);
            let handle = Handle::start(
                Arc::new(spec),
                transport,
                entry,
                self.common.clone(),
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
        self.common.heritage.close_rest();
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
        wanted: wishes::Wanted,
        ask: impl AsyncFn(&Handle) -> Result<(), Finished>,
    ) -> Result<Vec<Arc<Status>>, Error> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Error::Stopping);
        }
        let handles = self.handles();
        let known: Vec<_> = handles.iter().map(|handle| handle.spec().name.clone()).collect();
        let find = |name: &str| handles.iter().find(|handle| handle.spec().name.as_str() == name);
        let asked = all_or_unknown(names, &known, find)?;
        let specs: Vec<_> = asked.iter().map(|handle| &**handle.spec()).collect();
        let (answers, ()) = tokio::join!(
            join_all(asked.iter().map(|handle| ask(handle))),
            self.wishes.typed(&specs, wanted),
        );
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

#[cfg(test)]
mod tests;
