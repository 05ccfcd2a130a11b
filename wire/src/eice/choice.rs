//! Which endpoint serves a target, and whether it can.

use std::net::IpAddr;

/// How far an endpoint is (EC2 API, Ec2InstanceConnectEndpoint).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It takes connections. One that is being changed does so too, in its old form.
    Usable,
    /// It is being made.
    Coming,
    /// It is being deleted, is deleted, or was never made; or it is in a state that AWS has added since.
    Gone,
}

impl State {
    /// Reads the state as the API names it.
    pub fn named(name: &str) -> Self {
        match name {
            "create-complete" | "update-in-progress" | "update-complete" | "update-failed" => Self::Usable,
            "create-in-progress" => Self::Coming,
            _ => Self::Gone,
        }
    }
}

/// The addresses that an endpoint connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressType {
    /// IPv4 alone.
    Ipv4,
    /// IPv6 alone.
    Ipv6,
    /// Both.
    Dualstack,
}

impl AddressType {
    /// Reads the type as the API names it. Endpoints made before there were types have none, and are of IPv4.
    pub fn named(name: &str) -> Self {
        match name {
            "ipv6" => Self::Ipv6,
            "dualstack" => Self::Dualstack,
            _ => Self::Ipv4,
        }
    }

    /// Returns whether an endpoint of this type connects to an address.
    pub fn reaches(self, address: IpAddr) -> bool {
        match self {
            Self::Ipv4 => address.is_ipv4(),
            Self::Ipv6 => address.is_ipv6(),
            Self::Dualstack => true,
        }
    }
}

/// An endpoint, as far as the choice goes.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its state.
    pub state: State,
    /// The subnet that it is in.
    pub subnet: &'a str,
}

/// Chooses among the endpoints of a target's VPC as the official client does: of the usable ones that in the target's
/// subnet, else the first. Returns its place in the list.
pub fn choose<'a>(candidates: impl IntoIterator<Item = Candidate<'a>>, subnet: &str) -> Option<usize> {
    let mut first = None;
    for (place, candidate) in candidates.into_iter().enumerate() {
        if candidate.state != State::Usable {
            continue;
        }
        if candidate.subnet == subnet {
            return Some(place);
        }
        first.get_or_insert(place);
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_usable_in_four_of_its_nine_states() {
        let usable = |name: &&&str| State::named(name) == State::Usable;
        let all = [
            "create-in-progress",
            "create-complete",
            "create-failed",
            "delete-in-progress",
            "delete-complete",
            "delete-failed",
            "update-in-progress",
            "update-complete",
            "update-failed",
        ];
        let found: Vec<_> = all.iter().filter(usable).copied().collect();
        let expected = [
            "create-complete",
            "update-in-progress",
            "update-complete",
            "update-failed",
        ];
        assert_eq!(found, expected);
        assert_eq!(State::named("create-in-progress"), State::Coming);
        assert_eq!(State::named("hibernated"), State::Gone);
    }

    #[test]
    fn the_targets_subnet_goes_before_the_order_and_a_usable_state_before_both() {
        let candidates = |states: &[State]| {
            let subnets = ["subnet-a", "subnet-b", "subnet-c"];
            let candidates = states.iter().zip(subnets);
            candidates
                .map(|(state, subnet)| Candidate {
                    state: *state,
                    subnet,
                })
                .collect::<Vec<_>>()
        };
        let all = candidates(&[State::Usable; 3]);
        assert_eq!(choose(all.clone(), "subnet-b"), Some(1));
        assert_eq!(choose(all, "subnet-d"), Some(0));
        let some = candidates(&[State::Coming, State::Gone, State::Usable]);
        assert_eq!(choose(some, "subnet-a"), Some(2));
        let none = candidates(&[State::Coming, State::Gone]);
        assert_eq!(choose(none, "subnet-a"), None);
    }

    #[test]
    fn address_families_must_match() {
        let (v4, v6): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 1].into());
        for (name, reaches) in [
            ("ipv4", [true, false]),
            ("ipv6", [false, true]),
            ("dualstack", [true, true]),
            ("", [true, false]),
        ] {
            let kind = AddressType::named(name);
            assert_eq!([kind.reaches(v4), kind.reaches(v6)], reaches, "{name}");
        }
    }
}
