//! The settings of the route `ssm`: their keys, what each may be, and what holds for a tunnel.
//!
//! In `[defaults]` they are for the tunnels that take this route; a tunnel that takes another cannot have them.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;

use super::problem::{Findings, Refusal};
use super::route::OF_SSM;
use super::section::{Key, Section};
use super::{PoolSize, Route, SsmSettings, pool, quantity};

pub(super) const SESSIONS: Key = Key::new("sessions", "sessions = { min = 1, max = 4 }");
const STALL_TIMEOUT: Key = Key::new("stall_timeout", r#"stall_timeout = "2m""#);
const KEEP_ALIVE: Key = Key::new("keep_alive", r#"keep_alive = "10m" or "off""#);
const MAX_SESSION_DURATION: Key = Key::new("max_session_duration", r#"max_session_duration = "8h""#);
const MESSAGE_RATE: Key = Key::new("message_rate", r#"message_rate = 900 or "unlimited""#);
const LARGEST_PAYLOAD: Key = Key::new("largest_payload", r#"largest_payload = "16KiB""#);

/// The settings as written.
#[derive(Debug, Default)]
pub(super) struct Written {
    sessions: Option<Spanned<pool::Written>>,
    stall_timeout: Option<Spanned<String>>,
    keep_alive: Option<Spanned<String>>,
    max_session_duration: Option<Spanned<String>>,
    message_rate: Option<Spanned<String>>,
    largest_payload: Option<Spanned<String>>,
}

impl Written {
    /// Takes the keys out of a section.
    pub(super) fn read(section: &mut Section<'_, '_, '_>) -> Self {
        Self {
            sessions: pool::Written::read(section, &SESSIONS),
            stall_timeout: section.text(&STALL_TIMEOUT),
            keep_alive: section.text(&KEEP_ALIVE),
            max_session_duration: section.text(&MAX_SESSION_DURATION),
            message_rate: section.text_or_number(&MESSAGE_RATE),
            largest_payload: section.text(&LARGEST_PAYLOAD),
        }
    }

    /// Refuses every key that is there, in a tunnel that takes this other route.
    pub(super) fn refuse(&self, route: &Route, findings: &mut Findings<'_>) {
        let place = |written: &Option<Spanned<String>>| written.as_ref().map(|text| text.span().start);
        let places = [
            (&SESSIONS, self.sessions.as_ref().map(|table| table.span().start)),
            (&STALL_TIMEOUT, place(&self.stall_timeout)),
            (&KEEP_ALIVE, place(&self.keep_alive)),
            (&MAX_SESSION_DURATION, place(&self.max_session_duration)),
            (&MESSAGE_RATE, place(&self.message_rate)),
            (&LARGEST_PAYLOAD, place(&self.largest_payload)),
        ];
        for (key, place) in places {
            let Some(at) = place else { continue };
            route.refuse_setting(key, at, &OF_SSM, findings);
        }
    }
}

/// The settings of a section, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Checked {
    sessions: Option<PoolSize>,
    stall_timeout: Option<Duration>,
    keep_alive: Option<Option<Duration>>,
    max_session_duration: Option<Duration>,
    message_rate: Option<Option<NonZeroU32>>,
    largest_payload: Option<usize>,
}

/// How long a target may take nothing: less than 5 seconds is a busy disk, more than an hour helps nobody who waits on
/// the same session.
const STALL_TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(3600);

/// How far signs of life may be apart: AWS lets an administrator set idle timeouts of 1 to 60 minutes, and a sign has to
/// come before the longest of them with some room.
const KEEP_ALIVES: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(55 * 60);

/// The maximum durations of a session that an administrator can set.
const MAX_SESSION_DURATIONS: RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(24 * 60 * 60);

/// Payloads from that of the official client to the largest that another client has been seen to use against AWS.
const PAYLOADS: RangeInclusive<usize> = 1 << 10..=32 << 10;

impl Checked {
    /// Reads the settings of a section, noting whatever they cannot be.
    pub(super) fn of(written: &Written, findings: &mut Findings<'_>) -> Self {
        let stall_timeout = |text: &str| quantity::duration(&STALL_TIMEOUT, text, &STALL_TIMEOUTS);
        let max_session_duration =
            |text: &str| quantity::duration(&MAX_SESSION_DURATION, text, &MAX_SESSION_DURATIONS);
        let message_rate = |text: &str| quantity::rate(&MESSAGE_RATE, text);
        let largest_payload = |text: &str| quantity::size(&LARGEST_PAYLOAD, text, &PAYLOADS);
        Self {
            sessions: pool::size(&SESSIONS, written.sessions.as_ref(), findings),
            stall_timeout: findings.read(written.stall_timeout.as_ref(), stall_timeout),
            keep_alive: findings.read(written.keep_alive.as_ref(), keep_alive),
            max_session_duration: findings.read(written.max_session_duration.as_ref(), max_session_duration),
            message_rate: findings.read(written.message_rate.as_ref(), message_rate),
            largest_payload: findings.read(written.largest_payload.as_ref(), largest_payload),
        }
    }

    /// Returns what holds for a tunnel with these settings of its own.
    pub(super) fn over(self, defaults: &Self) -> SsmSettings {
        let unwritten = SsmSettings::default();
        SsmSettings {
            sessions: self.sessions.or(defaults.sessions).unwrap_or(unwritten.sessions),
            stall_timeout: self
                .stall_timeout
                .or(defaults.stall_timeout)
                .unwrap_or(unwritten.stall_timeout),
            keep_alive: self
                .keep_alive
                .or(defaults.keep_alive)
                .unwrap_or(unwritten.keep_alive),
            max_session_duration: self.max_session_duration.or(defaults.max_session_duration),
            message_rate: self
                .message_rate
                .or(defaults.message_rate)
                .unwrap_or(unwritten.message_rate),
            largest_payload: self
                .largest_payload
                .or(defaults.largest_payload)
                .unwrap_or(unwritten.largest_payload),
        }
    }
}

/// Reads how often a sign of life is sent; `None` for never.
fn keep_alive(text: &str) -> Result<Option<Duration>, Refusal> {
    if text == "off" {
        return Ok(None);
    }
    quantity::duration(&KEEP_ALIVE, text, &KEEP_ALIVES)
        .map(Some)
        .map_err(|refusal| {
            let message = format!(
                "{}; mind that it works against an administrator's idle timeout",
                refusal.message
            );
            Refusal { message, ..refusal }
        })
}
