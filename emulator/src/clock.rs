//! The emulator's one reading of the wall clock: signatures, expiries and timestamps are about calendar time.

use std::time::SystemTime;

/// Returns the calendar time.
#[expect(clippy::disallowed_methods, reason = "the edge where the wall clock is read")]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}
