//! `tunnelctl up` and `restart`.

use std::time::Duration;

use tonic::Status;
use tunneld_proto::v1::{Tunnel, WatchResponse};

use crate::fake::{Fake, ago, at, blocked, connecting, down, idle, link, tunnel, up, waiting};

const WAITING: &str = "\
prod-db is waiting: cannot start a session at `bastion`
  because connection refused
  retrying in 0 s
";

const BLOCKED: &str = "\
stage-db is blocked: the login of profile stage expired
  because ExpiredTokenException
  aws sso login --profile stage
";

fn three() -> Fake {
    let prod = Tunnel {
        link: Some(link()),
        ..tunnel("prod-db", 15432, down())
    };
    Fake::serving(vec![
        prod,
        tunnel("stage-db", 15433, down()),
        tunnel("stage-web", 18080, down()),
    ])
}

/// A line of success without the time it took.
#[track_caller]
fn without_pace(line: &str) -> String {
    let (start, rest) = line.split_once("  (").expect(line);
    let (pace, way) = rest.split_once(", ").expect(line);
    assert!(pace.ends_with(" s"), "{line}");
    format!("{start}  ({way}")
}

#[tokio::test]
async fn up_subscribes_first_then_acts_and_names_the_address() {
    let fake = three();
    fake.script.on_up("prod-db", [connecting(1), up()]);
    let ran = fake.run(&["up", "prod-db"]).await;
    assert_eq!(fake.script.calls(), ["version", "watch", "up prod-db"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(
        without_pace(&ran.stdout),
        "prod-db is up on 127.0.0.1:15432  (ssm via bastion, PostgreSQL)\n"
    );
}

#[tokio::test]
async fn a_tunnel_that_is_up_already_is_no_error() {
    let fake = Fake::serving(vec![tunnel("prod-db", 15432, up())]);
    let ran = fake.run(&["up", "prod-db"]).await;
    ran.is(
        0,
        "prod-db is up on 127.0.0.1:15432  (already for 2 h, ssm via bastion)\n",
        "",
    );
}

#[tokio::test]
async fn an_on_demand_tunnel_is_ready_when_it_listens() {
    let fake = three();
    fake.script.on_up("prod-db", [idle()]);
    let ran = fake.run(&["up", "prod-db"]).await;
    ran.is(
        0,
        "prod-db listens on 127.0.0.1:15432 and connects on first use\n",
        "",
    );
}

#[tokio::test]
async fn an_on_demand_tunnel_is_followed_to_its_link_with_connect() {
    let fake = Fake::serving(vec![tunnel("prod-db", 15432, idle())]);
    fake.script.on_up("prod-db", [connecting(1), waiting(1), up()]);
    let ran = fake.run(&["up", "prod-db", "--connect"]).await;
    assert_eq!(fake.script.calls(), ["version", "watch", "up --connect prod-db"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), WAITING));
    assert_eq!(
        without_pace(&ran.stdout),
        "prod-db is up on 127.0.0.1:15432  (ssm via bastion)\n"
    );
}

#[tokio::test]
async fn an_on_demand_tunnel_whose_attempt_nobody_waits_for_any_more_is_ready() {
    let fake = three();
    fake.script.on_up("prod-db", [connecting(1), idle()]);
    fake.run(&["up", "prod-db"]).await.is(
        0,
        "prod-db listens on 127.0.0.1:15432 and connects on first use\n",
        "",
    );
}

#[tokio::test]
async fn an_idle_tunnel_is_told_as_such_to_programs() {
    let fake = three();
    fake.script.on_up("prod-db", [idle()]);
    let ran = fake.run(&["up", "prod-db", "--json"]).await;
    let start = r#"{"schema":1,"name":"prod-db","state":"idle","local":["127.0.0.1:15432"],"#;
    assert!(ran.code == Some(0) && ran.stdout.starts_with(start), "{ran:?}");
}

#[tokio::test]
async fn globs_and_names_are_asked_for_together() {
    let fake = three();
    for name in ["prod-db", "stage-db", "stage-web"] {
        fake.script.on_up(name, [up()]);
    }
    let ran = fake.run(&["up", "stage-*", "prod-db", "stage-db"]).await;
    assert_eq!(
        fake.script.calls().last().unwrap(),
        "up stage-db stage-web prod-db"
    );
    assert_eq!((ran.code, ran.stdout.lines().count()), (Some(0), 3));
}

#[tokio::test]
async fn all_means_every_tunnel() {
    let fake = three();
    for name in ["prod-db", "stage-db", "stage-web"] {
        fake.script.on_up(name, [up()]);
    }
    assert_eq!(fake.run(&["up", "--all"]).await.code, Some(0));
    assert_eq!(
        fake.script.calls().last().unwrap(),
        "up prod-db stage-db stage-web"
    );
}

#[tokio::test]
async fn all_of_nothing_is_nothing_to_do() {
    Fake::serving(Vec::new())
        .run(&["up", "--all"])
        .await
        .is(0, "", "no tunnels are configured\n");
}

#[tokio::test]
async fn the_cause_of_waiting_is_told_once_and_the_waiting_goes_on() {
    let fake = three();
    fake.script.on_up(
        "prod-db",
        [connecting(1), waiting(1), connecting(2), waiting(2), up()],
    );
    let ran = fake.run(&["up", "prod-db"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), WAITING));
    assert!(ran.stdout.starts_with("prod-db is up on 127.0.0.1:15432 "));
}

