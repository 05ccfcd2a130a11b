//! `tunnelctl status`: the table, the details, the document.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tokio::process::Command;
use tokio::time::timeout;
use tunneld_proto::v1::{Failure, Traffic, Transition, Tunnel};

use crate::fake::{Fake, LIMIT, ago, at, blocked, down, idle, link, tunnel, up, waiting};

fn busy() -> Tunnel {
    Tunnel {
        traffic: Some(Traffic {
            connections: 3,
            connections_total: 12,
            bytes_in: 1_200_000_000,
            bytes_out: 4_100_000,
            ..Traffic::default()
        }),
        link: Some(link()),
        history: vec![Transition {
            at: Some(at("2025-11-24T03:12:40Z")),
            state: "up".to_owned(),
            reason: String::new(),
        }],
        ..tunnel("prod-db", 15432, up())
    }
}

fn house() -> Fake {
    Fake::serving(vec![
        busy(),
        tunnel("billing", 13306, idle()),
        tunnel("stage-db", 15433, blocked()),
        tunnel("reports", 15440, waiting(2)),
        tunnel("legacy", 13307, down()),
    ])
}

#[tokio::test]
async fn the_table_is_read_at_a_glance() {
    let ran = house().run(&["status"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(ran.stdout, @r"
    NAME       STATE     LOCAL             TARGET         ROUTE             CONNS   ↓ / ↑             SINCE
    prod-db    up        127.0.0.1:15432   rds:prod-db    ssm via bastion   3       1.2 GB / 4.1 MB   2 h
    billing    idle      127.0.0.1:13306   rds:billing    ssm via bastion   –       –                 –
    stage-db   blocked   127.0.0.1:15433   rds:stage-db   ssm via bastion   0       –                 2 h
               the login of profile stage expired: ExpiredTokenException
               aws sso login --profile stage
    reports    waiting   127.0.0.1:15440   rds:reports    ssm via bastion   0       –                 2 h
               cannot start a session at `bastion`: connection refused
               retrying in 0 s
    legacy     down      127.0.0.1:13307   rds:legacy     ssm via bastion   –       –                 –
    ");
}

#[tokio::test]
async fn a_connection_that_the_target_refused_shows_though_the_tunnel_is_up() {
    let chain = vec![
        "cannot open a connection".to_owned(),
        "prod-db.rds.example:5432 refused it".to_owned(),
    ];
    let failed = Tunnel {
        last_error: Some(Failure {
            chain,
            ..Failure::default()
        }),
        last_error_at: Some(ago(Duration::from_mins(2))),
        ..busy()
    };
    let fake = Fake::serving(vec![failed]);
    let line = "2 min ago: cannot open a connection: prod-db.rds.example:5432 refused it\n";
    assert!(fake.run(&["status"]).await.stdout.ends_with(line));
    assert!(
        fake.run(&["status", "prod-db"])
            .await
            .stdout
            .contains(&format!("\n  failed   {line}"))
    );
}

#[tokio::test]
async fn one_name_shows_the_details() {
    let ran = house().run(&["status", "prod-db"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(ran.stdout, @r"
    prod-db is up on 127.0.0.1:15432
      target   rds:prod-db, that is prod-db.rds.example:5432 (PostgreSQL)
      route    ssm via bastion, through bastion-a (i-0abc), 1 session, agent 3.3.1142
      now      3 connections, 1.2 GB down, 4.1 MB up, 12 connections in all
      since    2 h
      history  2025-11-24 03:12:40 up
    ");
}

#[tokio::test]
async fn several_names_and_globs_show_the_table_of_those() {
    let ran = house().run(&["status", "leg*", "billing"]).await;
    let names: Vec<_> = ran
        .stdout
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(names, ["NAME", "legacy", "billing"]);
}

#[tokio::test]
async fn thousands_of_tunnels_with_a_long_history_are_shown() {
    const TUNNELS: u16 = 2_000;
    let past = Transition {
        reason: "cannot start a session at `bastion`: connection refused".repeat(4),
        ..Transition::default()
    };
    let eventful = |number| Tunnel {
        history: vec![past.clone(); 16],
        ..tunnel(&format!("db-{number}"), number, idle())
    };
    let ran = Fake::serving((0..TUNNELS).map(eventful).collect())
        .run(&["status"])
        .await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(ran.stdout.lines().count(), 1 + usize::from(TUNNELS));
}

#[tokio::test]
async fn an_unknown_name_gives_code_1() {
    let ran = house().run(&["status", "prod"]).await;
    ran.is(1, "", "there is no tunnel `prod`; did you mean `prod-db`?\n");
}

#[tokio::test]
async fn no_tunnels_is_an_answer_of_its_own() {
    let fake = Fake::serving(Vec::new());
    let talk = "no tunnels are configured in /home/dev/.config/tunneld/config.toml\n";
    fake.run(&["status"]).await.is(0, "", talk);
    fake.run(&["status", "--json"])
        .await
        .is(0, "{\"schema\":1,\"tunnels\":[]}\n", "");
}

#[tokio::test]
async fn json_is_one_document() {
    let chain = vec!["refused".to_owned()];
    let failed = Tunnel {
        since: Some(at("2025-11-24T07:00:00Z")),
        last_error: Some(Failure {
            reason: 8,
            chain,
            hints: Vec::new(),
        }),
        last_error_at: Some(at("2025-11-24T08:00:00Z")),
        ..busy()
    };
    let ran = Fake::serving(vec![failed]).run(&["status", "--json"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(ran.stdout, @r#"{"schema":1,"tunnels":[{"name":"prod-db","state":"up","local":["127.0.0.1:15432"],"target":{"spec":"rds:prod-db","host":"prod-db.rds.example","port":5432,"engine":"postgres"},"route":"ssm via bastion","since":"2025-11-24T07:00:00Z","attempt":null,"retry_at":null,"cause":null,"traffic":{"connections":3,"connections_total":12,"connections_failed":0,"bytes_in":1200000000,"bytes_out":4100000,"held":0,"links_lost":0,"connections_expired":0},"last_error":{"at":"2025-11-24T08:00:00Z","reason":"target_refused","chain":["refused"],"hints":[]},"link":{"via":"bastion-a (i-0abc)","sessions":1,"agent_version":"3.3.1142","notes":[]},"history":[{"at":"2025-11-24T03:12:40Z","state":"up","reason":null}]}]}"#);
}

#[tokio::test]
async fn a_reader_that_leaves_early_is_no_trouble() {
    let fake = house();
    // A closed pipe in place of standard output: its other end is gone before the program writes.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = fake
        .command(&["status"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

/// What the program writes to a terminal.
async fn on_a_terminal(mut command: Command) -> String {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let terminal = rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let status = timeout(LIMIT, command.stdout(Stdio::from(terminal)).status())
        .await
        .unwrap()
        .unwrap();
    assert!(status.success());
    drop(command);
    // The table fits into the terminal's buffer, so all of it is there; then the terminal is at its end.
    let mut text = Vec::new();
    let mut controller = File::from(controller);
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = controller.read(&mut buffer) {
        text.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn colour_is_for_terminals_that_want_it() {
    let fake = house();
    let mut command = fake.command(&["status"]);
    command.env("TERM", "xterm");
    let coloured = on_a_terminal(command).await;
    assert!(coloured.contains("\x1b[32mup\x1b[0m"), "{coloured:?}");
    assert!(coloured.contains("\x1b[31mblocked\x1b[0m"), "{coloured:?}");

    let mut command = fake.command(&["status"]);
    command.env("TERM", "xterm").env("NO_COLOR", "1");
    let plain = on_a_terminal(command).await;
    assert!(
        plain.contains("prod-db    up ") && !plain.contains('\x1b'),
        "{plain:?}"
    );
}
