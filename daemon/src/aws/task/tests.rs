//! Tasks of the emulated ECS.

use std::sync::Arc;

use tunneld_emulator::{Config, Emulator};

use super::*;
use crate::aws::{Aws, Document, FoundInstance};
use crate::config::{AccountSpec, Instance};
use crate::connector::Environment;

/// A task of the service `api` in the cluster `main`, before its containers.
fn task(id: &str, more: &str) -> String {
    format!("[[tasks]]\ncluster = \"main\"\nservice = \"api\"\nid = \"{id}\"\n{more}\n")
}

/// A container of the task before it.
fn container(name: &str, more: &str) -> String {
    format!("[[tasks.containers]]\nname = \"{name}\"\n{more}\n")
}

/// A task that will do, started in a month of 2025.
fn good(id: &str, month: u8) -> String {
    task(
        id,
        &format!("ssm = {{}}\nstarted = \"2025-{month:02}-01T00:00:00Z\""),
    ) + &container("app", &format!("runtime_id = \"{id}-app\""))
}

async fn account(text: &str) -> (Emulator, Arc<Account>) {
    let emulator = Emulator::start(Config::parse(text).unwrap()).await.unwrap();
    let aws = Aws::new(Environment::from_iter(emulator.environment())).unwrap();
    let account = aws.account(&AccountSpec::default()).await.unwrap();
    (emulator, account)
}

fn wanted(container: Option<&str>) -> EcsTask {
    EcsTask {
        cluster: "main".to_owned(),
        service: "api".to_owned(),
        container: container.map(str::to_owned),
    }
}

#[tokio::test]
async fn the_task_started_last_among_those_that_will_do_is_found_on_any_page() {
    let unfit = [
        task(
            "pending",
            "ssm = {}\nstatus = \"pending\"\nstarted = \"2025-12-01T00:00:00Z\"",
        ) + &container("app", "runtime_id = \"pending-app\""),
        task("exec-off", "started = \"2025-11-01T00:00:00Z\"")
            + &container("app", "runtime_id = \"exec-off-app\""),
        task("agentless", "ssm = {}\nstarted = \"2025-10-01T00:00:00Z\"")
            + &container("app", "runtime_id = \"agentless-app\"\nexec_agent = \"pending\""),
    ];
    let fit = [
        good("0a1b2c3d4e5f", 2),
        good("newest-of-all", 9),
        good("older", 3),
    ];
    let elsewhere = good("elsewhere", 10).replace("\"api\"", "\"web\"");
    let text = format!(
        "page_size = 2\n{}{}{elsewhere}",
        fit[..2].concat() + &unfit.concat(),
        fit[2]
    );
    let (emulator, account) = account(&text).await;
    let found = account.find_task(&wanted(None)).await.unwrap();
    assert_eq!(found.target, "ecs:main_newest-of-all_newest-of-all-app");
    assert_eq!(emulator.calls()["ecs:ListTasks"], 3);
    assert_eq!(emulator.calls()["ecs:DescribeTasks"], 3);

    for (stopped, next) in [("newest-of-all", "older"), ("older", "0a1b2c3d4e5f")] {
        emulator.stop_task(stopped).unwrap();
        assert_eq!(account.find_task(&wanted(None)).await.unwrap().id, next);
    }
    let found = account
        .find_instance(&Instance::Task(wanted(None)))
        .await
        .unwrap();
    assert_eq!(found.to_string(), "task 0a1b2c3d of api");
    assert_eq!(found.id(), "ecs:main_0a1b2c3d4e5f_0a1b2c3d4e5f-app");
    assert_eq!(found.private_address(), None);
}

#[tokio::test]
async fn a_container_can_be_named_and_need_not_be_where_only_one_has_started() {
    let text = task("t1", "ssm = {}")
        + &container("app", "runtime_id = \"t1-app\"")
        + &container("late", "")
        + &task("t2", "ssm = {}").replace("\"api\"", "\"web\"")
        + &container("app", "runtime_id = \"t2-app\"")
        + &container("proxy", "runtime_id = \"t2-proxy\"\nexec_agent = \"stopped\"");
    let (_emulator, account) = account(&text).await;
    for name in [None, Some("app")] {
        assert_eq!(
            account.find_task(&wanted(name)).await.unwrap().target,
            "ecs:main_t1_t1-app"
        );
    }
    let of_web = EcsTask {
        service: "web".to_owned(),
        ..wanted(Some("app"))
    };
    let found = account.find_task(&of_web).await.unwrap();
    assert_eq!(found.target, "ecs:main_t2_t2-app");
}

