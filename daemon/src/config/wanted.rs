//! What a client of the daemon wants to reach without a tunnel: the words of a tunnel, and the rules for them, without
//! an entry in the file.

use std::path::Path;
use std::sync::Arc;

use super::check::{Check, Defaults};
use super::file::File;
use super::problem::{Findings, Refusal, quoted};
use super::route::ROUTE_FORMS;
use super::{AccountSpec, Route, Target, TunnelSpec, route};

/// What the client wrote. What is empty is as the section `[defaults]` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// As the key `target`.
    pub target: String,
    /// As the key `route`: a word, or a table in braces. Empty: the best there is to a port of an instance.
    pub route: String,
    /// As the key `profile`.
    pub profile: String,
    /// As the key `region`.
    pub region: String,
}

/// What a client wants to reach. Two equal ones can share a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The target.
    pub target: Target,
    /// The tunnel that would lead there by the route that was named; `None`: none was, and the best is meant.
    pub named: Option<Box<TunnelSpec>>,
    /// With whose credentials, and where.
    pub account: AccountSpec,
    written: Written,
    defaults: Arc<Defaults>,
}

impl Wanted {
    /// Reads what a client wrote.
    pub(crate) fn read(written: Written, defaults: Arc<Defaults>) -> Result<Self, Refusal> {
        let is_open = written.route.is_empty();
        // To a port of an instance `ssm` is always a route, if not one that works; to anything else it is none.
        let route = if is_open { "ssm" } else { &written.route };
        let spec = match spec(&written, route, &defaults) {
            Err(_) if is_open && !is_instance(&written.target) => {
                let message = format!(
                    "{} needs a route: only an instance has one by itself",
                    quoted(&written.target)
                );
                return Err(Refusal::new(message).instead(r#"{ ssm = "INSTANCE" }, or direct"#));
            }
            read => read?,
        };
        Ok(Self {
            target: spec.target.clone(),
            account: spec.account.clone(),
            named: (!is_open).then(|| Box::new(spec)),
            written,
            defaults,
        })
    }

    /// Returns the tunnel that would lead there by this route.
    pub(crate) fn by(&self, route: &Route) -> Result<TunnelSpec, Refusal> {
        spec(&self.written, &route.written(), &self.defaults)
    }
}

fn is_instance(target: &str) -> bool {
    matches!(Target::parse(target), Ok(Target::Instance { .. }) | Err(_))
}

/// Reads a tunnel with these words, which listens nowhere that matters.
fn spec(written: &Written, way: &str, defaults: &Arc<Defaults>) -> Result<TunnelSpec, Refusal> {
    let Written {
        target,
        route: _,
        profile,
        region,
    } = written;
    if way.contains(char::is_control) {
        return Err(Refusal::new(format!("{} is not a route", quoted(way))).instead(ROUTE_FORMS));
    }
    let text = |text: &str| toml::Value::from(text).to_string();
    let mut file = format!(
        "[tunnels.visit]\nlisten = 1\ntarget = {}\nroute = {}\n",
        text(target),
        route::value(way)
    );
    for (key, value) in [("profile", profile), ("region", region)] {
        if !value.is_empty() {
            file += &format!("{key} = {}\n", text(value));
        }
    }
    let mut findings = Findings::new(Path::new(""), &file);
    let tunnels = File::read(&file, &mut findings).tunnels;
    let spec = tunnels
        .first()
        .and_then(|tunnel| Check::against(Arc::clone(defaults)).tunnel(tunnel, &mut findings));
    let problems = match findings.finish(spec) {
        Ok(Some(spec)) => return Ok(spec),
        Ok(None) => return Err(Refusal::new("this names nothing that can be reached")),
        Err(problems) => problems,
    };
    let refusals = problems.as_slice().first().map(|problem| Refusal {
        message: problem.message.clone(),
        hint: problem.hint.clone(),
    });
    Err(refusals.unwrap_or_else(|| Refusal::new("this names nothing that can be reached")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read(target: &str, route: &str, defaults: &str) -> Result<Wanted, Refusal> {
        let config = Config::parse(Path::new("config.toml"), defaults).unwrap();
        let written = Written {
            target: target.to_owned(),
            route: route.to_owned(),
            ..Written::default()
        };
        Wanted::read(written, config.defaults)
    }

    fn route(wanted: &Wanted) -> &Route {
        &wanted.named.as_ref().unwrap().route
    }

    #[test]
    fn what_is_left_out_is_as_the_defaults_say() {
        let defaults = "[defaults]\nprofile = \"dev\"\nreceive_buffer = \"1MiB\"\n";
        let wanted = read("ec2:web-1:22", "ssm", defaults).unwrap();
        assert_eq!(wanted.account.profile.as_deref(), Some("dev"));
        assert_eq!(wanted.named.as_ref().unwrap().receive_buffer, 1 << 20);
        let other = Written {
            profile: "prod".to_owned(),
            ..wanted.written.clone()
        };
        let other = Wanted::read(other, Arc::clone(&wanted.defaults)).unwrap();
        assert_eq!(other.account.profile.as_deref(), Some("prod"));
        assert_ne!(other, wanted);
    }

    #[test]
    fn a_route_is_a_word_or_a_table() {
        let named = read("rds:db", "{ ssm = \"bastion\" }", "").unwrap();
        assert_eq!(route(&named).to_string(), "ssm via bastion");
        let named = read("10.0.0.1:80", "direct", "").unwrap();
        assert_eq!(*route(&named), Route::Direct);
    }

    #[test]
    fn every_route_is_written_as_it_is_read() {
        for written in [
            "direct",
            "ssm",
            "eice",
            "{ ssm = \"tag:Role=a \\\"b\\\"\" }",
            "{ eice = \"eice-0123456789abcdef0\" }",
            "{ ssh = \"admin@hop\", over = \"eice\" }",
            "{ ssh = \"admin@hop\", over = { ssm = \"bastion\" } }",
        ] {
            let read_back = |text: &str| route(&read("ec2:web-1:22", text, "").unwrap()).clone();
            let read = read_back(written);
            assert_eq!(read_back(&read.written()), read, "{written}");
        }
    }

    #[test]
    fn a_port_of_an_instance_needs_no_route_and_anything_else_does() {
        let wanted = read("ec2:web-1:22", "", "").unwrap();
        assert_eq!(wanted.named, None);
        assert_eq!(wanted.by(&Route::Direct).unwrap().route, Route::Direct);
        let refusal = read("rds:db", "", "").unwrap_err();
        assert_eq!(
            refusal.message,
            "`rds:db` needs a route: only an instance has one by itself"
        );
    }

    #[test]
    fn the_rules_of_the_configuration_hold() {
        assert!(
            read("ec2:i-xyz:22", "", "")
                .unwrap_err()
                .message
                .contains("not an instance id")
        );
        assert!(
            read("ec2:web-1:5432", "eice", "")
                .unwrap_err()
                .message
                .contains("22 and 3389")
        );
        assert!(read("ec2:web-1:22", "ssm\nautostart = false", "").is_err());
        assert!(read("ec2:web-1:22", "{ ssm = \"a\" }\nmode = \"always\"", "").is_err());
    }
}
