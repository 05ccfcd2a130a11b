//! The section `[daemon]`: what the daemon does beside its tunnels.

use std::path::Path;

use toml::Spanned;

use super::listen::Claims;
use super::problem::{Findings, Refusal};
use super::section::{Key, Section};
use super::{DaemonSettings, Listen};

/// What the address of metrics may look like, for hints.
const METRICS_FORMS: &str = r#"metrics = "127.0.0.1:9464" or "unix:/PATH""#;

const METRICS: Key = Key::new("metrics", METRICS_FORMS);
const DESKTOP_NOTIFICATIONS: Key = Key::new("desktop_notifications", "desktop_notifications = true or false");

/// The section as written.
#[derive(Debug, Default)]
pub(super) struct Written {
    metrics: Option<Spanned<String>>,
    desktop_notifications: Option<Spanned<bool>>,
}

impl Written {
    /// Takes the keys out of the section.
    pub(super) fn read(section: &mut Section<'_, '_, '_>) -> Self {
        Self {
            metrics: section.text_or_number(&METRICS),
            desktop_notifications: section.flag(&DESKTOP_NOTIFICATIONS),
        }
    }

    /// Reads the settings, noting what they cannot be. `claims` are the addresses of the tunnels.
    pub(super) fn check(
        &self,
        claims: &Claims,
        home: Option<&Path>,
        findings: &mut Findings<'_>,
    ) -> DaemonSettings {
        DaemonSettings {
            metrics: findings.read(self.metrics.as_ref(), |text| metrics(text, claims, home)),
            desktop_notifications: self
                .desktop_notifications
                .as_ref()
                .is_some_and(|wanted| *wanted.get_ref()),
        }
    }
}

/// Reads an address at which this machine alone can connect.
fn metrics(text: &str, claims: &Claims, home: Option<&Path>) -> Result<Listen, Refusal> {
    let listen = Listen::parse(text, home).map_err(|refusal| refusal.instead(METRICS_FORMS))?;
    if let Some(address) = listen.remote() {
        let message = format!("`{address}` lets other machines read the metrics");
        return Err(Refusal::new(message).instead(METRICS_FORMS));
    }
    if let Some((address, owner)) = claims.taken(&listen) {
        let message = format!("tunnel `{owner}` listens on {address} as well");
        return Err(Refusal::new(message).instead("another address for one of them"));
    }
    Ok(listen)
}
