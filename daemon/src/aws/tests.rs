//! Accounts against a small AWS on loopback that answers each operation as told, in the real wire formats.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::config::{EcsTask, Instance};

type Answers = Arc<Mutex<HashMap<&'static str, VecDeque<(u16, String)>>>>;

/// Answers each operation with what it was told, the last answer again and again, and notes what it was asked.
struct FakeAws {
    url: String,
    answers: Answers,
    asked: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<()>,
}

impl FakeAws {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (answers, asked) = (Answers::default(), Arc::<Mutex<Vec<String>>>::default());
        let mut task = JoinSet::new();
        let service = service_fn({
            let (answers, asked) = (Arc::clone(&answers), Arc::clone(&asked));
            move |request| answer(Arc::clone(&answers), Arc::clone(&asked), request)
        });
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections
                    .spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone()));
            }
        });
        Self {
            url,
            answers,
            asked,
            _task: task,
        }
    }

    fn on(&self, operation: &'static str, status: u16, body: impl Into<String>) -> &Self {
        self.answers
            .lock()
            .unwrap()
            .entry(operation)
            .or_default()
            .push_back((status, body.into()));
        self
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn aws(&self, more: &[(&str, &str)]) -> Aws {
        let mut variables = vec![
            ("AWS_ENDPOINT_URL", self.url.as_str()),
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        variables.extend(more);
        Aws::new(Environment::from_iter(variables)).unwrap()
    }

    async fn account(&self) -> Arc<Account> {
        self.aws(&[]).account(&AccountSpec::default()).await.unwrap()
    }
}

async fn answer(
    answers: Answers,
    asked: Arc<Mutex<Vec<String>>>,
    request: Request<Incoming>,
) -> Result<::http::Response<String>, std::convert::Infallible> {
    let target = request
        .headers()
        .get("x-amz-target")
        .map(|target| target.to_str().unwrap().to_owned());
    let body = String::from_utf8(read(request.into_body()).await.to_vec()).unwrap();
    let operation = match &target {
        Some(target) => target.split_once('.').unwrap().1.to_owned(),
        None => body
            .split('&')
            .find_map(|pair| pair.strip_prefix("Action="))
            .unwrap()
            .to_owned(),
    };
    asked.lock().unwrap().push(format!("{operation} {body}"));
    let mut answers = answers.lock().unwrap();
    let queue = answers
        .get_mut(operation.as_str())
        .unwrap_or_else(|| panic!("nobody expected {operation}"));
    let (status, body) = if queue.len() > 1 {
        queue.pop_front().unwrap()
    } else {
        queue[0].clone()
    };
    let response = ::http::Response::builder()
        .status(status)
        .header("x-amzn-requestid", "req-1");
    Ok(response.body(body).unwrap())
}

async fn read(mut body: Incoming) -> Bytes {
    let mut bytes = Vec::new();
    while let Some(frame) =
        std::future::poll_fn(|cx| hyper::body::Body::poll_frame(std::pin::Pin::new(&mut body), cx)).await
    {
        bytes.extend_from_slice(&frame.unwrap().into_data().unwrap_or_default());
    }
    bytes.into()
}

fn json_error(code: &str, message: &str) -> String {
    format!(r#"{{"__type":"{code}","message":"{message}"}}"#)
}

fn ec2_error(code: &str, message: &str) -> String {
    format!(
        "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors><RequestID>req-1</RequestID></Response>"
    )
}

fn rds_error(code: &str) -> String {
    format!(
        "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>no</Message></Error><RequestId>req-1</RequestId></ErrorResponse>"
    )
}

fn instance(id: &str, launched: &str, state: &str) -> String {
    format!(
        "<item><instancesSet><item><instanceId>{id}</instanceId><instanceState><name>{state}</name></instanceState>\
         <launchTime>{launched}</launchTime><privateIpAddress>10.0.0.7</privateIpAddress>\
         <tagSet><item><key>Name</key><value>bastion</value></item></tagSet></item></instancesSet></item>"
    )
}

fn instances(list: &[String], next: &str) -> String {
    format!(
        "<DescribeInstancesResponse><reservationSet>{}</reservationSet>{next}</DescribeInstancesResponse>",
        list.concat()
    )
}

fn bastion() -> FoundInstance {
    FoundInstance::Machine {
        id: "i-0abc".into(),
        name: Some("bastion".into()),
        private_address: Some("10.0.0.7".into()),
        place: Place::default(),
    }
}

const GRANT: &str = r#"{"SessionId":"me-1","TokenValue":"hunter2","StreamUrl":"ws://127.0.0.1:1/v1/data-channel/me-1?cell-number=A+b=="}"#;

#[tokio::test]
async fn a_session_to_a_remote_host_names_document_host_and_ports_as_lists_of_text() {
    let fake = FakeAws::start().await;
    fake.on("StartSession", 200, GRANT);
    let document = Document::RemoteHost {
        host: "db.internal".into(),
        port: 5432,
    };
    let grant = fake
        .account()
        .await
        .start_session(&bastion(), &document)
        .await
        .unwrap();
    assert_eq!(
        (grant.session_id.as_str(), grant.token.reveal()),
        ("me-1", "hunter2")
    );
    assert_eq!(
        grant.stream_url.reveal(),
        "ws://127.0.0.1:1/v1/data-channel/me-1?cell-number=A+b=="
    );

    let asked = fake.asked().pop().unwrap();
    let body: serde_json::Value = serde_json::from_str(asked.split_once(' ').unwrap().1).unwrap();
    assert_eq!(
        body,
        serde_json::json!({
            "Target": "i-0abc",
            "DocumentName": "AWS-StartPortForwardingSessionToRemoteHost",
            "Parameters": {"host": ["db.internal"], "portNumber": ["5432"], "localPortNumber": ["0"]},
            "Reason": "tunneld",
        })
    );
}

#[tokio::test]
async fn a_session_to_the_instance_itself_has_the_document_without_a_host() {
    let fake = FakeAws::start().await;
    fake.on("StartSession", 200, GRANT);
    fake.account()
        .await
        .start_session(&bastion(), &Document::Port { port: 3389 })
        .await
        .unwrap();
    let asked = fake.asked().pop().unwrap();
    assert!(
        asked.contains(r#""DocumentName":"AWS-StartPortForwardingSession""#),
        "{asked}"
    );
    assert!(!asked.contains("host"), "{asked}");
}

#[tokio::test]
async fn a_start_that_was_refused_for_coming_too_fast_is_everybodys_pause_at_once() {
    let fake = FakeAws::start().await;
    fake.on(
        "StartSession",
        400,
        json_error("ThrottlingException", "Rate exceeded"),
    );
    let account = fake.account().await;
    let refused = account
        .start_session(&bastion(), &Document::Port { port: 5432 })
        .await;
    assert_eq!(refused.unwrap_err().reason(), Reason::Throttled);
    assert_eq!(fake.asked().len(), 1, "the SDK does not try again by itself");
    assert!(account.throttle.turn().now_or_never().is_none());
}

#[tokio::test]
async fn every_attempt_of_a_call_is_counted_by_what_came_of_it() {
    let fake = FakeAws::start().await;
    fake.on(
        "StartSession",
        400,
        json_error("ThrottlingException", "Rate exceeded"),
    )
    .on("StartSession", 200, GRANT)
    .on(
        "ResumeSession",
        400,
        json_error("DoesNotExistException", "it is gone"),
    );
    let aws = fake.aws(&[]);
    let account = aws.account(&AccountSpec::default()).await.unwrap();
    let document = Document::Port { port: 5432 };
    account.start_session(&bastion(), &document).await.unwrap_err();
    let grant = account.start_session(&bastion(), &document).await.unwrap();
    let resumed = account.resume_session(&grant.session_id).await.unwrap();
    assert!(resumed.is_none());
    let counted: Vec<_> = aws
        .calls()
        .all()
        .into_iter()
        .map(|(call, number)| (call.service, call.operation, call.outcome, number))
        .collect();
    let line = |operation: &str, outcome| ("SSM".to_owned(), operation.to_owned(), outcome, 1);
    assert_eq!(
        counted,
        [
            line("ResumeSession", Outcome::Failed),
            line("StartSession", Outcome::Answered),
            line("StartSession", Outcome::Throttled),
        ]
    );
}

#[tokio::test]
async fn an_offline_agent_is_told_by_name_and_since_when() {
    let fake = FakeAws::start().await;
    let three_days_ago = wall_clock() - Duration::from_secs(3 * 86_400 + 60);
    let at = three_days_ago
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    fake.on("StartSession", 400, json_error("TargetNotConnected", "i-0abc is not connected.")).on(
        "DescribeInstanceInformation",
        200,
        format!(r#"{{"InstanceInformationList":[{{"InstanceId":"i-0abc","PingStatus":"ConnectionLost","LastPingDateTime":{at}}}]}}"#),
    );
    let failure = fake
        .account()
        .await
        .start_session(&bastion(), &Document::Port { port: 1 })
        .await
        .unwrap_err();
    assert_eq!(
        failure.to_string(),
        "the SSM agent of `bastion` (i-0abc) was last seen 3 days ago"
    );
    assert_eq!(
        (failure.reason(), failure.remedy()),
        (Reason::AgentOffline, &Remedy::Retry)
    );
    assert!(
        failure
            .in_one_line()
            .contains("TargetNotConnected: i-0abc is not connected. (request req-1)")
    );
    assert!(failure.hints()[0].contains("systemctl restart amazon-ssm-agent"));
}

#[tokio::test]
async fn an_agent_that_never_registered_is_told_so() {
    let fake = FakeAws::start().await;
    fake.on("StartSession", 400, json_error("TargetNotConnected", ""))
        .on(
            "DescribeInstanceInformation",
            200,
            r#"{"InstanceInformationList":[]}"#,
        );
    let failure = fake
        .account()
        .await
        .start_session(&bastion(), &Document::Port { port: 1 })
        .await
        .unwrap_err();
    assert_eq!(
        failure.to_string(),
        "the SSM agent of `bastion` (i-0abc) is not registered"
    );
}

#[tokio::test]
async fn a_session_that_has_ended_is_not_resumed_and_needs_no_termination() {
    let fake = FakeAws::start().await;
    let gone = json_error("DoesNotExistException", "no such session");
    fake.on("ResumeSession", 200, r#"{"SessionId":"me-1"}"#)
        .on("ResumeSession", 400, &gone)
        .on("ResumeSession", 200, GRANT)
        .on("TerminateSession", 400, &gone);
    let account = fake.account().await;
    assert!(account.resume_session("me-1").await.unwrap().is_none());
    assert!(account.resume_session("me-1").await.unwrap().is_none());
    assert_eq!(
        account
            .resume_session("me-1")
            .await
            .unwrap()
            .unwrap()
            .token
            .reveal(),
        "hunter2"
    );
    account.terminate_session("me-1").await.unwrap();
}

#[tokio::test]
async fn a_name_means_the_running_instance_launched_last_on_any_page() {
    let fake = FakeAws::start().await;
    let older = instance("i-old", "2024-01-01T00:00:00.000Z", "running");
    let newer = instance("i-new", "2025-01-01T00:00:00.000Z", "running");
    let oldest = instance("i-oldest", "2023-01-01T00:00:00.000Z", "running");
    fake.on(
        "DescribeInstances",
        200,
        instances(&[older, newer], "<nextToken>2</nextToken>"),
    )
    .on("DescribeInstances", 200, instances(&[oldest], ""));
    let found = fake
        .account()
        .await
        .find_instance(&Instance::Name("bas*tion".into()))
        .await
        .unwrap();
    assert_eq!(found.to_string(), "`bastion` (i-new)");
    assert_eq!(found.private_address(), Some("10.0.0.7"));
    let asked = fake.asked();
    assert_eq!(asked.len(), 2);
    for part in [
        "Filter.1.Name=tag%3AName",
        "Filter.1.Value.1=bas%5C%2Ation",
        "Filter.2.Value.1=running",
    ] {
        assert!(asked[0].contains(part), "{part}: {}", asked[0]);
    }
}

#[tokio::test]
async fn a_resume_is_asked_for_once_and_its_caller_tries_again() {
    let fake = FakeAws::start().await;
    fake.on("ResumeSession", 500, json_error("InternalServerError", "later"));
    let failure = fake.account().await.resume_session("me-1").await.unwrap_err();
    assert_eq!(
        (failure.reason(), failure.remedy()),
        (Reason::Unreachable, &Remedy::Retry)
    );
    assert_eq!(fake.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_resume_that_is_swallowed_is_given_up_soon() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let fake = FakeAws::start().await;
    let aws = fake.aws(&[("AWS_ENDPOINT_URL_SSM", &url)]);
    let account = aws.account(&AccountSpec::default()).await.unwrap();
    let began = tokio::time::Instant::now();
    let (failure, _held) = tokio::join!(account.resume_session("me-1"), listener.accept());
    let failure = failure.unwrap_err().in_one_line();
    assert!(failure.contains("no answer within 5 s"), "{failure}");
    assert_eq!(began.elapsed(), Duration::from_secs(5));
}

#[tokio::test]
async fn sessions_go_through_the_latest_instance_whose_agent_is_connected() {
    let fake = FakeAws::start().await;
    let running = ["2023", "2025", "2024"].map(|year| {
        instance(
            &format!("i-{year}"),
            &format!("{year}-01-01T00:00:00.000Z"),
            "running",
        )
    });
    fake.on("DescribeInstances", 200, instances(&running, ""));
    let connected = r#"{"InstanceInformationList":[{"InstanceId":"i-2023"},{"InstanceId":"i-2024"},{"InstanceId":"i-1"}]}"#;
    fake.on("DescribeInstanceInformation", 200, connected)
        .on(
            "DescribeInstanceInformation",
            200,
            r#"{"InstanceInformationList":[]}"#,
        )
        .on(
            "DescribeInstanceInformation",
            400,
            json_error("AccessDeniedException", "no"),
        );
    let account = fake.account().await;
    let wanted = Instance::Tag {
        key: "Role".into(),
        value: "bastion".into(),
    };
    for expected in ["i-2024", "i-2025", "i-2025"] {
        assert_eq!(account.find_carrier(&wanted).await.unwrap().id(), expected);
    }
    assert!(
        fake.asked()
            .iter()
            .any(|asked| asked.contains("tag:Role") && asked.contains("Online"))
    );
}

#[tokio::test]
async fn the_agent_of_the_only_instance_of_its_name_is_not_asked_for() {
    let fake = FakeAws::start().await;
    let only = instance("i-1", "2025-01-01T00:00:00.000Z", "running");
    fake.on("DescribeInstances", 200, instances(&[only], ""));
    let found = fake
        .account()
        .await
        .find_carrier(&Instance::Name("bastion".into()))
        .await
        .unwrap();
    assert_eq!(found.id(), "i-1");
}

#[tokio::test]
async fn an_instance_that_is_not_there_is_told_with_region_and_profile() {
    let fake = FakeAws::start().await;
    fake.on("DescribeInstances", 200, instances(&[], "")).on(
        "DescribeInstances",
        400,
        ec2_error("InvalidInstanceID.NotFound", "does not exist"),
    );
    let account = fake.account().await;
    let wanted = Instance::Tag {
        key: "Role".into(),
        value: "bastion".into(),
    };
    for wanted in [wanted, Instance::Id("i-0abc".into())] {
        let failure = account.find_instance(&wanted).await.unwrap_err();
        assert_eq!(
            (failure.reason(), failure.remedy()),
            (Reason::NotFound, &Remedy::Fix)
        );
        assert!(
            failure.hints().iter().any(|hint| hint.contains("eu-central-1")),
            "{:?}",
            failure.hints()
        );
    }
}

#[tokio::test]
async fn a_stopped_instance_is_told_with_the_command_that_starts_it() {
    let fake = FakeAws::start().await;
    fake.on(
        "DescribeInstances",
        200,
        instances(&[instance("i-0abc", "2024-01-01T00:00:00Z", "stopped")], ""),
    );
    let failure = fake
        .account()
        .await
        .find_instance(&Instance::Id("i-0abc".into()))
        .await
        .unwrap_err();
    assert_eq!(failure.to_string(), "the instance `bastion` (i-0abc) is stopped");
    assert_eq!(
        failure.hints(),
        ["aws ec2 start-instances --instance-ids i-0abc --region eu-central-1"]
    );
}

#[tokio::test]
async fn who_may_not_look_up_an_instance_can_still_use_its_id_but_not_its_name() {
    let fake = FakeAws::start().await;
    fake.on(
        "DescribeInstances",
        403,
        ec2_error("UnauthorizedOperation", "not authorized"),
    );
    let account = fake.account().await;
    let found = account
        .find_instance(&Instance::Id("i-0abc".into()))
        .await
        .unwrap();
    assert_eq!(
        found,
        FoundInstance::Machine {
            id: "i-0abc".into(),
            name: None,
            private_address: None,
            place: Place::default(),
        }
    );
    let failure = account
        .find_instance(&Instance::Name("bastion".into()))
        .await
        .unwrap_err();
    assert_eq!(failure.reason(), Reason::Denied);
}

#[tokio::test]
async fn who_may_not_look_for_tasks_is_told_the_action_and_the_service() {
    let fake = FakeAws::start().await;
    let denied = |action: &str| {
        let message = format!("User: me is not authorized to perform: {action} on resource: *");
        json_error("AccessDeniedException", &message)
    };
    fake.on("ListTasks", 400, denied("ecs:ListTasks"))
        .on(
            "ListTasks",
            200,
            r#"{"taskArns":["arn:aws:ecs:x:1:task/main/t1"]}"#,
        )
        .on("DescribeTasks", 400, denied("ecs:DescribeTasks"));
    let account = fake.account().await;
    let wanted = Instance::Task(EcsTask {
        cluster: "main".into(),
        service: "api".into(),
        container: None,
    });
    for action in ["ecs:ListTasks", "ecs:DescribeTasks"] {
        let failure = account.find_instance(&wanted).await.unwrap_err();
        assert_eq!(
            failure.to_string(),
            "cannot look for a task of the service `api` in the cluster `main`"
        );
        assert_eq!(
            (failure.reason(), failure.remedy()),
            (Reason::Denied, &Remedy::Fix)
        );
        assert!(failure.hints()[0].contains(action), "{:?}", failure.hints());
    }
    assert_eq!(
        fake.asked(),
        [
            r#"ListTasks {"cluster":"main","maxResults":100,"serviceName":"api","desiredStatus":"RUNNING"}"#,
            r#"ListTasks {"cluster":"main","maxResults":100,"serviceName":"api","desiredStatus":"RUNNING"}"#,
            r#"DescribeTasks {"cluster":"main","tasks":["arn:aws:ecs:x:1:task/main/t1"]}"#,
        ]
    );
}

#[tokio::test]
async fn a_managed_instance_is_found_by_the_agents_word() {
    let fake = FakeAws::start().await;
    fake.on(
        "DescribeInstanceInformation",
        200,
        r#"{"InstanceInformationList":[{"InstanceId":"mi-1","ComputerName":"rack7","IPAddress":"10.9.9.9","PingStatus":"Online","AgentVersion":"3.3.1"}]}"#,
    );
    let account = fake.account().await;
    let found = account.find_instance(&Instance::Id("mi-1".into())).await.unwrap();
    assert_eq!(
        (found.to_string().as_str(), found.private_address()),
        ("`rack7` (mi-1)", Some("10.9.9.9"))
    );
    let status = account.agent_status("mi-1").await.unwrap().unwrap();
    assert_eq!(
        status,
        AgentStatus {
            online: true,
            last_ping: None,
            version: "3.3.1".into()
        }
    );
}

#[tokio::test]
async fn a_database_is_an_instance_or_else_the_writer_of_a_cluster() {
    let fake = FakeAws::start().await;
    let one = "<DescribeDBInstancesResponse><DescribeDBInstancesResult><DBInstances><DBInstance>\
               <DBInstanceIdentifier>billing</DBInstanceIdentifier><Engine>mysql</Engine>\
               <Endpoint><Address>billing.rds.test</Address><Port>3306</Port></Endpoint></DBInstance></DBInstances>\
               </DescribeDBInstancesResult></DescribeDBInstancesResponse>";
    let cluster = "<DescribeDBClustersResponse><DescribeDBClustersResult><DBClusters><DBCluster>\
                   <DBClusterIdentifier>orders</DBClusterIdentifier><Engine>aurora-postgresql</Engine>\
                   <Endpoint>orders.cluster.test</Endpoint><Port>5432</Port></DBCluster></DBClusters>\
                   </DescribeDBClustersResult></DescribeDBClustersResponse>";
    fake.on("DescribeDBInstances", 200, one)
        .on("DescribeDBInstances", 404, rds_error("DBInstanceNotFound"))
        .on("DescribeDBInstances", 403, rds_error("AccessDenied"))
        .on("DescribeDBClusters", 200, cluster);
    let account = fake.account().await;
    let found = account.find_database("billing").await.unwrap();
    assert_eq!(
        (found.host.as_str(), found.port, found.engine.as_str()),
        ("billing.rds.test", 3306, "mysql")
    );
    for _ in ["not an instance", "not allowed to ask for instances"] {
        let found = account.find_database("orders").await.unwrap();
        assert_eq!((found.host.as_str(), found.port), ("orders.cluster.test", 5432));
    }
}

#[tokio::test]
async fn a_database_that_is_not_there_is_answered_with_a_near_name() {
    let fake = FakeAws::start().await;
    fake.on("DescribeDBInstances", 404, rds_error("DBInstanceNotFound"))
        .on(
            "DescribeDBInstances",
            200,
            "<DescribeDBInstancesResponse><DescribeDBInstancesResult><DBInstances><DBInstance>\
             <DBInstanceIdentifier>billing</DBInstanceIdentifier></DBInstance></DBInstances>\
             </DescribeDBInstancesResult></DescribeDBInstancesResponse>",
        )
        .on("DescribeDBClusters", 404, rds_error("DBClusterNotFoundFault"));
    let failure = fake.account().await.find_database("biling").await.unwrap_err();
    assert_eq!(
        (failure.to_string().as_str(), failure.reason()),
        ("there is no database `biling`", Reason::NotFound)
    );
    assert!(
        failure.hints().contains(&"did you mean `billing`?".to_owned()),
        "{:?}",
        failure.hints()
    );
}

#[tokio::test]
async fn an_account_is_shared_until_aws_rejects_its_credentials() {
    let fake = FakeAws::start().await;
    fake.on(
        "TerminateSession",
        400,
        json_error("ExpiredTokenException", "expired"),
    );
    let aws = fake.aws(&[]);
    let first = aws.account(&AccountSpec::default()).await.unwrap();
    assert!(Arc::ptr_eq(
        &first,
        &aws.account(&AccountSpec::default()).await.unwrap()
    ));
    let failure = first.terminate_session("me-1").await.unwrap_err();
    assert_eq!(failure.remedy(), &Remedy::Login { profile: None });
    assert!(!Arc::ptr_eq(
        &first,
        &aws.account(&AccountSpec::default()).await.unwrap()
    ));
}

#[tokio::test]
async fn an_account_is_made_anew_when_the_profile_files_change() {
    let fake = FakeAws::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[profile dev]\nregion = us-east-1\n").unwrap();
    let aws = fake.aws(&[("AWS_CONFIG_FILE", file.path().to_str().unwrap())]);
    let spec = AccountSpec {
        profile: Some("dev".into()),
        region: None,
    };
    let first = aws.account(&spec).await.unwrap();
    std::fs::write(file.path(), "[profile dev]\nregion = us-west-2\n").unwrap();
    assert!(!Arc::ptr_eq(&first, &aws.account(&spec).await.unwrap()));
}

#[tokio::test]
async fn an_endpoint_of_one_service_wins_over_that_of_all_and_over_the_profiles() {
    let (ssm, others) = (FakeAws::start().await, FakeAws::start().await);
    ssm.on("TerminateSession", 200, "{}");
    others.on(
        "DescribeInstances",
        200,
        instances(&[instance("i-0abc", "2024-01-01T00:00:00Z", "running")], ""),
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[default]\nendpoint_url = http://127.0.0.1:1\n").unwrap();
    let more = [
        ("AWS_ENDPOINT_URL_SSM", ssm.url.as_str()),
        ("AWS_CONFIG_FILE", file.path().to_str().unwrap()),
    ];
    let account = others.aws(&more).account(&AccountSpec::default()).await.unwrap();
    account.terminate_session("me-1").await.unwrap();
    assert_eq!(
        account
            .find_instance(&Instance::Id("i-0abc".into()))
            .await
            .unwrap(),
        bastion()
    );
}

#[tokio::test]
async fn an_endpoint_of_the_profile_counts_where_the_environment_has_none() {
    let fake = FakeAws::start().await;
    fake.on("TerminateSession", 200, "{}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("[default]\nendpoint_url = {}\n", fake.url)).unwrap();
    let config = file.path().to_str().unwrap();
    let account = fake.aws(&[("AWS_ENDPOINT_URL", ""), ("AWS_CONFIG_FILE", config)]);
    account
        .account(&AccountSpec::default())
        .await
        .unwrap()
        .terminate_session("me-1")
        .await
        .unwrap();
}

#[tokio::test]
async fn without_any_credentials_a_login_is_needed_and_nothing_is_asked() {
    let fake = FakeAws::start().await;
    let aws = fake.aws(&[("AWS_ACCESS_KEY_ID", ""), ("HOME", "/nowhere")]);
    let account = aws.account(&AccountSpec::default()).await.unwrap();
    let url = StreamUrl::new("ws://127.0.0.1:1/x");
    let call = account.terminate_session("me-1").await.unwrap_err();
    let signature = account.sign_upgrade(&url).await.unwrap_err();
    for failure in [call, signature] {
        assert_eq!(
            failure.remedy(),
            &Remedy::Login { profile: None },
            "{}",
            failure.in_one_line()
        );
        assert_eq!(failure.hints(), ["aws configure --profile default"]);
    }
    assert!(fake.asked().is_empty());
}

#[tokio::test]
async fn an_upgrade_is_signed_unless_its_url_already_is() {
    let fake = FakeAws::start().await;
    let aws = fake.aws(&[
        ("AWS_SESSION_TOKEN", "a-token"),
        ("AWS_ENDPOINT_URL_SSMMESSAGES", "http://127.0.0.1:9"),
    ]);
    let account = aws.account(&AccountSpec::default()).await.unwrap();
    let plain =
        StreamUrl::new("wss://ssmmessages.eu-central-1.amazonaws.com/v1/data-channel/s?cell-number=A+b==");
    let request = account.sign_upgrade(&plain).await.unwrap();
    assert_eq!(
        request.uri(),
        "ws://127.0.0.1:9/v1/data-channel/s?cell-number=A+b=="
    );
    assert_eq!(request.headers()["x-amz-security-token"], "a-token");
    let authorization = request.headers()["authorization"].to_str().unwrap();
    assert!(
        authorization.contains("/eu-central-1/ssmmessages/aws4_request"),
        "{authorization}"
    );

    let presigned = StreamUrl::new("wss://a.test/x?X-Amz-Signature=0");
    let request = account.sign_upgrade(&presigned).await.unwrap();
    assert!(request.headers().get("authorization").is_none());
}

#[tokio::test]
async fn a_service_that_cannot_be_reached_is_worth_a_retry() {
    let port = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let fake = FakeAws::start().await;
    let aws = fake.aws(&[("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{port}"))]);
    let account = aws.account(&AccountSpec::default()).await.unwrap();
    let failure = account.terminate_session("me-1").await.unwrap_err();
    assert_eq!(
        (failure.reason(), failure.remedy()),
        (Reason::Unreachable, &Remedy::Retry)
    );
    assert_eq!(
        failure.chain()[1],
        format!("cannot connect to `127.0.0.1:{port}`")
    );
}

/// Answers a request with an empty object, and says nothing more on its connection, which it keeps.
async fn answer_once(listener: &TcpListener) -> tokio::net::TcpStream {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let (mut socket, _) = listener.accept().await.unwrap();
    assert_ne!(socket.read(&mut [0; 16 << 10]).await.unwrap(), 0);
    let answer =
        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: 2\r\n\r\n{}";
    socket.write_all(answer).await.unwrap();
    socket
}

#[tokio::test]
async fn a_connection_that_died_with_its_network_costs_the_next_call_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let fake = FakeAws::start().await;
    let aws = fake.aws(&[("AWS_ENDPOINT_URL", &url)]);
    let account = aws.account(&AccountSpec::default()).await.unwrap();
    let (first, _dead) = tokio::join!(account.terminate_session("me-1"), answer_once(&listener));
    first.unwrap();
    aws.network_changed();
    let both = async { tokio::join!(account.terminate_session("me-2"), answer_once(&listener)) };
    let (second, _) = timeout(ATTEMPT_TIMEOUT / 2, both)
        .await
        .expect("a new connection");
    second.unwrap();
}

#[tokio::test]
async fn a_call_that_the_network_forgot_is_made_again_soon_after_the_change() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let fake = FakeAws::start().await;
    let aws = fake.aws(&[("AWS_ENDPOINT_URL", &url)]);
    let account = aws.account(&AccountSpec::default()).await.unwrap();
    let far = async {
        let (silent, _) = listener.accept().await.unwrap();
        aws.network_changed();
        (silent, answer_once(&listener).await)
    };
    let both = async { tokio::join!(account.terminate_session("me-1"), far) };
    let (ended, _) = timeout(ATTEMPT_TIMEOUT / 2, both).await.expect("another attempt");
    ended.unwrap();
}

#[tokio::test]
async fn a_start_is_waited_for_when_the_network_changes() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let fake = FakeAws::start().await;
    let aws = fake.aws(&[("AWS_ENDPOINT_URL", &url)]);
    let account = aws.account(&AccountSpec::default()).await.unwrap();
    let far = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        assert_ne!(socket.read(&mut [0; 16 << 10]).await.unwrap(), 0);
        aws.network_changed();
        let hung_up = async { while socket.read(&mut [0; 1 << 10]).await.unwrap() > 0 {} };
        timeout(Duration::from_secs(2), hung_up)
            .await
            .expect_err("it is waited for");
        let body = r#"{"SessionId": "me-1", "TokenValue": "t", "StreamUrl": "wss://x/"}"#;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length";
        let answer = format!("{head}: {}\r\n\r\n{body}", body.len());
        socket.write_all(answer.as_bytes()).await.unwrap();
    };
    let (instance, document) = (bastion(), Document::Port { port: 22 });
    let (started, ()) = tokio::join!(account.start_session(&instance, &document), far);
    assert_eq!(started.unwrap().session_id, "me-1");
}

#[tokio::test]
async fn accounts_are_made_anew_once_somebody_may_have_logged_in() {
    let fake = FakeAws::start().await;
    let aws = fake.aws(&[]);
    let spec = AccountSpec::default();
    let before = aws.account(&spec).await.unwrap();
    assert!(Arc::ptr_eq(&before, &aws.account(&spec).await.unwrap()));
    aws.forget_accounts();
    assert!(!Arc::ptr_eq(&before, &aws.account(&spec).await.unwrap()));
}
