//! `tunnelctl logs`.

use tunneld_proto::v1::{LogLevel, LogLine, LogsResponse};

use crate::fake::{Fake, at, down, tunnel, up};
use crate::running::Running;

fn two() -> Fake {
    Fake::serving(vec![
        tunnel("prod-db", 15432, up()),
        tunnel("stage-db", 15433, down()),
    ])
}

fn line(level: LogLevel, tunnel: &str, connection: u64, message: &str) -> LogLine {
    LogLine {
        at: Some(at("2025-11-24T07:00:00Z")),
        level: level.into(),
        tunnel: tunnel.to_owned(),
        connection,
        message: message.to_owned(),
        source: "tunneld::tunnel".to_owned(),
    }
}

fn response(missed: u64, lines: Vec<LogLine>) -> LogsResponse {
    LogsResponse { lines, missed }
}

#[tokio::test]
async fn the_latest_lines_are_printed_and_that_is_all() {
    let fake = two();
    fake.script.logged(vec![
        response(
            0,
            vec![
                line(LogLevel::Info, "", 0, "configuration adopted added=2"),
                line(LogLevel::Info, "prod-db", 0, "up"),
            ],
        ),
        response(
            0,
            vec![line(LogLevel::Warn, "prod-db", 7, "slow\x1b[31m\nreader")],
        ),
    ]);
    let ran = fake.run(&["logs"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(ran.stdout, @r"
    2025-11-24 07:00:00 info  tunneld: configuration adopted added=2
    2025-11-24 07:00:00 info  prod-db: up
    2025-11-24 07:00:00 warn  prod-db #7: slow [31m reader
    ");
    assert_eq!(fake.script.calls(), ["version", "logs -n 100"]);
}

#[tokio::test]
async fn names_and_globs_are_asked_for_by_name() {
    let fake = two();
    fake.run(&["logs", "stage-*", "prod-db", "-n", "5"])
        .await
        .is(0, "", "");
    assert_eq!(
        fake.script.calls(),
        ["version", "list", "logs -n 5 stage-db prod-db"]
    );
    fake.run(&["logs", "prod"])
        .await
        .is(1, "", "there is no tunnel `prod`; did you mean `prod-db`?\n");
}

#[tokio::test]
async fn whoever_follows_sees_each_line_and_hears_of_those_that_were_missed() {
    let fake = two();
    let up = line(LogLevel::Info, "prod-db", 0, "up");
    fake.script.logged(vec![response(0, vec![up])]);
    let mut following = Running::start(&fake, &["logs", "-f", "prod-db"]);
    assert_eq!(following.line().await, "2025-11-24 07:00:00 info  prod-db: up");
    let blocked = line(LogLevel::Error, "prod-db", 0, "blocked: a login");
    fake.script.log(&response(12, vec![blocked]));
    assert_eq!(
        following.line().await,
        "2025-11-24 07:00:00 error prod-db: blocked: a login"
    );
    fake.script.end_logs();
    let missed = "12 lines missed: they came faster than they were read\n";
    following.end().await.is(
        3,
        "",
        &format!("{missed}tunneld has stopped\n  tunnelctl daemon start\n"),
    );
}

#[tokio::test]
async fn json_is_one_object_for_each_line() {
    let fake = two();
    let lines = vec![
        line(LogLevel::Info, "", 0, "stopping"),
        line(LogLevel::Info, "prod-db", 7, "connection ended: client closed"),
    ];
    fake.script.logged(vec![response(3, lines)]);
    let ran = fake.run(&["logs", "--json"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(ran.stdout, @r#"
    {"schema":1,"missed":3}
    {"schema":1,"at":"2025-11-24T07:00:00Z","level":"info","tunnel":null,"connection":null,"message":"stopping","source":"tunneld::tunnel"}
    {"schema":1,"at":"2025-11-24T07:00:00Z","level":"info","tunnel":"prod-db","connection":7,"message":"connection ended: client closed","source":"tunneld::tunnel"}
    "#);
}

#[tokio::test]
async fn an_older_daemon_is_named_as_the_reason() {
    let fake = two();
    fake.script
        .refuses("logs", tonic::Status::unimplemented("no method Logs"));
    let ran = fake.run(&["logs"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr.contains("is older than this tunnelctl"),
        "{}",
        ran.stderr
    );
}
