//! Finding what a person named as an instance, and its agent.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use aws_sdk_ec2::types::{Filter, InstanceStateName, Tag};
use aws_sdk_ssm::types::{InstanceInformation, InstanceInformationStringFilter, PingStatus};

use super::task::FoundTask;
use super::{Account, classify};
use crate::config::Instance;
use crate::failure::{Failure, Reason, Remedy};
use crate::near::near;

/// How many instances are looked at for a Name that could have been meant: one page, the largest there is (EC2 API,
/// DescribeInstances).
const MOST_LOOKED_AT: i32 = 1000;

/// What a person named as an instance: it exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundInstance {
    /// A machine with an agent.
    Machine {
        /// `i-…` or `mi-…`.
        id: String,
        /// Its name, where it has one and we may know it.
        name: Option<String>,
        /// Its address inside its network, where we may know it.
        private_address: Option<String>,
        /// Where it stands, as far as we may know it.
        place: Place,
    },
    /// A container of a task of ECS.
    Task(FoundTask),
}

/// Where an instance of EC2 stands, and by which other addresses it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Its address on the internet.
    pub public_address: Option<String>,
    /// Its IPv6 address.
    pub ipv6_address: Option<String>,
    /// Its VPC.
    pub vpc: Option<String>,
    /// Its subnet.
    pub subnet: Option<String>,
    /// Its availability zone.
    pub availability_zone: Option<String>,
    /// Its operating system, as AWS bills it: `Linux/UNIX`, `Windows`.
    pub platform: Option<String>,
}

impl FoundInstance {
    /// Returns what SSM knows it by.
    pub fn id(&self) -> &str {
        match self {
            Self::Machine { id, .. } => id,
            Self::Task(task) => &task.target,
        }
    }

    /// Returns its name, where it has one that is known.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Machine { name, .. } => name.as_deref(),
            Self::Task(_) => None,
        }
    }

    /// Returns its address inside its network, where it is known.
    pub fn private_address(&self) -> Option<&str> {
        match self {
            Self::Machine { private_address, .. } => private_address.as_deref(),
            Self::Task(_) => None,
        }
    }

    /// Returns all its addresses that are known, the private one first.
    pub fn addresses(&self) -> Vec<String> {
        let place = self.place().cloned().unwrap_or_default();
        let private = self.private_address().map(str::to_owned);
        let mut addresses: Vec<_> = private
            .into_iter()
            .chain(place.public_address)
            .chain(place.ipv6_address)
            .collect();
        addresses.dedup();
        addresses
    }

    /// Returns its addresses inside its network, IPv4 first where it has both.
    pub fn inner_addresses(&self) -> Vec<IpAddr> {
        let ipv6 = self.place().and_then(|place| place.ipv6_address.as_deref());
        [self.private_address(), ipv6]
            .into_iter()
            .flatten()
            .filter_map(|address| address.parse().ok())
            .collect()
    }

    /// Returns where it stands; `None` for what is no instance of EC2.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Machine { place, .. } => Some(place),
            Self::Task(_) => None,
        }
    }
}

impl fmt::Display for FoundInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine {
                id, name: Some(name), ..
            } => write!(f, "`{name}` ({id})"),
            Self::Machine { id, name: None, .. } => write!(f, "`{id}`"),
            Self::Task(task) => task.fmt(f),
        }
    }
}

/// What AWS knows of the SSM agent of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentStatus {
    /// Whether it reports at the moment.
    pub online: bool,
    /// When it last did.
    pub last_ping: Option<SystemTime>,
    /// Its version.
    pub version: String,
}

impl Account {
    /// Finds an instance. By tag or name, the running one that was launched last; of ECS, a task that runs.
    ///
    /// To look up an id is a courtesy: where that is not allowed, the id alone comes back.
    pub async fn find_instance(&self, instance: &Instance) -> Result<FoundInstance, Failure> {
        let found = match instance {
            Instance::Id(id) if id.starts_with("mi-") => self.managed_instance(id).await,
            Instance::Id(id) => self.instance_by_id(id).await,
            Instance::Tag { key, value } => return self.instance_by_tag(key, value).await,
            Instance::Name(name) => return self.instance_by_tag("Name", name).await,
            Instance::Task(task) => return self.find_task(task).await.map(FoundInstance::Task),
        };
        match (found, instance) {
            (Err(failure), Instance::Id(id)) if failure.reason() == Reason::Denied => {
                tracing::debug!(instance = %id, "not allowed to look up the instance: {}", failure.in_one_line());
                Ok(FoundInstance::Machine {
                    id: id.clone(),
                    name: None,
                    private_address: None,
                    place: Place::default(),
                })
            }
            (found, _) => found,
        }
    }

