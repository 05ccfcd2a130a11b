//! The official AWS CLI against the emulator: it reads back what was configured.
//!
//! The CLI comes from PyPI into a virtual environment of its own, made once and kept with cargo's other output.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::{Value, json};
use tunneld_emulator::{Config, Emulator};

/// The CLI of major version 1: the one on PyPI, with the service models of version 2.
const PACKAGE: &str = "awscli==1.46.3";

/// The folder of the CLI's programs, or what is missing for it.
static CLI: LazyLock<Result<PathBuf, String>> = LazyLock::new(install);

const BASTION: &str = "i-0123456789abcdef0";

#[tokio::test]
async fn describe_instance_information_prints_the_agents() {
    let emulator = example().await;
    let aws = Aws::new(emulator.environment());
    let printed = aws.json(&["ssm", "describe-instance-information"]).await;
    let list = printed["InstanceInformationList"].as_array().expect("a list");
    let seen: Vec<Value> = list
        .iter()
        .map(|instance| {
            json!([
                instance["InstanceId"],
                instance["PingStatus"],
                instance["IPAddress"]
            ])
        })
        .collect();
    assert_eq!(
        seen,
        [
            json!([BASTION, "Online", "10.0.1.10"]),
            json!(["i-0fedcba9876543210", "Online", "10.0.1.20"])
        ]
    );
    // Version 1 prints times as they are on the wire: seconds since 1970.
    assert_eq!(list[1]["LastPingDateTime"], 1_748_779_200.0);
}

#[tokio::test]
async fn describe_instances_prints_the_instances() {
    let emulator = example().await;
    let aws = Aws::new(emulator.environment());
    let printed = aws
        .json(&[
            "ec2",
            "describe-instances",
            "--filters",
            "Name=tag:Name,Values=bastion",
        ])
        .await;
    let reservations = printed["Reservations"].as_array().expect("a list");
    assert_eq!(reservations.len(), 1);
    assert_eq!(reservations[0]["OwnerId"], "123456789012");
    let instance = &reservations[0]["Instances"][0];
    assert_eq!(instance["InstanceId"], BASTION);
    assert_eq!(instance["State"], json!({ "Code": 16, "Name": "running" }));
    assert_eq!(instance["PrivateIpAddress"], "10.0.1.10");
    assert_eq!(
        instance["Tags"],
        json!([{ "Key": "Name", "Value": "bastion" }, { "Key": "Env", "Value": "prod" }])
    );
    let all = aws.json(&["ec2", "describe-instances"]).await;
    assert_eq!(all["Reservations"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn describe_db_instances_and_clusters_print_the_databases() {
    let emulator = example().await;
    let aws = Aws::new(emulator.environment());
    let printed = aws.json(&["rds", "describe-db-instances"]).await;
    let instances = printed["DBInstances"].as_array().expect("a list");
    assert_eq!(instances.len(), 1);
    assert_eq!(instances[0]["DBInstanceIdentifier"], "prod-db");
    assert_eq!(instances[0]["Engine"], "postgres");
    assert_eq!(instances[0]["DBInstanceStatus"], "available");
    assert_eq!(
        instances[0]["Endpoint"]["Address"],
        "prod-db.cabcdefghijk.ap-northeast-1.rds.amazonaws.com"
    );
    assert_eq!(instances[0]["Endpoint"]["Port"], 5432);
    let printed = aws
        .json(&["rds", "describe-db-clusters", "--db-cluster-identifier", "aurora"])
        .await;
    assert_eq!(
        printed["DBClusters"][0]["Endpoint"],
        "aurora.cluster-cabcdefghijk.ap-northeast-1.rds.amazonaws.com"
    );
    assert_eq!(printed["DBClusters"][0]["Port"], 5432);
}

#[tokio::test]
async fn list_tasks_and_describe_tasks_print_the_tasks() {
    let emulator = example().await;
    let aws = Aws::new(emulator.environment());
    let listed = aws
        .json(&[
            "ecs",
            "list-tasks",
            "--cluster",
            "main",
            "--service-name",
            "api",
            "--desired-status",
            "RUNNING",
        ])
        .await;
    let arn = "arn:aws:ecs:ap-northeast-1:123456789012:task/main/0123456789abcdef0123456789abcdef";
    assert_eq!(listed, json!({ "taskArns": [arn] }));
    let described = aws
        .json(&["ecs", "describe-tasks", "--cluster", "main", "--tasks", arn])
        .await;
    let task = &described["tasks"][0];
    assert_eq!(task["enableExecuteCommand"], true);
    assert_eq!(
        task["containers"][0]["managedAgents"][0]["name"],
        "ExecuteCommandAgent"
    );
    let talk = aws.failure(&["ecs", "list-tasks", "--cluster", "other"]).await;
    assert!(talk.contains("(ClusterNotFoundException)"), "{talk}");
}

#[tokio::test]
async fn get_caller_identity_prints_the_caller_over_tls_too() {
    let emulator = example().await;
    let expected = json!({
        "Account": "123456789012",
        "Arn": "arn:aws:iam::123456789012:user/emulator",
        "UserId": "AIDAEMULATOR0000000",
    });
    let aws = Aws::new(emulator.environment());
    assert_eq!(aws.json(&["sts", "get-caller-identity"]).await, expected);
    let ca_file = aws.home.path().join("ca.pem");
    fs::write(&ca_file, emulator.ca_pem()).expect("written");
    let aws = Aws {
        environment: emulator.tls_environment(&ca_file),
        ..aws
    };
    assert_eq!(aws.json(&["sts", "get-caller-identity"]).await, expected);
}

#[tokio::test]
async fn errors_are_understood() {
    let emulator = example().await;
    let mut environment = emulator.environment();
    let aws = Aws::new(environment.clone());
    let talk = aws
        .failure(&[
            "rds",
            "describe-db-instances",
            "--db-instance-identifier",
            "no-db",
        ])
        .await;
    assert!(
        talk.contains("(DBInstanceNotFound)") && talk.contains("DBInstance no-db not found."),
        "{talk}"
    );
    let talk = aws
        .failure(&["ec2", "describe-instances", "--instance-ids", "i-0dead"])
        .await;
    assert!(talk.contains("(InvalidInstanceID.NotFound)"), "{talk}");
    let talk = aws
        .failure(&[
            "ssm",
            "start-session",
            "--target",
            "i-0dead",
            "--document-name",
            DOCUMENT,
        ])
        .await;
    assert!(
        talk.contains("(TargetNotConnected)") && talk.contains("i-0dead is not connected."),
        "{talk}"
    );
    environment.insert("AWS_SECRET_ACCESS_KEY", "wrong".to_owned());
    let aws = Aws { environment, ..aws };
    let talk = aws.failure(&["ssm", "describe-instance-information"]).await;
    assert!(talk.contains("(InvalidSignatureException)"), "{talk}");
}

const DOCUMENT: &str = "AWS-StartPortForwardingSession";

/// Stands where the official plugin would, and prints what the CLI hands it.
const PLUGIN: &str = r#"#!/bin/sh
if [ "$1" = --version ]; then echo 1.2.835.0; exit; fi
case "$1" in "{"*) echo "$1" ;; *) eval "echo \"\$$1\"" ;; esac
"#;

#[tokio::test]
async fn start_session_hands_the_plugin_a_session_that_terminate_session_ends() {
    let emulator = example().await;
    let aws = Aws::new(emulator.environment());
    let plugin = aws.home.path().join("session-manager-plugin");
    fs::write(&plugin, PLUGIN).expect("written");
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).expect("made executable");
    let start = [
        "ssm",
        "start-session",
        "--target",
        BASTION,
        "--document-name",
        DOCUMENT,
    ];
    let parameters = ["--parameters", "portNumber=22,localPortNumber=9999"];
    let handed = aws.json(&[&start[..], &parameters[..]].concat()).await;
    let open = emulator.sessions();
    assert_eq!(open.len(), 1);
    assert_eq!(handed["SessionId"], open[0].id.as_str());
    assert_eq!(open[0].port, 22);
    let url = handed["StreamUrl"].as_str().expect("a URL");
    assert!(
        url.starts_with(&format!(
            "ws://{}/v1/data-channel/{}?",
            emulator.address(),
            open[0].id
        )),
        "{url}"
    );

    let active = aws.json(&["ssm", "describe-sessions", "--state", "Active"]).await;
    assert_eq!(active["Sessions"][0]["Target"], BASTION);
    aws.json(&["ssm", "terminate-session", "--session-id", &open[0].id])
        .await;
    assert_eq!(emulator.sessions(), []);
}

