//! Connections to instances without a tunnel: one pipe through the daemon, and the programs that use it.
//!
//! ```text
//!   ssh ──ProxyCommand──► tunnelctl stdio ══ pipe ══► tunneld ══► port 22 of the instance
//!   RDP client ──► listener of tunnelctl rdp ══ pipe ══► tunneld ══► port 3389
//! ```

pub(crate) mod foreground;
pub(crate) mod key;
pub(crate) mod pipe;
pub(crate) mod proxy;
pub(crate) mod words;

use tunneld_proto::v1::{Account, Opening, ResolveRequest};

use crate::cli::remote::Reach;

/// The port of SSH.
pub(crate) const SSH_PORT: u16 = 22;

impl Reach {
    /// Returns the question where an instance is, and which way leads to a port of it.
    pub(crate) fn question(&self, instance: &str, port: u16) -> ResolveRequest {
        ResolveRequest {
            account: Some(self.account()),
            instance: instance.to_owned(),
            port: port.into(),
            route: self.route.clone().unwrap_or_default(),
        }
    }

    /// Returns the beginning of a connection to a port of an instance.
    pub(crate) fn opening(&self, instance: &str, port: u16) -> Opening {
        // A task of ECS is a target by itself.
        let target = if instance.starts_with("ecs:") {
            format!("{instance}:{port}")
        } else {
            format!("ec2:{instance}:{port}")
        };
        Opening {
            account: Some(self.account()),
            target,
            route: self.route.clone().unwrap_or_default(),
        }
    }

    /// Returns whose credentials are used, and where.
    pub(crate) fn account(&self) -> Account {
        Account {
            profile: self.profile.clone().unwrap_or_default(),
            region: self.region.clone().unwrap_or_default(),
        }
    }
}
