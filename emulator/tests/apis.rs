//! What the APIs answer, in the services' own wire formats.

mod common;

use common::{Caller, example};
use serde_json::json;
use tunneld_emulator::{Config, Emulator};

const BASTION: &str = "i-0123456789abcdef0";
const WINDOWS: &str = "i-0fedcba9876543210";

#[tokio::test]
async fn ssm_lists_the_instances_that_have_an_agent() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    let answer = caller.ssm("DescribeInstanceInformation", &json!({})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(
        answer.head.contains("content-type: application/x-amz-json-1.1"),
        "{}",
        answer.head
    );
    assert!(answer.head.contains("x-amzn-requestid: "), "{}", answer.head);
    let list = &answer.json()["InstanceInformationList"];
    assert_eq!(list[0]["InstanceId"], BASTION);
    assert_eq!(list[0]["PingStatus"], "Online");
    assert_eq!(list[0]["AgentVersion"], "3.3.1142.0");
    assert_eq!(list[0]["IPAddress"], "10.0.1.10");
    assert_eq!(list[1]["LastPingDateTime"], 1_748_779_200.0);

    let filter = json!({ "Filters": [{ "Key": "InstanceIds", "Values": [WINDOWS] }] });
    let list = caller.ssm("DescribeInstanceInformation", &filter).await.json();
    assert_eq!(list["InstanceInformationList"].as_array().map(Vec::len), Some(1));
    let filter = json!({ "Filters": [{ "Key": "tag:Name", "Values": ["bastion"] }] });
    let list = caller.ssm("DescribeInstanceInformation", &filter).await.json();
    assert_eq!(list["InstanceInformationList"][0]["InstanceId"], BASTION);
    let filter = json!({ "Filters": [{ "Key": "Colour", "Values": ["red"] }] });
    let answer = caller.ssm("DescribeInstanceInformation", &filter).await;
    assert_eq!(answer.error(), (400, "InvalidFilterKey".to_owned()));
}

#[tokio::test]
async fn an_offline_agent_shows_as_connection_lost_and_takes_no_session() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    emulator
        .faults()
        .set(&format!("agent-offline={BASTION}"))
        .expect("a known fault");
    let list = caller.ssm("DescribeInstanceInformation", &json!({})).await.json();
    assert_eq!(list["InstanceInformationList"][0]["PingStatus"], "ConnectionLost");
    assert_eq!(list["InstanceInformationList"][1]["PingStatus"], "Online");
    let answer = caller.ssm("StartSession", &start(BASTION)).await;
    assert_eq!(answer.error(), (400, "TargetNotConnected".to_owned()));
    assert_eq!(answer.json()["message"], format!("{BASTION} is not connected."));
}

#[tokio::test]
async fn ec2_finds_instances_by_id_tag_and_state() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    let answer = caller.ec2("").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.texts("instanceId"), [BASTION, WINDOWS]);
    assert_eq!(answer.texts("privateIpAddress"), ["10.0.1.10", "10.0.1.20"]);
    assert_eq!(answer.texts("requestId").len(), 1);

    let by_id = caller.ec2(&format!("InstanceId.1={WINDOWS}")).await;
    assert_eq!(by_id.texts("instanceId"), [WINDOWS]);
    let by_tag = caller
        .ec2("Filter.1.Name=tag%3AName&Filter.1.Value.1=bast*")
        .await;
    assert_eq!(by_tag.texts("instanceId"), [BASTION]);
    let both = caller
        .ec2(
            "Filter.1.Name=tag%3AEnv&Filter.1.Value.1=prod\
             &Filter.2.Name=instance-state-name&Filter.2.Value.1=stopped&Filter.2.Value.2=pending",
        )
        .await;
    assert_eq!(both.texts("instanceId"), Vec::<&str>::new());
}