    async fn instance_by_id(&self, id: &str) -> Result<FoundInstance, Failure> {
        let doing = format!("cannot look up the instance `{id}`");
        let output = self.ec2.describe_instances().instance_ids(id).send().await;
        let output = output.map_err(|error| self.placed(self.failure(doing, error)))?;
        let instance = output
            .reservations()
            .iter()
            .flat_map(|reservation| reservation.instances())
            .next();
        let Some(instance) = instance else {
            return Err(self.not_found(format!("there is no instance `{id}`")));
        };
        let found = found_instance(id, instance);
        match instance.state().and_then(|state| state.name()) {
            Some(InstanceStateName::Terminated | InstanceStateName::ShuttingDown) => {
                Err(self.not_found(format!("the instance {found} is terminated")))
            }
            Some(InstanceStateName::Stopped | InstanceStateName::Stopping) => Err(Failure::new(
                Reason::Unreachable,
                Remedy::Retry,
                format!("the instance {found} is stopped"),
            )
            .hint(format!(
                "aws ec2 start-instances --instance-ids {id}{}",
                self.arguments()
            ))),
            _ => Ok(found),
        }
    }

    async fn instance_by_tag(&self, key: &str, value: &str) -> Result<FoundInstance, Failure> {
        let (latest, _) = self.instances_by_tag(key, value).await?;
        Ok(latest)
    }

    /// Returns the running instance with a tag that was launched last, and the others, later ones first.
    pub(super) async fn instances_by_tag(
        &self,
        key: &str,
        value: &str,
    ) -> Result<(FoundInstance, Vec<FoundInstance>), Failure> {
        let tag = if key == "Name" {
            format!("named `{value}`")
        } else {
            format!("with the tag {key}={value}")
        };
        let mut pages = self
            .ec2
            .describe_instances()
            .filters(filter(format!("tag:{key}"), literal(value)))
            .filters(filter("instance-state-name", "running"))
            .into_paginator()
            .send();
        let mut running = Vec::new();
        while let Some(page) = pages.next().await {
            let page =
                page.map_err(|error| self.failure(format!("cannot look for an instance {tag}"), error))?;
            let instances = page
                .reservations()
                .iter()
                .flat_map(|reservation| reservation.instances());
            for instance in instances {
                if let Some(id) = instance.instance_id() {
                    let launched = instance.launch_time().map(|at| (at.secs(), at.subsec_nanos()));
                    running.push((Reverse(launched), found_instance(id, instance)));
                }
            }
        }
        running.sort_by_key(|(launched, _)| *launched);
        let mut running = running.into_iter().map(|(_, found)| found);
        let Some(latest) = running.next() else {
            let failure = Failure::new(
                Reason::NotFound,
                Remedy::Fix,
                format!("there is no running instance {tag}"),
            );
            let failure = match self.names_near(key, value).await.as_slice() {
                [] => failure,
                near => failure.hint(format!("did you mean `{}`?", near.join("` or `"))),
            };
            return Err(self.placed(failure));
        };
        Ok((latest, running.collect()))
    }

    /// Returns the Names of running instances that are like this one. A courtesy: whatever fails, there are none.
    async fn names_near(&self, key: &str, value: &str) -> Vec<String> {
        if key != "Name" {
            return Vec::new();
        }
        let request = self
            .ec2
            .describe_instances()
            .filters(filter("instance-state-name", "running"))
            .filters(filter("tag-key", "Name"))
            .max_results(MOST_LOOKED_AT);
        let Ok(page) = request.send().await else {
            return Vec::new();
        };
        let instances = page
            .reservations()
            .iter()
            .flat_map(|reservation| reservation.instances());
        let names: BTreeSet<String> = instances
            .filter_map(|instance| name_in(instance.tags()))
            .collect();
        near(value, names.iter().map(String::as_str))
    }

