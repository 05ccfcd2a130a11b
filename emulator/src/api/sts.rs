//! STS: who is calling, and keys for a role.

use std::time::Duration;

use super::{Call, Form, Refusal, Xml, unknown_action};

pub(super) fn answer(call: &Call<'_>, operation: &str, form: &Form) -> Result<Xml, Refusal> {
    match operation {
        "GetCallerIdentity" => Ok(caller_identity(call)),
        "AssumeRole" => assume_role(call, form),
        _ => Err(unknown_action(operation)),
    }
}

fn caller_identity(call: &Call<'_>) -> Xml {
    let mut xml = Xml::default();
    xml.text("Arn", &call.caller.arn);
    xml.text("UserId", &call.caller.user_id);
    xml.text("Account", &call.world.config.account);
    xml
}

/// What AWS gives to whoever asks for no duration, in seconds.
const DEFAULT_LIFETIME: u64 = 3600;

fn assume_role(call: &Call<'_>, form: &Form) -> Result<Xml, Refusal> {
    let role = required(form, "RoleArn")?;
    let session = required(form, "RoleSessionName")?;
    let role_name = role
        .strip_prefix("arn:aws:iam::")
        .and_then(|rest| rest.split_once(":role/"))
        .map(|(_, path)| path.rsplit_once('/').map_or(path, |(_, name)| name))
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Refusal::new("ValidationError", format!("{role} is invalid")))?;
    let seconds = match form.value("DurationSeconds") {
        None => DEFAULT_LIFETIME,
        Some(text) => text
            .parse()
            .ok()
            .filter(|seconds| (900..=43200).contains(seconds))
            .ok_or_else(|| {
                Refusal::new(
                    "ValidationError",
                    format!("DurationSeconds {text} is not between 900 and 43200"),
                )
            })?,
    };
    let (access_key_id, key) =
        call.world
            .keys
            .lend(role_name, session, Duration::from_secs(seconds), call.now);
    let mut xml = Xml::default();
    xml.element("AssumedRoleUser", |xml| {
        xml.text("AssumedRoleId", &key.caller.user_id);
        xml.text("Arn", &key.caller.arn);
    });
    xml.element("Credentials", |xml| {
        xml.text("AccessKeyId", &access_key_id);
        xml.text("SecretAccessKey", &key.secret);
        xml.optional("SessionToken", key.session_token.as_deref());
        xml.optional("Expiration", key.expires.map(humantime::format_rfc3339_seconds));
    });
    Ok(xml)
}

fn required<'a>(form: &'a Form, name: &str) -> Result<&'a str, Refusal> {
    form.value(name).filter(|value| !value.is_empty()).ok_or_else(|| {
        Refusal::new(
            "ValidationError",
            format!("1 validation error detected: Value null at '{name}' must not be null"),
        )
    })
}
