//! `tunnelctl ssh`: what the system's ssh is told, and that it runs in our place. Here ssh is a script.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;
use tunneld_proto::v1::Resolved;

use crate::fake::{Fake, LIMIT, Ran, instance, run};

/// A daemon, and programs that lie first in the path.
pub(crate) struct Stage {
    pub(crate) fake: Fake,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let fake = Fake::serving(Vec::new());
        fake.script.finds(instance());
        fs::create_dir(fake.folder().join("bin")).unwrap();
        Self { fake }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.fake.folder().join(name)
    }

    /// Puts a program in the path.
    pub(crate) fn program(&self, name: &str, script: &str) {
        let file = self.path("bin").join(name);
        fs::write(&file, format!("#!/bin/bash\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.fake.command(arguments);
        let inherited = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{inherited}", self.path("bin").display()));
        command
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Ran {
        run(self.command(arguments)).await
    }

    /// Runs it with an ssh that prints its arguments, a line each; returns them without the names that differ.
    async fn told(&self, arguments: &[&str]) -> String {
        self.program("ssh", r#"printf '%s\n' "$@""#);
        let ran = self.run(arguments).await;
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        let mut told = ran.stdout;
        let own = env!("CARGO_BIN_EXE_tunnelctl");
        let socket = self.fake.socket();
        for (name, stand_in) in [(own, "TUNNELCTL"), (socket.to_str().unwrap(), "SOCKET")] {
            told = told.replace(name, stand_in);
        }
        let folder = self.fake.folder().to_str().unwrap();
        let Some(at) = told.find(&format!("{folder}/ssh-")) else {
            return told;
        };
        let key = told[at..].split("/id_ed25519").next().unwrap().to_owned();
        told.replace(&key, "KEYS")
    }
}

#[tokio::test]
async fn ssh_is_told_the_way_the_key_and_whose_host_key_it_is() {
    let stage = Stage::new();
    let told = stage.told(&["ssh", "--profile", "prod", "web-1"]).await;
    insta::assert_snapshot!(told, @r"
    -o
    IdentitiesOnly=yes
    -i
    KEYS/id_ed25519
    -o
    ProxyCommand=TUNNELCTL --socket SOCKET stdio --profile prod --route eice --push-key KEYS/id_ed25519.pub --as '%r' -- i-0123456789abcdef0 %p
    -o
    HostKeyAlias=i-0123456789abcdef0
    -l
    ec2-user
    i-0123456789abcdef0
    ");
    assert_eq!(stage.fake.script.calls(), ["version", "resolve prod/ web-1 22 "]);
}

#[tokio::test]
async fn options_and_a_command_are_ssh_s_own() {
    let stage = Stage::new();
    let told = stage
        .told(&[
            "ssh",
            "admin@web-1",
            "-L",
            "8080:localhost:80",
            "-v",
            "--",
            "ls",
            "-l",
        ])
        .await;
    assert!(
        told.ends_with("-l\nadmin\ni-0123456789abcdef0\n-L\n8080:localhost:80\n-v\n--\nls\n-l\n"),
        "{told}"
    );
}

#[tokio::test]
async fn a_key_of_one_s_own_is_the_only_one_and_a_user_option_the_only_user() {
    let stage = Stage::new();
    let told = stage.told(&["ssh", "web-1", "-i", "mine", "-l", "admin"]).await;
    assert!(
        !told.contains("IdentitiesOnly") && !told.contains("--push-key"),
        "{told}"
    );
    assert!(
        told.ends_with("\ni-0123456789abcdef0\n-i\nmine\n-l\nadmin\n"),
        "{told}"
    );
    assert!(!told.contains("ec2-user"), "{told}");
}

#[tokio::test]
async fn a_managed_instance_gets_no_key_that_it_could_not_accept() {
    let stage = Stage::new();
    stage.fake.script.finds(Resolved {
        id: "mi-0123456789abcdef0".to_owned(),
        route: "ssm".to_owned(),
        ..instance()
    });
    let told = stage.told(&["ssh", "admin@rack7"]).await;
    assert!(
        !told.contains("--push-key") && told.contains("-- mi-0123456789abcdef0 %p"),
        "{told}"
    );
}

#[tokio::test]
async fn the_key_is_there_for_its_owner_alone_and_gone_afterwards() {
    let stage = Stage::new();
    stage.program(
        "ssh",
        r#"while [ "$1" != -i ]; do shift; done; stat -c '%a' "$2" "$(dirname "$2")"; ssh-keygen -lf "$2.pub" | grep -c ED25519"#,
    );
    stage.run(&["ssh", "web-1"]).await.is(0, "600\n700\n1\n", "");
    let left = fs::read_dir(stage.fake.folder()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        !left.iter().any(|name| name.to_string_lossy().starts_with("ssh-")),
        "{left:?}"
    );
}

#[tokio::test]
async fn the_exit_code_is_that_of_ssh() {
    let stage = Stage::new();
    stage.program("ssh", "echo out; echo err >&2; exit 42");
    stage.run(&["ssh", "web-1"]).await.is(42, "out\n", "err\n");
    stage.program("ssh", "kill -TERM $$");
    assert_eq!(stage.run(&["ssh", "web-1"]).await.code, Some(128 + 15));
}

#[tokio::test]
async fn a_signal_reaches_ssh() {
    let stage = Stage::new();
    stage.program(
        "ssh",
        "trap 'echo told; exit 7' TERM; echo ready; while :; do sleep 0.01; done",
    );
    let mut child = stage
        .command(&["ssh", "web-1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 6];
    let mut output = child.stdout.take().unwrap();
    timeout(LIMIT, output.read_exact(&mut said))
        .await
        .unwrap()
        .unwrap();
    let sent = std::process::Command::new("kill")
        .args(["-s", "TERM", &child.id().unwrap().to_string()])
        .status();
    assert!(sent.unwrap().success());
    let mut rest = String::new();
    timeout(LIMIT, output.read_to_string(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(rest, "told\n");
    assert_eq!(child.wait().await.unwrap().code(), Some(7));
}

#[tokio::test]
async fn verbose_says_which_way_and_why_no_other() {
    let stage = Stage::new();
    stage.program("ssh", ":");
    stage.fake.script.finds(Resolved {
        route: "ssm".to_owned(),
        passed_over: vec!["eice: no endpoint in vpc-1".to_owned()],
        ..instance()
    });
    stage.run(&["ssh", "-v", "web-1"]).await.is(
        0,
        "",
        "web-1 (i-0123456789abcdef0) by ssm\n  not by eice: no endpoint in vpc-1\n\
         user ec2-user, the default; USER@INSTANCE names another\n",
    );
    stage.run(&["--json", "ssh", "-v", "admin@web-1"]).await.is(
        0,
        "",
        "{\"schema\":1,\"id\":\"i-0123456789abcdef0\",\"name\":\"web-1\",\"route\":\"ssm\",\
         \"passed_over\":[\"eice: no endpoint in vpc-1\"],\"addresses\":[\"10.0.1.10\"],\
         \"platform\":\"Linux/UNIX\"}\n",
    );
}

#[tokio::test]
async fn an_instance_that_there_is_not_runs_nothing() {
    let stage = Stage::new();
    let fake = Fake::serving(Vec::new());
    stage.program("ssh", "echo no");
    let mut command = stage.command(&["ssh", "wbe-1"]);
    command.env("TUNNELD_SOCKET", fake.socket());
    run(command).await.is(
        1,
        "",
        "there is no running instance named `wbe-1`\n  did you mean `web-1`?\n",
    );
}

#[tokio::test]
async fn without_ssh_the_package_is_named() {
    let stage = Stage::new();
    let keygen = std::process::Command::new("bash")
        .args(["-c", "command -v ssh-keygen"])
        .output()
        .unwrap();
    let keygen = String::from_utf8(keygen.stdout).unwrap();
    std::os::unix::fs::symlink(keygen.trim(), stage.path("bin/ssh-keygen")).unwrap();
    let mut command = stage.command(&["ssh", "web-1"]);
    command.env("PATH", stage.path("bin"));
    let package = "install the package openssh-client (Debian, Ubuntu) or openssh-clients \
                   (Fedora, RHEL, Amazon Linux)";
    run(command).await.is(
        1,
        "",
        &format!("there is no `ssh` on this machine\n  {package}\n"),
    );
    fs::remove_file(stage.path("bin/ssh-keygen")).unwrap();
    let mut command = stage.command(&["ssh", "web-1"]);
    command.env("PATH", stage.path("bin"));
    let ran = run(command).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.ends_with(&format!("  {package}\n")), "{}", ran.stderr);
}