#[tokio::test]
async fn ec2_refuses_ids_and_filters_as_the_real_one() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    for (parameters, code) in [
        ("InstanceId.1=i-0dead", "InvalidInstanceID.NotFound"),
        ("InstanceId.1=bastion", "InvalidInstanceID.Malformed"),
        (
            "Filter.1.Name=colour&Filter.1.Value.1=red",
            "InvalidParameterValue",
        ),
        ("MaxResults=4", "InvalidParameterValue"),
        ("NextToken=forged", "InvalidNextToken"),
    ] {
        let answer = caller.ec2(parameters).await;
        assert_eq!(answer.error(), (400, code.to_owned()), "{parameters}");
        assert!(
            answer.body.contains("<Response><Errors><Error><Code>"),
            "{}",
            answer.body
        );
    }
}

#[tokio::test]
async fn rds_describes_instances_and_clusters_apart() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    let instances = caller.rds("DescribeDBInstances", "").await;
    assert_eq!(instances.texts("DBInstanceIdentifier"), ["prod-db"]);
    assert_eq!(
        instances.texts("Address"),
        ["prod-db.cabcdefghijk.ap-northeast-1.rds.amazonaws.com"]
    );
    assert_eq!(instances.texts("Port"), ["5432"]);
    let clusters = caller
        .rds("DescribeDBClusters", "DBClusterIdentifier=Aurora")
        .await;
    assert_eq!(clusters.texts("DBClusterIdentifier"), ["aurora"]);
    assert_eq!(
        clusters.texts("ReaderEndpoint"),
        ["aurora.cluster-ro-cabcdefghijk.ap-northeast-1.rds.amazonaws.com"]
    );

    let missing = caller
        .rds("DescribeDBInstances", "DBInstanceIdentifier=aurora")
        .await;
    assert_eq!(missing.error(), (404, "DBInstanceNotFound".to_owned()));
    assert_eq!(missing.texts("Message"), ["DBInstance aurora not found."]);
    let missing = caller
        .rds("DescribeDBClusters", "DBClusterIdentifier=prod-db")
        .await;
    assert_eq!(missing.error(), (404, "DBClusterNotFoundFault".to_owned()));
}

#[tokio::test]
async fn every_list_can_be_paged_through() {
    let mut text = "page_size = 2\n".to_owned();
    for number in 1..=5 {
        text.push_str(&format!("[[instances]]\nid = \"i-{number}\"\nssm = {{}}\n"));
        text.push_str(&format!(
            "[[databases]]\nid = \"db-{number}\"\nengine = \"postgres\"\nhost = \"db-{number}.example\"\n\
             port = 5432\naddress = \"127.0.0.1:1\"\n"
        ));
    }
    let emulator = Emulator::start(Config::parse(&text).expect("a good configuration"))
        .await
        .expect("starts");
    let caller = Caller::of(&emulator);

    let (mut token, mut seen) = (String::new(), Vec::new());
    for _ in 0..3 {
        let page = caller.ec2(&token).await;
        seen.extend(page.texts("instanceId").into_iter().map(str::to_owned));
        token = page
            .texts("nextToken")
            .first()
            .map(|next| format!("NextToken={next}"))
            .unwrap_or_default();
    }
    assert_eq!(seen, ["i-1", "i-2", "i-3", "i-4", "i-5"]);
    assert_eq!(token, "");

    let (mut marker, mut seen) = (String::new(), Vec::new());
    for _ in 0..3 {
        let page = caller.rds("DescribeDBInstances", &marker).await;
        seen.extend(page.texts("DBInstanceIdentifier").into_iter().map(str::to_owned));
        marker = page
            .texts("Marker")
            .first()
            .map(|next| format!("Marker={next}"))
            .unwrap_or_default();
    }
    assert_eq!(seen, ["db-1", "db-2", "db-3", "db-4", "db-5"]);
    assert_eq!(marker, "");

    let (mut input, mut seen) = (json!({ "MaxResults": 5 }), Vec::new());
    for _ in 0..3 {
        let page = caller.ssm("DescribeInstanceInformation", &input).await.json();
        let list = page["InstanceInformationList"]
            .as_array()
            .expect("a list")
            .clone();
        seen.extend(
            list.iter()
                .map(|instance| instance["InstanceId"].as_str().expect("an id").to_owned()),
        );
        input["NextToken"] = page["NextToken"].clone();
    }
    assert_eq!(seen, ["i-1", "i-2", "i-3", "i-4", "i-5"]);
    assert!(input["NextToken"].is_null());
}

