//! DescribeInstanceInformation.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Call, Refusal, epoch, every, paged, range};
use crate::config::{Agent, Instance, InstanceState};
use crate::faults::Fault;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DescribeInstanceInformation {
    #[serde(default)]
    filters: Vec<InstanceFilter>,
    #[serde(default)]
    instance_information_filter_list: Vec<OldInstanceFilter>,
    max_results: Option<usize>,
    next_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InstanceFilter {
    key: String,
    values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OldInstanceFilter {
    key: String,
    value_set: Vec<String>,
}

pub(super) fn describe(call: &Call<'_>, input: DescribeInstanceInformation) -> Result<Value, Refusal> {
    let old = input.instance_information_filter_list.into_iter();
    let old = old.map(|filter| InstanceFilter {
        key: filter.key,
        values: filter.value_set,
    });
    let filters: Vec<InstanceFilter> = input.filters.into_iter().chain(old).collect();
    let mut found = Vec::new();
    for instance in call.world.config.instances_in(call.region) {
        let Some(agent) = &instance.ssm else { continue };
        let online = is_online(call, instance, agent);
        if every(&filters, |filter| instance_fits(instance, agent, online, filter))? {
            found.push(instance_json(call, instance, agent, online));
        }
    }
    let asked = range(input.max_results, "maxResults", 5, 50)?;
    paged(
        call,
        "InstanceInformationList",
        found,
        input.next_token.as_deref(),
        asked,
        50,
    )
}

/// Whether an instance's agent can be reached at this moment.
pub(super) fn is_online(call: &Call<'_>, instance: &Instance, agent: &Agent) -> bool {
    agent.online
        && instance.state == InstanceState::Running
        && !call.world.are_agents_away()
        && !call
            .world
            .faults
            .strikes_subject(Fault::AgentOffline, &instance.id)
}

fn instance_fits(
    instance: &Instance,
    agent: &Agent,
    online: bool,
    filter: &InstanceFilter,
) -> Result<bool, Refusal> {
    let among = |value: &str| filter.values.iter().any(|wanted| wanted == value);
    match filter.key.as_str() {
        "InstanceIds" => Ok(among(&instance.id)),
        "PingStatus" => Ok(among(ping_status(online))),
        "AgentVersion" => Ok(among(&agent.version)),
        "ResourceType" => Ok(among(resource_type(instance))),
        key => match key.strip_prefix("tag:") {
            Some(tag) => Ok(instance.all_tags().any(|(key, value)| key == tag && among(value))),
            None => Err(Refusal::new(
                "InvalidFilterKey",
                format!("The filter key {key} is not served here."),
            )),
        },
    }
}

fn instance_json(call: &Call<'_>, instance: &Instance, agent: &Agent, online: bool) -> Value {
    let last_ping = agent
        .last_ping
        .as_deref()
        .and_then(|time| humantime::parse_rfc3339_weak(time).ok());
    let mut value = json!({
        "InstanceId": instance.id,
        "PingStatus": ping_status(online),
        "LastPingDateTime": epoch(last_ping.unwrap_or(call.now)),
        "AgentVersion": agent.version,
        "IsLatestVersion": true,
        "PlatformType": "Linux",
        "PlatformName": "Amazon Linux",
        "PlatformVersion": "2023",
        "ResourceType": resource_type(instance),
        "SourceId": instance.id,
        "SourceType": "AWS::EC2::Instance",
    });
    if let Some(address) = instance.private_address {
        value["IPAddress"] = json!(address.to_string());
        value["ComputerName"] = json!(crate::api::ec2::private_name(address, call.region));
    }
    if !instance.is_of_ec2() {
        value["Name"] = json!(instance.name);
        value["SourceType"] = json!("AWS::SSM::ManagedInstance");
    }
    value
}

fn ping_status(online: bool) -> &'static str {
    if online { "Online" } else { "ConnectionLost" }
}

fn resource_type(instance: &Instance) -> &'static str {
    if instance.is_of_ec2() {
        "EC2Instance"
    } else {
        "ManagedInstance"
    }
}
