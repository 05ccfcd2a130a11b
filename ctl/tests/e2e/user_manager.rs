//! A machine of a user whose service manager is a real systemd, which starts the daemon.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::skipped::skip;
use crate::world::World;

/// Set in the process that runs beside a manager.
const BESIDE: &str = "TUNNELD_TEST_BESIDE_MANAGER";

/// What the script ends with where there can be no manager.
const IMPOSSIBLE: i32 = 99;

/// Returns whether this process runs beside a manager of its own. If not, the named test is run in one that does.
pub(crate) fn is_beside(test: &str) -> bool {
    if env::var_os(BESIDE).is_some() {
        return true;
    }
    let output = Command::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../scripts/with-systemd-user"
    ))
    .arg(env::current_exe().unwrap())
    .args(["--exact", "--nocapture", test])
    .env(BESIDE, "1")
    .output()
    .unwrap();
    if output.status.code() == Some(IMPOSSIBLE) {
        skip(String::from_utf8_lossy(&output.stderr).trim());
        return false;
    }
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

/// The user's machine, with the configuration where the service looks for it; the service is not installed yet.
pub(crate) struct Machine {
    pub(crate) world: World,
}

impl Machine {
    pub(crate) fn new(account: &str, configuration: &str) -> Self {
        let mut world = World::new(account, configuration);
        for name in ["HOME", "XDG_RUNTIME_DIR"] {
            world.set(name, &env::var(name).unwrap());
        }
        // The socket is where it is for everybody.
        world.set("TUNNELD_SOCKET", "");
        let machine = Self { world };
        machine.write(".config/tunneld/config.toml", configuration);
        // There is no journal to read the log from. Beside the user's own units, so that what is found there is the
        // installation's.
        let log = format!(
            "[Service]\nStandardError=append:{}\n",
            machine.world.path("daemon.log").display()
        );
        let folder =
            PathBuf::from(env::var("XDG_RUNTIME_DIR").unwrap()).join("systemd/user/tunneld.service.d");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("log.conf"), log).unwrap();
        for (name, value) in machine.world.emulator.environment() {
            machine.set(name, &value);
        }
        machine.set("RUST_LOG", "debug");
        machine
    }

    /// Installs the service, which starts the daemon; returns what was said.
    pub(crate) fn install(&self) -> Output {
        // The script that makes the manager needs root, who is the user here.
        let installed = self.world.tunnelctl(&["service", "install", "--allow-root"]);
        assert!(installed.status.success(), "{installed:?}\n{}", self.world.log());
        installed
    }

    /// Changes the environment that the manager starts services in.
    pub(crate) fn set(&self, name: &str, value: &str) {
        self.systemctl(&["set-environment", &format!("{name}={value}")]);
    }

    /// Asks the manager; returns its answer.
    pub(crate) fn systemctl(&self, arguments: &[&str]) -> String {
        let output = self.try_systemctl(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {output:?}\n{}",
            self.world.log()
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn try_systemctl(&self, arguments: &[&str]) -> Output {
        let mut systemctl = Command::new("systemctl");
        self.world.in_environment(&mut systemctl);
        systemctl.arg("--user").args(arguments).output().unwrap()
    }

    /// Returns the daemon's process; 0 while there is none.
    pub(crate) fn daemon_id(&self) -> u32 {
        let id = self.systemctl(&["show", "--property=MainPID", "--value", "tunneld.service"]);
        id.parse().unwrap()
    }

    /// Returns a file of the user's home.
    pub(crate) fn home(&self, name: &str) -> PathBuf {
        PathBuf::from(env::var("HOME").unwrap()).join(name)
    }

    /// Writes a file into the user's home.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.home(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}
