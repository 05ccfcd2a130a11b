//! `tunnelctl events`.

use tunneld_proto::v1::{Transition, Tunnel, WatchResponse};

use crate::fake::{Fake, at, down, tunnel, up};
use crate::running::Running;

fn transition(number: u64, time: &str, state: &str, reason: &str) -> Transition {
    Transition {
        at: Some(at(&format!("2025-11-24T{time}Z"))),
        state: state.to_owned(),
        reason: reason.to_owned(),
        number,
        connections_lost: reason.starts_with("resumed").then_some(0),
    }
}

fn night() -> Vec<Transition> {
    vec![
        transition(1, "00:00:00", "connecting", ""),
        transition(2, "00:00:02", "up", ""),
        transition(3, "03:12:40", "waiting", "websocket closed 1000 Bye"),
        transition(4, "03:12:41", "up", "resumed, no connection lost"),
    ]
}

fn with(name: &str, history: Vec<Transition>) -> Tunnel {
    Tunnel {
        history,
        ..tunnel(name, 15432, up())
    }
}

fn house() -> Fake {
    let other = vec![transition(1, "00:00:01", "up", "")];
    let resting = tunnel("resting", 15434, down());
    Fake::serving(vec![with("prod-db", night()), with("stage-db", other), resting])
}

#[tokio::test]
async fn what_was_is_told_in_the_order_of_time() {
    let ran = house().run(&["events", "--no-follow"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(ran.stdout, @r"
    2025-11-24 00:00:00 prod-db connecting
    2025-11-24 00:00:01 stage-db up
    2025-11-24 00:00:02 prod-db up
    2025-11-24 03:12:40 prod-db lost: websocket closed 1000 Bye
    2025-11-24 03:12:41 prod-db resumed, no connection lost
    ");
}

#[tokio::test]
async fn a_clock_that_was_set_back_changes_no_tunnels_order() {
    let set_back = vec![
        transition(1, "00:00:05", "connecting", ""),
        transition(2, "00:00:01", "up", ""),
        transition(3, "00:00:07", "down", ""),
    ];
    let other = vec![transition(1, "00:00:06", "up", "")];
    let fake = Fake::serving(vec![with("stage-db", other), with("prod-db", set_back)]);
    let ran = fake.run(&["events", "--no-follow"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(ran.stdout, @r"
    2025-11-24 00:00:05 prod-db connecting
    2025-11-24 00:00:01 prod-db up
    2025-11-24 00:00:06 stage-db up
    2025-11-24 00:00:07 prod-db down
    ");
}

#[tokio::test]
async fn json_is_one_object_for_each_transition() {
    let ran = house().run(&["events", "--no-follow", "--json", "prod-db"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(ran.stdout, @r#"
    {"schema":1,"at":"2025-11-24T00:00:00Z","name":"prod-db","state":"connecting","reason":null,"connections_lost":null}
    {"schema":1,"at":"2025-11-24T00:00:02Z","name":"prod-db","state":"up","reason":null,"connections_lost":null}
    {"schema":1,"at":"2025-11-24T03:12:40Z","name":"prod-db","state":"waiting","reason":"websocket closed 1000 Bye","connections_lost":null}
    {"schema":1,"at":"2025-11-24T03:12:41Z","name":"prod-db","state":"up","reason":"resumed, no connection lost","connections_lost":0}
    "#);
}

#[tokio::test]
async fn states_that_were_skipped_between_two_looks_are_told_all_the_same() {
    let fake = house();
    let mut following = Running::start(&fake, &["events", "prod-db"]);
    for _ in night() {
        following.line().await;
    }
    let mut history = night();
    history.extend([
        transition(5, "04:00:00", "waiting", "the agent restarted"),
        transition(6, "04:00:01", "connecting", ""),
        transition(7, "04:00:02", "up", "connected again, 2 connections lost"),
    ]);
    let change = |history| WatchResponse {
        tunnels: vec![with("prod-db", history)],
        removed: Vec::new(),
    };
    fake.script.publish(&change(history.clone()));
    for words in [
        "04:00:00 prod-db lost: the agent restarted",
        "04:00:01 prod-db connecting",
        "04:00:02 prod-db connected again, 2 connections lost",
    ] {
        assert_eq!(following.line().await, format!("2025-11-24 {words}"));
    }
    // A history that has forgotten some.
    fake.script
        .publish(&change(vec![transition(10, "05:00:00", "down", "")]));
    assert_eq!(following.line().await, "2025-11-24 05:00:00 prod-db down");
    fake.script.publish(&WatchResponse {
        tunnels: Vec::new(),
        removed: vec!["prod-db".to_owned()],
    });
    let line = following.line().await;
    assert!(
        line.ends_with(" prod-db was removed from the configuration"),
        "{line}"
    );
    fake.script
        .publish(&change(vec![transition(1, "06:00:00", "up", "")]));
    assert_eq!(
        following.line().await,
        "2025-11-24 06:00:00 prod-db up",
        "its namesake is counted anew"
    );
    fake.script.end_watches();
    let missed = "2 transitions of prod-db missed: they came faster than they were read\n";
    following.end().await.is(
        3,
        "",
        &format!("{missed}tunneld has stopped\n  tunnelctl daemon start\n"),
    );
}

#[tokio::test]
async fn an_unknown_name_is_not_waited_for() {
    house().run(&["events", "zzz"]).await.is(
        1,
        "",
        "there is no tunnel `zzz`\n  configured: prod-db, stage-db, resting\n",
    );
}
