//! `tunnelctl down`.

use tonic::Status;

use crate::fake::{Fake, down, tunnel, up};

#[tokio::test]
async fn down_answers_for_each_tunnel_also_for_one_that_was_down() {
    let fake = Fake::serving(vec![
        tunnel("prod-db", 15432, up()),
        tunnel("stage-db", 15433, down()),
    ]);
    fake.run(&["down", "*-db"])
        .await
        .is(0, "prod-db is down\nstage-db is down\n", "");
    assert_eq!(fake.script.calls(), ["version", "list", "down prod-db stage-db"]);
}

#[tokio::test]
async fn down_without_names_wants_all_spelled_out() {
    let fake = Fake::serving(vec![tunnel("prod-db", 15432, up())]);
    assert_eq!(fake.run(&["down"]).await.code, Some(2));
    fake.run(&["down", "--all"]).await.is(0, "prod-db is down\n", "");
}

#[tokio::test]
async fn json_is_one_object_for_each_tunnel() {
    let fake = Fake::serving(vec![tunnel("prod-db", 15432, up())]);
    let ran = fake.run(&["--json", "down", "prod-db"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(
        ran.stdout
            .starts_with(r#"{"schema":1,"name":"prod-db","state":"down","#),
        "{}",
        ran.stdout
    );
}

#[tokio::test]
async fn an_unknown_name_takes_nothing_down() {
    let fake = Fake::serving(vec![tunnel("prod-db", 15432, up())]);
    let ran = fake.run(&["down", "prod-db", "zzz"]).await;
    ran.is(1, "", "there is no tunnel `zzz`\n  configured: prod-db\n");
    assert_eq!(fake.script.calls(), ["version", "list"]);
}

#[tokio::test]
async fn a_daemon_that_is_stopping_gives_code_3() {
    let fake = Fake::serving(vec![tunnel("prod-db", 15432, up())]);
    fake.script.refuses("down", Status::unavailable("draining"));
    fake.run(&["down", "prod-db"]).await.is(
        3,
        "",
        "tunneld is stopping\n  because draining\n  tunnelctl daemon start\n",
    );
}
