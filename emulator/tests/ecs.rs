//! ECS, in its own wire format, and sessions to the containers of its tasks.

mod common;

use common::{Caller, example};
use serde_json::{Value, json};
use tunneld_emulator::{Config, Emulator};

const TASK: &str = "0123456789abcdef0123456789abcdef";
const TASK_ARN: &str = "arn:aws:ecs:ap-northeast-1:123456789012:task/main/0123456789abcdef0123456789abcdef";
const TARGET: &str = "ecs:main_0123456789abcdef0123456789abcdef_0123456789abcdef0123456789abcdef-0123456789";

#[tokio::test]
async fn the_tasks_of_a_service_are_listed_and_described() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    let listed = caller.ecs("ListTasks", &of_service("api")).await;
    assert_eq!(listed.status, 200, "{listed:?}");
    assert!(
        listed.head.contains("content-type: application/x-amz-json-1.1"),
        "{}",
        listed.head
    );
    assert_eq!(listed.json(), json!({ "taskArns": [TASK_ARN] }));

    for name in [TASK, TASK_ARN] {
        let described = caller
            .ecs("DescribeTasks", &json!({ "cluster": "main", "tasks": [name] }))
            .await
            .json();
        assert_eq!(described["failures"], json!([]));
        let task = &described["tasks"][0];
        assert_eq!(task["taskArn"], TASK_ARN);
        assert_eq!(
            task["clusterArn"],
            "arn:aws:ecs:ap-northeast-1:123456789012:cluster/main"
        );
        assert_eq!(task["lastStatus"], "RUNNING");
        assert_eq!(task["startedAt"], 1_748_779_200.0);
        assert_eq!(task["enableExecuteCommand"], true);
        let [app, starting] = task["containers"].as_array().expect("a list").as_slice() else {
            panic!("two containers: {task}")
        };
        assert_eq!(app["name"], "app");
        assert_eq!(app["runtimeId"], format!("{TASK}-0123456789"));
        assert_eq!(
            app["managedAgents"],
            json!([{ "name": "ExecuteCommandAgent", "lastStatus": "RUNNING" }])
        );
        assert!(starting.get("runtimeId").is_none(), "{starting}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_refused_and_a_task_that_is_missing_is_told_apart() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    for (change, code) in [
        (json!({ "cluster": "other" }), "ClusterNotFoundException"),
        (json!({ "cluster": null }), "ClusterNotFoundException"),
        (json!({ "serviceName": "web" }), "ServiceNotFoundException"),
        (
            json!({ "desiredStatus": "SLEEPING" }),
            "InvalidParameterException",
        ),
        (json!({ "maxResults": 101 }), "InvalidParameterException"),
        (json!({ "nextToken": "forged" }), "InvalidParameterException"),
        (json!({ "launchType": "FARGATE" }), "SerializationException"),
    ] {
        let mut input = of_service("api");
        for (key, value) in change.as_object().expect("an object") {
            input[key] = value.clone();
        }
        let answer = caller.ecs("ListTasks", &input).await;
        assert_eq!(answer.error(), (400, code.to_owned()), "{input}");
    }
    let input = json!({ "cluster": "main", "tasks": ["0dead"] });
    assert_eq!(
        caller.ecs("DescribeTasks", &input).await.json(),
        json!({ "tasks": [], "failures": [{ "arn": "0dead", "reason": "MISSING" }] })
    );
    for tasks in [vec![], vec![TASK; 101]] {
        let input = json!({ "cluster": "main", "tasks": tasks });
        let answer = caller.ecs("DescribeTasks", &input).await;
        assert_eq!(answer.error(), (400, "InvalidParameterException".to_owned()));
    }
    let answer = caller.ecs("RunTask", &json!({})).await;
    assert_eq!(answer.error(), (400, "UnknownOperationException".to_owned()));
    let foreign = Caller {
        secret: "wrong".to_owned(),
        ..caller
    };
    let answer = foreign.ecs("ListTasks", &of_service("api")).await;
    assert_eq!(answer.error(), (400, "InvalidSignatureException".to_owned()));
}

#[tokio::test]
async fn a_list_of_tasks_can_be_paged_through() {
    let tasks: String = (1..=5).map(|number| task(&format!("t{number}"), "")).collect();
    let emulator = started(&format!("page_size = 2\n{tasks}")).await;
    let caller = Caller::of(&emulator);
    let (mut input, mut seen) = (of_service("api"), Vec::new());
    for _ in 0..3 {
        let page = caller.ecs("ListTasks", &input).await.json();
        let arns = page["taskArns"].as_array().expect("a list").clone();
        seen.extend(arns.iter().map(|arn| {
            arn.as_str()
                .expect("an ARN")
                .rsplit('/')
                .next()
                .map(str::to_owned)
        }));
        input["nextToken"] = page["nextToken"].clone();
    }
    assert_eq!(seen, ["t1", "t2", "t3", "t4", "t5"].map(|id| Some(id.to_owned())));
    assert!(input["nextToken"].is_null());
}

