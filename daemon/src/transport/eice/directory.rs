//! Where a link's streams go: the target's address and the endpoint that serves it, looked up once and again when what
//! was found leads nowhere.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::aws::{Account, EndpointOf, FoundEndpoint, FoundInstance, Place};
use crate::config::{Instance, Target};
use crate::connector::authority;
use crate::failure::{Failure, Reason, Remedy};
use crate::transport::LinkDetails;
use crate::transport::remembered::Remembered;

/// Where streams go.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Destination {
    /// The endpoint's id.
    pub(super) endpoint: String,
    /// The name at which it is reached.
    pub(super) host: String,
    /// The target's address.
    pub(super) address: String,
    /// The target's port.
    pub(super) port: u16,
    pub(super) details: LinkDetails,
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = authority(&self.address, self.port);
        write!(f, "a connection to `{target}` through `{}`", self.endpoint)
    }
}

/// Looks up where streams go.
#[derive(Debug)]
pub(super) struct Directory {
    target: Target,
    endpoint: Option<String>,
    known: Remembered<Destination>,
}

impl Directory {
    pub(super) fn new(target: Target, endpoint: Option<String>) -> Self {
        Self {
            target,
            endpoint,
            known: Remembered::until_forgotten(),
        }
    }

    /// Returns where the next stream goes.
    pub(super) async fn find(&self, account: &Account) -> Result<Arc<Destination>, Failure> {
        self.known.or(self.look_up(account)).await
    }

    /// What was found leads nowhere.
    pub(super) fn forget(&self) {
        self.known.forget();
    }

    async fn look_up(&self, account: &Account) -> Result<Destination, Failure> {
        match &self.target {
            Target::Instance { instance, port } => self.instance(account, instance, *port).await,
            Target::Host { host, port } => {
                let (Ok(address), Some(id)) = (host.parse(), &self.endpoint) else {
                    return Err(no_target(&self.target));
                };
                let endpoint = account.find_endpoint(EndpointOf::Id(id)).await?;
                destination(account, &endpoint, &[address], &self.target.to_string(), *port)
            }
            Target::Rds { .. } => Err(no_target(&self.target)),
        }
    }

    async fn instance(
        &self,
        account: &Account,
        instance: &Instance,
        port: u16,
    ) -> Result<Destination, Failure> {
        let found = account.find_instance(instance).await?;
        let Some(place) = found.place() else {
            return Err(no_target(&self.target));
        };
        let wanted = match (&self.endpoint, place) {
            (Some(id), _) => EndpointOf::Id(id),
            (
                None,
                Place {
                    vpc: Some(vpc),
                    subnet,
                    ..
                },
            ) => EndpointOf::Vpc {
                vpc,
                subnet: subnet.as_deref().unwrap_or_default(),
            },
            (None, Place { vpc: None, .. }) => return Err(unknown_place(&found)),
        };
        let addresses = found.inner_addresses();
        if addresses.is_empty() {
            return Err(unknown_place(&found));
        }
        let endpoint = account.find_endpoint(wanted).await?;
        destination(account, &endpoint, &addresses, &found.to_string(), port)
    }
}

/// Returns the way to the first of a target's addresses that the endpoint connects to.
fn destination(
    account: &Account,
    endpoint: &FoundEndpoint,
    addresses: &[IpAddr],
    target: &str,
    port: u16,
) -> Result<Destination, Failure> {
    let (address, host) = account.way_by(endpoint, addresses, target)?;
    Ok(Destination {
        endpoint: endpoint.id.clone(),
        host,
        address: address.to_string(),
        port,
        details: LinkDetails {
            via: endpoint.id.clone(),
            target_host: address.to_string(),
            target_port: port,
            ..LinkDetails::default()
        },
    })
}

/// The configuration refuses what ends here.
fn no_target(target: &Target) -> Failure {
    let doing = format!("an Instance Connect Endpoint cannot lead to `{target}`");
    Failure::new(Reason::Invalid, Remedy::Fix, doing)
}

fn unknown_place(found: &FoundInstance) -> Failure {
    let doing = format!("cannot find the VPC and private address of {found}");
    Failure::new(Reason::Denied, Remedy::Fix, doing)
        .hint("ask for a policy that allows `ec2:DescribeInstances`")
}