#[tokio::test]
async fn a_region_shows_only_its_own() {
    let config = "regions = [\"ap-northeast-1\", \"eu-west-1\"]\n\
                  [[instances]]\nid = \"i-1\"\nssm = {}\n\
                  [[instances]]\nid = \"i-2\"\nregion = \"eu-west-1\"\nssm = {}\n";
    let emulator = Emulator::start(Config::parse(config).expect("a good configuration"))
        .await
        .expect("starts");
    let mut caller = Caller::of(&emulator);
    assert_eq!(caller.ec2("").await.texts("instanceId"), ["i-1"]);
    caller.region = "eu-west-1".to_owned();
    assert_eq!(caller.ec2("").await.texts("instanceId"), ["i-2"]);
    assert_eq!(
        caller.ssm("StartSession", &start("i-1")).await.error(),
        (400, "TargetNotConnected".to_owned())
    );
}

#[tokio::test]
async fn sts_names_the_caller_and_lends_keys_that_work() {
    let emulator = example("").await;
    let mut caller = Caller::of(&emulator);
    let identity = caller.sts("GetCallerIdentity", "").await;
    assert_eq!(identity.texts("Account"), ["123456789012"]);
    assert_eq!(identity.texts("Arn"), ["arn:aws:iam::123456789012:user/emulator"]);

    let role = "RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fpath%2Fadmin&RoleSessionName=me";
    let lent = caller.sts("AssumeRole", role).await;
    let only = |name: &str| (*lent.texts(name).first().expect("one")).to_owned();
    caller.access_key_id = only("AccessKeyId");
    caller.secret = only("SecretAccessKey");
    caller.token = Some(only("SessionToken"));
    let identity = caller.sts("GetCallerIdentity", "").await;
    assert_eq!(
        identity.texts("Arn"),
        ["arn:aws:sts::123456789012:assumed-role/admin/me"]
    );
    caller.token = None;
    assert_eq!(
        caller.sts("GetCallerIdentity", "").await.error(),
        (403, "InvalidClientTokenId".to_owned())
    );
}

#[tokio::test]
async fn a_session_is_started_resumed_and_terminated() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    let started = caller.ssm("StartSession", &start(BASTION)).await.json();
    let id = started["SessionId"].as_str().expect("an id").to_owned();
    let (name, number) = id.split_once('-').expect("two parts");
    assert_eq!((name, number.len()), ("emulator", 17));
    let url = started["StreamUrl"].as_str().expect("a URL");
    let prefix = format!(
        "ws://{}/v1/data-channel/{id}?role=publish_subscribe&cell-number=",
        emulator.address()
    );
    assert!(url.starts_with(&prefix), "{url}");
    let open = emulator.sessions();
    assert_eq!(open.len(), 1);
    assert_eq!((open[0].target.as_str(), open[0].port), (BASTION, 22));

    let resumed = caller
        .ssm("ResumeSession", &json!({ "SessionId": id }))
        .await
        .json();
    assert_eq!(resumed["SessionId"], id.as_str());
    assert_ne!(resumed["TokenValue"], started["TokenValue"]);
    assert_ne!(resumed["StreamUrl"], started["StreamUrl"]);
    let active = caller
        .ssm("DescribeSessions", &json!({ "State": "Active" }))
        .await
        .json();
    assert_eq!(active["Sessions"][0]["SessionId"], id.as_str());

    let terminated = caller
        .ssm("TerminateSession", &json!({ "SessionId": id }))
        .await
        .json();
    assert_eq!(terminated["SessionId"], id.as_str());
    assert_eq!(emulator.sessions(), []);
    assert_eq!(
        emulator.ended_sessions()[0].ended.as_deref(),
        Some("TerminateSession")
    );
    let after = caller.ssm("ResumeSession", &json!({ "SessionId": id })).await;
    assert_eq!(after.status, 200);
    assert!(after.json().get("TokenValue").is_none(), "{after:?}");
    let active = caller
        .ssm("DescribeSessions", &json!({ "State": "Active" }))
        .await
        .json();
    assert_eq!(active["Sessions"], json!([]));
}

