//! `tunnelctl stdio`: nothing but the connection's bytes on standard output, and one error at most on the other.

use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tonic::Status;
use tunneld_proto::v1::{Failure, Reason};

use crate::fake::{Fake, FarEnd, LIMIT, Ran, command, instance, not_found, run};

/// Starts the program with a pipe to its standard input.
fn start(fake: &Fake, arguments: &[&str]) -> Child {
    let mut command = fake.command(arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Sends this and the end of it, and waits for the program's.
async fn send(mut child: Child, bytes: &[u8]) -> Ran {
    let mut input = child.stdin.take().unwrap();
    let sending = async {
        // A program that fails takes nothing.
        let _ = input.write_all(bytes).await;
        drop(input);
    };
    let (output, ()) = tokio::join!(timeout(LIMIT, child.wait_with_output()), sending);
    output.expect("the program hangs").unwrap().into()
}

fn refused() -> Failure {
    Failure {
        reason: Reason::TargetRefused.into(),
        chain: vec![
            "cannot connect to port 22".to_owned(),
            "Unable to connect to target".to_owned(),
        ],
        hints: vec!["look at its security group".to_owned()],
    }
}

#[tokio::test]
async fn bytes_pass_both_ways_until_both_ends_are_closed() {
    let fake = Fake::serving(Vec::new());
    let many = "0123456789abcdef".repeat(1 << 16);
    let ran = send(start(&fake, &["stdio", "web-1", "22"]), many.as_bytes()).await;
    ran.is(0, &many, "");
    assert_eq!(fake.script.calls(), ["version", "open / ec2:web-1:22 "]);
}

#[tokio::test]
async fn account_and_route_are_passed_on() {
    let fake = Fake::serving(Vec::new());
    let arguments = [
        "stdio",
        "--profile",
        "prod",
        "--region",
        "eu-central-1",
        "--route",
        "{ ssm = \"bastion\" }",
        "tag:Role=web",
        "2222",
    ];
    send(start(&fake, &arguments), b"").await.is(0, "", "");
    assert_eq!(
        fake.script.calls(),
        [
            "version",
            "open prod/eu-central-1 ec2:tag:Role=web:2222 { ssm = \"bastion\" }"
        ]
    );
}

#[tokio::test]
async fn a_reader_meets_the_far_end_s_end_while_it_may_still_send() {
    let fake = Fake::serving(Vec::new());
    fake.script.connects_to(FarEnd::Leaves);
    let mut child = start(&fake, &["stdio", "web-1", "22"]);
    let mut received = Vec::new();
    let mut output = child.stdout.take().unwrap();
    timeout(LIMIT, output.read_to_end(&mut received))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(received, b"");
    assert!(child.try_wait().unwrap().is_none(), "this side has not ended yet");
    send(child, b"more").await.is(0, "", "");
}

#[tokio::test]
async fn a_far_end_that_is_not_reached_is_one_error_with_our_name() {
    let fake = Fake::serving(Vec::new());
    fake.script.connects_to(FarEnd::Unreachable(refused()));
    send(start(&fake, &["stdio", "web-1", "22"]), b"hello").await.is(
        1,
        "",
        "tunnelctl: cannot connect to port 22\n  because Unable to connect to target\n  look at its security group\n",
    );
}

#[tokio::test]
async fn a_connection_that_is_lost_is_no_clean_end() {
    let fake = Fake::serving(Vec::new());
    fake.script.connects_to(FarEnd::Lost(refused()));
    let ran = send(start(&fake, &["stdio", "web-1", "22"]), b"").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), "half of"));
    assert!(
        ran.stderr.starts_with("tunnelctl: cannot connect"),
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn what_a_person_must_do_has_its_exit_code() {
    let fake = Fake::serving(Vec::new());
    for (reason, code) in [
        (Reason::Login, 4),
        (Reason::Denied, 4),
        (Reason::Invalid, 2),
        (Reason::NotFound, 1),
    ] {
        fake.script.connects_to(FarEnd::Unreachable(Failure {
            reason: reason.into(),
            ..not_found()
        }));
        let ran = send(start(&fake, &["stdio", "web-1", "22"]), b"").await;
        assert_eq!(ran.code, Some(code), "{reason:?}");
    }
}

#[tokio::test]
async fn a_key_is_pushed_once_the_far_end_is_reached_and_before_a_byte_passes() {
    let fake = Fake::serving(Vec::new());
    fake.script.finds(instance());
    let key = fake.folder().join("id.pub");
    std::fs::write(&key, "ssh-ed25519 AAAA me\n").unwrap();
    let key = key.to_str().unwrap();
    let arguments = ["stdio", "--as", "admin", "--push-key", key, "web-1", "22"];
    send(start(&fake, &arguments), b"hello").await.is(0, "hello", "");
    assert_eq!(
        fake.script.calls(),
        [
            "version",
            "resolve / web-1 22 ",
            "open / ec2:i-0123456789abcdef0:22 eice",
            "push / i-0123456789abcdef0 admin ssh-ed25519 AAAA me"
        ],
        "the key is for the instance that was found"
    );
    fake.script.accepts_no_key(refused());
    let ran = send(start(&fake, &arguments), b"hello").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    let missing = ["stdio", "--as", "admin", "--push-key", "/nowhere", "web-1", "22"];
    let ran = send(start(&fake, &missing), b"").await;
    assert!(
        ran.stderr
            .starts_with("tunnelctl: cannot read the public key `/nowhere`"),
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn a_reader_that_leaves_ends_it_quietly() {
    let fake = Fake::serving(Vec::new());
    let mut child = start(&fake, &["stdio", "web-1", "22"]);
    drop(child.stdout.take());
    send(child, b"hello").await.is(0, "", "");
}

#[tokio::test]
async fn without_a_daemon_the_error_has_our_name_too() {
    let home = tempfile::tempdir().unwrap();
    let mut anybody: Command = command(env!("CARGO_BIN_EXE_tunnelctl").as_ref(), home.path());
    anybody.args(["stdio", "web-1", "22"]);
    let ran = run(anybody).await;
    assert_eq!(ran.code, Some(3));
    assert!(
        ran.stderr.starts_with("tunnelctl: tunneld is not running\n"),
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn another_version_of_the_daemon_is_not_talked_about_unless_it_is_the_trouble() {
    let fake = Fake::serving(Vec::new());
    fake.script.is_version("0.0.9");
    send(start(&fake, &["stdio", "web-1", "22"]), b"hello")
        .await
        .is(0, "hello", "");
    fake.script
        .refuses("open", Status::unimplemented("no such method"));
    let ran = send(start(&fake, &["stdio", "web-1", "22"]), b"").await;
    assert!(
        ran.stderr.contains("is older than this tunnelctl"),
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn wrong_usage_asks_nobody() {
    let fake = Fake::serving(Vec::new());
    for arguments in [
        &["stdio"][..],
        &["stdio", "web-1"],
        &["stdio", "web-1", "0"],
        &["stdio", "web-1", "65536"],
        &["stdio", "web-1", "ssh"],
        &["stdio", "--as", "admin", "web-1", "22"],
        &["stdio", "--push-key", "x.pub", "web-1", "22"],
    ] {
        assert_eq!(fake.run(arguments).await.code, Some(2), "{arguments:?}");
    }
    assert_eq!(fake.script.calls(), Vec::<String>::new());
}
