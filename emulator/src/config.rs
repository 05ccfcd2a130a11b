//! What the fake AWS account holds, read from one TOML file.
//!
//! `example.toml` beside the sources shows every key. Unknown keys are refused, and what the types cannot rule out
//! is checked once, all problems together, so that a built `Config` is a good one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

mod credentials;
mod databases;
mod endpoints;
mod instances;
mod tasks;

pub use credentials::Credentials;
pub(crate) use databases::{Database, DatabaseKind};
pub use endpoints::EndpointState;
pub(crate) use endpoints::{DnsNames, Endpoint};
pub(crate) use instances::{Agent, Forwarding, Instance, InstanceState, SSH};
pub(crate) use tasks::{ExecAgent, Task, TaskStatus};

/// A fake AWS account: who may call, and what there is to find.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default = "default_account")]
    pub(crate) account: String,
    #[serde(default = "default_regions")]
    pub(crate) regions: Vec<String>,
    #[serde(default)]
    pub(crate) credentials: Credentials,
    #[serde(default)]
    pub(crate) unsigned_upgrades: UnsignedUpgrades,
    #[serde(default)]
    pub(crate) resume_after_end: ResumeAfterEnd,
    /// Lists come in pages of at most this many entries, which AWS is free to do whatever the caller asks for.
    pub(crate) page_size: Option<usize>,
    #[serde(default)]
    pub(crate) instances: Vec<Instance>,
    #[serde(default)]
    pub(crate) tasks: Vec<Task>,
    #[serde(default)]
    pub(crate) databases: Vec<Database>,
    /// Endpoints of EC2 Instance Connect.
    #[serde(default)]
    pub(crate) endpoints: Vec<Endpoint>,
    #[serde(default)]
    pub(crate) hosts: Vec<Host>,
}

/// What happens to a websocket upgrade without a signature; a wrong one is always refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UnsignedUpgrades {
    /// Official plugins before 1.2.764 do not sign.
    #[default]
    Accept,
    Refuse,
}

/// How ResumeSession speaks of a session that has ended: the service has been seen to do both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ResumeAfterEnd {
    #[default]
    WithoutToken,
    DoesNotExist,
}

/// Any other host that an agent or a server for SSH can reach.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Host {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Where it really is.
    pub(crate) address: SocketAddr,
}

/// Why a configuration was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not TOML of the known shape; the source says where.
    #[error("the configuration cannot be understood")]
    Syntax(#[from] Box<toml::de::Error>),
    /// The text is well formed but cannot be meant, one problem a line.
    #[error("the configuration has problems:\n  {}", .0.join("\n  "))]
    Invalid(Vec<String>),
}

