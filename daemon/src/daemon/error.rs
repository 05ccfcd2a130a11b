//! Why the daemon did not do what it was asked.

use crate::config::{Problems, TunnelName};
use crate::near::near;

/// Why the daemon did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There are no such tunnels. Nothing was done, also for names that exist.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Unknown(Vec<UnknownName>),
    /// The configuration file has problems.
    #[error("the configuration has problems; everything runs on as before\n{0}")]
    Problems(Problems),
    /// The configuration file has had problems since the start.
    #[error("no tunnel runs, because the configuration has problems\n{0}")]
    NoTunnels(Problems),
    /// The tunnel was removed or changed meanwhile.
    #[error("the tunnel `{0}` was just reloaded; try again")]
    Reloaded(TunnelName),
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

/// A name that no tunnel has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownName {
    name: String,
    near: Vec<String>,
}

impl std::fmt::Display for UnknownName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "there is no tunnel `{}`", self.name)?;
        for (index, near) in self.near.iter().enumerate() {
            write!(
                f,
                "{} `{near}`",
                if index == 0 { "; did you mean" } else { " or" }
            )?;
        }
        Ok(())
    }
}

/// Finds something for each name, or tells of every name for which there is nothing.
pub(super) fn all_or_unknown<T>(
    names: &[String],
    known: &[TunnelName],
    find: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let mut unknown = Vec::new();
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        match find(name) {
            Some(value) => found.push(value),
            None => unknown.push(UnknownName {
                name: name.clone(),
                near: near(name, known.iter().map(TunnelName::as_str)),
            }),
        }
    }
    if unknown.is_empty() {
        Ok(found)
    } else {
        Err(Error::Unknown(unknown))
    }
}