    async fn managed_instance(&self, id: &str) -> Result<FoundInstance, Failure> {
        let Some(information) = self.information(id).await? else {
            return Err(self.not_found(format!("there is no managed instance `{id}`")));
        };
        let name = information
            .name
            .or(information.computer_name)
            .filter(|name| !name.is_empty());
        Ok(FoundInstance::Machine {
            id: id.to_owned(),
            name,
            private_address: information.ip_address,
            place: Place::default(),
        })
    }

    /// Asks for the SSM agent of an instance; `None` when it never registered.
    pub async fn agent_status(&self, instance_id: &str) -> Result<Option<AgentStatus>, Failure> {
        Ok(self
            .information(instance_id)
            .await?
            .map(|information| AgentStatus {
                online: information.ping_status == Some(PingStatus::Online),
                last_ping: information.last_ping_date_time.and_then(|at| at.try_into().ok()),
                version: information.agent_version.unwrap_or_default(),
            }))
    }

    async fn information(&self, instance_id: &str) -> Result<Option<InstanceInformation>, Failure> {
        let doing = format!("cannot look up the SSM agent of `{instance_id}`");
        let filter = InstanceInformationStringFilter::builder()
            .key("InstanceIds")
            .values(instance_id)
            .build();
        let filter =
            filter.map_err(|error| Failure::new(Reason::Invalid, Remedy::Fix, &doing).because(error))?;
        let mut pages = self
            .ssm
            .describe_instance_information()
            .filters(filter)
            .into_paginator()
            .items()
            .send();
        while let Some(information) = pages.next().await {
            match information {
                Ok(information) if information.instance_id() == Some(instance_id) => {
                    return Ok(Some(information));
                }
                Ok(_) => {}
                Err(error) if classify::has_code(&error, "InvalidInstanceId") => return Ok(None),
                Err(error) => return Err(self.failure(doing, error)),
            }
        }
        Ok(None)
    }

    pub(super) fn not_found(&self, doing: String) -> Failure {
        self.placed(Failure::new(Reason::NotFound, Remedy::Fix, doing))
    }

    /// Adds where it was looked for: a wrong profile or region is the usual cause of finding nothing.
    pub(super) fn placed(&self, failure: Failure) -> Failure {
        if failure.reason() != Reason::NotFound {
            return failure;
        }
        failure.hint(format!(
            "looked in {} with {}",
            self.region,
            self.login.principal()
        ))
    }

    /// The options that make a command of the AWS CLI look where this account does, each after a space.
    pub(super) fn arguments(&self) -> String {
        let profile = self
            .login
            .profile
            .as_ref()
            .map(|profile| format!(" --profile {profile}"))
            .unwrap_or_default();
        format!(" --region {}{profile}", self.region)
    }
}

fn found_instance(id: &str, instance: &aws_sdk_ec2::types::Instance) -> FoundInstance {
    let address = instance.private_ip_address().or(instance.ipv6_address());
    FoundInstance::Machine {
        id: id.to_owned(),
        name: name_in(instance.tags()),
        private_address: address.map(str::to_owned),
        place: Place {
            public_address: instance.public_ip_address().map(str::to_owned),
            ipv6_address: instance.ipv6_address().map(str::to_owned),
            vpc: instance.vpc_id().map(str::to_owned),
            subnet: instance.subnet_id().map(str::to_owned),
            availability_zone: instance
                .placement()
                .and_then(|placement| placement.availability_zone())
                .map(str::to_owned),
            platform: instance.platform_details().map(str::to_owned),
        },
    }
}

fn name_in(tags: &[Tag]) -> Option<String> {
    let tag = tags.iter().find(|tag| tag.key() == Some("Name"))?;
    tag.value().filter(|name| !name.is_empty()).map(str::to_owned)
}

pub(super) fn filter(name: impl Into<String>, value: impl Into<String>) -> Filter {
    Filter::builder().name(name).values(value).build()
}

/// Escapes EC2's wildcards: a name means itself.
fn literal(value: &str) -> String {
    value.replace('\\', r"\\").replace('*', r"\*").replace('?', r"\?")
}
