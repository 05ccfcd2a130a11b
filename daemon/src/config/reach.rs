//! Which targets a route can reach, as far as that can be known without asking anybody.

use std::net::IpAddr;

use tunneld_wire::eice::PORTS;

use super::problem::{Refusal, shown};
use super::{Instance, Route, Target};

/// Makes a route through the instance it leads to the route straight to it: to look up a task twice could find two.
pub(super) fn straight(route: Route, end: &Instance) -> Route {
    match route {
        Route::Ssm { via: Some(via) } if via == *end => Route::Ssm { via: None },
        Route::Direct | Route::Ssm { .. } | Route::Eice { .. } | Route::Ssh(_) => route,
    }
}

/// Refuses a route to a host that has no SSH server, or none that this route can reach.
pub(super) fn refuse_host(over: &Route, host: &Instance) -> Result<(), Refusal> {
    match (over, host) {
        (_, Instance::Task(_)) => {
            let message = format!(
                "`{}` is a task of ECS, and has no SSH server",
                shown(&host.to_string())
            );
            Err(Refusal::new(message).instead(r#"route = { ssm = "ecs:CLUSTER/SERVICE" }"#))
        }
        (Route::Eice { .. }, Instance::Id(id)) if is_managed(id) => Err(outside(id)),
        (
            Route::Direct | Route::Ssm { .. } | Route::Eice { .. } | Route::Ssh(_),
            Instance::Id(_) | Instance::Tag { .. } | Instance::Name(_),
        ) => Ok(()),
    }
}

/// Refuses a route that ends where the target is not.
pub(super) fn refuse_dead_end(route: &Route, target: &Target) -> Result<(), Refusal> {
    match (route, target) {
        (Route::Ssm { via: None }, Target::Rds { .. } | Target::Host { .. }) => {
            let message = format!(
                "`route = \"ssm\"` ends at an instance, and `{}` is none",
                shown(&target.to_string())
            );
            Err(Refusal::new(message)
                .instead(r#"route = { ssm = "INSTANCE" }, an instance that can reach it"#))
        }
        (
            Route::Ssm { via: Some(_) } | Route::Direct | Route::Eice { .. } | Route::Ssh(_),
            Target::Instance {
                instance: Instance::Task(_),
                ..
            },
        ) => {
            let message = format!(
                "this version reaches `{}` through the agent of the task itself alone",
                shown(&target.to_string())
            );
            Err(Refusal::new(message).instead(r#"route = "ssm""#))
        }
        (Route::Eice { endpoint }, target) => refuse_behind_endpoint(endpoint.as_deref(), target),
        (Route::Ssm { via: None }, Target::Instance { .. })
        | (
            Route::Ssm { via: Some(_) } | Route::Direct | Route::Ssh(_),
            Target::Rds { .. } | Target::Instance { .. } | Target::Host { .. },
        ) => Ok(()),
    }
}

/// Refuses what an endpoint does not connect to.
fn refuse_behind_endpoint(endpoint: Option<&str>, target: &Target) -> Result<(), Refusal> {
    let [ssh, rdp] = PORTS;
    let by_ssh = |user_at: &str| {
        let over = match endpoint {
            Some(endpoint) => format!(r#"{{ eice = "{endpoint}" }}"#),
            None => r#""eice""#.to_owned(),
        };
        format!(r#"route = {{ ssh = "{user_at}", over = {over} }}"#)
    };
    let other_port = || {
        Refusal::new(format!(
            "an EC2 Instance Connect Endpoint connects to the ports {ssh} and {rdp} alone, not to `{}`",
            shown(&target.to_string())
        ))
    };
    match target {
        Target::Rds { .. } => Err(other_port().instead(by_ssh("USER@INSTANCE"))),
        Target::Host { port, .. } if !PORTS.contains(port) => {
            Err(other_port().instead(by_ssh("USER@INSTANCE")))
        }
        Target::Instance { instance, port } if !PORTS.contains(port) => {
            Err(other_port().instead(by_ssh(&format!("USER@{}", shown(&instance.to_string())))))
        }
        Target::Instance {
            instance: Instance::Id(id),
            ..
        } if is_managed(id) => Err(outside(id)),
        Target::Instance { .. } => Ok(()),
        Target::Host { host, port } if host.parse::<IpAddr>().is_err() => {
            let message = format!(
                "an EC2 Instance Connect Endpoint connects to addresses, not to names such as `{}`",
                shown(host)
            );
            Err(Refusal::new(message).instead(format!(r#"target = "ADDRESS:{port}""#)))
        }
        Target::Host { .. } if endpoint.is_none() => {
            let message = format!(
                "nothing tells which endpoint serves `{}`: an address says nothing of its VPC",
                shown(&target.to_string())
            );
            Err(Refusal::new(message).instead(r#"route = { eice = "eice-…" }"#))
        }
        Target::Host { .. } => Ok(()),
    }
}

/// Whether an id is that of a machine outside EC2.
fn is_managed(id: &str) -> bool {
    id.starts_with("mi-")
}

fn outside(id: &str) -> Refusal {
    Refusal::new(format!(
        "`{id}` is outside EC2, where no Instance Connect Endpoint leads"
    ))
    .instead(r#"route = "ssm""#)
}
