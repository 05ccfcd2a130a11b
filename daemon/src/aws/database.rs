//! Finding what a person named as a database.

use aws_sdk_rds::types::{DbCluster, DbInstance};

use super::{Account, classify};
use crate::connector::authority;
use crate::failure::{Failure, Reason, Remedy};

/// How far a name may be from a wrong one to be offered instead: two slips of the finger.
const NEAR: usize = 2;

/// Where a database is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseEndpoint {
    /// The name of its host; of the writer, for a cluster.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The engine, as AWS calls it: `aurora-postgresql`.
    pub engine: String,
}

impl Account {
    /// Finds a database: an instance of that name, else the writer of a cluster of that name.
    pub async fn find_database(&self, id: &str) -> Result<DatabaseEndpoint, Failure> {
        let doing = format!("cannot look up the database `{id}`");
        let instance = match self
            .rds
            .describe_db_instances()
            .db_instance_identifier(id)
            .send()
            .await
        {
            Ok(output) => output
                .db_instances
                .unwrap_or_default()
                .into_iter()
                .next()
                .ok_or(None),
            Err(error) if classify::has_code(&error, "DBInstanceNotFound") => Err(None),
            Err(error) if classify::has_code(&error, "DBInstanceNotFoundFault") => Err(None),
            Err(error) => Err(Some(self.failure(&doing, error))),
        };
        let obstacle = match instance {
            Ok(instance) => return endpoint_of_instance(id, &instance),
            // A policy may allow one of the two calls only.
            Err(Some(failure)) if failure.reason() != Reason::Denied => return Err(failure),
            Err(obstacle) => obstacle,
        };
        let cluster = match self
            .rds
            .describe_db_clusters()
            .db_cluster_identifier(id)
            .send()
            .await
        {
            Ok(output) => output.db_clusters.unwrap_or_default().into_iter().next(),
            Err(error) if classify::has_code(&error, "DBClusterNotFoundFault") => None,
            Err(error) if classify::has_code(&error, "DBClusterNotFound") => None,
            Err(error) => return Err(self.failure(&doing, error)),
        };
        match (cluster, obstacle) {
            (Some(cluster), _) => endpoint_of_cluster(id, &cluster),
            (None, Some(denied)) => Err(denied),
            (None, None) => Err(self.no_database(id).await),
        }
    }

    /// Offers the names that are near, as far as one page of each list tells.
    async fn no_database(&self, id: &str) -> Failure {
        let (instances, clusters) = tokio::join!(
            self.rds.describe_db_instances().send(),
            self.rds.describe_db_clusters().send()
        );
        let mut known: Vec<String> = Vec::new();
        if let Ok(output) = instances {
            known.extend(
                output
                    .db_instances()
                    .iter()
                    .filter_map(|found| Some(found.db_instance_identifier()?.into())),
            );
        }
        if let Ok(output) = clusters {
            known.extend(
                output
                    .db_clusters()
                    .iter()
                    .filter_map(|found| Some(found.db_cluster_identifier()?.into())),
            );
        }
        let failure = self.not_found(format!("there is no database `{id}`"));
        let near: Vec<_> = known
            .iter()
            .filter(|name| strsim::damerau_levenshtein(name, id) <= NEAR)
            .map(|name| format!("`{name}`"))
            .collect();
        if near.is_empty() {
            failure
        } else {
            failure.hint(format!("did you mean {}?", near.join(" or ")))
        }
    }
}

fn endpoint_of_instance(id: &str, instance: &DbInstance) -> Result<DatabaseEndpoint, Failure> {
    let endpoint = instance.endpoint();
    let host = endpoint.and_then(|endpoint| endpoint.address());
    let port = endpoint.and_then(|endpoint| endpoint.port());
    database(id, host, port, instance.engine(), instance.db_instance_status())
}

fn endpoint_of_cluster(id: &str, cluster: &DbCluster) -> Result<DatabaseEndpoint, Failure> {
    database(
        id,
        cluster.endpoint(),
        cluster.port(),
        cluster.engine(),
        cluster.status(),
    )
}

fn database(
    id: &str,
    host: Option<&str>,
    port: Option<i32>,
    engine: Option<&str>,
    status: Option<&str>,
) -> Result<DatabaseEndpoint, Failure> {
    let port = port
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0);
    match (host, port) {
        (Some(host), Some(port)) => {
            tracing::debug!(database = %id, endpoint = %authority(host, port), "found");
            Ok(DatabaseEndpoint {
                host: host.to_owned(),
                port,
                engine: engine.unwrap_or_default().to_owned(),
            })
        }
        _ => {
            let status = status.unwrap_or("unknown");
            let doing = format!("the database `{id}` has no endpoint yet (its status is {status})");
            Err(Failure::new(Reason::Unreachable, Remedy::Retry, doing))
        }
    }
}
