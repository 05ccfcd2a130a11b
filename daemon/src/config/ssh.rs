//! The settings of the route `ssh`: their keys, what each may be, and what holds for a tunnel.
//!
//! In `[defaults]` they are for the tunnels that take this route; a tunnel that takes another cannot have them.

use std::path::Path;

use toml::Spanned;

use super::path::Unusable;
use super::problem::{Findings, Refusal, nearest, quoted};
use super::route::OF_SSH;
use super::section::{Key, Section};
use super::{HostKeys, Identity, PoolSize, Route, SshSettings, path, pool};

pub(super) const CONNECTIONS: Key = Key::new("connections", "connections = { min = 1, max = 4 }");
const IDENTITY: Key = Key::new(
    "identity",
    r#"identity = "instance-connect", "agent" or "~/.ssh/id_ed25519""#,
);
const HOST_KEYS: Key = Key::new("host_keys", r#"host_keys = "first-use" or "strict""#);

/// The settings as written.
#[derive(Debug, Default)]
pub(super) struct Written {
    identity: Option<Spanned<String>>,
    host_keys: Option<Spanned<String>>,
    connections: Option<Spanned<pool::Written>>,
}

impl Written {
    /// Takes the keys out of a section.
    pub(super) fn read(section: &mut Section<'_, '_, '_>) -> Self {
        Self {
            identity: section.text(&IDENTITY),
            host_keys: section.text(&HOST_KEYS),
            connections: pool::Written::read(section, &CONNECTIONS),
        }
    }

    /// Refuses every key that is there, in a tunnel that takes this other route.
    pub(super) fn refuse(&self, route: &Route, findings: &mut Findings<'_>) {
        let place = |written: &Option<Spanned<String>>| written.as_ref().map(|text| text.span().start);
        let places = [
            (&IDENTITY, place(&self.identity)),
            (&HOST_KEYS, place(&self.host_keys)),
            (
                &CONNECTIONS,
                self.connections.as_ref().map(|table| table.span().start),
            ),
        ];
        for (key, place) in places {
            let Some(at) = place else { continue };
            route.refuse_setting(key, at, &OF_SSH, findings);
        }
    }
}

/// The settings of a section, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Checked {
    identity: Option<Identity>,
    host_keys: Option<HostKeys>,
    connections: Option<PoolSize>,
}

impl Checked {
    /// Reads the settings of a section, noting whatever they cannot be.
    pub(super) fn of(written: &Written, home: Option<&Path>, findings: &mut Findings<'_>) -> Self {
        Self {
            identity: findings.read(written.identity.as_ref(), |text| identity(text, home)),
            host_keys: findings.read(written.host_keys.as_ref(), host_keys),
            connections: pool::size(&CONNECTIONS, written.connections.as_ref(), findings),
        }
    }

    /// Returns what holds for a tunnel with these settings of its own.
    pub(super) fn over(self, defaults: &Self) -> SshSettings {
        let unwritten = SshSettings::default();
        SshSettings {
            identity: self
                .identity
                .or_else(|| defaults.identity.clone())
                .unwrap_or(unwritten.identity),
            host_keys: self
                .host_keys
                .or(defaults.host_keys)
                .unwrap_or(unwritten.host_keys),
            connections: self
                .connections
                .or(defaults.connections)
                .unwrap_or(unwritten.connections),
        }
    }
}

fn identity(text: &str, home: Option<&Path>) -> Result<Identity, Refusal> {
    match text {
        "instance-connect" => return Ok(Identity::InstanceConnect),
        "agent" => return Ok(Identity::Agent),
        _ => {}
    }
    path::full(text, home).map(Identity::File).map_err(|unusable| {
        let why = match (unusable, nearest(text, &["instance-connect", "agent"])) {
            (Unusable::Homeless, _) => "needs a home folder, and this user has none".to_owned(),
            (Unusable::NotFull, Some(near)) => format!("names no identity: did you mean `{near}`?"),
            (Unusable::NotFull, None) => "is not the full path of a private key".to_owned(),
        };
        Refusal::new(format!("{} {why}", quoted(text))).instead(IDENTITY.example)
    })
}

fn host_keys(text: &str) -> Result<HostKeys, Refusal> {
    match text {
        "first-use" => Ok(HostKeys::FirstUse),
        "strict" => Ok(HostKeys::Strict),
        _ => {
            let message = format!("{} says nothing of host keys", quoted(text));
            Err(Refusal::new(message).instead(HOST_KEYS.example))
        }
    }
}
