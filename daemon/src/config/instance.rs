//! What names something with an agent: an instance by `i-…`, `mi-…`, `tag:KEY=VALUE` or the value of its tag `Name`,
//! and a task of ECS by `ecs:CLUSTER/SERVICE[/CONTAINER]`.

use std::fmt;

use super::grammar::split_port;
use super::problem::{Refusal, quoted, shown};
use super::{EcsTask, Instance};

/// What names an instance, for hints.
const INSTANCE_FORMS: &str = r#""i-…", "mi-…", "tag:KEY=VALUE" or the instance's Name"#;

/// What names a task, for hints.
const TASK_FORMS: &str = r#""ecs:CLUSTER/SERVICE" or "ecs:CLUSTER/SERVICE/CONTAINER", each by its name"#;

/// The longest key of a tag (EC2 API, Tag).
const LONGEST_TAG_KEY: usize = 128;

/// The longest value of a tag, and so of a Name (EC2 API, Tag).
const LONGEST_TAG_VALUE: usize = 256;

impl Instance {
    pub(super) fn parse(text: &str) -> Result<Self, Refusal> {
        let refusal = |why: &str| Refusal::new(format!("{} {why}", quoted(text))).instead(INSTANCE_FORMS);
        if text.is_empty() || text.trim() != text || text.contains(char::is_control) {
            return Err(refusal("does not name an instance"));
        }
        if text.starts_with("i-") || text.starts_with("mi-") {
            if !is_instance_id(text) {
                return Err(refusal(
                    "is not an instance id: 8 or 17 hexadecimal digits follow `i-`, 17 follow `mi-`",
                )
                .instead(format!(
                    "\"tag:Name={}\" for an instance with that Name",
                    shown(text)
                )));
            }
            return Ok(Self::Id(text.to_owned()));
        }
        if let Some(names) = text.strip_prefix("ecs:") {
            return task(text, names).map(Self::Task);
        }
        if let Some(tag) = text.strip_prefix("tag:") {
            let Some((key, value)) = tag.split_once('=') else {
                return Err(refusal("is a tag without a value"));
            };
            if key.is_empty() || longer(key, LONGEST_TAG_KEY) || longer(value, LONGEST_TAG_VALUE) {
                return Err(refusal(
                    "is not a tag: AWS has keys of 1 to 128 characters and values of up to 256",
                ));
            }
            return Ok(Self::Tag {
                key: key.to_owned(),
                value: value.to_owned(),
            });
        }
        if longer(text, LONGEST_TAG_VALUE) {
            return Err(refusal("is longer than the 256 characters of an instance's Name"));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

/// The longest name of a cluster, a service or a container (ECS API: CreateCluster, CreateService,
/// ContainerDefinition).
const LONGEST_ECS_NAME: usize = 255;

fn task(text: &str, names: &str) -> Result<EcsTask, Refusal> {
    let refusal = |why: &str| Refusal::new(format!("{} {why}", quoted(text)));
    if let Some((task, _)) = split_port(text) {
        let hint = format!("\"{}\"", shown(task));
        return Err(refusal("says more than the names of a task").instead(hint));
    }
    let is_name = |name: &&str| {
        (1..=LONGEST_ECS_NAME).contains(&name.len())
            && name
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-'))
    };
    let names: Vec<&str> = names.split('/').collect();
    let (cluster, service, container) = match names.as_slice() {
        [cluster, service] if names.iter().all(is_name) => (cluster, service, None),
        [cluster, service, container] if names.iter().all(is_name) => (cluster, service, Some(container)),
        _ => return Err(refusal("does not name a task of ECS").instead(TASK_FORMS)),
    };
    Ok(EcsTask {
        cluster: (*cluster).to_owned(),
        service: (*service).to_owned(),
        container: container.map(|name| (*name).to_owned()),
    })
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => f.write_str(id),
            Self::Tag { key, value } => write!(f, "tag:{key}={value}"),
            Self::Name(name) => f.write_str(name),
            Self::Task(task) => task.fmt(f),
        }
    }
}

impl fmt::Display for EcsTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cluster,
            service,
            container,
        } = self;
        write!(f, "ecs:{cluster}/{service}")?;
        match container {
            Some(container) => write!(f, "/{container}"),
            None => Ok(()),
        }
    }
}

/// Whether text is an id as the SSM API documents it (StartSession, Target), with the digits that EC2 and SSM use.
fn is_instance_id(text: &str) -> bool {
    let (digits, lengths): (_, &[usize]) = match text.strip_prefix("mi-") {
        Some(digits) => (digits, &[17]),
        None => (text.strip_prefix("i-").unwrap_or_default(), &[8, 17]),
    };
    lengths.contains(&digits.len()) && digits.chars().all(|digit| digit.is_ascii_hexdigit())
}

fn longer(text: &str, most: usize) -> bool {
    text.chars().nth(most).is_some()
}