impl Config {
    /// Reads a configuration file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text)
    }

    /// Reads a configuration from TOML text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(Box::new)?;
        let problems = config.problems();
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Invalid(problems))
        }
    }

    /// Returns the region of what was configured with `region`.
    pub(crate) fn region_of<'a>(&'a self, region: Option<&'a str>) -> &'a str {
        region.unwrap_or_else(|| self.regions.first().map_or("", String::as_str))
    }

    /// Returns the instances of a region.
    pub(crate) fn instances_in<'a>(&'a self, region: &'a str) -> impl Iterator<Item = &'a Instance> {
        self.instances
            .iter()
            .filter(move |instance| self.region_of(instance.region.as_deref()) == region)
    }

    /// Returns the ECS tasks of a region.
    pub(crate) fn tasks_in<'a>(&'a self, region: &'a str) -> impl Iterator<Item = &'a Task> {
        self.tasks
            .iter()
            .filter(move |task| self.region_of(task.region.as_deref()) == region)
    }

    /// Returns the databases of one kind in a region.
    pub(crate) fn databases_in<'a>(
        &'a self,
        region: &'a str,
        kind: DatabaseKind,
    ) -> impl Iterator<Item = &'a Database> {
        self.databases
            .iter()
            .filter(move |database| database.kind == kind)
            .filter(move |database| self.region_of(database.region.as_deref()) == region)
    }

    /// Returns the endpoints of EC2 Instance Connect in a region.
    pub(crate) fn endpoints_in<'a>(&'a self, region: &'a str) -> impl Iterator<Item = &'a Endpoint> {
        self.endpoints
            .iter()
            .filter(move |endpoint| self.region_of(endpoint.region.as_deref()) == region)
    }

    /// Returns the instance that has this address in its VPC.
    pub(crate) fn instance_at(&self, address: IpAddr) -> Option<&Instance> {
        self.instances
            .iter()
            .find(|instance| instance.addresses().any(|of_it| of_it == address))
    }

    /// Returns where a port of an address really is, as seen from an endpoint of Instance Connect.
    pub(crate) fn address_behind(
        &self,
        endpoint: &Endpoint,
        address: IpAddr,
        port: u16,
    ) -> Option<SocketAddr> {
        if !endpoint.address_type.reaches(address) {
            return None;
        }
        let Some(instance) = self.instance_at(address) else {
            return self.address_of(&BTreeMap::new(), &address.to_string(), port);
        };
        let is_there = instance.vpc == endpoint.vpc && instance.state == InstanceState::Running;
        instance.ports.get(&port).copied().filter(|_| is_there)
    }

    /// Returns where `host:port` really is, as seen from a place with these ports of its own.
    pub(crate) fn address_of(
        &self,
        own_ports: &BTreeMap<u16, SocketAddr>,
        host: &str,
        port: u16,
    ) -> Option<SocketAddr> {
        if host == "localhost" || host == "127.0.0.1" {
            return own_ports.get(&port).copied();
        }
        let listed = self
            .hosts
            .iter()
            .find(|other| other.host == host && other.port == port);
        let database = self
            .databases
            .iter()
            .find(|database| database.port == port && database.endpoints().any(|endpoint| endpoint == host));
        let neighbour = host.parse().ok().and_then(|address| self.instance_at(address));
        listed
            .map(|other| other.address)
            .or(database.map(|database| database.address))
            .or(neighbour.and_then(|other| other.ports.get(&port).copied()))
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.account.len() != 12 || !self.account.bytes().all(|byte| byte.is_ascii_digit()) {
            problems.push(format!("account `{}` is not 12 digits", self.account));
        }
        if self.regions.is_empty() {
            problems.push("`regions` is empty: name at least one".to_owned());
        }
        if self.credentials.access_key_id.is_empty() || self.credentials.secret_access_key.is_empty() {
            problems.push("`credentials` has an empty key".to_owned());
        }
        if self.page_size == Some(0) {
            problems.push("`page_size` is 0: a page holds at least one entry".to_owned());
        }
        for instance in &self.instances {
            instance.check(&mut problems);
            self.check_region(
                &format!("instance `{}`", instance.id),
                instance.region.as_deref(),
                &mut problems,
            );
        }
        for task in &self.tasks {
            task.check(&mut problems);
            self.check_region(
                &format!("task `{}`", task.id),
                task.region.as_deref(),
                &mut problems,
            );
        }
        for database in &self.databases {
            database.check(&mut problems);
            self.check_region(
                &format!("database `{}`", database.id),
                database.region.as_deref(),
                &mut problems,
            );
        }
        for endpoint in &self.endpoints {
            endpoint.check(&mut problems);
            self.check_region(
                &format!("endpoint `{}`", endpoint.id),
                endpoint.region.as_deref(),
                &mut problems,
            );
        }
        self.check_twins(&mut problems);
        problems
    }

    fn check_twins(&self, problems: &mut Vec<String>) {
        let instances = self.instances.iter().map(|instance| ("instance", &instance.id));
        let tasks = self.tasks.iter().map(|task| ("task", &task.id));
        let endpoints = self.endpoints.iter().map(|endpoint| ("endpoint", &endpoint.id));
        let mut seen = BTreeSet::new();
        for (kind, id) in instances.chain(tasks).chain(endpoints) {
            if !seen.insert((kind, id)) {
                problems.push(format!("{kind} `{id}` is there twice"));
            }
        }
        let mut seen = BTreeSet::new();
        for database in &self.databases {
            let region = self.region_of(database.region.as_deref());
            if !seen.insert((database.kind, region, database.id.to_ascii_lowercase())) {
                problems.push(format!("database `{}` is there twice", database.id));
            }
        }
    }

    fn check_region(&self, whose: &str, region: Option<&str>, problems: &mut Vec<String>) {
        if let Some(region) = region
            && !self.regions.iter().any(|known| known == region)
        {
            problems.push(format!("{whose}: region `{region}` is not among `regions`"));
        }
    }
}

