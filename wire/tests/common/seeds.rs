//! Properties that hold for many seeds.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Set to a seed that failed, to run it alone.
const ONLY: Option<u64> = None;

/// Runs a property with that many seeds; a failure names its seed.
pub(crate) fn for_seeds(count: u64, property: impl Fn(u64)) {
    let seeds = ONLY.map_or(0..count, |seed| seed..seed + 1);
    for seed in seeds {
        let passed = catch_unwind(AssertUnwindSafe(|| property(seed))).is_ok();
        assert!(passed, "failed with seed {seed}: set ONLY to it to run it alone");
    }
}