#[tokio::test]
async fn resume_after_the_end_can_say_that_the_session_does_not_exist() {
    let emulator = example("resume_after_end = \"does-not-exist\"").await;
    let caller = Caller::of(&emulator);
    let started = caller.ssm("StartSession", &start(BASTION)).await.json();
    emulator
        .faults()
        .set("resume-says-gone*1")
        .expect("a known fault");
    let answer = caller
        .ssm("ResumeSession", &json!({ "SessionId": started["SessionId"] }))
        .await;
    assert_eq!(answer.error(), (400, "DoesNotExistException".to_owned()));
    assert_eq!(emulator.sessions(), []);
}

#[tokio::test]
async fn a_session_that_cannot_be_is_refused() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    for (change, code) in [
        (json!({ "Target": "i-0dead" }), "TargetNotConnected"),
        (json!({ "Target": null }), "ValidationException"),
        (json!({ "DocumentName": "AWS-StartNothing" }), "InvalidDocument"),
        (json!({ "DocumentName": null }), "InvalidDocument"),
        (
            json!({ "Parameters": { "portNumber": ["ssh"] } }),
            "InvalidParameters",
        ),
        (
            json!({ "Parameters": { "portNumber": "22" } }),
            "SerializationException",
        ),
        (
            json!({ "Parameters": { "portNumber": [22] } }),
            "SerializationException",
        ),
    ] {
        let mut input = start(BASTION);
        for (key, value) in change.as_object().expect("an object") {
            input[key] = value.clone();
        }
        let answer = caller.ssm("StartSession", &input).await;
        assert_eq!(answer.error(), (400, code.to_owned()), "{input}");
    }
    assert_eq!(emulator.sessions(), []);
    let answer = caller
        .ssm("ResumeSession", &json!({ "SessionId": "emulator-0" }))
        .await;
    assert_eq!(answer.error(), (400, "DoesNotExistException".to_owned()));
}

#[tokio::test]
async fn faults_of_start_and_resume_strike_as_often_as_asked() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    emulator
        .faults()
        .set("throttle-start-session*2")
        .expect("a known fault");
    for _ in 0..2 {
        let answer = caller.ssm("StartSession", &start(BASTION)).await;
        assert_eq!(answer.error(), (400, "ThrottlingException".to_owned()));
    }
    let started = caller.ssm("StartSession", &start(BASTION)).await;
    assert_eq!(started.status, 200, "{started:?}");
    emulator.faults().set("resume-fails*1").expect("a known fault");
    let id = json!({ "SessionId": started.json()["SessionId"] });
    assert_eq!(
        caller.ssm("ResumeSession", &id).await.error(),
        (500, "InternalServerError".to_owned())
    );
    assert_eq!(caller.ssm("ResumeSession", &id).await.status, 200);
    emulator
        .faults()
        .set("start-session-denied")
        .expect("a known fault");
    let denied = caller.ssm("StartSession", &start(BASTION)).await;
    assert_eq!(denied.error(), (400, "AccessDeniedException".to_owned()));
}