#[tokio::test]
async fn a_blocked_tunnel_is_reported_with_cause_and_hint_and_the_others_come_up() {
    let fake = three();
    fake.script.on_up("stage-db", [connecting(1), blocked()]);
    fake.script.on_up("prod-db", [connecting(1), up()]);
    let ran = fake.run(&["up", "stage-db", "prod-db"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(4), BLOCKED));
    assert!(ran.stdout.starts_with("prod-db is up on 127.0.0.1:15432 "));
}

#[tokio::test]
async fn a_tunnel_that_is_still_waiting_when_the_time_has_passed_gives_code_5() {
    let fake = three();
    fake.script.on_up("prod-db", [connecting(1), waiting(1)]);
    let ran = fake.run(&["up", "prod-db", "--timeout", "1s"]).await;
    let late = "\
prod-db is still waiting after 1.0 s
  because cannot start a session at `bastion`
  because connection refused
  tunnelctl status prod-db
";
    ran.is(5, "", &format!("{WAITING}{late}"));
}

#[tokio::test]
async fn the_highest_code_of_several_tunnels_wins() {
    let fake = three();
    fake.script.on_up("prod-db", [connecting(1)]);
    fake.script.on_up("stage-db", [blocked()]);
    let ran = fake.run(&["up", "prod-db", "stage-db", "--timeout", "1s"]).await;
    let late = "prod-db is still connecting after 1.0 s\n  tunnelctl status prod-db\n";
    ran.is(5, "", &format!("{BLOCKED}{late}"));
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_is_given_up_in_time() {
    let fake = three();
    fake.script.ignores("up");
    fake.run(&["up", "prod-db", "--timeout", "1s"])
        .await
        .is(5, "", "tunneld did not answer within 1.0 s\n");
}

#[tokio::test]
async fn without_waiting_the_present_state_is_the_answer() {
    let fake = three();
    fake.script.on_up("prod-db", [connecting(1)]);
    fake.script.on_up("stage-db", [blocked()]);
    let ran = fake.run(&["up", "prod-db", "stage-db", "--no-wait"]).await;
    ran.is(4, "prod-db is connecting\n", BLOCKED);
}

#[tokio::test]
async fn what_the_daemon_published_before_its_answer_decides_nothing() {
    let fake = three();
    fake.script.on_up("prod-db", [connecting(1)]);
    let prod = fake.script.tunnel("prod-db");
    for (generation, state) in [(9, blocked()), (10, down()), (12, up())] {
        let tunnels = vec![Tunnel {
            generation,
            state: Some(state),
            ..prod.clone()
        }];
        fake.script.then(
            "prod-db",
            WatchResponse {
                tunnels,
                removed: Vec::new(),
            },
        );
    }
    let ran = fake.run(&["up", "prod-db"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn a_tunnel_that_somebody_takes_down_or_removes_fails() {
    let fake = three();
    fake.script.on_up("prod-db", [connecting(1), down()]);
    fake.script.on_up("stage-db", [connecting(1)]);
    let removed = WatchResponse {
        tunnels: Vec::new(),
        removed: vec!["stage-db".to_owned()],
    };
    fake.script.then("stage-db", removed);
    let talk = "prod-db was taken down meanwhile\nstage-db was removed from the configuration\n";
    fake.run(&["up", "prod-db", "stage-db"]).await.is(1, "", talk);
}

#[tokio::test]
async fn an_unknown_name_is_answered_with_near_ones_and_nothing_is_asked_for() {
    let fake = three();
    let ran = fake.run(&["up", "prod-db", "stage-bd", "x*"]).await;
    let talk =
        "there is no tunnel `stage-bd`; did you mean `stage-db` or `stage-web`?\nno tunnel matches `x*`\n";
    ran.is(1, "", talk);
    assert_eq!(fake.script.calls(), ["version", "watch"]);
}

#[tokio::test]
async fn the_daemons_refusals_are_passed_on() {
    let fake = three();
    let problems = "config.toml:14: unknown key `rout`\n  use: route";
    fake.script.refuses("up", Status::failed_precondition(problems));
    fake.run(&["up", "prod-db"])
        .await
        .is(1, "", &format!("{problems}\n"));

    fake.script
        .refuses("up", Status::not_found("there is no tunnel `prod-db`"));
    fake.run(&["up", "prod-db"])
        .await
        .is(1, "", "there is no tunnel `prod-db`\n");

    let reloaded = "`prod-db` was changed by a reload meanwhile";
    fake.script.refuses("up", Status::aborted(reloaded));
    fake.run(&["up", "prod-db"])
        .await
        .is(1, "", &format!("{reloaded}\n"));

    fake.script.refuses("up", Status::internal("the board is gone"));
    fake.run(&["up", "prod-db"])
        .await
        .is(1, "", "tunneld refused\n  because the board is gone (Internal)\n");
}

#[tokio::test]
async fn a_daemon_that_stops_meanwhile_gives_code_3() {
    let fake = three();
    fake.script.on_up("prod-db", [connecting(1)]);
    fake.script.leaves_after_up();
    fake.run(&["up", "prod-db"])
        .await
        .is(3, "", "tunneld has stopped\n  tunnelctl daemon start\n");

    fake.script.refuses("up", Status::unavailable("draining"));
    fake.run(&["up", "prod-db"]).await.is(
        3,
        "",
        "tunneld is stopping\n  because draining\n  tunnelctl daemon start\n",
    );
}

#[tokio::test]
async fn a_broken_command_line_gives_code_2() {
    let fake = three();
    for arguments in [
        &["up"][..],
        &["up", "a", "--all"],
        &["up", "a", "--timeout", "90"],
        &["fly"],
        &["up", "[a"],
    ] {
        let ran = fake.run(arguments).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert_ne!(ran.stderr, "", "{arguments:?}");
    }
}

#[tokio::test]
async fn json_is_one_object_for_each_tunnel_that_settled() {
    let since = Some(at("2025-11-24T07:00:00.5Z"));
    let prod = Tunnel {
        link: Some(link()),
        since,
        ..tunnel("prod-db", 15432, down())
    };
    let stage = Tunnel {
        since,
        ..tunnel("stage-db", 15433, down())
    };
    let fake = Fake::serving(vec![prod, stage]);
    fake.script.on_up("prod-db", [up()]);
    fake.script.on_up("stage-db", [blocked()]);
    let ran = fake.run(&["up", "--all", "--json"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(4), BLOCKED));
    insta::assert_snapshot!(ran.stdout, @r#"
    {"schema":1,"name":"prod-db","state":"up","local":["127.0.0.1:15432"],"target":{"spec":"rds:prod-db","host":"prod-db.rds.example","port":5432,"engine":"postgres"},"route":"ssm via bastion","since":"2025-11-24T07:00:00.5Z","attempt":null,"retry_at":null,"cause":null,"traffic":{"connections":0,"connections_total":0,"connections_failed":0,"bytes_in":0,"bytes_out":0,"held":0,"links_lost":0,"connections_expired":0,"connections_refused":0,"connections_unknown":0},"last_error":null,"link":{"via":"bastion-a (i-0abc)","sessions":1,"agent_version":"3.3.1142","notes":[]},"history":[]}
    {"schema":1,"name":"stage-db","state":"blocked","local":["127.0.0.1:15433"],"target":{"spec":"rds:stage-db","host":null,"port":null,"engine":null},"route":"ssm via bastion","since":"2025-11-24T07:00:00.5Z","attempt":null,"retry_at":null,"cause":{"reason":"login","chain":["the login of profile stage expired","ExpiredTokenException"],"hints":["aws sso login --profile stage"]},"traffic":{"connections":0,"connections_total":0,"connections_failed":0,"bytes_in":0,"bytes_out":0,"held":0,"links_lost":0,"connections_expired":0,"connections_refused":0,"connections_unknown":0},"last_error":null,"link":null,"history":[]}
    "#);
}

#[tokio::test]
async fn json_of_a_tunnel_that_timed_out_says_how_far_it_came() {
    let fake = three();
    fake.script.on_up("prod-db", [waiting(3)]);
    let ran = fake.run(&["up", "prod-db", "--json", "--timeout", "1s"]).await;
    assert_eq!(ran.code, Some(5));
    let start = r#"{"schema":1,"name":"prod-db","state":"waiting","#;
    assert!(
        ran.stdout.starts_with(start) && ran.stdout.lines().count() == 1,
        "{}",
        ran.stdout
    );
    let retry = r#""attempt":3,"retry_at":"2025-11-24T09:00:08Z","cause":{"reason":"unreachable","#;
    assert!(ran.stdout.contains(retry), "{}", ran.stdout);
}

#[tokio::test]
async fn restart_takes_down_then_brings_up_under_one_subscription() {
    let fake = Fake::serving(vec![tunnel("prod-db", 15432, up())]);
    let prod = fake.script.tunnel("prod-db");
    fake.script.on_up("prod-db", [connecting(1)]);
    let again = Tunnel {
        state: Some(up()),
        generation: 13,
        since: Some(ago(Duration::ZERO)),
        ..prod
    };
    fake.script.then(
        "prod-db",
        WatchResponse {
            tunnels: vec![again],
            removed: Vec::new(),
        },
    );
    let ran = fake.run(&["restart", "prod-db"]).await;
    assert_eq!(
        fake.script.calls(),
        ["version", "watch", "down prod-db", "up prod-db"]
    );
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(
        without_pace(&ran.stdout),
        "prod-db is up on 127.0.0.1:15432  (ssm via bastion)\n"
    );
}

#[tokio::test]
async fn restart_connects_on_demand_tunnels_too_with_connect() {
    let fake = Fake::serving(vec![tunnel("prod-db", 15432, idle())]);
    fake.script.on_up("prod-db", [up()]);
    assert_eq!(fake.run(&["restart", "--connect", "prod-db"]).await.code, Some(0));
    assert_eq!(
        fake.script.calls(),
        ["version", "watch", "down prod-db", "up --connect prod-db"]
    );
}

#[tokio::test]
async fn restart_of_all_leaves_down_what_is_down() {
    let fake = Fake::serving(vec![
        tunnel("prod-db", 15432, up()),
        tunnel("stage-db", 15433, down()),
    ]);
    fake.script.on_up("prod-db", [up()]);
    assert_eq!(fake.run(&["restart", "--all"]).await.code, Some(0));
    assert_eq!(
        fake.script.calls(),
        ["version", "watch", "down prod-db", "up prod-db"]
    );

    let fake = three();
    fake.run(&["restart", "--all"])
        .await
        .is(0, "", "every tunnel is down, and stays so\n");
}
