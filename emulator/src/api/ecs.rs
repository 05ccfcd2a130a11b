//! ECS: the tasks of services, and the agents of ECS Exec in their containers.

use serde::Deserialize;
use serde_json::{Value, json};

use super::json::{epoch, input};
use super::{Call, Refusal, page, unknown_operation};
use crate::config::Task;

pub(super) fn answer(call: &Call<'_>, operation: &str, body: &[u8]) -> Result<Value, Refusal> {
    match operation {
        "ListTasks" => list_tasks(call, input(body)?),
        "DescribeTasks" => describe_tasks(call, &input(body)?),
        _ => Err(unknown_operation()),
    }
}

/// The cluster that is meant by a call which names none.
const DEFAULT_CLUSTER: &str = "default";

/// The longest page of ListTasks, and the most tasks of one DescribeTasks.
const MOST_TASKS: usize = 100;

/// What narrows the list in other ways is refused, not ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ListTasks {
    cluster: Option<String>,
    service_name: Option<String>,
    desired_status: Option<String>,
    max_results: Option<usize>,
    next_token: Option<String>,
}

fn list_tasks(call: &Call<'_>, input: ListTasks) -> Result<Value, Refusal> {
    let mut found = tasks_of_cluster(call, input.cluster.as_deref())?;
    if let Some(service) = &input.service_name {
        let service = last_component(service);
        found.retain(|task| task.service == service);
        if found.is_empty() {
            return Err(Refusal::new("ServiceNotFoundException", "Service not found."));
        }
    }
    let desired = input.desired_status.as_deref().unwrap_or("RUNNING");
    if !["RUNNING", "PENDING", "STOPPED"].contains(&desired) {
        return Err(invalid(format!("desiredStatus {desired} is not known.")));
    }
    found.retain(|task| call.world.status_of(task).desired() == desired);
    let asked = input.max_results;
    if asked.is_some_and(|asked| !(1..=MOST_TASKS).contains(&asked)) {
        return Err(invalid(format!("maxResults is not between 1 and {MOST_TASKS}.")));
    }
    let (found, next) = page(
        found,
        input.next_token.as_deref(),
        call.page_length(asked, MOST_TASKS),
    )
    .map_err(|_| invalid("Invalid token."))?;
    let arns: Vec<String> = found.iter().map(|task| task_arn(call, task)).collect();
    let mut value = json!({ "taskArns": arns });
    if let Some(next) = next {
        value["nextToken"] = json!(next);
    }
    Ok(value)
}

#[derive(Deserialize)]
struct DescribeTasks {
    cluster: Option<String>,
    tasks: Vec<String>,
}

fn describe_tasks(call: &Call<'_>, input: &DescribeTasks) -> Result<Value, Refusal> {
    let known = tasks_of_cluster(call, input.cluster.as_deref())?;
    if input.tasks.is_empty() {
        return Err(invalid("Tasks cannot be empty."));
    }
    if input.tasks.len() > MOST_TASKS {
        return Err(invalid(format!("There are more than {MOST_TASKS} tasks.")));
    }
    let (mut tasks, mut failures) = (Vec::new(), Vec::new());
    for wanted in &input.tasks {
        match known.iter().find(|task| task.id == last_component(wanted)) {
            Some(task) => tasks.push(task_json(call, task)),
            None => failures.push(json!({ "arn": wanted, "reason": "MISSING" })),
        }
    }
    Ok(json!({ "tasks": tasks, "failures": failures }))
}

fn tasks_of_cluster<'a>(call: &Call<'a>, cluster: Option<&str>) -> Result<Vec<&'a Task>, Refusal> {
    let cluster = last_component(cluster.unwrap_or(DEFAULT_CLUSTER));
    let config = &call.world.config;
    let tasks: Vec<&Task> = config
        .tasks_in(call.region)
        .filter(|task| task.cluster == cluster)
        .collect();
    if tasks.is_empty() {
        return Err(Refusal::new("ClusterNotFoundException", "Cluster not found."));
    }
    Ok(tasks)
}

/// Returns the name in an ARN, or in a name.
fn last_component(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new("InvalidParameterException", message)
}

fn task_json(call: &Call<'_>, task: &Task) -> Value {
    let status = call.world.status_of(task);
    let started = humantime::parse_rfc3339_weak(&task.started).ok();
    let containers: Vec<Value> = task
        .containers
        .iter()
        .map(|container| {
            let mut value = json!({ "name": container.name, "taskArn": task_arn(call, task) });
            if let Some(runtime_id) = &container.runtime_id {
                value["runtimeId"] = json!(runtime_id);
            }
            if task.ssm.is_some() {
                value["managedAgents"] = json!([{
                    "name": "ExecuteCommandAgent",
                    "lastStatus": container.exec_agent.name(),
                }]);
            }
            value
        })
        .collect();
    json!({
        "taskArn": task_arn(call, task),
        "clusterArn": arn(call, &format!("cluster/{}", task.cluster)),
        "group": format!("service:{}", task.service),
        "lastStatus": status.name(),
        "desiredStatus": status.desired(),
        "startedAt": started.map(epoch),
        "enableExecuteCommand": task.ssm.is_some(),
        "containers": containers,
    })
}

fn task_arn(call: &Call<'_>, task: &Task) -> String {
    arn(call, &format!("task/{}/{}", task.cluster, task.id))
}

fn arn(call: &Call<'_>, resource: &str) -> String {
    format!(
        "arn:aws:ecs:{}:{}:{resource}",
        call.region, call.world.config.account
    )
}
