//! EC2 Instance Connect: public keys that let somebody log in for a minute.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::json::input;
use super::{Call, Refusal, unknown_operation};
use crate::config::InstanceState;
use crate::faults::Fault;

pub(super) fn answer(call: &Call<'_>, operation: &str, body: &[u8]) -> Result<Value, Refusal> {
    match operation {
        "SendSSHPublicKey" => send_public_key(call, &input(body)?),
        _ => Err(unknown_operation()),
    }
}

#[derive(Deserialize)]
struct SendPublicKey {
    #[serde(rename = "InstanceId")]
    instance: String,
    #[serde(rename = "InstanceOSUser")]
    user: String,
    #[serde(rename = "SSHPublicKey")]
    key: String,
    #[serde(rename = "AvailabilityZone")]
    zone: Option<String>,
}

/// Success means that the key is stored: whether the user exists is for the instance's own server to find out.
fn send_public_key(call: &Call<'_>, input: &SendPublicKey) -> Result<Value, Refusal> {
    let SendPublicKey {
        instance: id,
        user,
        key,
        zone,
    } = input;
    let faults = &call.world.faults;
    if faults.strikes_subject(Fault::SendKeyDenied, id) {
        let arn = format!(
            "arn:aws:ec2:{}:{}:instance/{id}",
            call.region, call.world.config.account
        );
        let message = format!(
            "User: {} is not authorized to perform: ec2-instance-connect:SendSSHPublicKey on resource: {arn}",
            call.caller.arn
        );
        return Err(Refusal::new("AuthException", message).with_status(StatusCode::FORBIDDEN));
    }
    if faults.strikes(Fault::ThrottleSendKey) {
        return Err(
            Refusal::new("ThrottlingException", "Rate exceeded").with_status(StatusCode::TOO_MANY_REQUESTS)
        );
    }
    if !is_instance_id(id) {
        return Err(invalid("InstanceId"));
    }
    if !is_user(user) {
        return Err(invalid("InstanceOSUser"));
    }
    if !is_public_key(key) {
        return Err(invalid("SSHPublicKey"));
    }
    let instance = call
        .world
        .config
        .instances_in(call.region)
        .find(|instance| instance.id == *id)
        .filter(|instance| {
            zone.as_ref()
                .is_none_or(|zone| *zone == instance.zone(call.region))
        })
        .ok_or_else(|| {
            Refusal::new(
                "EC2InstanceNotFoundException",
                "The specified instance was not found.",
            )
            .with_status(StatusCode::NOT_FOUND)
        })?;
    if instance.state != InstanceState::Running {
        return Err(Refusal::new(
            "EC2InstanceStateInvalidException",
            "Unable to connect because the instance is not in a valid state.",
        ));
    }
    if faults.strikes(Fault::SendKeyUnavailable) {
        return Err(Refusal::new(
            "EC2InstanceUnavailableException",
            "The instance is currently unavailable. Wait a few minutes and try again.",
        )
        .with_status(StatusCode::SERVICE_UNAVAILABLE));
    }
    let lifetime = call.world.conditions.borrow().connect.key_lifetime;
    call.world
        .pushed_keys
        .push(id, user, key, Instant::now() + lifetime);
    Ok(json!({ "RequestId": call.request_id, "Success": true }))
}

/// The API's own pattern.
fn is_instance_id(id: &str) -> bool {
    let digits = id.strip_prefix("i-");
    (10..=32).contains(&id.len())
        && digits.is_some_and(|digits| {
            digits
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        })
}

/// The API's own pattern.
fn is_user(user: &str) -> bool {
    (1..=32).contains(&user.len())
        && user
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"@._-".contains(&byte))
}

/// One line: a type that begins with `ssh`, as what runs on the instances wants it, and a key of that type.
fn is_public_key(key: &str) -> bool {
    let key = key.trim_end_matches('\n');
    let mut words = key.split(' ');
    let (Some(kind), Some(blob)) = (words.next(), words.next()) else {
        return false;
    };
    let blob = BASE64_STANDARD.decode(blob).unwrap_or_default();
    let names_its_kind = blob
        .strip_prefix(&(kind.len() as u32).to_be_bytes())
        .is_some_and(|rest| rest.starts_with(kind.as_bytes()));
    (80..=4096).contains(&key.len()) && kind.starts_with("ssh") && !key.contains('\n') && names_its_kind
}

fn invalid(parameter: &str) -> Refusal {
    Refusal::new(
        "InvalidArgsException",
        format!("The value of {parameter} is not valid."),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    #[test]
    fn parameters_are_judged_as_the_api_does() {
        assert!(is_instance_id("i-0123456789abcdef0"));
        for broken in [
            "i-0123",
            "i-0123456789ABCDEF0",
            "mi-0123456789abcdef0",
            "0123456789ab",
        ] {
            assert!(!is_instance_id(broken), "{broken}");
        }
        assert!(is_user("ec2-user") && is_user("jane.doe@corp"));
        for broken in ["", "root;reboot", "a b", &"u".repeat(33)] {
            assert!(!is_user(broken), "{broken}");
        }
        assert!(is_public_key(KEY) && is_public_key(&format!("{KEY} comment\n")));
        for broken in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            &KEY.replace("ssh-ed25519", "ssh-rsa"),
            &KEY.replace("ssh-ed25519 ", "ecdsa-sha2-nistp256 "),
            &format!("{KEY}\n{KEY}"),
            &format!("{KEY} {}", "c".repeat(4096)),
        ] {
            assert!(!is_public_key(broken), "{broken}");
        }
    }
}
