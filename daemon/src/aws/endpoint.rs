//! The EC2 Instance Connect Endpoint that serves a target, and the name by which it is reached.

use std::fmt;
use std::net::IpAddr;

use aws_config::SdkConfig;
use aws_sdk_ec2::types::{Ec2InstanceConnectEndpoint, InstanceConnectEndpointDnsNames};
use tunneld_wire::eice::{AddressType, Candidate, State, choose};

use super::Account;
use super::target::filter;
use crate::connector::Environment;
use crate::failure::{Failure, Reason, Remedy};

/// An endpoint that takes connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundEndpoint {
    /// `eice-…`
    pub id: String,
    /// The addresses that it connects to.
    pub address_type: AddressType,
    /// The name that everybody can resolve, and the one that leads to an IPv6 address too.
    names: [Name; 2],
}

/// A name of an endpoint, and the one that stands for it where FIPS is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Name {
    plain: Option<String>,
    fips: Option<String>,
}

/// Which endpoint is looked for.
#[derive(Debug, Clone, Copy)]
pub enum EndpointOf<'a> {
    /// The one with this id.
    Id(&'a str),
    /// The one that serves a VPC, best from this subnet.
    Vpc {
        /// The VPC.
        vpc: &'a str,
        /// The subnet of the target.
        subnet: &'a str,
    },
}

/// Which of an endpoint's names are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Preference {
    fips: bool,
    dualstack: bool,
}

impl Preference {
    /// Reads what the environment says, else the profile.
    pub(super) fn of(environment: &Environment, loaded: &SdkConfig) -> Self {
        let either = |variable: &str, in_profile: Option<bool>| match environment.variable(variable) {
            Some(_) => environment.is_true(variable),
            None => in_profile.unwrap_or(false),
        };
        Self {
            fips: either("AWS_USE_FIPS_ENDPOINT", loaded.use_fips()),
            dualstack: either("AWS_USE_DUALSTACK_ENDPOINT", loaded.use_dual_stack()),
        }
    }
}

impl Account {
    /// Finds an endpoint that takes connections.
    pub async fn find_endpoint(&self, wanted: EndpointOf<'_>) -> Result<FoundEndpoint, Failure> {
        let doing = format!("cannot look up {wanted}");
        let asked = self.ec2.describe_instance_connect_endpoints();
        let asked = match wanted {
            EndpointOf::Id(id) => asked.instance_connect_endpoint_ids(id),
            EndpointOf::Vpc { vpc, .. } => asked.filters(filter("vpc-id", vpc)),
        };
        let mut items = asked.into_paginator().items().send();
        let mut found = Vec::new();
        while let Some(endpoint) = items.next().await {
            found.push(endpoint.map_err(|error| self.placed(self.failure(&doing, error)))?);
        }
        let subnet = match wanted {
            EndpointOf::Id(_) => "",
            EndpointOf::Vpc { subnet, .. } => subnet,
        };
        let candidates = found.iter().map(|endpoint| Candidate {
            state: state(endpoint),
            subnet: endpoint.subnet_id().unwrap_or_default(),
        });
        let chosen = choose(candidates, subnet).and_then(|place| found.get(place));
        match (chosen, found.first()) {
            (Some(endpoint), _) => Ok(found_endpoint(endpoint)),
            (None, Some(other)) => Err(self.unusable(other)),
            (None, None) => Err(self.none(wanted)),
        }
    }

    /// Returns the first of a target's addresses that an endpoint connects to, and the name by which the endpoint is
    /// reached for its sake. `target` is what to call it.
    pub fn way_by(
        &self,
        endpoint: &FoundEndpoint,
        addresses: &[IpAddr],
        target: &str,
    ) -> Result<(IpAddr, String), Failure> {
        let kind = endpoint.address_type;
        let Some(address) = addresses.iter().find(|address| kind.reaches(**address)) else {
            let family = match kind {
                AddressType::Ipv4 => "IPv4 addresses alone",
                AddressType::Ipv6 => "IPv6 addresses alone",
                AddressType::Dualstack => "addresses",
            };
            let id = &endpoint.id;
            let doing =
                format!("the endpoint `{id}` connects to {family}, and {target} has none that is known");
            return Err(Failure::new(Reason::Invalid, Remedy::Fix, doing));
        };
        Ok((*address, self.host_of(endpoint, *address)?))
    }

