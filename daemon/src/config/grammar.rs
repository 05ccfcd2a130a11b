//! The words of the configuration, read and written in this one place.
//!
//! ```text
//! TARGET   = rds:ID | ec2:INSTANCE:PORT | TASK:PORT | HOST:PORT | [v6]:PORT      the port is after the last colon
//! INSTANCE = i-… | mi-… | tag:KEY=VALUE | Name
//! TASK     = ecs:CLUSTER/SERVICE[/CONTAINER]
//! MODE     = "always" | "on-demand"
//! NAME     = 1 to 63 of a-z A-Z 0-9 . _ -, a letter or digit first
//! ```
//!
//! `rds:ID#…` belongs to the grammar as well; it is recognised and refused, because this version cannot reach it. Some
//! words have files of their own: `instance` (INSTANCE and TASK), `route`, `listen` (local addresses) and `quantity`
//! (numbers).
//!
//! `Display` writes a value in the form in which `parse` reads it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::problem::{Refusal, nearest, quoted, shown};
use super::{Instance, Target, TunnelName};

/// What a target may look like, for hints.
pub(super) const TARGET_FORMS: &str =
    r#"target = "rds:ID", "ec2:INSTANCE:PORT", "ecs:CLUSTER/SERVICE:PORT" or "HOST:PORT""#;

/// What a mode may be, for hints.
pub(super) const MODE_FORMS: &str = r#"mode = "always" or mode = "on-demand""#;

