//! Tasks of ECS services.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Deserialize;

use super::Agent;

/// A task of an ECS service.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Task {
    pub(crate) cluster: String,
    pub(crate) service: String,
    pub(crate) id: String,
    pub(crate) region: Option<String>,
    #[serde(default)]
    pub(crate) status: TaskStatus,
    /// RFC 3339.
    #[serde(default = "default_started")]
    pub(crate) started: String,
    /// The agents in its containers; absent: ECS Exec is off, and there are none.
    pub(crate) ssm: Option<Agent>,
    pub(crate) containers: Vec<Container>,
    /// What listens in its containers, which share one network, and where that really is.
    #[serde(default)]
    pub(crate) ports: BTreeMap<u16, SocketAddr>,
}

/// A container of a task.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Container {
    pub(crate) name: String,
    /// Absent: it has not been started yet.
    pub(crate) runtime_id: Option<String>,
    #[serde(default)]
    pub(crate) exec_agent: ExecAgent,
}

/// How far a task is, as far as our calls can tell apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TaskStatus {
    Pending,
    #[default]
    Running,
    Stopped,
}

/// How the agent of ECS Exec in a container is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ExecAgent {
    Pending,
    #[default]
    Running,
    Stopped,
}

impl Task {
    /// Returns the container that StartSession means by a target.
    pub(crate) fn container_of(&self, target: &str) -> Option<&Container> {
        self.containers.iter().find(|container| {
            container
                .runtime_id
                .as_ref()
                .is_some_and(|runtime_id| target == format!("ecs:{}_{}_{runtime_id}", self.cluster, self.id))
        })
    }

    pub(super) fn check(&self, problems: &mut Vec<String>) {
        let whose = format!("task `{}`", self.id);
        if self.containers.is_empty() {
            problems.push(format!("{whose}: a task has at least one container"));
        }
        if humantime::parse_rfc3339_weak(&self.started).is_err() {
            problems.push(format!(
                "{whose}: started `{}` is not like `2025-06-01T12:00:00Z`",
                self.started
            ));
        }
        if let Some(agent) = &self.ssm {
            agent.check(&whose, problems);
        }
    }
}

impl TaskStatus {
    /// Returns the name that ECS gives the status.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Stopped => "STOPPED",
        }
    }

    /// Returns the name of the status that ECS is bringing the task to.
    pub(crate) fn desired(self) -> &'static str {
        match self {
            Self::Pending | Self::Running => "RUNNING",
            Self::Stopped => "STOPPED",
        }
    }
}

impl ExecAgent {
    /// Returns the name that ECS gives the state.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Stopped => "STOPPED",
        }
    }
}

fn default_started() -> String {
    "2025-01-01T00:00:00Z".to_owned()
}
