//! Reads conditions, and the file of `--faults` that holds them beside switches.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use super::{AgentConditions, Conditions, ConnectConditions, LineConditions, Noise, ServiceConditions};
use crate::faults::{FaultError, Faults};

/// Longest delay of the line: a session is not on the moon.
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// Most HandshakeRequests: an agent sends ten a second for the 15 s that it waits.
const MOST_HANDSHAKE_REQUESTS: u32 = 150;

/// What goes wrong from the start, as a file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FaultFile {
    /// Switches, each `NAME[=SUBJECT][*COUNT]`.
    pub switches: Vec<String>,
    /// Conditions.
    pub conditions: Conditions,
}

/// Why conditions were refused.
#[derive(Debug, Error)]
pub enum ConditionsError {
    /// The file cannot be read.
    #[error("cannot read the faults `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not TOML of the known shape; the source says where.
    #[error("the conditions cannot be understood")]
    Syntax(#[from] Box<toml::de::Error>),
    /// The text is well formed but cannot be meant, one problem a line.
    #[error("the conditions have problems:\n  {}", .0.join("\n  "))]
    Invalid(Vec<String>),
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct Text {
    switches: Vec<String>,
    line: LineConditions,
    service: ServiceConditions,
    agent: AgentConditions,
    connect: ConnectConditions,
}

impl FaultFile {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, ConditionsError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConditionsError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text)
    }

    /// Reads TOML text.
    pub fn parse(text: &str) -> Result<Self, ConditionsError> {
        let Text {
            switches,
            line,
            service,
            agent,
            connect,
        } = toml::from_str(text).map_err(Box::new)?;
        let conditions = Conditions {
            line,
            service,
            agent,
            connect,
        };
        let unknown = switches
            .iter()
            .filter_map(|switch| Faults::default().set(switch).err());
        let mut problems: Vec<String> = unknown.map(|error: FaultError| error.to_string()).collect();
        problems.extend(conditions.problems());
        if !problems.is_empty() {
            return Err(ConditionsError::Invalid(problems));
        }
        Ok(Self { switches, conditions })
    }
}

impl Conditions {
    /// Reads TOML text: the tables of a file of `--faults`, without its switches.
    pub fn parse(text: &str) -> Result<Self, ConditionsError> {
        let conditions: Self = toml::from_str(text).map_err(Box::new)?;
        let problems = conditions.problems();
        if problems.is_empty() {
            Ok(conditions)
        } else {
            Err(ConditionsError::Invalid(problems))
        }
    }

    /// Writes them as text that [`Conditions::parse`] reads.
    pub(crate) fn to_toml(&self) -> String {
        toml::to_string(self).expect("tables of numbers, texts and truth values can be written as TOML")
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let Self {
            line,
            service,
            agent,
            connect,
        } = self;
        share("line.junk", line.junk, &mut problems);
        line.up.check("line.up", &mut problems);
        line.down.check("line.down", &mut problems);
        if line.delay > LONGEST_DELAY {
            problems.push(format!(
                "line.delay is {}: allowed are \"0s\" to \"10s\"",
                humantime::format_duration(line.delay)
            ));
        }
        let times = [
            ("service.recycle", service.recycle),
            ("service.pause_storm", service.pause_storm),
            ("service.idle_timeout", service.idle_timeout),
            ("service.max_duration", service.max_duration),
            ("connect.key_lifetime", Some(connect.key_lifetime)),
            ("connect.longest_tunnel", Some(connect.longest_tunnel)),
        ];
        for (name, time) in times {
            if time.is_some_and(|time| time < Duration::from_millis(1)) {
                problems.push(format!("{name} is 0: leave it out, or write at least \"1ms\""));
            }
        }
        let counts = [
            ("service.recycle_bytes", service.recycle_bytes),
            ("service.rate_limit", service.rate_limit.map(u64::from)),
            (
                "service.largest_payload",
                service.largest_payload.map(|size| size as u64),
            ),
        ];
        for (name, count) in counts {
            if count == Some(0) {
                problems.push(format!("{name} is 0: leave it out, or write at least 1"));
            }
        }
        if !(1..=MOST_HANDSHAKE_REQUESTS).contains(&agent.handshake_requests) {
            problems.push(format!(
                "agent.handshake_requests is {}: allowed are 1 to {MOST_HANDSHAKE_REQUESTS}",
                agent.handshake_requests
            ));
        }
        problems
    }
}

