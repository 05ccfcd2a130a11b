//! `tunnelctl restart-daemon`.

use tonic::Status;

use crate::fake::{Fake, blocked, connecting, down, idle, tunnel, up};

const OWN: &str = env!("CARGO_PKG_VERSION");

#[tokio::test]
async fn the_new_daemon_is_waited_for_and_so_are_the_tunnels_that_were_not_down() {
    let before = vec![
        tunnel("a", 15432, up()),
        tunnel("b", 15433, down()),
        tunnel("c", 15434, idle()),
    ];
    let fake = Fake::serving(before.clone());
    fake.script.is_version("0.0.9");
    fake.script.is_followed_by(OWN, before);
    let ran = fake.run(&["restart-daemon"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let [restarted, a, c] = ran.stdout.lines().collect::<Vec<_>>()[..] else {
        panic!("{}", ran.stdout)
    };
    assert_eq!(
        restarted,
        format!("tunneld {OWN} has taken the place of 0.0.9 (pid 4711)")
    );
    assert!(a.starts_with("a is up on 127.0.0.1:15432"), "{a}");
    assert!(c.starts_with("c listens on 127.0.0.1:15434"), "{c}");
    // Nothing is wanted up that was not: what comes back does so by itself.
    assert!(!fake.script.calls().iter().any(|call| call.starts_with("up")));
}

#[tokio::test]
async fn a_tunnel_that_does_not_come_back_is_told() {
    let fake = Fake::serving(vec![
        tunnel("a", 15432, up()),
        tunnel("b", 15433, up()),
        tunnel("c", 15434, up()),
        tunnel("d", 15435, up()),
    ]);
    fake.script.is_followed_by(
        OWN,
        vec![
            tunnel("a", 15432, down()),
            tunnel("b", 15433, blocked()),
            tunnel("d", 15435, connecting(1)),
        ],
    );
    let ran = fake.run(&["restart-daemon", "--timeout", "300ms"]).await;
    assert_eq!(ran.code, Some(5), "{}", ran.stderr);
    assert_eq!(ran.stdout, format!("tunneld {OWN} was restarted (pid 4711)\n"));
    for told in [
        "a did not come back\n",
        "b is blocked",
        "c did not come back\n",
        "d is still connecting",
    ] {
        assert!(ran.stderr.contains(told), "{told}: {}", ran.stderr);
    }
}

#[tokio::test]
async fn the_time_given_bounds_the_wait_for_the_new_daemon_too() {
    let fake = Fake::serving(Vec::new());
    let talk = "the old tunneld has not ended\n  its log says what it is doing\n";
    let arguments = ["restart-daemon", "--timeout", "300ms"];
    fake.run(&arguments).await.is(5, "", talk);
    fake.script.is_followed_by_nobody();
    let talk = "the old tunneld has ended, and no new one answers yet\n  its log says what it is doing\n";
    fake.run(&arguments).await.is(5, "", talk);
}

#[tokio::test]
async fn a_daemon_that_cannot_be_run_again_says_so_and_goes_on() {
    let fake = Fake::serving(Vec::new());
    let words = "cannot run `/opt/tunneld` anew: No such file or directory (os error 2)";
    fake.script.refuses("restart", Status::failed_precondition(words));
    fake.run(&["restart-daemon"])
        .await
        .is(1, "", &format!("{words}\n"));
}

#[tokio::test]
async fn json_names_both_daemons() {
    let fake = Fake::serving(Vec::new());
    fake.script.is_version("0.0.9");
    fake.script.is_followed_by(OWN, Vec::new());
    let ran = fake.run(&["restart-daemon", "--json"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let answer: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(answer["schema"], 1);
    assert_eq!(answer["before"]["version"], "0.0.9");
    assert_eq!(answer["after"]["version"], OWN);
}

#[tokio::test]
async fn a_daemon_that_is_too_old_to_restart_is_told_with_the_other_way() {
    let fake = Fake::serving(Vec::new());
    fake.script.is_version("0.0.9");
    fake.script
        .refuses("restart", Status::unimplemented("no such method"));
    let talk = "the running tunneld 0.0.9 cannot restart itself\n  tunnelctl daemon stop && tunnelctl daemon start\n";
    fake.run(&["restart-daemon"]).await.is(1, "", talk);
}
