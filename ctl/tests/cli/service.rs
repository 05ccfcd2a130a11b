//! `tunnelctl service`, with a `systemctl` in the PATH that plays a user manager.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::fake::{Fake, Ran, run};
use crate::installed::Installed;

/// Answers as systemd's user manager does, writes down what it was asked, and has the daemon that plays along listen on
/// the unit's socket once that is enabled.
const MANAGER: &str = r#"
here=$(dirname "$0")
echo "$*" >>"$here/asked"
shift
case "$1" in
    show-environment) printf 'XDG_RUNTIME_DIR=%s/run\nSSH_AUTH_SOCK=/tmp/agent\n' "$here" ;;
    enable) mkdir -p "$here/run/tunneld" && ln -s "$(cat "$here/daemon")" "$here/run/tunneld/tunneld.sock" && touch "$here/enabled" ;;
    is-active) [ -e "$here/enabled" ] ;;
    disable) rm "$here/run/tunneld/tunneld.sock" "$here/enabled" ;;
    show)
        if [ -e "$here/enabled" ]; then
            printf 'MainPID=4711\nStatusText=3 up\nUnitFileState=enabled\nFragmentPath=%s\n' \
                "$here/.config/systemd/user/tunneld.service"
        else
            printf 'MainPID=0\nStatusText=\nUnitFileState=\nFragmentPath=\n'
        fi ;;
esac
"#;

/// A machine with a service manager, and a daemon for it to start.
struct Machine {
    installed: Installed,
    fake: Fake,
}

impl Machine {
    fn new() -> Self {
        let installed = Installed::with_daemon("exit 1");
        installed.add("systemctl", MANAGER);
        installed.add("loginctl", "echo no");
        let fake = Fake::serving(Vec::new());
        fs::write(
            installed.path("daemon"),
            fake.socket().into_os_string().into_encoded_bytes(),
        )
        .unwrap();
        Self { installed, fake }
    }

    async fn service(&self, arguments: &[&str]) -> Ran {
        let mut command = self.installed.command();
        command.arg("service").args(arguments);
        run(command).await
    }

    async fn install(&self) -> Ran {
        let mut arguments = vec!["install"];
        arguments.extend(AS_ROOT.iter().filter(|_| is_root()));
        self.service(&arguments).await
    }

    fn unit(&self, name: &str) -> String {
        fs::read_to_string(self.installed.path(".config/systemd/user").join(name)).unwrap()
    }

    /// What the manager was asked to do.
    fn asked(&self) -> Vec<String> {
        let asked = fs::read_to_string(self.installed.path("asked")).unwrap_or_default();
        asked
            .lines()
            .map(|line| line.strip_prefix("--user ").unwrap().to_owned())
            .filter(|line| !line.starts_with("show") && !line.starts_with("is-active"))
            .collect()
    }
}

const AS_ROOT: [&str; 1] = ["--allow-root"];

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[tokio::test]
async fn an_installation_writes_the_units_and_has_them_started() {
    let machine = Machine::new();
    let ran = machine.install().await;
    let answer = "tunneld starts at login from now on (systemd user service, listening on its socket) and is running.\n";
    let talk = "it ends when you log out; to have it go on, and start with the machine:\n  loginctl enable-linger\n\
                it uses the ssh-agent at `/tmp/agent` (SSH_AUTH_SOCK of systemd's user manager)\n";
    ran.is(0, answer, talk);
    assert_eq!(
        machine.asked(),
        ["daemon-reload", "enable --now tunneld.socket tunneld.service"]
    );
    let start = format!(
        "ExecStart=\"{}\" --socket %t/tunneld/tunneld.sock{}\n",
        machine.installed.path("tunneld").display(),
        if is_root() { " --allow-root" } else { "" }
    );
    assert!(machine.unit("tunneld.service").contains(&start));
    assert!(
        machine
            .unit("tunneld.socket")
            .contains("ListenStream=%t/tunneld/tunneld.sock")
    );
    let unit = machine.installed.path(".config/systemd/user/tunneld.service");
    assert_eq!(fs::metadata(unit).unwrap().permissions().mode() & 0o777, 0o644);
}

#[tokio::test]
async fn units_of_ours_with_other_content_are_replaced_and_the_daemon_is_restarted_with_them() {
    let machine = Machine::new();
    machine.install().await;
    let unit = machine.installed.path(".config/systemd/user/tunneld.service");
    fs::write(&unit, machine.unit("tunneld.service") + "[Install]\n").unwrap();
    machine
        .installed
        .add("systemctl", &MANAGER.replace("ln -s", "ln -sf"));
    let ran = machine.install().await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.ends_with(" and was restarted.\n"), "{}", ran.stdout);
    let talk = format!("replaced `{}`, which had other content\n", unit.display());
    assert!(ran.stderr.starts_with(&talk), "{}", ran.stderr);
    assert_eq!(machine.asked().last().unwrap(), "restart tunneld.service");
}

