//! Subnets, VPCs and security groups: those that instances, databases and endpoints are configured to be in.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::filter::{Page, among, select, unknown};
use crate::api::form::Filter;
use crate::api::{Call, Form, Refusal, Xml};

/// How many of them may be asked for in one page.
const LENGTHS: RangeInclusive<usize> = 5..=1000;

struct Subnet<'a> {
    id: &'a str,
    vpc: &'a str,
    zone: String,
}

pub(super) fn describe_subnets(call: &Call<'_>, form: &Form) -> Result<Xml, Refusal> {
    let config = &call.world.config;
    let of_endpoints = config.endpoints_in(call.region).map(|endpoint| Subnet {
        id: &endpoint.subnet,
        vpc: &endpoint.vpc,
        zone: format!("{}a", call.region),
    });
    let of_instances = config.instances_in(call.region).map(|instance| Subnet {
        id: &instance.subnet,
        vpc: &instance.vpc,
        zone: instance.zone(call.region),
    });
    let all: BTreeMap<&str, Subnet<'_>> = of_endpoints
        .chain(of_instances)
        .map(|subnet| (subnet.id, subnet))
        .collect();
    let ids = form.list("SubnetId");
    let asked_for = wanted(&all, &ids, "InvalidSubnetID.NotFound", "subnet")?;
    let fits = |subnet: &&Subnet<'_>, filter: &Filter<'_>| match filter.name {
        "subnet-id" => Ok(among(filter, subnet.id)),
        "vpc-id" => Ok(among(filter, subnet.vpc)),
        "availability-zone" | "availabilityZone" => Ok(among(filter, &subnet.zone)),
        "state" => Ok(among(filter, "available")),
        _ => Err(unknown(filter)),
    };
    let page = select(call, form, asked_for, fits, LENGTHS)?;
    Ok(write("subnetSet", page, |xml, subnet| {
        xml.text("subnetId", subnet.id);
        xml.text("state", "available");
        xml.text("vpcId", subnet.vpc);
        xml.text("cidrBlock", "10.0.0.0/16");
        xml.text("availabilityZone", &subnet.zone);
        xml.text("ownerId", &call.world.config.account);
    }))
}

pub(super) fn describe_vpcs(call: &Call<'_>, form: &Form) -> Result<Xml, Refusal> {
    let config = &call.world.config;
    let of_endpoints = config
        .endpoints_in(call.region)
        .map(|endpoint| endpoint.vpc.as_str());
    let of_instances = config
        .instances_in(call.region)
        .map(|instance| instance.vpc.as_str());
    let of_databases = config
        .databases
        .iter()
        .filter(|database| config.region_of(database.region.as_deref()) == call.region)
        .map(|database| database.vpc.as_str());
    let all: BTreeMap<&str, &str> = of_endpoints
        .chain(of_instances)
        .chain(of_databases)
        .map(|vpc| (vpc, vpc))
        .collect();
    let ids = form.list("VpcId");
    let asked_for = wanted(&all, &ids, "InvalidVpcID.NotFound", "vpc")?;
    let fits = |vpc: &&&str, filter: &Filter<'_>| match filter.name {
        "vpc-id" => Ok(among(filter, vpc)),
        "state" => Ok(among(filter, "available")),
        _ => Err(unknown(filter)),
    };
    let page = select(call, form, asked_for, fits, LENGTHS)?;
    Ok(write("vpcSet", page, |xml, vpc| {
        xml.text("vpcId", vpc);
        xml.text("state", "available");
        xml.text("cidrBlock", "10.0.0.0/16");
        xml.text("ownerId", &call.world.config.account);
    }))
}

pub(super) fn describe_security_groups(call: &Call<'_>, form: &Form) -> Result<Xml, Refusal> {
    let config = &call.world.config;
    let of_endpoints = config
        .endpoints_in(call.region)
        .map(|endpoint| (&endpoint.security_groups, endpoint.vpc.as_str()));
    let of_instances = config
        .instances_in(call.region)
        .map(|instance| (&instance.security_groups, instance.vpc.as_str()));
    let all: BTreeMap<&str, (&str, &str)> = of_endpoints
        .chain(of_instances)
        .flat_map(|(groups, vpc)| groups.iter().map(move |group| (group.as_str(), vpc)))
        .map(|(group, vpc)| (group, (group, vpc)))
        .collect();
    let ids = form.list("GroupId");
    let asked_for = wanted(&all, &ids, "InvalidGroup.NotFound", "security group")?;
    let fits = |(group, vpc): &&(&str, &str), filter: &Filter<'_>| match filter.name {
        "group-id" => Ok(among(filter, group)),
        "vpc-id" => Ok(among(filter, vpc)),
        _ => Err(unknown(filter)),
    };
    let page = select(call, form, asked_for, fits, LENGTHS)?;
    Ok(write("securityGroupInfo", page, |xml, (group, vpc)| {
        xml.text("ownerId", &call.world.config.account);
        xml.text("groupId", group);
        xml.text("groupName", "default");
        xml.text("groupDescription", "emulated");
        xml.text("vpcId", vpc);
        xml.element("ipPermissions", |_| ());
        xml.element("ipPermissionsEgress", |_| ());
    }))
}

/// Returns what a call names, or all where it names none.
fn wanted<'a, T>(
    all: &'a BTreeMap<&str, T>,
    ids: &[&str],
    code: &'static str,
    kind: &str,
) -> Result<Vec<&'a T>, Refusal> {
    if ids.is_empty() {
        return Ok(all.values().collect());
    }
    ids.iter()
        .map(|id| {
            all.get(*id)
                .ok_or_else(|| Refusal::new(code, format!("The {kind} ID '{id}' does not exist")))
        })
        .collect()
}

fn write<T>(list: &str, (found, next): Page<T>, write_item: impl Fn(&mut Xml, T)) -> Xml {
    let mut xml = Xml::default();
    xml.element(list, |xml| {
        for item in found {
            xml.element("item", |xml| write_item(xml, item));
        }
    });
    xml.optional("nextToken", next);
    xml
}
