//! The way to an instance that nobody named a route to.

use std::sync::Arc;

use async_trait::async_trait;
use tracing::info;

use super::refused;
use crate::aws::{Account, Aws, FoundInstance};
use crate::config::{Route, Target, Wanted};
use crate::failure::{Failure, Reason, Remedy};
use crate::transport::{Link, Transport, Transports};

/// A route, and why those that go before it are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The route.
    pub(crate) route: Route,
    /// Why each route that would have been better was passed over, a sentence each.
    pub(crate) passed_over: Vec<String>,
}

/// Chooses the way to a port of an instance that was found.
pub(crate) async fn choose(account: &Account, found: &FoundInstance) -> Result<Choice, Failure> {
    let agent = match found {
        FoundInstance::Task(_) => None,
        FoundInstance::Machine { id, .. } => Some(account.agent_status(id).await?),
    };
    let reason = match agent {
        None => return Ok(ssm()),
        Some(Some(agent)) if agent.online => return Ok(ssm()),
        Some(Some(_)) => format!("ssm: the agent of {found} is not connected"),
        Some(None) => format!("ssm: {found} has no agent that ever registered"),
    };
    Ok(Choice {
        route: Route::Direct,
        passed_over: vec![reason],
    })
}

fn ssm() -> Choice {
    Choice {
        route: Route::Ssm { via: None },
        passed_over: Vec::new(),
    }
}

/// Goes the best way there is, chosen anew for each link.
pub(super) struct Best {
    pub(super) wanted: Wanted,
    pub(super) aws: Arc<Aws>,
    pub(super) transports: Transports,
}

#[async_trait]
impl Transport for Best {
    async fn connect(&self) -> Result<Arc<dyn Link>, Failure> {
        let Target::Instance { instance, .. } = &self.wanted.target else {
            let doing = format!("`{}` needs a route", self.wanted.target);
            return Err(Failure::new(Reason::Invalid, Remedy::Fix, doing));
        };
        let account = self.aws.account(&self.wanted.account).await?;
        let found = account.find_instance(instance).await?;
        let choice = choose(&account, &found).await?;
        info!(route = %choice.route, passed_over = ?choice.passed_over, "chose the route to {found}");
        let spec = self.wanted.by(&choice.route).map_err(refused)?;
        (self.transports)(&spec).connect().await
    }
}
