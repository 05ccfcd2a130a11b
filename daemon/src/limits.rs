//! What the system allows this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// Raises the soft limit of open files to the hard one: each connection takes a file descriptor or two, and the
/// customary soft limit of 1024 is kept for programs that use `select`.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    match setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    ) {
        Ok(()) => debug!(
            from = limit.current,
            to = limit.maximum,
            "raised the limit of open files"
        ),
        Err(error) => warn!(%error, soft = limit.current, "cannot raise the limit of open files"),
    }
}

/// Forbids core files: the memory of this process holds keys and credentials. Programs that it starts inherit this.
pub fn forbid_core_files() {
    let limit = getrlimit(Resource::Core);
    let none = Rlimit {
        current: Some(0),
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Core, none) {
        warn!(%error, "cannot forbid core files, which would hold keys and credentials");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_as_the_system_allows_can_be_open() {
        raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }

    #[test]
    fn no_core_file_is_written() {
        forbid_core_files();
        assert_eq!(getrlimit(Resource::Core).current, Some(0));
    }
}