#[tokio::test]
async fn each_service_refuses_a_signature_in_its_own_words() {
    let emulator = example("").await;
    let good = Caller::of(&emulator);
    let wrong_secret = Caller {
        secret: "wrong".to_owned(),
        ..good.clone()
    };
    let unknown_key = Caller {
        access_key_id: "AKIASTRANGER".to_owned(),
        ..good.clone()
    };
    let other_region = Caller {
        region: "us-west-2".to_owned(),
        ..good.clone()
    };
    let an_hour_ago = Caller {
        time: good.time - std::time::Duration::from_secs(3600),
        ..good.clone()
    };
    for (who, ssm, ec2, rds) in [
        (
            &wrong_secret,
            "InvalidSignatureException",
            (401, "AuthFailure"),
            "SignatureDoesNotMatch",
        ),
        (
            &unknown_key,
            "UnrecognizedClientException",
            (401, "AuthFailure"),
            "InvalidClientTokenId",
        ),
        (
            &other_region,
            "InvalidSignatureException",
            (401, "AuthFailure"),
            "SignatureDoesNotMatch",
        ),
        (
            &an_hour_ago,
            "InvalidSignatureException",
            (400, "RequestExpired"),
            "SignatureDoesNotMatch",
        ),
    ] {
        refused(who, ssm, ec2, rds).await;
    }
    emulator.faults().set("expired-token").expect("a known fault");
    refused(
        &good,
        "ExpiredTokenException",
        (400, "RequestExpired"),
        "ExpiredToken",
    )
    .await;
    emulator.faults().clear_all();
    assert_eq!(good.ec2("").await.status, 200);
}

async fn refused(caller: &Caller, ssm: &str, (ec2_status, ec2): (u16, &str), query: &str) {
    let answer = caller.ssm("DescribeInstanceInformation", &json!({})).await;
    assert_eq!(answer.error(), (400, ssm.to_owned()));
    assert_eq!(caller.ec2("").await.error(), (ec2_status, ec2.to_owned()));
    assert_eq!(
        caller.rds("DescribeDBInstances", "").await.error(),
        (403, query.to_owned())
    );
    assert_eq!(
        caller.sts("GetCallerIdentity", "").await.error(),
        (403, query.to_owned())
    );
}

#[tokio::test]
async fn a_request_without_a_signature_or_for_another_service_is_refused() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    let unsigned = common::plain(
        emulator.address(),
        "POST",
        "/",
        &[],
        "Version=2011-06-15&Action=GetCallerIdentity",
    )
    .await;
    assert_eq!(unsigned.error(), (403, "MissingAuthenticationToken".to_owned()));
    let foreign = caller
        .query("ec2", "Version=2011-06-15&Action=GetCallerIdentity")
        .await;
    assert_eq!(foreign.error(), (403, "SignatureDoesNotMatch".to_owned()));
}

#[tokio::test]
async fn operations_that_are_not_served_are_refused_cleanly_and_not_counted() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    assert_eq!(
        caller.ssm("SendCommand", &json!({})).await.error(),
        (400, "UnknownOperationException".to_owned())
    );
    assert_eq!(
        caller.sts("GetFederationToken", "").await.error(),
        (400, "InvalidAction".to_owned())
    );
    let elsewhere = common::plain(emulator.address(), "GET", "/favicon.ico", &[], "").await;
    assert_eq!(elsewhere.error(), (404, "UnknownOperationException".to_owned()));
    assert!(emulator.calls().is_empty(), "{:?}", emulator.calls());
}

#[tokio::test]
async fn calls_are_counted_whatever_is_answered() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    caller.ec2("").await;
    caller.ec2("InstanceId.1=i-0dead").await;
    caller.sts("GetCallerIdentity", "").await;
    let calls: Vec<(String, u64)> = emulator.calls().into_iter().collect();
    assert_eq!(
        calls,
        [
            ("ec2:DescribeInstances".to_owned(), 2),
            ("sts:GetCallerIdentity".to_owned(), 1)
        ]
    );
}

#[tokio::test]
async fn bodies_and_targets_are_bounded() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    let large = "x".repeat(1024 * 1024 + 1);
    let answer = common::plain(emulator.address(), "POST", "/", &[], &large).await;
    assert_eq!(answer.status, 413);
    let path = format!("/?{}", "%20".repeat(10_000));
    let answer = common::plain(emulator.address(), "POST", &path, &[], "").await;
    assert_eq!(answer.status, 414);
    assert_eq!(caller.ec2("").await.status, 200);
}

fn start(target: &str) -> serde_json::Value {
    json!({
        "Target": target,
        "DocumentName": "AWS-StartPortForwardingSession",
        "Parameters": { "portNumber": ["22"], "localPortNumber": ["0"] },
    })
}
