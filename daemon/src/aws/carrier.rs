//! Which of several instances of one name or tag carries sessions.
//!
//! While an instance is replaced there are two: the new one, whose SSM agent may not have come up yet, and the old one,
//! whose agent may be gone already. So AWS is asked which agents are connected.

use std::collections::BTreeSet;

use aws_sdk_ssm::types::{InstanceInformationStringFilter, PingStatus};
use tracing::debug;

use super::Account;
use super::target::FoundInstance;
use crate::config::Instance;
use crate::failure::{Failure, Reason, Remedy};

impl Account {
    /// Finds the instance that is to carry sessions. Among several of a tag or name, the one that was launched last of
    /// those whose agent is connected; of all, where that is the case for none or may not be known.
    pub async fn find_carrier(&self, instance: &Instance) -> Result<FoundInstance, Failure> {
        let (key, value) = match instance {
            Instance::Id(_) | Instance::Task(_) => return self.find_instance(instance).await,
            Instance::Tag { key, value } => (key.as_str(), value),
            Instance::Name(name) => ("Name", name),
        };
        let (latest, others) = self.instances_by_tag(key, value).await?;
        if others.is_empty() {
            return Ok(latest);
        }
        let connected = self.connected_agents(key, value).await.unwrap_or_else(|failure| {
            debug!("{}", failure.in_one_line());
            BTreeSet::new()
        });
        let is_connected = |found: &FoundInstance| connected.contains(found.id());
        if is_connected(&latest) {
            return Ok(latest);
        }
        Ok(others.into_iter().find(is_connected).unwrap_or(latest))
    }

    /// Returns the instances with a tag whose agent is connected.
    async fn connected_agents(&self, key: &str, value: &str) -> Result<BTreeSet<String>, Failure> {
        let doing = "cannot look up which SSM agents are connected";
        let filter = |key: String, value: &str| {
            let filter = InstanceInformationStringFilter::builder()
                .key(key)
                .values(value)
                .build();
            filter.map_err(|error| Failure::new(Reason::Invalid, Remedy::Fix, doing).because(error))
        };
        let mut pages = self
            .ssm
            .describe_instance_information()
            .filters(filter(format!("tag:{key}"), value)?)
            .filters(filter("PingStatus".to_owned(), PingStatus::Online.as_str())?)
            .into_paginator()
            .items()
            .send();
        let mut connected = BTreeSet::new();
        while let Some(information) = pages.next().await {
            let information = information.map_err(|error| self.failure(doing, error))?;
            connected.extend(information.instance_id);
        }
        Ok(connected)
    }
}
