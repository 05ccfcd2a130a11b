//! `tunnelctl ssh-config`: the printed lines, what the real ssh makes of them, and the key they name.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::fake::{command, run};
use crate::ssh::Stage;

/// The lines, without the names that differ.
fn plain(lines: &str, stage: &Stage) -> String {
    let folder = stage.fake.folder().to_str().unwrap();
    lines
        .replace(env!("CARGO_BIN_EXE_tunnelctl"), "TUNNELCTL")
        .replace(folder, "HOME")
}

#[tokio::test]
async fn the_lines_are_whole_and_need_no_daemon() {
    let mut stage = Stage::new();
    stage.fake.kill().await;
    let ran = stage
        .run(&[
            "ssh-config",
            "--region",
            "eu-central-1",
            "--host",
            "web-*",
            "--as",
            "admin",
        ])
        .await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(plain(&ran.stdout, &stage), @r#"
    # Printed by `tunnelctl ssh-config` for ~/.ssh/config, before any `Host *`: ssh, scp, sftp, rsync and whatever
    # uses them reach these hosts through tunneld. An instance accepts the key for a minute with each connection.
    Host i-* web-*
        User admin
        IdentityFile "HOME/.local/state/tunneld/ssh/id_ed25519"
        IdentitiesOnly yes
        ProxyCommand TUNNELCTL stdio --region eu-central-1 --push-key HOME/.local/state/tunneld/ssh/id_ed25519.pub --as '%r' -- '%h' %p
    # Managed instances accept no such key: for these it is one of yours.
    Host mi-*
        ProxyCommand TUNNELCTL stdio --region eu-central-1 -- '%h' %p
    "#);
}

#[tokio::test]
async fn a_name_is_tied_to_the_host_key_of_its_instance() {
    let stage = Stage::new();
    let ran = stage.run(&["ssh-config", "--host", "web-1"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(ran.stdout.contains("Host i-* web-1\n"), "{}", ran.stdout);
    assert!(
        ran.stdout
            .ends_with("\nHost web-1\n    HostKeyAlias i-0123456789abcdef0\n"),
        "{}",
        ran.stdout
    );
}

#[tokio::test]
async fn ssh_reads_the_lines_as_they_are_meant() {
    let stage = Stage::new();
    let ran = stage.run(&["ssh-config", "--host", "web-1"]).await;
    let file = stage.path("ssh_config");
    fs::write(&file, ran.stdout).unwrap();
    let mut ssh = command(Path::new("ssh"), stage.fake.folder());
    ssh.arg("-G").arg("-F").arg(&file).arg("web-1");
    let ran = run(ssh).await;
    let key = stage.path(".local/state/tunneld/ssh/id_ed25519");
    for line in [
        "user ec2-user",
        "identitiesonly yes",
        "hostkeyalias i-0123456789abcdef0",
        &format!("identityfile {}", key.display()),
    ] {
        assert!(
            ran.stdout.lines().any(|said| said == line),
            "{line}: {}",
            ran.stdout
        );
    }
    assert!(ran.stdout.contains("proxycommand "), "{}", ran.stdout);
}

#[tokio::test]
async fn the_key_is_made_once_and_for_its_owner_alone() {
    let stage = Stage::new();
    let key = stage.path(".local/state/tunneld/ssh/id_ed25519");
    assert_eq!(stage.run(&["ssh-config"]).await.code, Some(0));
    let made = fs::read(&key).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&key), mode(key.parent().unwrap())), (0o600, 0o700));
    assert_eq!(stage.run(&["ssh-config"]).await.code, Some(0));
    assert_eq!(fs::read(&key).unwrap(), made);
    // Half of a pair is none.
    fs::remove_file(key.with_extension("pub")).unwrap();
    assert_eq!(stage.run(&["ssh-config"]).await.code, Some(0));
    assert_ne!(fs::read(&key).unwrap(), made);
}

#[tokio::test]
async fn what_is_no_pattern_is_refused() {
    let stage = Stage::new();
    for pattern in ["", "a b", "!a", "a\nProxyCommand evil"] {
        let ran = stage.run(&["ssh-config", "--host", pattern]).await;
        assert_eq!(ran.code, Some(2), "{pattern}");
    }
    assert_eq!(stage.fake.script.calls(), Vec::<String>::new());
}
