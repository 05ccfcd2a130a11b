//! `tunnelctl version`.

use std::path::Path;

use crate::fake::{Fake, command, run};

const OWN: &str = env!("CARGO_PKG_VERSION");

#[tokio::test]
async fn both_versions_are_printed() {
    let fake = Fake::serving(Vec::new());
    let answer = format!("tunnelctl {OWN}\ntunneld {OWN} (pid 4711, running for 2 h)\n");
    fake.run(&["version"]).await.is(0, &answer, "");
}

#[tokio::test]
async fn without_a_daemon_the_own_version_is_printed_and_the_code_says_the_rest() {
    let home = tempfile::tempdir().unwrap();
    for (arguments, answer) in [
        (&["version"][..], format!("tunnelctl {OWN}\n")),
        (
            &["version", "--json"],
            format!("{{\"schema\":1,\"tunnelctl\":\"{OWN}\",\"tunneld\":null}}\n"),
        ),
    ] {
        let mut command = command(Path::new(env!("CARGO_BIN_EXE_tunnelctl")), home.path());
        command.args(arguments);
        let ran = run(command).await;
        assert_eq!((ran.code, ran.stdout), (Some(3), answer));
        assert!(
            ran.stderr.starts_with("tunneld is not running\n"),
            "{}",
            ran.stderr
        );
    }
}

#[tokio::test]
async fn json_names_pid_configuration_and_socket() {
    let fake = Fake::serving(Vec::new());
    let ran = fake.run(&["version", "--json"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    let start =
        format!(r#"{{"schema":1,"tunnelctl":"{OWN}","tunneld":{{"version":"{OWN}","pid":4711,"started":""#);
    assert!(ran.stdout.starts_with(&start), "{}", ran.stdout);
    let end = format!(
        r#"Z","config":"/home/dev/.config/tunneld/config.toml","socket":"{}"}}}}"#,
        fake.socket().display()
    );
    assert!(ran.stdout.ends_with(&format!("{end}\n")), "{}", ran.stdout);
}

#[tokio::test]
async fn help_documents_the_codes_and_the_schema() {
    let ran = Fake::serving(Vec::new()).run(&["--help"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    for part in [
        "Exit codes: 0 ok",
        "5 timed out",
        "\"schema\":1",
        "TUNNELD_SOCKET",
    ] {
        assert!(ran.stdout.contains(part), "{part} is missing in {}", ran.stdout);
    }
}
