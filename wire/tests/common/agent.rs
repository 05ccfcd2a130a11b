//! The agents that tests are run with.

use std::time::Duration;

use tunneld_wire::smux::Framing;
use tunneld_wire::ssm::{AgentOptions, Digests, Policy};

/// A version that has every capability.
pub(crate) const AGENT_VERSION: &str = "3.3.1142.0";
pub(crate) const FAST_WINDOW: usize = 4 << 20;

/// An agent, and the most that it may have un-acknowledged.
pub(crate) struct Agent {
    pub(crate) options: AgentOptions,
    pub(crate) window: Option<usize>,
}

impl Agent {
    pub(crate) fn fast(framing: Framing) -> Self {
        Self {
            options: options(Policy::fast_agent(), framing),
            window: Some(FAST_WINDOW),
        }
    }

    pub(crate) fn stock() -> Self {
        Self {
            options: options(Policy::stock_agent(), Framing::Spanning),
            window: None,
        }
    }

    pub(crate) fn with_version(mut self, version: &str) -> Self {
        self.options.version = version.to_owned();
        self
    }

    pub(crate) fn with_property(mut self, name: &str, value: &str) -> Self {
        let properties = &mut self.options.properties;
        properties.insert(name.to_owned(), value.to_owned());
        self
    }
}

fn options(policy: Policy, framing: Framing) -> AgentOptions {
    let properties = [("portNumber", "5432"), ("type", "LocalPortForwarding")];
    AgentOptions {
        version: AGENT_VERSION.to_owned(),
        properties: properties
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        policy,
        framing,
        digests: Digests::Checked,
        quiet: Duration::ZERO,
    }
}