#[tokio::test]
async fn anothers_unit_is_named_with_what_to_do_and_nothing_is_touched() {
    let machine = Machine::new();
    let folder = machine.installed.path(".config/systemd/user");
    fs::create_dir_all(&folder).unwrap();
    let unit = folder.join("tunneld.service");
    fs::write(&unit, "[Service]\n").unwrap();
    let talk = format!(
        "`{unit}` was not written by tunnelctl\n  because only what it has written does it replace\n  \
         mv '{unit}' '{unit}.old'\n  tunnelctl service install\n",
        unit = unit.display()
    );
    machine.install().await.is(4, "", &talk);
    assert_eq!(machine.unit("tunneld.service"), "[Service]\n");
    assert!(!folder.join("tunneld.socket").exists());
    assert_eq!(machine.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn an_installation_is_repaired_though_its_daemon_does_not_run() {
    let machine = Machine::new();
    machine.install().await;
    let broken = MANAGER
        .replace("MainPID=4711", "MainPID=0")
        .replace("ln -s", "ln -sf");
    machine.installed.add("systemctl", &broken);
    let ran = machine.install().await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[tokio::test]
async fn a_daemon_that_listens_only_later_is_waited_for() {
    let machine = Machine::new();
    let late = MANAGER.replace(
        "ln -s \"$(cat \"$here/daemon\")\" \"$here/run/tunneld/tunneld.sock\"",
        "{ (sleep 0.3; ln -s \"$(cat \"$here/daemon\")\" \"$here/run/tunneld/tunneld.sock\") >/dev/null 2>&1 & }",
    );
    assert_ne!(late, MANAGER);
    machine.installed.add("systemctl", &late);
    let ran = machine.install().await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[tokio::test]
async fn a_daemon_that_runs_by_hand_is_named_and_nothing_is_touched() {
    let machine = Machine::new();
    fs::create_dir_all(machine.installed.path("run/tunneld")).unwrap();
    let socket = machine.installed.path("run/tunneld/tunneld.sock");
    std::os::unix::fs::symlink(machine.fake.socket(), &socket).unwrap();
    let talk = format!(
        "a tunneld that was started by hand runs already (pid 4711)\n  because it listens on `{}`\n  \
         tunnelctl daemon stop\n",
        socket.display()
    );
    machine.install().await.is(4, "", &talk);
    assert!(!machine.installed.path(".config").exists());
    assert_eq!(machine.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn an_uninstallation_removes_what_was_written_and_nothing_else() {
    let machine = Machine::new();
    machine.install().await;
    let foreign = machine.installed.path(".config/systemd/user/tunneld.socket");
    fs::write(&foreign, "[Socket]\n").unwrap();
    let answer = "tunneld has stopped and starts at login no more; its configuration and state are kept\n";
    let talk = format!(
        "left `{}` alone, which tunnelctl has not written\n",
        foreign.display()
    );
    machine.service(&["uninstall"]).await.is(0, answer, &talk);
    assert_eq!(
        machine.asked()[2..],
        [
            "disable --now tunneld.service",
            "daemon-reload",
            "reset-failed tunneld.service"
        ]
    );
    let left: Vec<_> = fs::read_dir(foreign.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(left, std::slice::from_ref(&foreign));
    let answer = "tunneld is no service that was installed by tunnelctl\n";
    machine.service(&["uninstall"]).await.is(0, answer, &talk);
}

#[tokio::test]
async fn the_status_says_whether_it_is_installed_and_runs_and_starts_nothing() {
    let machine = Machine::new();
    let answer = "tunneld is not installed as a service\n  tunnelctl service install\n";
    machine.service(&["status"]).await.is(1, answer, "");
    machine.install().await;
    let folder = machine.installed.folder().display();
    let own = env!("CARGO_PKG_VERSION");
    let answer = format!(
        "tunneld is a systemd user service, starts at login, and runs (version {own}, pid 4711, running for 2 h)\n  file     {folder}/.config/systemd/user/tunneld.service\n  socket   \
         {folder}/run/tunneld/tunneld.sock\n  tunnels  3 up\n  agent    /tmp/agent\n"
    );
    machine.service(&["status"]).await.is(0, &answer, "");

    let stopped = MANAGER.replace("MainPID=4711", "MainPID=0");
    machine.installed.add("systemctl", &stopped);
    let before = machine.fake.script.calls();
    let ran = machine.service(&["status", "--json"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(3), ""));
    let status: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    for (field, value) in [
        ("manager", "systemd".into()),
        ("installed", true.into()),
        ("enabled", true.into()),
        ("running", false.into()),
        ("lingering", false.into()),
        ("tunneld", serde_json::Value::Null),
    ] {
        assert_eq!(status[field], value, "{field}: {status}");
    }
    assert_eq!(machine.fake.script.calls(), before);
}

#[tokio::test]
async fn without_a_manager_the_daemon_can_be_started_by_hand() {
    let machine = Machine::new();
    machine.installed.add(
        "systemctl",
        "echo 'Failed to connect to bus: No medium found' >&2; exit 1",
    );
    let talk = "systemd's user manager does not answer\n  because `systemctl --user show-environment` failed\n  \
                because Failed to connect to bus: No medium found\n  tunnelctl daemon start\n";
    machine.install().await.is(1, "", talk);
    machine.service(&["status"]).await.is(1, "", talk);
    assert!(!machine.installed.path(".config").exists());
}

#[tokio::test]
async fn root_is_refused_unless_it_says_that_it_means_it() {
    let machine = Machine::new();
    let ran = machine.service(&["install"]).await;
    if is_root() {
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
        assert!(
            ran.stderr.starts_with("tunneld does not run as root\n")
                && ran.stderr.contains("tunnelctl service install --allow-root"),
            "{}",
            ran.stderr
        );
        assert_eq!(machine.asked(), Vec::<String>::new());
    } else {
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    }
}
