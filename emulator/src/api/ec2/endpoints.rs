//! Endpoints of EC2 Instance Connect.

use std::ops::RangeInclusive;

use super::filter::{among, select, unknown};
use crate::api::form::Filter;
use crate::api::{Call, Form, Refusal, Xml};
use crate::config::{DnsNames, Endpoint};

/// How many endpoints may be asked for in one page.
const LENGTHS: RangeInclusive<usize> = 1..=50;

pub(super) fn describe(call: &Call<'_>, form: &Form) -> Result<Xml, Refusal> {
    let ids = form.list("InstanceConnectEndpointId");
    let all: Vec<&Endpoint> = call.world.config.endpoints_in(call.region).collect();
    for id in &ids {
        if !all.iter().any(|endpoint| endpoint.id == *id) {
            return Err(Refusal::new(
                "InvalidInstanceConnectEndpointId.NotFound",
                format!("The instance connect endpoint ID '{id}' does not exist"),
            ));
        }
    }
    let asked_for = all
        .into_iter()
        .filter(|endpoint| ids.is_empty() || ids.contains(&endpoint.id.as_str()));
    let fits = |endpoint: &&Endpoint, filter: &Filter<'_>| endpoint_fits(call, endpoint, filter);
    let (found, next) = select(call, form, asked_for, fits, LENGTHS)?;
    let mut xml = Xml::default();
    xml.element("instanceConnectEndpointSet", |xml| {
        for endpoint in found {
            xml.element("item", |xml| write_endpoint(xml, call, endpoint));
        }
    });
    xml.optional("nextToken", next);
    Ok(xml)
}

fn endpoint_fits(call: &Call<'_>, endpoint: &Endpoint, filter: &Filter<'_>) -> Result<bool, Refusal> {
    match filter.name {
        "instance-connect-endpoint-id" => Ok(among(filter, &endpoint.id)),
        "state" => Ok(among(filter, call.world.state_of(endpoint).name())),
        "subnet-id" => Ok(among(filter, &endpoint.subnet)),
        "vpc-id" => Ok(among(filter, &endpoint.vpc)),
        // No configured endpoint has a tag.
        "tag-key" | "tag-value" => Ok(false),
        name if name.starts_with("tag:") => Ok(false),
        _ => Err(unknown(filter)),
    }
}

fn write_endpoint(xml: &mut Xml, call: &Call<'_>, endpoint: &Endpoint) {
    let account = &call.world.config.account;
    let state = call.world.state_of(endpoint);
    let DnsNames { ipv4, dualstack } = endpoint.names(call.region);
    xml.text("ownerId", account);
    xml.text("instanceConnectEndpointId", &endpoint.id);
    xml.text(
        "instanceConnectEndpointArn",
        format!(
            "arn:aws:ec2:{}:{account}:instance-connect-endpoint/{}",
            call.region, endpoint.id
        ),
    );
    xml.text("state", state.name());
    xml.text("stateMessage", "");
    if let Some(name) = ipv4.as_ref().or(dualstack.as_ref()) {
        xml.text("dnsName", &name.plain);
        xml.optional("fipsDnsName", name.fips.as_ref());
    }
    xml.element("publicDnsNames", |xml| {
        for (kind, name) in [("ipv4", ipv4), ("dualstack", dualstack)] {
            let Some(name) = name else { continue };
            xml.element(kind, |xml| {
                xml.text("dnsName", &name.plain);
                xml.optional("fipsDnsName", name.fips.as_ref());
            });
        }
    });
    xml.element("networkInterfaceIdSet", |xml| {
        xml.text("item", endpoint.id.replacen("eice-", "eni-", 1));
    });
    xml.text("vpcId", &endpoint.vpc);
    xml.text("availabilityZone", format!("{}a", call.region));
    xml.text("createdAt", "2025-01-01T00:00:00.000Z");
    xml.text("subnetId", &endpoint.subnet);
    xml.text("preserveClientIp", endpoint.preserve_client_ip);
    xml.text("ipAddressType", endpoint.address_type.name());
    xml.element("securityGroupIdSet", |xml| {
        for group in &endpoint.security_groups {
            xml.text("item", group);
        }
    });
    xml.element("tagSet", |_| ());
}
