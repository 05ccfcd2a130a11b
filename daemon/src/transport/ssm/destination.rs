//! Where a link's sessions go: the names of the configuration looked up, and remembered for a minute.

use std::sync::Arc;

use crate::aws::{Account, Document, FoundInstance};
use crate::config::{Instance, Target};
use crate::failure::{Failure, Reason, Remedy};
use crate::transport::LinkDetails;
use crate::transport::remembered::Remembered;

/// Where a session goes.
#[derive(Debug)]
pub(super) struct Destination {
    pub(super) instance: FoundInstance,
    pub(super) document: Document,
    pub(super) details: LinkDetails,
}

/// Looks up where sessions go.
#[derive(Debug)]
pub(super) struct Directory {
    target: Target,
    via: Option<Instance>,
    known: Remembered<Destination>,
}

impl Directory {
    pub(super) fn new(target: Target, via: Option<Instance>) -> Self {
        Self {
            target,
            via,
            known: Remembered::for_a_minute(),
        }
    }

    /// Returns where the next session goes.
    pub(super) async fn find(&self, account: &Account) -> Result<Arc<Destination>, Failure> {
        self.known.or(self.look_up(account)).await
    }

    /// What was found leads nowhere.
    pub(super) fn forget(&self) {
        self.known.forget();
    }

    async fn look_up(&self, account: &Account) -> Result<Destination, Failure> {
        let target_instance = match &self.target {
            Target::Instance { instance, .. } if self.via.is_none() => {
                Some(account.find_carrier(instance).await?)
            }
            Target::Instance { instance, .. } => Some(account.find_instance(instance).await?),
            Target::Rds { .. } | Target::Host { .. } => None,
        };
        let via = match (&self.via, &target_instance) {
            (Some(via), _) => account.find_carrier(via).await?,
            (None, Some(target)) => target.clone(),
            (None, None) => {
                return Err(Failure::new(
                    Reason::Invalid,
                    Remedy::Fix,
                    "the route `ssm` needs an instance to go through",
                )
                .hint("use: route = { ssm = \"INSTANCE\" }"));
            }
        };
        let (host, port, engine) = match (&self.target, target_instance) {
            (Target::Rds { id }, _) => {
                let database = account.find_database(id).await?;
                (Some(database.host), database.port, database.engine)
            }
            (Target::Host { host, port }, _) => (Some(host.clone()), *port, String::new()),
            // The plain document where the target is the instance itself: policies often allow only one of the two.
            (Target::Instance { port, .. }, Some(target)) if target.id() == via.id() => {
                (None, *port, String::new())
            }
            (Target::Instance { port, .. }, target) => {
                let address = target.as_ref().and_then(FoundInstance::private_address);
                let address = address.ok_or_else(|| {
                    Failure::new(
                        Reason::NotFound,
                        Remedy::Fix,
                        "the target instance has no private address",
                    )
                })?;
                (Some(address.to_owned()), *port, String::new())
            }
        };
        let details = LinkDetails {
            via: via.to_string(),
            target_host: host.clone().unwrap_or_else(|| via.to_string()),
            target_port: port,
            sessions: 1,
            agent_version: String::new(),
            engine,
            notes: Vec::new(),
        };
        let document = match host {
            Some(host) => Document::RemoteHost { host, port },
            None => Document::Port { port },
        };
        Ok(Destination {
            instance: via,
            document,
            details,
        })
    }
}