#[tokio::test]
async fn a_session_to_a_container_ends_when_its_task_is_stopped_by_the_admin_address() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    let session = caller.ssm("StartSession", &start(TARGET)).await;
    assert_eq!(session.status, 200, "{session:?}");
    assert_eq!(emulator.sessions()[0].target, TARGET);
    let id = json!({ "SessionId": session.json()["SessionId"] });
    assert_eq!(caller.ssm("ResumeSession", &id).await.status, 200);

    let path = format!("/_emulator/tasks/{TASK}/stop");
    let stopped = common::plain(emulator.address(), "POST", &path, &[], "").await;
    assert_eq!((stopped.status, stopped.json()), (200, json!({ "ended": 1 })));
    assert_eq!(emulator.sessions(), []);
    assert_eq!(
        emulator.ended_sessions()[0].ended.as_deref(),
        Some("its task was stopped")
    );
    let listed = caller.ecs("ListTasks", &of_service("api")).await;
    assert_eq!(listed.json(), json!({ "taskArns": [] }));
    let mut input = of_service("api");
    input["desiredStatus"] = json!("STOPPED");
    let listed = caller.ecs("ListTasks", &input).await;
    assert_eq!(listed.json(), json!({ "taskArns": [TASK_ARN] }));
    let answer = caller.ssm("StartSession", &start(TARGET)).await;
    assert_eq!(answer.error(), (400, "TargetNotConnected".to_owned()));

    let unknown = common::plain(emulator.address(), "POST", "/_emulator/tasks/0dead/stop", &[], "").await;
    assert_eq!(
        (unknown.status, unknown.json()),
        (404, json!({ "error": "there is no task `0dead`" }))
    );
}

#[tokio::test]
async fn a_container_without_a_running_agent_takes_no_session() {
    let tasks = [
        task("good", "ssm = {}\n"),
        task("exec-off", ""),
        task("pending", "ssm = {}\nstatus = \"pending\"\n"),
        task("offline", "ssm = { online = false }\n"),
        task("agent-stopped", "ssm = {}\n") + "exec_agent = \"stopped\"\n",
    ];
    let emulator = started(&tasks.concat()).await;
    let caller = Caller::of(&emulator);
    let target = |id: &str| start(&format!("ecs:main_{id}_{id}-runtime"));
    for id in ["exec-off", "pending", "offline", "agent-stopped", "absent"] {
        let answer = caller.ssm("StartSession", &target(id)).await;
        assert_eq!(answer.error(), (400, "TargetNotConnected".to_owned()), "{id}");
    }
    assert_eq!(caller.ssm("StartSession", &target("good")).await.status, 200);
    emulator
        .faults()
        .set("agent-offline=good*1")
        .expect("a known fault");
    let answer = caller.ssm("StartSession", &target("good")).await;
    assert_eq!(answer.error(), (400, "TargetNotConnected".to_owned()));

    let offline = caller
        .ecs(
            "DescribeTasks",
            &json!({ "cluster": "main", "tasks": ["exec-off"] }),
        )
        .await
        .json();
    let task = &offline["tasks"][0];
    assert_eq!(task["enableExecuteCommand"], false);
    assert!(task["containers"][0].get("managedAgents").is_none(), "{task}");
}

#[tokio::test]
async fn a_denied_session_names_the_task() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    emulator
        .faults()
        .set(&format!("start-session-denied={TARGET}"))
        .expect("a known fault");
    let denied = caller.ssm("StartSession", &start(TARGET)).await;
    assert_eq!(denied.error(), (400, "AccessDeniedException".to_owned()));
    let message = denied.json()["message"].to_string();
    assert!(message.contains(TASK_ARN), "{message}");
}

/// A task of the service `api` with one container, whose keys can follow.
fn task(id: &str, more: &str) -> String {
    format!(
        "[[tasks]]\ncluster = \"main\"\nservice = \"api\"\nid = \"{id}\"\n{more}\
         [[tasks.containers]]\nname = \"app\"\nruntime_id = \"{id}-runtime\"\n"
    )
}

async fn started(text: &str) -> Emulator {
    Emulator::start(Config::parse(text).expect("a good configuration"))
        .await
        .expect("the emulator starts")
}

fn of_service(service: &str) -> Value {
    json!({ "cluster": "main", "serviceName": service })
}

fn start(target: &str) -> Value {
    json!({
        "Target": target,
        "DocumentName": "AWS-StartPortForwardingSession",
        "Parameters": { "portNumber": ["8080"], "localPortNumber": ["0"] },
    })
}
