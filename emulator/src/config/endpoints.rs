//! Endpoints of EC2 Instance Connect.

use std::time::Duration;

use serde::Deserialize;

use super::{default_security_groups, default_subnet, default_vpc};
use crate::conditions::span;

/// What stands in each endpoint's DNS name after its id: eight hexadecimal digits, which differ at AWS.
const ZONE: &str = "b67b86ba";

/// An endpoint of EC2 Instance Connect.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Endpoint {
    pub(crate) id: String,
    pub(crate) region: Option<String>,
    #[serde(default = "default_vpc")]
    pub(crate) vpc: String,
    #[serde(default = "default_subnet")]
    pub(crate) subnet: String,
    #[serde(default)]
    pub(crate) state: EndpointState,
    #[serde(default)]
    pub(crate) address_type: AddressType,
    /// Whether it has names for FIPS.
    #[serde(default)]
    pub(crate) fips: bool,
    #[serde(default)]
    pub(crate) preserve_client_ip: bool,
    #[serde(default = "default_security_groups")]
    pub(crate) security_groups: Vec<String>,
    /// The longest tunnel that the caller's policy permits, who then has to name a duration. Absent: any.
    #[serde(default, deserialize_with = "span::optional::deserialize")]
    pub(crate) permitted_duration: Option<Duration>,
}

/// How far an endpoint is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// It is being made.
    CreateInProgress,
    /// It works.
    #[default]
    CreateComplete,
    /// It was never made.
    CreateFailed,
    /// It is being deleted.
    DeleteInProgress,
    /// It is gone.
    DeleteComplete,
    /// It could not be deleted, and works no more.
    DeleteFailed,
    /// It works as before, and is about to be otherwise.
    UpdateInProgress,
    /// It works, and is otherwise than it was made.
    UpdateComplete,
    /// It works as before.
    UpdateFailed,
}

/// Which addresses lead to an endpoint, and which targets it reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AddressType {
    #[default]
    Ipv4,
    Dualstack,
    Ipv6,
}

/// The names of an endpoint. What AWS tells of one that has IPv6 alone is not public; here it has no IPv4 name.
pub(crate) struct DnsNames {
    pub(crate) ipv4: Option<Name>,
    pub(crate) dualstack: Option<Name>,
}

/// A name, and the one that stands for it where FIPS is asked for.
pub(crate) struct Name {
    pub(crate) plain: String,
    pub(crate) fips: Option<String>,
}

impl Endpoint {
    /// Returns its names, given its region.
    pub(crate) fn names(&self, region: &str) -> DnsNames {
        DnsNames::new(&self.id, region, self.address_type, self.fips)
    }

    pub(super) fn check(&self, problems: &mut Vec<String>) {
        let whose = format!("endpoint `{}`", self.id);
        if !self.id.starts_with("eice-") {
            problems.push(format!("{whose}: an id begins with `eice-`"));
        }
        if self.preserve_client_ip && self.address_type != AddressType::Ipv4 {
            problems.push(format!(
                "{whose}: `preserve_client_ip` is for the address type `ipv4` alone"
            ));
        }
    }
}

impl DnsNames {
    fn new(id: &str, region: &str, address_type: AddressType, has_fips: bool) -> Self {
        let name = |domain: &str| {
            let rest = format!("ec2-instance-connect-endpoint.{region}.{domain}");
            Name {
                plain: format!("{id}.{ZONE}.{rest}"),
                fips: has_fips.then(|| format!("{id}.{ZONE}.fips.{rest}")),
            }
        };
        let amazonaws = match region.starts_with("cn-") {
            true => "amazonaws.com.cn",
            false => "amazonaws.com",
        };
        Self {
            ipv4: (address_type != AddressType::Ipv6).then(|| name(amazonaws)),
            dualstack: (address_type != AddressType::Ipv4).then(|| name("api.aws")),
        }
    }

