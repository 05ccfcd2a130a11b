//! Invented time, and the seeds and settings that go with it.

use std::time::{Duration, Instant};

use tunneld_wire::ssm::{ClientOptions, Origin, Policy};

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

/// How long a stall lasts in these tests before its stream is given up.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(120);

/// A client as users have it.
pub(crate) fn client() -> ClientOptions {
    ClientOptions {
        policy: Policy::client(),
        keep_alive: None,
        stall_timeout: STALL_TIMEOUT,
    }
}
