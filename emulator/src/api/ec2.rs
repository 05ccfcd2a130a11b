//! EC2: instances.

use std::net::IpAddr;

use super::form::Filter;
use super::{Call, Form, Refusal, Xml, page, unknown_action};
use crate::config::Instance;

pub(super) fn answer(call: &Call<'_>, operation: &str, form: &Form) -> Result<Xml, Refusal> {
    match operation {
        "DescribeInstances" => describe_instances(call, form),
        _ => Err(unknown_action(operation)),
    }
}

/// Returns the name that EC2 gives to a private address.
pub(super) fn private_name(address: IpAddr, region: &str) -> String {
    let dashes = address.to_string().replace(['.', ':'], "-");
    format!("ip-{dashes}.{region}.compute.internal")
}

fn describe_instances(call: &Call<'_>, form: &Form) -> Result<Xml, Refusal> {
    let ids = form.list("InstanceId");
    let filters = form.filters("Filter", "Value");
    let instances: Vec<&Instance> = call
        .world
        .config
        .instances_in(call.region)
        .filter(|instance| instance.is_of_ec2())
        .collect();
    for id in &ids {
        check_id(id, &instances)?;
    }
    let mut found = Vec::new();
    for instance in instances {
        let mut fits = ids.is_empty() || ids.contains(&instance.id.as_str());
        for filter in &filters {
            fits &= instance_fits(call, instance, filter)?;
        }
        if fits {
            found.push(instance);
        }
    }
    let length = call.page_length(max_results(form, !ids.is_empty())?, 1000);
    let (found, next) = page(found, form.value("NextToken"), length)
        .map_err(|_| Refusal::new("InvalidNextToken", "The token is invalid."))?;
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

fn max_results(form: &Form, with_ids: bool) -> Result<Option<usize>, Refusal> {
    let Some(text) = form.value("MaxResults") else {
        return Ok(None);
    };
    if with_ids {
        return Err(Refusal::new(
            "InvalidParameterCombination",
            "The parameter instancesSet cannot be used with the parameter maxResults",
        ));
    }
    let value = text.parse().ok().filter(|value| (5..=1000).contains(value));
    value.map(Some).ok_or_else(|| {
        let message = format!(
            "Value ( {text} ) for parameter maxResults is invalid. Expecting a value from 5 to 1000."
        );
        Refusal::new("InvalidParameterValue", message)
    })
}

fn instance_fits(call: &Call<'_>, instance: &Instance, filter: &Filter<'_>) -> Result<bool, Refusal> {
    let among = |value: &str| filter.values.iter().any(|pattern| matches(pattern, value));
    let address = instance.private_address;
    match filter.name {
        "instance-id" => Ok(among(&instance.id)),
        "instance-state-name" => Ok(among(instance.state.code_and_name().1)),
        "private-ip-address" => Ok(address.is_some_and(|address| among(&address.to_string()))),
        "private-dns-name" => Ok(address.is_some_and(|address| among(&private_name(address, call.region)))),
        "tag-key" => Ok(instance.all_tags().any(|(key, _)| among(key))),
        name => match name.strip_prefix("tag:") {
            Some(tag) => Ok(instance.all_tags().any(|(key, value)| key == tag && among(value))),
            None => Err(Refusal::new(
                "InvalidParameterValue",
                format!("The filter '{name}' is invalid"),
            )),
        },
    }
}

/// Whether a filter's value fits: `*` stands for any text, `?` for one character, `\` takes their meaning away.
fn matches(pattern: &str, text: &str) -> bool {
    let pattern = tokens(pattern);
    let text: Vec<char> = text.chars().collect();
    // Where to go on when what follows the last `*` does not fit: that star takes one more character.
    let (mut at, mut read, mut retry) = (0, 0, None);
    while read < text.len() {
        match pattern.get(at) {
            Some(Token::Many) => {
                retry = Some((at + 1, read));
                at += 1;
            }
            Some(Token::One) => (at, read) = (at + 1, read + 1),
            Some(Token::Character(character)) if *character == text[read] => (at, read) = (at + 1, read + 1),
            Some(Token::Character(_)) | None => {
                let Some((after_star, taken)) = retry else {
                    return false;
                };
                retry = Some((after_star, taken + 1));
                (at, read) = (after_star, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|token| matches!(token, Token::Many))
}

enum Token {
    Many,
    One,
    Character(char),
}

fn tokens(pattern: &str) -> Vec<Token> {
    let mut characters = pattern.chars();
    let mut tokens = Vec::new();
    while let Some(character) = characters.next() {
        tokens.push(match character {
            '*' => Token::Many,
            '?' => Token::One,
            '\\' => Token::Character(characters.next().unwrap_or('\\')),
            other => Token::Character(other),
        });
    }
    tokens
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
        xml.text("availabilityZone", format!("{}a", call.region));
        xml.text("tenancy", "default");
    });
    xml.text(
        "privateDnsName",
        instance
            .private_address
            .map_or(String::new(), |ip| private_name(ip, call.region)),
    );
    xml.optional("privateIpAddress", instance.private_address);
    xml.text("subnetId", "subnet-0123456789abcdef0");
    xml.text("vpcId", "vpc-0123456789abcdef0");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_values_know_wildcards() {
        for (pattern, text, fits) in [
            ("bastion", "bastion", true),
            ("bastion", "bastion-2", false),
            ("bastion*", "bastion-2", true),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("?", "é", true),
            ("?", "", false),
            ("*-prod-*", "web-pro-prod-1", true),
            ("a*b*c", "abcbcc", true),
            ("a*b*c", "abcbcd", false),
            ("\\*", "*", true),
            ("\\*", "x", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_against_a_long_text_are_cheap() {
        assert!(!matches(&"*a".repeat(2000), &"a".repeat(1000)));
    }
}