    /// Returns wildcards for all names of a region, as a certificate has them.
    pub(crate) fn wildcards(region: &str) -> impl Iterator<Item = String> {
        Self::new("*", region, AddressType::Dualstack, true).all()
    }

    /// Returns every name there is.
    pub(crate) fn all(self) -> impl Iterator<Item = String> {
        let names = self.ipv4.into_iter().chain(self.dualstack);
        names.flat_map(|name| [Some(name.plain), name.fips]).flatten()
    }
}

impl EndpointState {
    /// Every state.
    pub(crate) const ALL: &[Self] = &[
        Self::CreateInProgress,
        Self::CreateComplete,
        Self::CreateFailed,
        Self::DeleteInProgress,
        Self::DeleteComplete,
        Self::DeleteFailed,
        Self::UpdateInProgress,
        Self::UpdateComplete,
        Self::UpdateFailed,
    ];

    /// Returns the name that EC2 gives the state.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::CreateInProgress => "create-in-progress",
            Self::CreateComplete => "create-complete",
            Self::CreateFailed => "create-failed",
            Self::DeleteInProgress => "delete-in-progress",
            Self::DeleteComplete => "delete-complete",
            Self::DeleteFailed => "delete-failed",
            Self::UpdateInProgress => "update-in-progress",
            Self::UpdateComplete => "update-complete",
            Self::UpdateFailed => "update-failed",
        }
    }

    /// Returns whether tunnels can be opened: an endpoint that is being changed serves as before.
    pub(crate) fn is_usable(self) -> bool {
        match self {
            Self::CreateComplete | Self::UpdateInProgress | Self::UpdateComplete | Self::UpdateFailed => true,
            Self::CreateInProgress
            | Self::CreateFailed
            | Self::DeleteInProgress
            | Self::DeleteComplete
            | Self::DeleteFailed => false,
        }
    }
}

impl AddressType {
    /// Returns the name that EC2 gives the type.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Dualstack => "dualstack",
            Self::Ipv6 => "ipv6",
        }
    }

    /// Returns whether an endpoint of this type reaches an address.
    pub(crate) fn reaches(self, address: std::net::IpAddr) -> bool {
        match self {
            Self::Ipv4 => address.is_ipv4(),
            Self::Dualstack => true,
            Self::Ipv6 => address.is_ipv6(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn an_endpoint_has_the_names_of_its_addresses() {
        let config = Config::parse(
            "[[endpoints]]\nid = \"eice-1\"\n\
             [[endpoints]]\nid = \"eice-2\"\naddress_type = \"dualstack\"\nfips = true\n\
             [[endpoints]]\nid = \"eice-3\"\naddress_type = \"ipv6\"\n",
        )
        .expect("a good configuration");
        let names = |endpoint: usize| -> Vec<String> {
            config.endpoints[endpoint].names("eu-west-1").all().collect()
        };
        let rest = "ec2-instance-connect-endpoint.eu-west-1";
        assert_eq!(names(0), [format!("eice-1.b67b86ba.{rest}.amazonaws.com")]);
        assert_eq!(
            names(1),
            [
                format!("eice-2.b67b86ba.{rest}.amazonaws.com"),
                format!("eice-2.b67b86ba.fips.{rest}.amazonaws.com"),
                format!("eice-2.b67b86ba.{rest}.api.aws"),
                format!("eice-2.b67b86ba.fips.{rest}.api.aws"),
            ]
        );
        assert_eq!(names(2), [format!("eice-3.b67b86ba.{rest}.api.aws")]);
    }

    #[test]
    fn what_can_not_be_meant_is_told() {
        let error = Config::parse(
            "[[endpoints]]\nid = \"vpce-1\"\naddress_type = \"ipv6\"\npreserve_client_ip = true\n",
        )
        .expect_err("two problems");
        let text = error.to_string();
        assert!(
            text.contains("eice-") && text.contains("preserve_client_ip"),
            "{text}"
        );
    }
}
