//! The program: what it prints, and how it ends.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn it_prints_lines_for_a_shell_serves_and_stops_on_sigterm() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ca_file = folder.path().join("ca.pem");
    let mut child = start(&["--ca-file", ca_file.to_str().expect("text"), "--tls"]);
    let environment = environment(&mut child).await;
    assert_eq!(environment["AWS_REGION"], "ap-northeast-1");
    assert_eq!(environment["AWS_EC2_METADATA_DISABLED"], "true");
    assert_eq!(environment["AWS_CA_BUNDLE"], ca_file.to_str().expect("text"));
    assert!(
        std::fs::read_to_string(&ca_file)
            .expect("written")
            .starts_with("-----BEGIN CERTIFICATE-----")
    );
    let address = environment["AWS_ENDPOINT_URL"]
        .strip_prefix("https://")
        .expect("TLS was asked for")
        .to_owned();
    TcpStream::connect(address).await.expect("it serves");

    let id = child.id().expect("it runs").to_string();
    let kill = Command::new("sh")
        .args(["-c", "kill -TERM \"$0\"", &id])
        .status()
        .await
        .expect("sh runs");
    assert!(kill.success());
    let status = tokio::time::timeout(PATIENCE, child.wait())
        .await
        .expect("it ends")
        .expect("it can be waited for");
    assert_eq!(status.code(), Some(0));
    let mut talk = String::new();
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut talk)
        .await
        .expect("text");
    assert!(talk.contains("aws ssm start-session --target"), "{talk}");
}

#[tokio::test]
async fn without_tls_the_environment_names_the_plain_endpoint() {
    let mut child = start(&["--fault", "throttle-start-session*3"]);
    let environment = environment(&mut child).await;
    assert!(environment["AWS_ENDPOINT_URL"].starts_with("http://127.0.0.1:"));
    assert!(!environment.contains_key("AWS_CA_BUNDLE"));
}

#[tokio::test]
async fn faults_are_listed() {
    let output = Command::new(env!("CARGO_BIN_EXE_tunneld-emulator"))
        .arg("--list-faults")
        .output()
        .await
        .expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let known: Vec<&str> = tunneld_emulator::Faults::catalogue()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, known);
    assert!(names.contains(&"throttle-start-session"), "{text}");
}

#[tokio::test]
async fn faults_are_read_from_a_file_and_bad_ones_are_told() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/faults.toml");
    let mut child = start(&["--faults", example]);
    environment(&mut child).await;

    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("bad.toml");
    std::fs::write(&file, "[service]\nrecycle = \"hourly\"\n").expect("written");
    let child = start(&["--faults", file.to_str().expect("text")]);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .expect("it ends")
        .expect("it can be waited for");
    let talk = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1));
    assert!(talk.contains("line 2") && talk.contains("`hourly`"), "{talk}");
}

#[tokio::test]
async fn a_bad_configuration_is_told_and_fails() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("bad.toml");
    std::fs::write(&file, "[[instances]]\nid = \"i-1\"\ncolour = \"red\"\n").expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_tunneld-emulator"))
        .arg("--config")
        .arg(&file)
        .output()
        .await
        .expect("it runs");
    let talk = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1));
    assert!(talk.contains("line 3") && talk.contains("colour"), "{talk}");
    assert!(output.stdout.is_empty());
}

fn start(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tunneld-emulator"))
        .args(["--config", concat!(env!("CARGO_MANIFEST_DIR"), "/example.toml")])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts")
}

async fn environment(child: &mut Child) -> std::collections::BTreeMap<String, String> {
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut environment = std::collections::BTreeMap::new();
    loop {
        let line = tokio::time::timeout(PATIENCE, lines.next_line())
            .await
            .expect("it prints")
            .expect("text");
        let line = line.expect("the environment is complete before the end");
        let (name, value) = line
            .strip_prefix("export ")
            .and_then(|line| line.split_once('='))
            .expect("lines for a shell");
        let value = value
            .strip_prefix('\'')
            .and_then(|value| value.strip_suffix('\''))
            .expect("quoted");
        environment.insert(name.to_owned(), value.to_owned());
        // The names are in order, and this is the last of them.
        if name == "TUNNELD_ENDPOINT_URL_EICE" {
            return environment;
        }
    }
}
