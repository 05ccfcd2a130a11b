//! What the fake AWS account holds, read from one TOML file.
//!
//! `example.toml` beside the sources shows every key. Unknown keys are refused, and what the types cannot rule out
//! is checked once, all problems together, so that a built `Config` is a good one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

mod credentials;
mod tasks;

pub use credentials::Credentials;
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

/// An EC2 instance (`i-…`) or a machine of one's own with an agent (`mi-…`, unknown to EC2).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) region: Option<String>,
    /// The tag `Name`.
    pub(crate) name: Option<String>,
    #[serde(default)]
    pub(crate) tags: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) state: InstanceState,
    pub(crate) private_address: Option<std::net::IpAddr>,
    /// Absent: no agent has ever registered.
    pub(crate) ssm: Option<Agent>,
    /// What listens on the instance, and where that really is.
    #[serde(default)]
    pub(crate) ports: BTreeMap<u16, SocketAddr>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum InstanceState {
    Pending,
    #[default]
    Running,
    ShuttingDown,
    Terminated,
    Stopping,
    Stopped,
}

/// The SSM agent of an instance.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Agent {
    #[serde(default, rename = "agent")]
    pub(crate) kind: crate::gateway::AgentKind,
    #[serde(default = "default_agent_version")]
    pub(crate) version: String,
    #[serde(default = "yes")]
    pub(crate) online: bool,
    /// RFC 3339; absent: it pinged just now.
    pub(crate) last_ping: Option<String>,
}

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
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DatabaseKind {
    #[default]
    Instance,
    Cluster,
}

/// Any other host that an agent can reach.
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
        let neighbour = self
            .instances
            .iter()
            .find(|other| other.private_address.is_some_and(|ip| ip.to_string() == host));
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
        let mut seen = BTreeSet::new();
        for instance in &self.instances {
            let id = &instance.id;
            if !seen.insert(id) {
                problems.push(format!("instance `{id}` is there twice"));
            }
            if !(id.starts_with("i-") || id.starts_with("mi-")) {
                problems.push(format!("instance `{id}`: an id begins with `i-` or `mi-`"));
            }
            if id.starts_with("mi-") && instance.ssm.is_none() {
                problems.push(format!(
                    "instance `{id}`: a managed instance is known by its agent: add `ssm = {{}}`"
                ));
            }
            if instance.tags.contains_key("Name") && instance.name.is_some() {
                problems.push(format!(
                    "instance `{id}`: give the name as `name` or as the tag `Name`, not both"
                ));
            }
            if let Some(agent) = &instance.ssm {
                agent.check(&format!("instance `{id}`"), &mut problems);
            }
            self.check_region(
                &format!("instance `{id}`"),
                instance.region.as_deref(),
                &mut problems,
            );
        }
        let mut seen = BTreeSet::new();
        for task in &self.tasks {
            if !seen.insert(&task.id) {
                problems.push(format!("task `{}` is there twice", task.id));
            }
            task.check(&mut problems);
            self.check_region(
                &format!("task `{}`", task.id),
                task.region.as_deref(),
                &mut problems,
            );
        }
        let mut seen = BTreeSet::new();
        for database in &self.databases {
            let id = &database.id;
            let region = self.region_of(database.region.as_deref());
            if !seen.insert((database.kind, region, id.to_ascii_lowercase())) {
                problems.push(format!("database `{id}` is there twice"));
            }
            if database.kind == DatabaseKind::Instance && database.reader_host.is_some() {
                problems.push(format!("database `{id}`: only a cluster has a `reader_host`"));
            }
            self.check_region(
                &format!("database `{id}`"),
                database.region.as_deref(),
                &mut problems,
            );
        }
        problems
    }

    fn check_region(&self, whose: &str, region: Option<&str>, problems: &mut Vec<String>) {
        if let Some(region) = region
            && !self.regions.iter().any(|known| known == region)
        {
            problems.push(format!("{whose}: region `{region}` is not among `regions`"));
        }
    }
}

impl Instance {
    /// Returns all tags, `Name` included.
    pub(crate) fn all_tags(&self) -> impl Iterator<Item = (&str, &str)> {
        let name = self.name.iter().map(|name| ("Name", name.as_str()));
        name.chain(
            self.tags
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str())),
        )
    }

    /// Returns whether EC2 knows the instance.
    pub(crate) fn is_of_ec2(&self) -> bool {
        self.id.starts_with("i-")
    }
}

impl Agent {
    fn check(&self, whose: &str, problems: &mut Vec<String>) {
        if self.version.split('.').any(|part| part.parse::<u32>().is_err()) {
            problems.push(format!(
                "{whose}: agent version `{}` is not like `3.3.1142.0`",
                self.version
            ));
        }
        if let Some(last_ping) = &self.last_ping
            && humantime::parse_rfc3339_weak(last_ping).is_err()
        {
            problems.push(format!(
                "{whose}: last_ping `{last_ping}` is not like `2025-06-01T12:00:00Z`"
            ));
        }
    }
}

impl Database {
    fn endpoints(&self) -> impl Iterator<Item = &str> {
        [Some(self.host.as_str()), self.reader_host.as_deref()]
            .into_iter()
            .flatten()
    }
}

impl InstanceState {
    /// Returns the number and the name that EC2 gives the state.
    pub(crate) fn code_and_name(self) -> (u16, &'static str) {
        match self {
            Self::Pending => (0, "pending"),
            Self::Running => (16, "running"),
            Self::ShuttingDown => (32, "shutting-down"),
            Self::Terminated => (48, "terminated"),
            Self::Stopping => (64, "stopping"),
            Self::Stopped => (80, "stopped"),
        }
    }
}

fn default_account() -> String {
    "123456789012".to_owned()
}

fn default_regions() -> Vec<String> {
    vec!["ap-northeast-1".to_owned()]
}

fn default_agent_version() -> String {
    "3.3.1142.0".to_owned()
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_file_is_a_good_configuration() {
        let config = Config::parse(include_str!("../example.toml")).expect("example.toml parses");
        assert!(!config.instances.is_empty() && !config.databases.is_empty() && !config.hosts.is_empty());
        assert!(!config.tasks.is_empty());
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
