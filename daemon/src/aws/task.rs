//! Finding a task of an ECS service, and the container in it that a session goes to.
//!
//! ```text
//!   ListTasks ──a page──► DescribeTasks ──each that runs──► the container that is meant ──► its agent of ECS Exec
//!                                                                                            runs: it will do
//! ```
//!
//! Tasks come and go: whoever starts a session looks again. Of those that will do, the one started last is taken,
//! because in a deployment the others are about to stop. Where none will do, that one says why.

use std::fmt;

use aws_sdk_ecs::types::{Container, DesiredStatus, ManagedAgentName, Task};

use super::Account;
use crate::config::EcsTask;
use crate::failure::{Failure, Reason, Remedy};

/// A container of a task that runs, with an agent that takes sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundTask {
    /// What SSM knows it by: `ecs:CLUSTER_TASK_RUNTIME`.
    pub target: String,
    /// The task's id.
    pub id: String,
    /// Its service.
    pub service: String,
}

impl fmt::Display for FoundTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.id, &self.service))
    }
}

/// The characters of a task's id that are shown: as many as tell the tasks of a service apart.
const SHOWN_OF_ID: usize = 8;

fn shown(id: &str, service: &str) -> String {
    let id: String = id.chars().take(SHOWN_OF_ID).collect();
    format!("task {id} of {service}")
}

/// The most tasks of one DescribeTasks, and the longest page of ListTasks (ECS API).
const PAGE: i32 = 100;

/// How ECS calls a task and an agent that run.
const RUNNING: &str = "RUNNING";

impl Account {
    /// Finds a task that runs and takes sessions.
    pub(super) async fn find_task(&self, wanted: &EcsTask) -> Result<FoundTask, Failure> {
        let EcsTask { cluster, service, .. } = wanted;
        let doing = format!("cannot look for a task of the service `{service}` in the cluster `{cluster}`");
        let mut pages = self
            .ecs
            .list_tasks()
            .cluster(cluster)
            .service_name(service)
            .desired_status(DesiredStatus::Running)
            .max_results(PAGE)
            .into_paginator()
            .send();
        let mut best = None;
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.placed(self.failure(&doing, error)))?;
            if page.task_arns().is_empty() {
                continue;
            }
            let described = self
                .ecs
                .describe_tasks()
                .cluster(cluster)
                .set_tasks(page.task_arns)
                .send()
                .await
                .map_err(|error| self.placed(self.failure(&doing, error)))?;
            for task in described.tasks() {
                if task.last_status() != Some(RUNNING) {
                    continue;
                }
                let found = self.usable(wanted, task);
                let started = task.started_at().map(|at| (at.secs(), at.subsec_nanos()));
                let rank = (found.is_ok(), started);
                if best.as_ref().is_none_or(|(before, _)| rank > *before) {
                    best = Some((rank, found));
                }
            }
        }
        match best {
            Some((_, found)) => found,
            None => Err(self.no_task(wanted)),
        }
    }

    /// Returns where a session to a task that runs can go, or why it cannot.
    fn usable(&self, wanted: &EcsTask, task: &Task) -> Result<FoundTask, Failure> {
        let id = last_component(task.task_arn().unwrap_or_default());
        let shown = shown(id, &wanted.service);
        if !task.enable_execute_command() {
            return Err(self.exec_is_off(wanted, &shown));
        }
        let container = container(wanted, task.containers(), &shown)?;
        let Some(runtime_id) = container.runtime_id() else {
            return Err(not_started(&shown));
        };
        self.check_agent(container, &shown)?;
        let cluster = task.cluster_arn().map_or(wanted.cluster.as_str(), last_component);
        Ok(FoundTask {
            target: format!("ecs:{cluster}_{id}_{runtime_id}"),
            id: id.to_owned(),
            service: wanted.service.clone(),
        })
    }

    fn check_agent(&self, container: &Container, shown: &str) -> Result<(), Failure> {
        let agent = container
            .managed_agents()
            .iter()
            .find(|agent| agent.name() == Some(&ManagedAgentName::ExecuteCommandAgent));
        let status = agent.and_then(|agent| agent.last_status()).unwrap_or("unknown");
        if status == RUNNING {
            return Ok(());
        }
        let doing = format!("the exec agent of {shown} does not run (its status is {status})");
        let failure = Failure::new(Reason::AgentOffline, Remedy::Retry, doing).hint(self.exec_needs());
        Err(match agent.and_then(|agent| agent.reason()) {
            Some(reason) => failure.because(reason),
            None => failure,
        })
    }

    fn no_task(&self, wanted: &EcsTask) -> Failure {
        let EcsTask { cluster, service, .. } = wanted;
        let doing = format!("no task of the service `{service}` in the cluster `{cluster}` is running");
        Failure::new(Reason::Unreachable, Remedy::Retry, doing).hint(format!(
            "aws ecs describe-services --cluster {cluster} --services {service}{}",
            self.arguments()
        ))
    }

    fn exec_is_off(&self, wanted: &EcsTask, shown: &str) -> Failure {
        let EcsTask { cluster, service, .. } = wanted;
        let doing = format!("ECS Exec is off in {shown}");
        Failure::new(Reason::Invalid, Remedy::Fix, doing).hint(format!(
            "aws ecs update-service --cluster {cluster} --service {service} --enable-execute-command \
             --force-new-deployment{}",
            self.arguments()
        ))
    }

    /// The failure of a task that was found a moment ago and takes no session.
    pub(super) fn task_offline(&self, task: &FoundTask, cause: Failure) -> Failure {
        let doing = format!("{task} has stopped, or its exec agent does not run");
        Failure::new(Reason::AgentOffline, Remedy::Retry, doing)
            .because(cause)
            .hint(self.exec_needs())
    }

    /// What the agent of ECS Exec cannot do without.
    fn exec_needs(&self) -> String {
        format!(
            "if it never runs, the task's role lacks the ssmmessages actions of ECS Exec, its root file system is \
             read-only, or its subnet has no way to ssmmessages.{}.amazonaws.com",
            self.region
        )
    }
}

