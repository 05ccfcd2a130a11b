//! Instances, and what they have written to their consoles.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::filter::{among, select, unknown};
use super::private_name;
use crate::api::form::Filter;
use crate::api::{Call, Form, Refusal, Xml};
use crate::config::{Instance, InstanceState};

/// How many instances may be asked for in one page.
const LENGTHS: RangeInclusive<usize> = 5..=1000;

/// How much of a console EC2 keeps.
const LONGEST_CONSOLE: usize = 64 << 10;

pub(super) fn describe(call: &Call<'_>, form: &Form) -> Result<Xml, Refusal> {
    let ids = form.list("InstanceId");
    let instances: Vec<&Instance> = known(call).collect();
    for id in &ids {
        check_id(id, &instances)?;
    }
    if !ids.is_empty() && form.value("MaxResults").is_some() {
        return Err(Refusal::new(
            "InvalidParameterCombination",
            "The parameter instancesSet cannot be used with the parameter maxResults",
        ));
    }
    let asked_for = instances
        .into_iter()
        .filter(|instance| ids.is_empty() || ids.contains(&instance.id.as_str()));
    let fits = |instance: &&Instance, filter: &Filter<'_>| instance_fits(call, instance, filter);
    let (found, next) = select(call, form, asked_for, fits, LENGTHS)?;
    let mut xml = Xml::default();
    xml.element("reservationSet", |xml| {
        for instance in found {
            xml.element("item", |xml| write_reservation(xml, call, instance));
        }
    });
    xml.optional("nextToken", next);
    Ok(xml)
}

fn check_id(id: &str, instances: &[&Instance]) -> Result<(), Refusal> {
    if instances.iter().any(|instance| instance.id == id) {
        return Ok(());
    }
    let well_formed = id
        .strip_prefix("i-")
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    Err(if well_formed {
        Refusal::new(
            "InvalidInstanceID.NotFound",
            format!("The instance ID '{id}' does not exist"),
        )
    } else {
        Refusal::new("InvalidInstanceID.Malformed", format!("Invalid id: \"{id}\""))
    })
}

fn instance_fits(call: &Call<'_>, instance: &Instance, filter: &Filter<'_>) -> Result<bool, Refusal> {
    let among = |value: &str| among(filter, value);
    let address = instance.private_address;
    match filter.name {
        "availability-zone" => Ok(among(&instance.zone(call.region))),
        "instance-id" => Ok(among(&instance.id)),
        "instance-state-name" => Ok(among(instance.state.code_and_name().1)),
        "ip-address" => Ok(instance
            .public_address
            .is_some_and(|address| among(&address.to_string()))),
        "ipv6-address" => Ok(instance
            .ipv6_address
            .is_some_and(|address| among(&address.to_string()))),
        "private-ip-address" => Ok(address.is_some_and(|address| among(&address.to_string()))),
        "private-dns-name" => Ok(address.is_some_and(|address| among(&private_name(address, call.region)))),
        "subnet-id" => Ok(among(&instance.subnet)),
        "tag-key" => Ok(instance.all_tags().any(|(key, _)| among(key))),
        "vpc-id" => Ok(among(&instance.vpc)),
        name => match name.strip_prefix("tag:") {
            Some(tag) => Ok(instance.all_tags().any(|(key, value)| key == tag && among(value))),
            None => Err(unknown(filter)),
        },
    }
}

fn write_reservation(xml: &mut Xml, call: &Call<'_>, instance: &Instance) {
    xml.text("reservationId", instance.id.replacen("i-", "r-", 1));
    xml.text("ownerId", &call.world.config.account);
    xml.element("groupSet", |_| ());
    xml.element("instancesSet", |xml| {
        xml.element("item", |xml| write_instance(xml, call, instance))
    });
}

fn write_instance(xml: &mut Xml, call: &Call<'_>, instance: &Instance) {
    let (code, state) = instance.state.code_and_name();
    xml.text("instanceId", &instance.id);
    xml.text("imageId", "ami-0123456789abcdef0");
    xml.element("instanceState", |xml| {
        xml.text("code", code);
        xml.text("name", state);
    });
    xml.text("instanceType", "t3.micro");
    xml.text("launchTime", "2025-01-01T00:00:00.000Z");
    xml.element("placement", |xml| {
        xml.text("availabilityZone", instance.zone(call.region));
        xml.text("tenancy", "default");
    });
    match instance.state {
        // Nothing of it is left in a network.
        InstanceState::Terminated => {}
        InstanceState::Pending
        | InstanceState::Running
        | InstanceState::ShuttingDown
        | InstanceState::Stopping
        | InstanceState::Stopped => write_network(xml, call, instance),
    }
    xml.text("architecture", "x86_64");
    xml.element("tagSet", |xml| {
        for (key, value) in instance.all_tags() {
            xml.element("item", |xml| {
                xml.text("key", key);
                xml.text("value", value);
            });
        }
    });
}

fn write_network(xml: &mut Xml, call: &Call<'_>, instance: &Instance) {
    xml.text(
        "privateDnsName",
        instance
            .private_address
            .map_or(String::new(), |ip| private_name(ip, call.region)),
    );
    xml.optional("privateIpAddress", instance.private_address);
    xml.text(
        "dnsName",
        instance
            .public_address
            .map_or(String::new(), |ip| public_name(ip, call.region)),
    );
    xml.optional("ipAddress", instance.public_address);
    xml.optional("ipv6Address", instance.ipv6_address);
    xml.text("subnetId", &instance.subnet);
    xml.text("vpcId", &instance.vpc);
    xml.element("groupSet", |xml| {
        for group in &instance.security_groups {
            xml.element("item", |xml| {
                xml.text("groupId", group);
                xml.text("groupName", "default");
            });
        }
    });
}

fn public_name(address: Ipv4Addr, region: &str) -> String {
    let dashes = address.to_string().replace('.', "-");
    format!("ec2-{dashes}.{region}.compute.amazonaws.com")
}

/// Answers with what an instance has written to its console.
pub(super) fn console_output(call: &Call<'_>, form: &Form) -> Result<Xml, Refusal> {
    let id = form.value("InstanceId").unwrap_or_default();
    let instances: Vec<&Instance> = known(call).collect();
    check_id(id, &instances)?;
    let console = instances
        .iter()
        .find(|instance| instance.id == id)
        .map_or("", |instance| instance.console.as_str());
    let latest = &console.as_bytes()[console.len().saturating_sub(LONGEST_CONSOLE)..];
    let mut xml = Xml::default();
    xml.text("instanceId", id);
    xml.text("timestamp", "2025-01-01T00:01:00.000Z");
    xml.text("output", BASE64_STANDARD.encode(latest));
    Ok(xml)
}

fn known<'a>(call: &Call<'a>) -> impl Iterator<Item = &'a Instance> {
    let instances = call.world.config.instances_in(call.region);
    instances.filter(|instance| instance.is_of_ec2())
}
