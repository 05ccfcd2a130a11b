//! `tunnelctl rdp`: a local port, and a client for it. Here the client is a script.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tunneld_proto::v1::Failure;

use crate::fake::{FarEnd, LIMIT, not_found};
use crate::ssh::Stage;

/// A client that sends a line to where it is told to go, prints what comes back, and leaves.
const CLIENT: &str = r#"
    address=${1#/v:}; exec 3<>"/dev/tcp/${address%:*}/${address#*:}"
    echo hello >&3; read -r line <&3; echo "$line $2 $3"; exit 5
"#;

#[tokio::test]
async fn the_client_is_started_with_a_port_that_leads_to_the_instance() {
    let stage = Stage::new();
    stage.program("xfreerdp", CLIENT);
    stage.run(&["rdp", "win-1", "--", "/u:Administrator"]).await.is(
        5,
        "hello /cert:tofu /u:Administrator\n",
        "",
    );
    assert_eq!(
        stage.fake.script.calls(),
        [
            "version",
            "resolve / win-1 3389 ",
            "version",
            "open / ec2:i-0123456789abcdef0:3389 eice"
        ]
    );
}

#[tokio::test]
async fn the_newest_client_is_preferred() {
    let stage = Stage::new();
    stage.program("xfreerdp", "echo old");
    stage.program("xfreerdp3", "echo new");
    stage.run(&["rdp", "win-1"]).await.is(0, "new\n", "");
}

#[tokio::test]
async fn a_command_that_is_only_printed_names_a_port_that_works_until_it_is_interrupted() {
    let stage = Stage::new();
    stage.program("xfreerdp3", "echo no");
    let mut child = stage
        .command(&["rdp", "--print", "win-1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    timeout(LIMIT, output.read_line(&mut line))
        .await
        .unwrap()
        .unwrap();
    let address = line
        .split_whitespace()
        .nth(1)
        .unwrap()
        .strip_prefix("/v:")
        .unwrap();
    assert_eq!(line, format!("xfreerdp3 /v:{address} /cert:tofu\n"));
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"hello").await.unwrap();
    socket.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(LIMIT, socket.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, "hello");
    let interrupted = std::process::Command::new("kill")
        .args(["-s", "INT", &child.id().unwrap().to_string()])
        .status();
    assert!(interrupted.unwrap().success());
    let ended = timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    let talk = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(talk, format!("{address} leads to win-1 until Ctrl-C\n"));
}

#[tokio::test]
async fn a_connection_that_fails_is_told_of_and_reset() {
    let stage = Stage::new();
    stage.program(
        "xfreerdp3",
        r#"address=${1#/v:}; exec 3<>"/dev/tcp/${address%:*}/${address#*:}"; read -r line <&3 || echo ended"#,
    );
    stage.fake.script.connects_to(FarEnd::Unreachable(Failure {
        chain: vec!["cannot connect to port 3389".to_owned()],
        ..not_found()
    }));
    let ran = stage.run(&["rdp", "win-1"]).await;
    assert!(
        ran.stderr.contains("tunnelctl: cannot connect to port 3389\n"),
        "{}",
        ran.stderr
    );
    assert_eq!(ran.stdout, "ended\n");
}

#[tokio::test]
async fn a_port_that_is_taken_wants_a_person_to_act() {
    let stage = Stage::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let ran = stage.run(&["rdp", "--port", &port.to_string(), "win-1"]).await;
    assert_eq!(ran.code, Some(4));
    assert!(
        ran.stderr
            .starts_with(&format!("cannot listen on 127.0.0.1:{port}\n")),
        "{}",
        ran.stderr
    );
}