impl Noise {
    fn check(&self, name: &str, problems: &mut Vec<String>) {
        let shares = [
            ("drop_data", self.drop_data),
            ("drop_acks", self.drop_acks),
            ("duplicate", self.duplicate),
            ("reorder", self.reorder),
            ("corrupt", self.corrupt),
        ];
        for (key, value) in shares {
            share(&format!("{name}.{key}"), value, problems);
        }
    }
}

fn share(name: &str, value: f64, problems: &mut Vec<String>) {
    if !(0.0..=1.0).contains(&value) {
        problems.push(format!("{name} is {value}: allowed are shares from 0.0 to 1.0"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../faults.toml");

    #[test]
    fn the_example_file_is_good() {
        FaultFile::parse(EXAMPLE).expect("faults.toml parses");
    }

    /// Every line that is commented out holds a key and its default, so un-commenting all of them changes nothing but
    /// what is absent by default.
    #[test]
    fn the_example_file_shows_every_key() {
        let text: String = EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.contains(" = ") => format!("{rest}\n"),
                Some(_) | None => format!("{line}\n"),
            })
            .collect();
        let shown: toml::Table = text.parse().expect("every key is TOML");
        let all = Conditions {
            line: LineConditions {
                seed: Some(1),
                ..LineConditions::default()
            },
            service: ServiceConditions {
                recycle: Some(Duration::from_secs(1)),
                recycle_bytes: Some(1),
                pause_storm: Some(Duration::from_secs(1)),
                rate_limit: Some(1),
                largest_payload: Some(1),
                idle_timeout: Some(Duration::from_secs(1)),
                max_duration: Some(Duration::from_secs(1)),
                ..ServiceConditions::default()
            },
            agent: AgentConditions {
                target_rate: Some(1),
                ..AgentConditions::default()
            },
            connect: ConnectConditions::default(),
        };
        let all: toml::Table = all.to_toml().parse().expect("TOML");
        let names = |table: &toml::Table| {
            let mut names = Vec::new();
            let mut tables = vec![(String::new(), table.clone())];
            while let Some((prefix, table)) = tables.pop() {
                for (key, value) in table {
                    match value {
                        toml::Value::Table(inner) => tables.push((format!("{prefix}{key}."), inner)),
                        toml::Value::String(_)
                        | toml::Value::Integer(_)
                        | toml::Value::Float(_)
                        | toml::Value::Boolean(_)
                        | toml::Value::Datetime(_)
                        | toml::Value::Array(_) => names.push(format!("{prefix}{key}")),
                    }
                }
            }
            names.retain(|name| name != "switches");
            names.sort();
            names
        };
        assert_eq!(names(&shown), names(&all));
        FaultFile::parse(&text).expect("every key has a good value");
    }

    #[test]
    fn conditions_are_read_as_they_are_written() {
        let conditions = FaultFile::parse(EXAMPLE).expect("faults.toml parses").conditions;
        assert_ne!(conditions, Conditions::default());
        let again = Conditions::parse(&conditions.to_toml()).expect("TOML of our own");
        assert_eq!(again, conditions);
        let default = Conditions::parse("").expect("every key has a default");
        assert_eq!(default, Conditions::default());
        assert_eq!(
            Conditions::parse(&default.to_toml()).expect("TOML of our own"),
            default
        );
    }

    #[test]
    fn an_unknown_key_is_told_with_those_that_are_known() {
        let error = Conditions::parse("[service]\npongs = false\nping = true\n").expect_err("a typing error");
        let ConditionsError::Syntax(source) = error else {
            panic!("expected a syntax error, got {error}")
        };
        let text = source.to_string();
        assert!(
            text.contains("line 3") && text.contains("ping") && text.contains("pongs"),
            "{text}"
        );
    }

    #[test]
    fn all_problems_are_told_at_once_with_what_is_allowed() {
        let error = FaultFile::parse(
            r#"
            switches = ["earthquake"]
            [line]
            delay = "1h"
            up = { drop_data = 1.5 }
            [service]
            recycle = "0s"
            rate_limit = 0
            [agent]
            handshake_requests = 0
            "#,
        )
        .expect_err("six problems");
        let ConditionsError::Invalid(problems) = error else {
            panic!("expected problems, got {error}")
        };
        assert_eq!(problems.len(), 6, "{problems:?}");
        assert!(
            problems
                .iter()
                .skip(1)
                .all(|problem| problem.contains("allowed") || problem.contains("at least"))
        );
    }
}
