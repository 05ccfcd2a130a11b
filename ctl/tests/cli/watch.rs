//! `tunnelctl watch`.

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;
use tunneld_proto::v1::{Traffic, Tunnel, WatchResponse};

use crate::fake::{Fake, LIMIT, at, blocked, down, tunnel, up};
use crate::running::Running;

fn fixed(name: &str, port: u16, state: tunneld_proto::v1::tunnel::State) -> Tunnel {
    Tunnel {
        since: Some(at("2025-11-24T07:00:00Z")),
        ..tunnel(name, port, state)
    }
}

fn two() -> Fake {
    Fake::serving(vec![
        fixed("prod-db", 15432, up()),
        fixed("stage-db", 15433, down()),
    ])
}

fn change(tunnel: Tunnel) -> WatchResponse {
    WatchResponse {
        tunnels: vec![tunnel],
        removed: Vec::new(),
    }
}

#[tokio::test]
async fn the_present_comes_first_then_each_change_and_traffic_is_none() {
    let fake = two();
    let mut watching = Running::start(&fake, &["watch"]);
    assert_eq!(
        watching.line().await,
        "2025-11-24 07:00:00 prod-db is up on 127.0.0.1:15432"
    );
    assert_eq!(watching.line().await, "2025-11-24 07:00:00 stage-db is down");

    let traffic = Some(Traffic {
        bytes_in: 7,
        ..Traffic::default()
    });
    fake.script.publish(&change(Tunnel {
        traffic,
        ..fixed("prod-db", 15432, up())
    }));
    fake.script.publish(&change(fixed("stage-db", 15433, blocked())));
    let blocked = "stage-db is blocked: the login of profile stage expired: ExpiredTokenException";
    assert_eq!(watching.line().await, format!("2025-11-24 07:00:00 {blocked}"));

    fake.script.publish(&WatchResponse {
        tunnels: Vec::new(),
        removed: vec!["stage-db".to_owned()],
    });
    let line = watching.line().await;
    assert!(
        line.ends_with(" stage-db was removed from the configuration"),
        "{line}"
    );

    fake.script.end_watches();
    watching
        .end()
        .await
        .is(3, "", "tunneld has stopped\n  tunnelctl daemon start\n");
}

#[tokio::test]
async fn a_glob_catches_tunnels_that_come_later_and_no_others() {
    let fake = two();
    let mut watching = Running::start(&fake, &["watch", "prod-*"]);
    assert!(watching.line().await.contains(" prod-db "));
    fake.script.publish(&change(fixed("stage-db", 15433, up())));
    fake.script.publish(&change(fixed("prod-web", 18080, up())));
    assert!(
        watching
            .line()
            .await
            .ends_with(" prod-web is up on 127.0.0.1:18080")
    );
}

#[tokio::test]
async fn json_is_one_object_for_each_change() {
    let fake = two();
    let mut watching = Running::start(&fake, &["watch", "--json", "stage-db"]);
    let start = r#"{"schema":1,"name":"stage-db","state":"down","#;
    let line = watching.line().await;
    assert!(line.starts_with(start), "{line}");
    fake.script.publish(&WatchResponse {
        tunnels: Vec::new(),
        removed: vec!["stage-db".to_owned()],
    });
    assert_eq!(
        watching.line().await,
        r#"{"schema":1,"name":"stage-db","state":"removed"}"#
    );
}

#[tokio::test]
async fn an_interrupt_ends_it_quietly() {
    let fake = two();
    let mut watching = Running::start(&fake, &["watch", "prod-db"]);
    watching.line().await;
    let pid = Pid::from_raw(watching.child.id().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    watching.end().await.is(0, "", "");
}

#[tokio::test]
async fn it_ends_when_its_reader_leaves_though_nothing_changes() {
    let fake = two();
    let mut watching = Running::start(&fake, &["watch"]);
    watching.line().await;
    let Running { child, lines } = watching;
    drop(lines);
    let output = timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[tokio::test]
async fn a_daemon_that_is_killed_gives_code_3() {
    let mut fake = two();
    let mut watching = Running::start(&fake, &["watch", "prod-db"]);
    watching.line().await;
    fake.kill().await;
    let ran = watching.end().await;
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(
        ran.stderr.ends_with("\n  tunnelctl daemon start\n"),
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn an_unknown_name_is_not_waited_for() {
    let ran = two().run(&["watch", "zzz"]).await;
    ran.is(
        1,
        "",
        "there is no tunnel `zzz`\n  configured: prod-db, stage-db\n",
    );
}