/// Chooses the container that is meant: by its name, or the only one there is.
fn container<'c>(
    wanted: &EcsTask,
    containers: &'c [Container],
    shown: &str,
) -> Result<&'c Container, Failure> {
    if let Some(name) = &wanted.container {
        let named = containers
            .iter()
            .find(|container| container.name() == Some(name.as_str()));
        return named.ok_or_else(|| {
            let doing = format!("{shown} has no container `{name}`");
            Failure::new(Reason::NotFound, Remedy::Fix, doing).hint(choice(wanted, containers))
        });
    }
    let mut started = containers
        .iter()
        .filter(|container| container.runtime_id().is_some());
    match (started.next(), started.next()) {
        (Some(only), None) => Ok(only),
        (Some(_), Some(_)) => {
            let doing = format!("{shown} has several containers");
            Err(Failure::new(Reason::Invalid, Remedy::Fix, doing).hint(choice(wanted, containers)))
        }
        (None, _) => Err(not_started(shown)),
    }
}

fn not_started(shown: &str) -> Failure {
    let doing = format!("the container of {shown} has not started yet");
    Failure::new(Reason::Unreachable, Remedy::Retry, doing)
}

/// Names the containers there are, as one writes them.
fn choice(wanted: &EcsTask, containers: &[Container]) -> String {
    let forms: Vec<String> = containers
        .iter()
        .filter_map(|container| container.name())
        .map(|name| {
            let named = EcsTask {
                container: Some(name.to_owned()),
                ..wanted.clone()
            };
            format!("`{named}`")
        })
        .collect();
    format!("name one of its containers: {}", forms.join(" or "))
}

/// Returns the name at the end of an ARN.
fn last_component(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

#[cfg(test)]
mod tests;
