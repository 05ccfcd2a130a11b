//! Versions of client and agent, and what is gated by them (ssm.md section 5.7).

use std::fmt;

/// The version we report: the first whose websocket upgrade is signed, and new enough for multiplexing (1.1.70) and
/// for the agent to leave smux keep-alives off (after 1.2.331.0).
pub const CLIENT_VERSION: &str = "1.2.764.0";

/// Four numbers, as official clients and agents report them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version([u32; 4]);

impl Version {
    /// Clients from here on multiplex, as the agent sees it.
    pub(crate) const CLIENT_MULTIPLEXES: Self = Self([1, 1, 70, 0]);
    /// Clients *after* this leave smux keep-alives off, as the agent sees it.
    pub(crate) const CLIENT_BEFORE_SILENCE: Self = Self([1, 2, 331, 0]);
    /// Agents *after* this multiplex, as the client sees it.
    pub(crate) const AGENT_BEFORE_MULTIPLEXING: Self = Self([3, 0, 196, 0]);
    /// Agents *after* this understand the flag TerminateSession.
    pub(crate) const AGENT_BEFORE_TERMINATE: Self = Self([2, 3, 722, 0]);
    /// Agents from here on forward to other hosts; earlier ones don't know `host` and dial themselves.
    pub(crate) const AGENT_FORWARDS_TO_HOSTS: Self = Self([3, 1, 1188, 0]);
    /// Agents *after* this leave smux keep-alives off.
    pub(crate) const AGENT_BEFORE_SILENCE: Self = Self([3, 1, 1511, 0]);
    /// Agents from here on acknowledge duplicates.
    pub(crate) const AGENT_ACKNOWLEDGES_DUPLICATES: Self = Self([3, 2, 1041, 0]);

    /// Reads dot-separated numbers, at most four; missing ones are 0. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = [0; 4];
        let mut slots = numbers.iter_mut();
        for part in text.split('.') {
            *slots.next()? = part.parse().ok()?;
        }
        Some(Self(numbers))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "{a}.{b}.{c}.{d}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number_not_by_text() {
        let version = |text| Version::parse(text).unwrap();
        assert!(version("3.3.987.0") > version("3.3.98.0"));
        assert!(version("3.0.196.0") <= Version::AGENT_BEFORE_MULTIPLEXING);
        assert!(version("3.0.196.1") > Version::AGENT_BEFORE_MULTIPLEXING);
        assert!(version("1.1.70") >= Version::CLIENT_MULTIPLEXES);
    }

    #[test]
    fn what_is_no_version_is_none() {
        for text in ["", "3", "3.x", "1.2.3.4.5", "-1.0", "99999999999.0"] {
            let parsed = Version::parse(text);
            assert_eq!(parsed.is_some(), text == "3", "{text:?} gave {parsed:?}");
        }
    }
}
