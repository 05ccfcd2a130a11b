//! Database instances and clusters.

use std::net::SocketAddr;

use serde::Deserialize;

use super::default_vpc;

/// A database instance or an Aurora cluster.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Database {
    pub(crate) id: String,
    pub(crate) region: Option<String>,
    #[serde(default)]
    pub(crate) kind: DatabaseKind,
    pub(crate) engine: String,
    /// The endpoint's name (the writer's, of a cluster), resolved by the agent's side alone.
    pub(crate) host: String,
    /// The reader endpoint of a cluster.
    pub(crate) reader_host: Option<String>,
    pub(crate) port: u16,
    /// Where it really is.
    pub(crate) address: SocketAddr,
    #[serde(default = "default_vpc")]
    pub(crate) vpc: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DatabaseKind {
    #[default]
    Instance,
    Cluster,
}

impl Database {
    pub(super) fn endpoints(&self) -> impl Iterator<Item = &str> {
        [Some(self.host.as_str()), self.reader_host.as_deref()]
            .into_iter()
            .flatten()
    }

    pub(super) fn check(&self, problems: &mut Vec<String>) {
        if self.kind == DatabaseKind::Instance && self.reader_host.is_some() {
            problems.push(format!(
                "database `{}`: only a cluster has a `reader_host`",
                self.id
            ));
        }
    }
}