impl Target {
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        if let Some(id) = text.strip_prefix("rds:") {
            return database(text, id);
        }
        if let Some(rest) = text.strip_prefix("ec2:") {
            if rest.starts_with("ecs:") {
                let message = format!("{} is a task of ECS, not an instance of EC2", quoted(text));
                return Err(Refusal::new(message).instead(format!(r#"target = "{}""#, shown(rest))));
            }
            let Some((instance, port)) = split_port(rest) else {
                return Err(no_port(text).instead(r#"target = "ec2:INSTANCE:PORT""#));
            };
            return Ok(Self::Instance {
                instance: Instance::parse(instance)?,
                port,
            });
        }
        if text.starts_with("ecs:") {
            let Some((task, port)) = split_port(text) else {
                return Err(no_port(text).instead(r#"target = "ecs:CLUSTER/SERVICE:PORT""#));
            };
            return Ok(Self::Instance {
                instance: Instance::parse(task)?,
                port,
            });
        }
        let Some((host, port)) = split_port(text) else {
            return Err(no_port(text).instead(TARGET_FORMS));
        };
        Ok(Self::Host {
            host: self::host(text, host, port)?,
            port,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rds { id } => write!(f, "rds:{id}"),
            Self::Instance {
                instance: instance @ Instance::Task(_),
                port,
            } => write!(f, "{instance}:{port}"),
            Self::Instance { instance, port } => write!(f, "ec2:{instance}:{port}"),
            Self::Host { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// The longest identifier of an RDS instance or cluster (RDS API, CreateDBInstance).
const LONGEST_DATABASE_ID: usize = 63;

fn database(text: &str, id: &str) -> Result<Target, Refusal> {
    if let Some((cluster, _)) = id.split_once('#') {
        let message = format!(
            "this version reaches a database's own endpoint only, not {}",
            quoted(text)
        );
        return Err(Refusal::new(message).instead(format!(r#"target = "rds:{}""#, shown(cluster))));
    }
    if let Some((before, _)) = id.split_once(':') {
        let message = format!(
            "{} says more than the database's name: AWS knows its port",
            quoted(text)
        );
        return Err(Refusal::new(message).instead(format!(r#"target = "rds:{}""#, shown(before))));
    }
    let plausible = id.len() <= LONGEST_DATABASE_ID
        && id.starts_with(|first: char| first.is_ascii_alphabetic())
        && id
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || letter == '-');
    if !plausible {
        let message = format!(
            "{} does not name a database: letters, digits and hyphens do",
            quoted(text)
        );
        return Err(Refusal::new(message).instead(r#"target = "rds:ID""#));
    }
    Ok(Target::Rds { id: id.to_owned() })
}

/// The longest host name (RFC 1035, section 2.3.4).
const LONGEST_HOST: usize = 253;

fn host(text: &str, host: &str, port: u16) -> Result<String, Refusal> {
    let refusal = |why: &str| Refusal::new(format!("{} {why}", quoted(text)));
    if let Some(bracketed) = host.strip_prefix('[') {
        let address = bracketed
            .strip_suffix(']')
            .and_then(|inner| inner.parse::<Ipv6Addr>().ok());
        return match address {
            Some(address) => Ok(address.to_string()),
            None => {
                Err(refusal("has no IPv6 address in its brackets")
                    .instead(r#"target = "[2001:db8::1]:5432""#))
            }
        };
    }
    if host.parse::<Ipv6Addr>().is_ok() {
        let hint = format!(r#"target = "[{host}]:{port}""#);
        return Err(refusal("leaves open where the IPv6 address ends").instead(hint));
    }
    if host.contains(':') {
        return Err(refusal("is not a target").instead(TARGET_FORMS));
    }
    let digits_and_dots = host
        .chars()
        .all(|letter| letter.is_ascii_digit() || letter == '.');
    if digits_and_dots && host.parse::<Ipv4Addr>().is_err() {
        return Err(
            refusal("has neither a host name nor an IPv4 address before its port").instead(TARGET_FORMS),
        );
    }
    let labels_are_sound = host.strip_suffix('.').unwrap_or(host).split('.').all(|label| {
        !label.is_empty()
            && label
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_'))
    });
    if host.len() > LONGEST_HOST || !labels_are_sound {
        return Err(refusal("has no host name before its port").instead(TARGET_FORMS));
    }
    Ok(host.to_owned())
}

fn no_port(text: &str) -> Refusal {
    Refusal::new(format!("{} does not end in a port (1 to 65535)", quoted(text)))
}

/// Splits text at its last colon, if a port follows.
pub(super) fn split_port(text: &str) -> Option<(&str, u16)> {
    let (before, after) = text.rsplit_once(':')?;
    Some((before, port(after)?))
}

/// Reads a port: digits alone, and not 0, which would be any port.
pub(super) fn port(text: &str) -> Option<u16> {
    let digits_only = text.chars().all(|letter| letter.is_ascii_digit());
    text.parse().ok().filter(|port| digits_only && *port != 0)
}

/// The longest name of a tunnel: that of a DNS label, so that a name can be part of a host name.
const LONGEST_NAME: usize = 63;

impl TunnelName {
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let sound = text.len() <= LONGEST_NAME
            && text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-'));
        if !sound {
            return Err(
                Refusal::new(format!("{} cannot be the name of a tunnel", quoted(text)))
                    .instead("1 to 63 of a-z A-Z 0-9 . _ - with a letter or digit first"),
            );
        }
        Ok(Self(text.to_owned()))
    }
}

/// A mode as written, without what else belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrittenMode {
    Always,
    OnDemand,
}

/// Reads the mode of a tunnel.
pub(super) fn mode(text: &str) -> Result<WrittenMode, Refusal> {
    let near = match text {
        "always" => return Ok(WrittenMode::Always),
        "on-demand" => return Ok(WrittenMode::OnDemand),
        _ => nearest(text, &["always", "on-demand"]),
    };
    let message = match near {
        Some(near) => format!("unknown mode {}: did you mean `{near}`?", quoted(text)),
        None => format!("unknown mode {}", quoted(text)),
    };
    Err(Refusal::new(message).instead(MODE_FORMS))
}

/// Reads the name of a profile, which may be any text that fits on a line.
pub(super) fn profile(text: &str) -> Result<String, Refusal> {
    if text.is_empty() || text.trim() != text || text.contains(char::is_control) {
        return Err(
            Refusal::new(format!("{} cannot be the name of a profile", quoted(text)))
                .instead("a name from ~/.aws/config, or leave `profile` out"),
        );
    }
    Ok(text.to_owned())
}

/// Reads the name of a region. It becomes part of host names, so nothing may be in it that ends a label.
pub(super) fn region(text: &str) -> Result<String, Refusal> {
    let sound = text.len() <= LONGEST_NAME
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.ends_with(|last: char| last.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-');
    if !sound {
        return Err(
            Refusal::new(format!("{} is not the name of a region", quoted(text)))
                .instead(r#"region = "eu-central-1""#),
        );
    }
    Ok(text.to_owned())
}
