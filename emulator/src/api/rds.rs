//! RDS: database instances and Aurora clusters.

use http::StatusCode;

use super::form::Filter;
use super::{Call, Form, Refusal, Xml, page, unknown_action};
use crate::config::{Database, DatabaseKind};

pub(super) fn answer(call: &Call<'_>, operation: &str, form: &Form) -> Result<Xml, Refusal> {
    match operation {
        "DescribeDBInstances" => {
            let (found, marker) = find(call, form, DatabaseKind::Instance, "DBInstanceIdentifier")?;
            Ok(write(
                "DBInstances",
                "DBInstance",
                &found,
                marker,
                |xml, database| {
                    write_instance(xml, call, database);
                },
            ))
        }
        "DescribeDBClusters" => {
            let (found, marker) = find(call, form, DatabaseKind::Cluster, "DBClusterIdentifier")?;
            Ok(write(
                "DBClusters",
                "DBCluster",
                &found,
                marker,
                |xml, database| {
                    write_cluster(xml, call, database);
                },
            ))
        }
        _ => Err(unknown_action(operation)),
    }
}

fn find<'a>(
    call: &Call<'a>,
    form: &Form,
    kind: DatabaseKind,
    identifier: &str,
) -> Result<(Vec<&'a Database>, Option<String>), Refusal> {
    let wanted = form.value(identifier).filter(|wanted| !wanted.is_empty());
    let filters = form.filters("Filters.Filter", "Values.Value");
    let mut found = Vec::new();
    for database in call.world.config.databases_in(call.region, kind) {
        // Identifiers are stored in lower case and compared without case.
        let mut fits = wanted.is_none_or(|wanted| database.id.eq_ignore_ascii_case(wanted));
        for filter in &filters {
            fits &= database_fits(database, filter)?;
        }
        if fits {
            found.push(database);
        }
    }
    if let Some(wanted) = wanted
        && found.is_empty()
    {
        let (code, message) = match kind {
            DatabaseKind::Instance => ("DBInstanceNotFound", format!("DBInstance {wanted} not found.")),
            DatabaseKind::Cluster => ("DBClusterNotFoundFault", format!("DBCluster {wanted} not found.")),
        };
        return Err(Refusal::new(code, message).with_status(StatusCode::NOT_FOUND));
    }
    let length = call.page_length(max_records(form)?, 100);
    page(
        found,
        form.value("Marker").filter(|marker| !marker.is_empty()),
        length,
    )
    .map_err(|_| Refusal::new("InvalidParameterValue", "Invalid marker."))
}

fn max_records(form: &Form) -> Result<Option<usize>, Refusal> {
    let Some(text) = form.value("MaxRecords") else {
        return Ok(None);
    };
    let value = text.parse().ok().filter(|value| (20..=100).contains(value));
    value.map(Some).ok_or_else(|| {
        let message = format!("Invalid value {text} for MaxRecords. Must be between 20 and 100");
        Refusal::new("InvalidParameterValue", message)
    })
}

fn database_fits(database: &Database, filter: &Filter<'_>) -> Result<bool, Refusal> {
    let among = |value: &str| {
        filter
            .values
            .iter()
            .any(|wanted| wanted.eq_ignore_ascii_case(value))
    };
    match (filter.name, database.kind) {
        ("db-instance-id", DatabaseKind::Instance) | ("db-cluster-id", DatabaseKind::Cluster) => {
            Ok(among(&database.id))
        }
        // No configured instance is a member of a cluster.
        ("db-cluster-id", DatabaseKind::Instance) => Ok(false),
        ("engine", DatabaseKind::Instance | DatabaseKind::Cluster) => Ok(among(&database.engine)),
        (name, DatabaseKind::Instance | DatabaseKind::Cluster) => Err(Refusal::new(
            "InvalidParameterValue",
            format!("Unrecognized filter name: {name}"),
        )),
    }
}

fn write(
    list: &str,
    item: &str,
    databases: &[&Database],
    marker: Option<String>,
    write_item: impl Fn(&mut Xml, &Database),
) -> Xml {
    let mut xml = Xml::default();
    xml.element(list, |xml| {
        for database in databases {
            xml.element(item, |xml| write_item(xml, database));
        }
    });
    xml.optional("Marker", marker);
    xml
}

fn write_instance(xml: &mut Xml, call: &Call<'_>, database: &Database) {
    xml.text("DBInstanceIdentifier", database.id.to_ascii_lowercase());
    xml.text("DBInstanceClass", "db.t4g.micro");
    xml.text("Engine", &database.engine);
    xml.text("DBInstanceStatus", "available");
    xml.element("Endpoint", |xml| {
        xml.text("Address", &database.host);
        xml.text("Port", database.port);
        xml.text("HostedZoneId", "Z24O6O9L7SGTNB");
    });
    // The real service fills the port in `Endpoint` alone.
    xml.text("DbInstancePort", 0);
    xml.element("DBSubnetGroup", |xml| {
        xml.text("DBSubnetGroupName", "default");
        xml.text("VpcId", &database.vpc);
        xml.text("SubnetGroupStatus", "Complete");
    });
    xml.text("PubliclyAccessible", false);
    xml.text("IAMDatabaseAuthenticationEnabled", false);
    xml.text("DBInstanceArn", arn(call, "db", database));
}

fn write_cluster(xml: &mut Xml, call: &Call<'_>, database: &Database) {
    xml.text("DBClusterIdentifier", database.id.to_ascii_lowercase());
    xml.text("Engine", &database.engine);
    xml.text("EngineMode", "provisioned");
    xml.text("Status", "available");
    xml.text("Endpoint", &database.host);
    xml.optional("ReaderEndpoint", database.reader_host.as_deref());
    xml.text("Port", database.port);
    xml.element("DBClusterMembers", |_| ());
    xml.text("IAMDatabaseAuthenticationEnabled", false);
    xml.text("DBClusterArn", arn(call, "cluster", database));
}

fn arn(call: &Call<'_>, kind: &str, database: &Database) -> String {
    format!(
        "arn:aws:rds:{}:{}:{kind}:{}",
        call.region,
        call.world.config.account,
        database.id.to_ascii_lowercase()
    )
}