    fn host_of(&self, endpoint: &FoundEndpoint, address: IpAddr) -> Result<String, Failure> {
        let Preference { fips, dualstack } = self.preference;
        let pick = |name: &Name| match fips {
            true => name.fips.clone(),
            false => name.plain.clone(),
        };
        let [usual, both] = &endpoint.names;
        let host = match (dualstack, address) {
            (true, _) => pick(both),
            // Who has an IPv6 target may have nothing but IPv6 here either.
            (false, IpAddr::V6(_)) => pick(both).or_else(|| pick(usual)),
            (false, IpAddr::V4(_)) => pick(usual),
        };
        host.ok_or_else(|| {
            let kind = match (fips, dualstack) {
                (true, true) => "for FIPS and dual-stack",
                (true, false) => "for FIPS",
                (false, true) => "for dual-stack",
                (false, false) => "that can be reached",
            };
            let doing = format!("the endpoint `{}` has no name {kind}", endpoint.id);
            let failure = Failure::new(Reason::Invalid, Remedy::Fix, doing);
            match (fips, dualstack) {
                (true, _) => failure
                    .hint("it is asked for by AWS_USE_FIPS_ENDPOINT, or use_fips_endpoint of the profile"),
                (false, true) => failure.hint(
                    "it is asked for by AWS_USE_DUALSTACK_ENDPOINT, or use_dualstack_endpoint of the profile",
                ),
                (false, false) => failure,
            }
        })
    }

    fn unusable(&self, endpoint: &Ec2InstanceConnectEndpoint) -> Failure {
        let id = endpoint.instance_connect_endpoint_id().unwrap_or_default();
        let name = endpoint.state().map_or("unknown", |state| state.as_str());
        let doing = format!("the endpoint `{id}` takes no connections: its state is {name}");
        let failure = match state(endpoint) {
            State::Usable | State::Coming => Failure::new(Reason::Unreachable, Remedy::Retry, doing),
            State::Gone => {
                let subnet = endpoint.subnet_id().unwrap_or("SUBNET");
                Failure::new(Reason::NotFound, Remedy::Fix, doing).hint(self.creation(subnet))
            }
        };
        match endpoint.state_message().filter(|message| !message.is_empty()) {
            Some(message) => failure.because(message.to_owned()),
            None => failure,
        }
    }

    fn none(&self, wanted: EndpointOf<'_>) -> Failure {
        match wanted {
            EndpointOf::Id(_) => self.not_found(format!("there is no {wanted}")),
            EndpointOf::Vpc { subnet, .. } => self
                .not_found(format!("there is no {wanted}"))
                .hint(self.creation(subnet)),
        }
    }

    fn creation(&self, subnet: &str) -> String {
        format!(
            "create one: aws ec2 create-instance-connect-endpoint --subnet-id {subnet}{}",
            self.arguments()
        )
    }
}

impl fmt::Display for EndpointOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "Instance Connect Endpoint `{id}`"),
            Self::Vpc { vpc, .. } => write!(f, "Instance Connect Endpoint in `{vpc}`"),
        }
    }
}

fn state(endpoint: &Ec2InstanceConnectEndpoint) -> State {
    State::named(endpoint.state().map_or("", |state| state.as_str()))
}

fn found_endpoint(endpoint: &Ec2InstanceConnectEndpoint) -> FoundEndpoint {
    let named = |text: Option<&str>| text.filter(|name| !name.is_empty()).map(str::to_owned);
    let dualstack = endpoint.public_dns_names().and_then(|names| names.dualstack());
    FoundEndpoint {
        id: endpoint
            .instance_connect_endpoint_id()
            .unwrap_or_default()
            .to_owned(),
        address_type: AddressType::named(endpoint.ip_address_type().map_or("", |kind| kind.as_str())),
        names: [
            Name {
                plain: named(endpoint.dns_name()),
                fips: named(endpoint.fips_dns_name()),
            },
            Name {
                plain: named(dualstack.and_then(InstanceConnectEndpointDnsNames::dns_name)),
                fips: named(dualstack.and_then(InstanceConnectEndpointDnsNames::fips_dns_name)),
            },
        ],
    }
}

#[cfg(test)]
mod tests;
