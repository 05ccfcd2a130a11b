//! EC2: instances, the networks that they are in, and the endpoints of Instance Connect.

mod endpoints;
mod filter;
mod instances;
mod network;

use std::net::IpAddr;

use super::{Call, Form, Refusal, Xml, unknown_action};

pub(super) fn answer(call: &Call<'_>, operation: &str, form: &Form) -> Result<Xml, Refusal> {
    match operation {
        "DescribeInstances" => instances::describe(call, form),
        "GetConsoleOutput" => instances::console_output(call, form),
        "DescribeInstanceConnectEndpoints" => endpoints::describe(call, form),
        "DescribeSubnets" => network::describe_subnets(call, form),
        "DescribeVpcs" => network::describe_vpcs(call, form),
        "DescribeSecurityGroups" => network::describe_security_groups(call, form),
        _ => Err(unknown_action(operation)),
    }
}

/// Returns the name that EC2 gives to a private address.
pub(super) fn private_name(address: IpAddr, region: &str) -> String {
    let dashes = address.to_string().replace(['.', ':'], "-");
    format!("ip-{dashes}.{region}.compute.internal")
}