fn default_account() -> String {
    "123456789012".to_owned()
}

fn default_regions() -> Vec<String> {
    vec!["ap-northeast-1".to_owned()]
}

fn default_vpc() -> String {
    "vpc-0123456789abcdef0".to_owned()
}

fn default_subnet() -> String {
    "subnet-0123456789abcdef0".to_owned()
}

fn default_security_groups() -> Vec<String> {
    vec!["sg-0123456789abcdef0".to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_is_a_good_configuration() {
        let config = Config::parse(include_str!("../example.toml")).expect("example.toml parses");
        assert!(!config.instances.is_empty() && !config.databases.is_empty() && !config.hosts.is_empty());
        assert!(!config.tasks.is_empty() && !config.endpoints.is_empty());
    }

    #[test]
    fn an_empty_file_is_an_account_with_nothing_in_it() {
        let config = Config::parse("").expect("all keys have defaults");
        assert_eq!(config.regions, ["ap-northeast-1"]);
        assert!(config.instances.is_empty());
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = Config::parse("account = \"123456789012\"\nacount = 1\n").expect_err("a typing error");
        let ConfigError::Syntax(source) = error else {
            panic!("expected a syntax error, got {error}")
        };
        let text = source.to_string();
        assert!(text.contains("line 2") && text.contains("acount"), "{text}");
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let error = Config::parse(
            r#"
            account = "12"
            [[instances]]
            id = "bastion"
            ssm = { version = "three" }
            [[instances]]
            id = "i-1"
            region = "mars-1"
            [[tasks]]
            cluster = "main"
            service = "api"
            id = "0123abcd"
            started = "yesterday"
            containers = []
            "#,
        )
        .expect_err("six problems");
        let ConfigError::Invalid(problems) = error else {
            panic!("expected problems, got {error}")
        };
        assert_eq!(problems.len(), 6, "{problems:?}");
    }

    #[test]
    fn a_remote_host_is_found_among_hosts_databases_and_neighbours() {
        let config = Config::parse(
            r#"
            [[instances]]
            id = "i-1"
            private_address = "10.0.0.1"
            ports = { 3389 = "127.0.0.1:1" }
            [[databases]]
            id = "aurora"
            kind = "cluster"
            engine = "aurora-postgresql"
            host = "writer.example"
            reader_host = "reader.example"
            port = 5432
            address = "127.0.0.1:2"
            [[hosts]]
            host = "10.1.2.3"
            port = 3306
            address = "127.0.0.1:3"
            "#,
        )
        .expect("a good configuration");
        let from = &config.instances[0].ports;
        let port_of = |host, port| config.address_of(from, host, port).map(|address| address.port());
        assert_eq!(port_of("localhost", 3389), Some(1));
        assert_eq!(port_of("10.0.0.1", 3389), Some(1));
        assert_eq!(port_of("reader.example", 5432), Some(2));
        assert_eq!(port_of("10.1.2.3", 3306), Some(3));
        assert_eq!(port_of("10.1.2.3", 3307), None);
        assert_eq!(port_of("nowhere.example", 5432), None);
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let shown = format!("{:?}", Config::parse("").expect("defaults"));
        assert!(
            !shown.contains(&Credentials::default().secret_access_key),
            "{shown}"
        );
    }
}
