//! Invented time, and the seeds that go with it.

use std::time::{Duration, Instant};

use tunneld_wire::ssm::Origin;

/// How long a FIN is held back in these tests.
pub(crate) const GRACE: Duration = Duration::from_secs(30);

/// Where invented time begins.
#[expect(clippy::disallowed_methods, reason = "an origin for invented time")]
pub(crate) fn origin() -> Instant {
    Instant::now()
}

/// What a session is told that begins then.
pub(crate) fn options(seed: u64, began: Instant) -> Origin {
    Origin {
        seed,
        began,
        began_unix: Duration::from_secs(1_700_000_000),
        half_close_grace: GRACE,
    }
}
