//! Where an SSH link goes: its server and its destination, looked up and remembered for a minute.

use std::fmt;
use std::sync::Arc;

use crate::aws::{Account, FoundInstance};
use crate::config::{Route, SshRoute, Target};
use crate::failure::{Failure, Reason, Remedy};
use crate::transport::remembered::Remembered;

/// What a link needs to know of its two far ends.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) server: Server,
    /// Where streams go, as the server is asked for it.
    pub(super) host: String,
    pub(super) port: u16,
    /// Engine of the database there, empty where unknown.
    pub(super) engine: String,
}

/// The instance whose SSH server is used.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) instance: FoundInstance,
    pub(super) user: String,
}

impl Server {
    /// Returns what a person may know it by, the surest first. Not by its private address: other networks have the same.
    pub(super) fn names(&self) -> Vec<String> {
        let id = self.instance.id().to_owned();
        let FoundInstance::Machine { name, place, .. } = &self.instance else {
            return vec![id];
        };
        let others = [name, &place.public_address, &place.ipv6_address];
        std::iter::once(id)
            .chain(others.into_iter().flatten().cloned())
            .collect()
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.instance.fmt(f)
    }
}

/// Looks up where links go.
#[derive(Debug)]
pub(super) struct Directory {
    route: SshRoute,
    target: Target,
    known: Remembered<Places>,
}

impl Directory {
    pub(super) fn new(route: SshRoute, target: Target) -> Self {
        Self {
            route,
            target,
            known: Remembered::for_a_minute(),
        }
    }

    /// Returns where the next connection goes.
    pub(super) async fn find(&self, account: &Account) -> Result<Arc<Places>, Failure> {
        self.known.or(self.look_up(account)).await
    }

    /// What was found leads nowhere.
    pub(super) fn forget(&self) {
        self.known.forget();
    }

    async fn look_up(&self, account: &Account) -> Result<Places, Failure> {
        let server = Server {
            instance: self.find_server(account).await?,
            user: self.route.user.clone(),
        };
        let (host, port, engine) = match &self.target {
            // The name, not an address: it moves when the database fails over, and the server resolves it each time.
            Target::Rds { id } => {
                let database = account.find_database(id).await?;
                (database.host, database.port, database.engine)
            }
            Target::Host { host, port } => (host.clone(), *port, String::new()),
            Target::Instance { instance, port } => {
                let found = if *instance == self.route.host {
                    server.instance.clone()
                } else {
                    account.find_instance(instance).await?
                };
                let host = if found.id() == server.instance.id() {
                    "localhost".to_owned()
                } else {
                    let address = found.private_address().ok_or_else(|| {
                        let doing = format!("cannot find the private address of {found}");
                        Failure::new(Reason::NotFound, Remedy::Fix, doing)
                            .hint("give the tunnel a target HOST:PORT")
                    })?;
                    address.to_owned()
                };
                (host, *port, String::new())
            }
        };
        Ok(Places {
            server,
            host,
            port,
            engine,
        })
    }

    /// Finds the server, once for the route below and for host keys: two instances may have its name.
    async fn find_server(&self, account: &Account) -> Result<FoundInstance, Failure> {
        let host = &self.route.host;
        match self.route.over {
            Route::Ssm { via: None } => account.find_carrier(host).await,
            Route::Ssm { via: Some(_) } | Route::Direct | Route::Eice { .. } | Route::Ssh(_) => {
                account.find_instance(host).await
            }
        }
    }
}
