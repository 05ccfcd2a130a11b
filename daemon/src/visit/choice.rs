//! The way to an instance that nobody named a route to.

use std::sync::Arc;

use async_trait::async_trait;
use tracing::info;
use tunneld_wire::eice::PORTS;

use super::refused;
use crate::aws::{Account, Aws, EndpointOf, FoundInstance, Place};
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

/// Chooses the way to a port of an instance that was found: by an endpoint of Instance Connect, which needs nothing on
/// the instance; else by its SSM agent; else straight.
pub(crate) async fn choose(account: &Account, found: &FoundInstance, port: u16) -> Result<Choice, Failure> {
    let Some(place) = found.place() else {
        return Ok(Choice::of(Route::Ssm { via: None }, Vec::new()));
    };
    let mut passed_over = Vec::new();
    match endpoint(account, found, place, port).await? {
        None => return Ok(Choice::of(Route::Eice { endpoint: None }, passed_over)),
        Some(reason) => passed_over.push(format!("eice: {reason}")),
    }
    match agent(account, found).await? {
        None => return Ok(Choice::of(Route::Ssm { via: None }, passed_over)),
        Some(reason) => passed_over.push(format!("ssm: {reason}")),
    }
    Ok(Choice::of(Route::Direct, passed_over))
}

/// Looks for an endpoint to a port of an instance; returns why there is none.
async fn endpoint(
    account: &Account,
    found: &FoundInstance,
    place: &Place,
    port: u16,
) -> Result<Option<String>, Failure> {
    if !PORTS.contains(&port) {
        let [ssh, rdp] = PORTS;
        return Ok(Some(format!(
            "an endpoint connects to the ports {ssh} and {rdp} alone"
        )));
    }
    let (Some(vpc), Some(subnet)) = (&place.vpc, &place.subnet) else {
        return Ok(Some(format!("the VPC of {found} is not known")));
    };
    let looked_for = account.find_endpoint(EndpointOf::Vpc { vpc, subnet }).await;
    let way = looked_for
        .and_then(|endpoint| account.way_by(&endpoint, &found.inner_addresses(), &found.to_string()));
    way.map_or_else(reason, |_| Ok(None))
}

/// Looks for the SSM agent of an instance; returns why it carries nothing.
async fn agent(account: &Account, found: &FoundInstance) -> Result<Option<String>, Failure> {
    match account.agent_status(found.id()).await {
        Ok(Some(agent)) if agent.online => Ok(None),
        Ok(Some(_)) => Ok(Some(format!("the agent of {found} is not connected"))),
        Ok(None) => Ok(Some(format!("{found} has no agent that ever registered"))),
        Err(failure) => reason(failure),
    }
}

/// Why a route is passed over: whatever failed, unless no other route could do better.
fn reason(failure: Failure) -> Result<Option<String>, Failure> {
    match failure.remedy() {
        Remedy::Login { .. } => Err(failure),
        Remedy::Retry | Remedy::RetryAfter(_) | Remedy::Fix => Ok(Some(failure.in_one_line())),
    }
}

impl Choice {
    fn of(route: Route, passed_over: Vec<String>) -> Self {
        Self { route, passed_over }
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
        let Target::Instance { instance, port } = &self.wanted.target else {
            let doing = format!("`{}` needs a route", self.wanted.target);
            return Err(Failure::new(Reason::Invalid, Remedy::Fix, doing));
        };
        let account = self.aws.account(&self.wanted.account).await?;
        let found = account.find_instance(instance).await?;
        let choice = choose(&account, &found, *port).await?;
        info!(route = %choice.route, passed_over = ?choice.passed_over, "chose the route to {found}");
        let spec = self.wanted.by(&choice.route).map_err(refused)?;
        (self.transports)(&spec).connect().await
    }
}

#[cfg(test)]
mod tests {
    use tunneld_emulator::{Config as World, Emulator};

    use super::*;
    use crate::config::{AccountSpec, Instance};
    use crate::connector::Environment;

    /// The choice for a port of an instance, given the rest of the account and of the instance.
    async fn choice(account: &str, instance: &str, port: u16) -> Choice {
        let id = "i-0123456789abcdef0";
        let world =
            format!("{account}\n[[instances]]\nid = \"{id}\"\nprivate_address = \"10.0.1.10\"\n{instance}\n");
        let emulator = Emulator::start(World::parse(&world).unwrap()).await.unwrap();
        let aws = Aws::new(Environment::from_iter(emulator.environment())).unwrap();
        let account = aws.account(&AccountSpec::default()).await.unwrap();
        let found = account.find_instance(&Instance::Id(id.to_owned())).await;
        choose(&account, &found.unwrap(), port).await.unwrap()
    }

    const ENDPOINT: &str = "[[endpoints]]\nid = \"eice-1\"\n";
    const AGENT: &str = "ssm = {}";

    #[tokio::test]
    async fn an_endpoint_is_better_than_an_agent_and_that_than_nothing() {
        for (account, instance, port, route, reasons) in [
            (ENDPOINT, AGENT, 22, "eice", &[][..]),
            (ENDPOINT, AGENT, 3389, "eice", &[]),
            (
                ENDPOINT,
                AGENT,
                5432,
                "ssm",
                &["eice: an endpoint connects to the ports 22 and 3389 alone"],
            ),
            (
                "",
                AGENT,
                22,
                "ssm",
                &["eice: there is no Instance Connect Endpoint in `vpc-0123456789abcdef0`"],
            ),
            (
                "",
                "ssm = { online = false }",
                22,
                "direct",
                &[
                    "eice: there is no Instance Connect Endpoint in `vpc-0123456789abcdef0`",
                    "ssm: the agent of `i-0123456789abcdef0` is not connected",
                ],
            ),
            (
                "[[endpoints]]\nid = \"eice-1\"\naddress_type = \"ipv6\"\n",
                AGENT,
                22,
                "ssm",
                &[
                    "eice: the endpoint `eice-1` connects to IPv6 addresses alone, and `i-0123456789abcdef0` has none that is known",
                ],
            ),
            (
                "[[endpoints]]\nid = \"eice-1\"\nstate = \"delete-failed\"\n",
                AGENT,
                22,
                "ssm",
                &["eice: the endpoint `eice-1` takes no connections: its state is delete-failed"],
            ),
        ] {
            let choice = choice(account, instance, port).await;
            assert_eq!(choice.route.to_string(), route, "{account} {instance} {port}");
            assert_eq!(choice.passed_over, reasons, "{account} {instance} {port}");
        }
    }
}
