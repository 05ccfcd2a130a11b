//! The setting of the route `eice`.
//!
//! In `[defaults]` it is for the tunnels that take this route; a tunnel that takes another cannot have it.

use std::time::Duration;

use toml::Spanned;
use tunneld_wire::eice::DURATIONS;

use super::problem::{Findings, Refusal};
use super::route::OF_EICE;
use super::section::{Key, Section};
use super::{EiceSettings, Route, quantity};

const MAX_TUNNEL_DURATION: Key = Key::new("max_tunnel_duration", r#"max_tunnel_duration = "1h""#);

/// The setting as written.
#[derive(Debug, Default)]
pub(super) struct Written {
    max_tunnel_duration: Option<Spanned<String>>,
}

impl Written {
    /// Takes the key out of a section.
    pub(super) fn read(section: &mut Section<'_, '_, '_>) -> Self {
        Self {
            max_tunnel_duration: section.text(&MAX_TUNNEL_DURATION),
        }
    }

    /// Refuses the key if it is there, in a tunnel that takes this other route.
    pub(super) fn refuse(&self, route: &Route, findings: &mut Findings<'_>) {
        if let Some(text) = &self.max_tunnel_duration {
            route.refuse_setting(&MAX_TUNNEL_DURATION, text.span().start, &OF_EICE, findings);
        }
    }
}

/// The setting of a section, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Checked {
    max_tunnel_duration: Option<Duration>,
}

impl Checked {
    /// Reads the setting of a section, noting what it cannot be.
    pub(super) fn of(written: &Written, findings: &mut Findings<'_>) -> Self {
        Self {
            max_tunnel_duration: findings.read(written.max_tunnel_duration.as_ref(), duration),
        }
    }

    /// Returns what holds for a tunnel with this setting of its own.
    pub(super) fn over(self, defaults: &Self) -> EiceSettings {
        EiceSettings {
            max_tunnel_duration: self.max_tunnel_duration.or(defaults.max_tunnel_duration),
        }
    }
}

/// Reads a duration that AWS can be asked for: it knows whole seconds.
fn duration(text: &str) -> Result<Duration, Refusal> {
    let duration = quantity::duration(&MAX_TUNNEL_DURATION, text, &DURATIONS)?;
    Ok(Duration::from_secs(duration.as_secs()))
}