/// The CLI with an environment and a home of its own.
struct Aws {
    environment: BTreeMap<&'static str, String>,
    home: tempfile::TempDir,
}

impl Aws {
    fn new(environment: BTreeMap<&'static str, String>) -> Self {
        Self {
            environment,
            home: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments).await;
        let talk = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "aws {arguments:?}: {talk}");
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("aws {arguments:?}: {error} in {:?}", output.stdout))
    }

    async fn failure(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(!output.status.success(), "aws {arguments:?} succeeded");
        String::from_utf8(output.stderr).expect("text")
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let programs = CLI.as_ref().unwrap_or_else(|missing| panic!("{missing}"));
        let path = std::env::join_paths([
            self.home.path(),
            programs.as_path(),
            Path::new("/usr/bin"),
            Path::new("/bin"),
        ])
        .expect("no path has a colon");
        tokio::process::Command::new(programs.join("aws"))
            .args(arguments)
            .env_clear()
            .envs(&self.environment)
            .env("PATH", path)
            .env("HOME", self.home.path())
            .env("AWS_DEFAULT_OUTPUT", "json")
            .env("AWS_PAGER", "")
            .output()
            .await
            .expect("the CLI runs")
    }
}

async fn example() -> Emulator {
    let config = Config::parse(include_str!("../example.toml")).expect("a good configuration");
    Emulator::start(config).await.expect("the emulator starts")
}

/// Makes the virtual environment, unless a former run has; returns its folder of programs.
fn install() -> Result<PathBuf, String> {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = temporary.join("official-cli");
    let marker = folder.join(PACKAGE);
    // Test programs of several checkouts can share the folder.
    let lock = File::create(temporary.join("official-cli.lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    if !marker.exists() {
        let _ = fs::remove_dir_all(&folder);
        let pip = folder.join("bin/pip");
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        run(Command::new(pip).args(["install", "--quiet", "--disable-pip-version-check", PACKAGE]))?;
        File::create(marker).map_err(|error| error.to_string())?;
    }
    Ok(folder.join("bin"))
}

fn run(command: &mut Command) -> Result<(), String> {
    let advice = "this test needs Python with venv and pip, and PyPI: apt-get install python3 python3-venv";
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}\n{advice}"))?;
    if output.status.success() {
        return Ok(());
    }
    let (out, talk) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    Err(format!("{command:?} failed:\n{out}{talk}\n{advice}"))
}
