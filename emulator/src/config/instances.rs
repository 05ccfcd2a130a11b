//! EC2 instances and machines of one's own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Deserialize;

use super::{default_security_groups, default_subnet, default_vpc};

/// The port of SSH.
pub(crate) const SSH: u16 = 22;

/// An EC2 instance (`i-…`) or a machine of one's own with an agent (`mi-…`, unknown to EC2).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) region: Option<String>,
    /// The tag `Name`.
    pub(crate) name: Option<String>,
    #[serde(default)]
    pub(crate) tags: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) state: InstanceState,
    #[serde(default = "default_vpc")]
    pub(crate) vpc: String,
    #[serde(default = "default_subnet")]
    pub(crate) subnet: String,
    /// Absent: the first of its region.
    pub(crate) availability_zone: Option<String>,
    #[serde(default = "default_security_groups")]
    pub(crate) security_groups: Vec<String>,
    pub(crate) private_address: Option<IpAddr>,
    pub(crate) public_address: Option<Ipv4Addr>,
    pub(crate) ipv6_address: Option<Ipv6Addr>,
    /// Who can log in with a key that was pushed; absent: everybody.
    pub(crate) os_users: Option<Vec<String>>,
    /// What it has written to its console.
    #[serde(default)]
    pub(crate) console: String,
    /// A server for SSH of the emulator's own, on port 22; absent: `ports` says what is there.
    pub(crate) ssh: Option<SshServer>,
    /// Absent: no agent has ever registered.
    pub(crate) ssm: Option<Agent>,
    /// What listens on the instance, and where that really is.
    #[serde(default)]
    pub(crate) ports: BTreeMap<u16, SocketAddr>,
}

/// A server for SSH of the emulator's own: it forwards to what the account holds, and runs nothing.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SshServer {
    #[serde(default)]
    pub(crate) forwarding: Forwarding,
}

/// Whether a server for SSH lets its users reach other hosts through it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Forwarding {
    #[default]
    Permitted,
    Prohibited,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum InstanceState {
    Pending,
    #[default]
    Running,
    ShuttingDown,
    Terminated,
    Stopping,
    Stopped,
}

/// The SSM agent of an instance.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Agent {
    #[serde(default, rename = "agent")]
    pub(crate) kind: crate::gateway::AgentKind,
    #[serde(default = "default_agent_version")]
    pub(crate) version: String,
    #[serde(default = "yes")]
    pub(crate) online: bool,
    /// RFC 3339; absent: it pinged just now.
    pub(crate) last_ping: Option<String>,
}

impl Instance {
    /// Returns all tags, `Name` included.
    pub(crate) fn all_tags(&self) -> impl Iterator<Item = (&str, &str)> {
        let name = self.name.iter().map(|name| ("Name", name.as_str()));
        name.chain(
            self.tags
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str())),
        )
    }

    /// Returns whether EC2 knows the instance.
    pub(crate) fn is_of_ec2(&self) -> bool {
        self.id.starts_with("i-")
    }

    /// Returns the addresses that it has in its VPC.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let ipv6 = self.ipv6_address.map(IpAddr::V6);
        self.private_address.into_iter().chain(ipv6)
    }

    /// Returns the availability zone that it is in, given its region.
    pub(crate) fn zone(&self, region: &str) -> String {
        self.availability_zone
            .clone()
            .unwrap_or_else(|| format!("{region}a"))
    }

    /// Returns whether somebody can log in by this name.
    pub(crate) fn has_user(&self, name: &str) -> bool {
        self.os_users
            .as_ref()
            .is_none_or(|users| users.iter().any(|user| user == name))
    }

    pub(super) fn check(&self, problems: &mut Vec<String>) {
        let whose = format!("instance `{}`", self.id);
        if !(self.id.starts_with("i-") || self.id.starts_with("mi-")) {
            problems.push(format!("{whose}: an id begins with `i-` or `mi-`"));
        }
        if self.id.starts_with("mi-") && self.ssm.is_none() {
            problems.push(format!(
                "{whose}: a managed instance is known by its agent: add `ssm = {{}}`"
            ));
        }
        if self.tags.contains_key("Name") && self.name.is_some() {
            problems.push(format!(
                "{whose}: give the name as `name` or as the tag `Name`, not both"
            ));
        }
        if self.ssh.is_some() && self.ports.contains_key(&SSH) {
            problems.push(format!(
                "{whose}: port 22 is that of `ssh`, or that of `ports`, not both"
            ));
        }
        if let Some(agent) = &self.ssm {
            agent.check(&whose, problems);
        }
    }
}

impl Agent {
    pub(super) fn check(&self, whose: &str, problems: &mut Vec<String>) {
        if self.version.split('.').any(|part| part.parse::<u32>().is_err()) {
            problems.push(format!(
                "{whose}: agent version `{}` is not like `3.3.1142.0`",
                self.version
            ));
        }
        if let Some(last_ping) = &self.last_ping
            && humantime::parse_rfc3339_weak(last_ping).is_err()
        {
            problems.push(format!(
                "{whose}: last_ping `{last_ping}` is not like `2025-06-01T12:00:00Z`"
            ));
        }
    }
}

impl InstanceState {
    /// Returns the number and the name that EC2 gives the state.
    pub(crate) fn code_and_name(self) -> (u16, &'static str) {
        match self {
            Self::Pending => (0, "pending"),
            Self::Running => (16, "running"),
            Self::ShuttingDown => (32, "shutting-down"),
            Self::Terminated => (48, "terminated"),
            Self::Stopping => (64, "stopping"),
            Self::Stopped => (80, "stopped"),
        }
    }
}

fn default_agent_version() -> String {
    "3.3.1142.0".to_owned()
}

fn yes() -> bool {
    true
}
