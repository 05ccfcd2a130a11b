//! What a daemon has of its system, as the system counts it.

use std::fs;

use crate::world::World;

/// What a daemon has at one moment.
#[derive(Debug)]
pub(crate) struct Resources {
    pub(crate) files: usize,
    pub(crate) threads: usize,
    /// In KiB.
    pub(crate) memory: u64,
}

impl Resources {
    pub(crate) fn of(world: &World) -> Self {
        let process = format!("/proc/{}", world.daemon_id());
        let count = |of: &str| fs::read_dir(format!("{process}/{of}")).unwrap().count();
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        Self {
            files: count("fd"),
            threads: count("task"),
            memory: resident.trim().trim_end_matches(" kB").parse().unwrap(),
        }
    }
}