#[tokio::test]
async fn a_service_without_a_task_that_will_do_says_why() {
    let two = container("app", "runtime_id = \"t1-app\"") + &container("proxy", "runtime_id = \"t1-proxy\"");
    let update = "aws ecs update-service --cluster main --service api --enable-execute-command --force-new-deployment \
                  --region ap-northeast-1";
    let choice = "name one of its containers: `ecs:main/api/app` or `ecs:main/api/proxy`";
    for (text, name, doing, reason, remedy, hint) in [
        (
            good("t1", 1).replace("\"main\"", "\"other\""),
            None,
            "cannot look for a task of the service `api` in the cluster `main`",
            Reason::NotFound,
            Remedy::Fix,
            "looked in ap-northeast-1 with the credentials in use",
        ),
        (
            good("t1", 1).replace("\"api\"", "\"web\""),
            None,
            "cannot look for a task of the service `api` in the cluster `main`",
            Reason::NotFound,
            Remedy::Fix,
            "looked in ap-northeast-1 with the credentials in use",
        ),
        (
            task("t1", "ssm = {}\nstatus = \"stopped\"") + &two,
            None,
            "no task of the service `api` in the cluster `main` is running",
            Reason::Unreachable,
            Remedy::Retry,
            "aws ecs describe-services --cluster main --services api --region ap-northeast-1",
        ),
        (
            task("t1", "ssm = {}\nstatus = \"pending\"") + &two,
            None,
            "no task of the service `api` in the cluster `main` is running",
            Reason::Unreachable,
            Remedy::Retry,
            "aws ecs describe-services --cluster main --services api --region ap-northeast-1",
        ),
        (
            task("t1", "") + &container("app", "runtime_id = \"t1-app\""),
            None,
            "ECS Exec is off in task t1 of api",
            Reason::Invalid,
            Remedy::Fix,
            update,
        ),
        (
            task("t1", "ssm = {}") + &two,
            None,
            "task t1 of api has several containers",
            Reason::Invalid,
            Remedy::Fix,
            choice,
        ),
        (
            task("t1", "ssm = {}") + &two,
            Some("web"),
            "task t1 of api has no container `web`",
            Reason::NotFound,
            Remedy::Fix,
            choice,
        ),
        (
            task("t1", "ssm = {}") + &container("app", "runtime_id = \"t1-app\"\nexec_agent = \"stopped\""),
            None,
            "the exec agent of task t1 of api does not run (its status is STOPPED)",
            Reason::AgentOffline,
            Remedy::Retry,
            "if it never runs, the task's role lacks the ssmmessages actions of ECS Exec, its root file system is \
             read-only, or its subnet has no way to ssmmessages.ap-northeast-1.amazonaws.com",
        ),
    ] {
        let (_emulator, account) = account(&text).await;
        let failure = account.find_task(&wanted(name)).await.unwrap_err();
        assert_eq!(failure.to_string(), doing);
        assert_eq!((failure.reason(), failure.remedy()), (reason, &remedy), "{doing}");
        assert_eq!(failure.hints(), [hint], "{doing}");
    }
    for name in [None, Some("app")] {
        let (_emulator, account) = account(&(task("t1", "ssm = {}") + &container("app", ""))).await;
        let failure = account.find_task(&wanted(name)).await.unwrap_err();
        assert_eq!(
            failure.to_string(),
            "the container of task t1 of api has not started yet"
        );
        assert_eq!(failure.remedy(), &Remedy::Retry);
    }
}

#[tokio::test]
async fn where_no_task_will_do_the_one_started_last_says_why() {
    let text = task("old", "started = \"2025-01-01T00:00:00Z\"")
        + &container("app", "runtime_id = \"old-app\"")
        + &task("new", "ssm = {}\nstarted = \"2025-02-01T00:00:00Z\"")
        + &container("app", "runtime_id = \"new-app\"\nexec_agent = \"pending\"");
    let (_emulator, account) = account(&text).await;
    let failure = account.find_task(&wanted(None)).await.unwrap_err();
    assert_eq!(
        failure.to_string(),
        "the exec agent of task new of api does not run (its status is PENDING)"
    );
}

#[tokio::test]
async fn a_task_that_stopped_after_it_was_found_is_told_without_asking_for_its_agent() {
    let (emulator, account) = account(&good("0a1b2c3d4e5f", 1)).await;
    let found = account.find_task(&wanted(None)).await.unwrap();
    emulator.stop_task("0a1b2c3d4e5f").unwrap();
    let failure = account
        .start_session(&FoundInstance::Task(found), &Document::Port { port: 80 })
        .await
        .unwrap_err();
    assert_eq!(
        failure.to_string(),
        "task 0a1b2c3d of api has stopped, or its exec agent does not run"
    );
    assert_eq!(
        (failure.reason(), failure.remedy()),
        (Reason::AgentOffline, &Remedy::Retry)
    );
    assert!(
        failure.in_one_line().contains("TargetNotConnected"),
        "{}",
        failure.in_one_line()
    );
    assert!(!emulator.calls().contains_key("ssm:DescribeInstanceInformation"));
}
