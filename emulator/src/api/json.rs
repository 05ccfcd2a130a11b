//! What the services that speak JSON have in common.

use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;

use super::Refusal;

/// Reads the body of a request.
pub(super) fn input<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::new("SerializationException", error.to_string()))
}

/// Writes a time as the seconds since 1970.
pub(super) fn epoch(time: SystemTime) -> f64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    // The services give milliseconds.
    (since.as_secs_f64() * 1000.0).floor() / 1000.0
}
