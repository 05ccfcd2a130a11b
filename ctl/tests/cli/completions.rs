//! `tunnelctl completions`: the script is sourced by a real shell, which then completes.

use std::path::Path;

use tokio::process::Command;

use crate::fake::{Fake, Ran, command, run, tunnel, up};

fn two() -> Fake {
    Fake::serving(vec![
        tunnel("prod-db", 15432, up()),
        tunnel("stage-db", 15433, up()),
    ])
}

/// Has bash complete the last of `words`, and print what it would offer, sorted.
async fn completed(fake: &Fake, words: &[&str]) -> Ran {
    let script = r#"
        source <("$PROGRAM" completions bash)
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        COMP_TYPE=9
        complete -p tunnelctl >/dev/null || exit 9
        _clap_complete_tunnelctl tunnelctl "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}" | sort
    "#;
    let mut bash: Command = command(Path::new("bash"), fake.folder());
    bash.env("PROGRAM", env!("CARGO_BIN_EXE_tunnelctl"))
        .env("TUNNELD_SOCKET", fake.socket());
    bash.args(["--norc", "-c", script, "bash"]).args(words);
    run(bash).await
}

#[tokio::test]
async fn bash_completes_the_names_of_tunnels() {
    let fake = two();
    completed(&fake, &["tunnelctl", "up", "p"])
        .await
        .is(0, "prod-db\n", "");
    completed(&fake, &["tunnelctl", "status", "prod-db", "s"])
        .await
        .is(0, "stage-db\n", "");
    for command in ["logs", "events"] {
        completed(&fake, &["tunnelctl", command, "p"])
            .await
            .is(0, "prod-db\n", "");
    }
}

#[tokio::test]
async fn bash_completes_commands_too() {
    completed(&two(), &["tunnelctl", "re"])
        .await
        .is(0, "reload\nrestart\nrestart-daemon\n", "");
}

#[tokio::test]
async fn a_socket_typed_before_is_the_one_that_is_asked() {
    let fake = two();
    let other = Fake::serving(vec![tunnel("other", 1, up())]);
    let socket = other.socket();
    let words = ["tunnelctl", "--socket", socket.to_str().unwrap(), "up", ""];
    let ran = completed(&fake, &words).await;
    assert!(ran.stdout.lines().any(|line| line == "other"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("prod-db"), "{}", ran.stdout);
}

#[tokio::test]
async fn without_a_daemon_nothing_is_offered_and_nothing_said() {
    let mut fake = two();
    fake.kill().await;
    completed(&fake, &["tunnelctl", "up", "p"]).await.is(0, "\n", "");
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_holds_nobody_up() {
    let fake = two();
    fake.script.ignores("list");
    completed(&fake, &["tunnelctl", "up", "p"]).await.is(0, "\n", "");
}

#[tokio::test]
async fn every_shell_has_its_script_and_others_are_refused() {
    let fake = two();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = fake.run(&["completions", shell]).await;
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        assert!(ran.stdout.contains("tunnelctl"), "{shell}: {}", ran.stdout);
    }
    assert_eq!(fake.run(&["completions", "cmd"]).await.code, Some(2));
    assert_eq!(fake.script.calls(), Vec::<String>::new());
}
