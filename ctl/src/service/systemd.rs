//! systemd's user manager: the units of `systemd/` in the repository, with this machine's paths, and `systemctl --user`.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::folders;
use crate::service::file::{self, MARK, Whose, Written};
use crate::service::{Installed, State, Uninstalled, ask, writable};

const SERVICE: &str = "tunneld.service";
const SOCKET: &str = "tunneld.socket";

/// The units as packages install them.
const SERVICE_UNIT: &str = include_str!("../../../systemd/tunneld.service");
const SOCKET_UNIT: &str = include_str!("../../../systemd/tunneld.socket");

/// What stands in the service's unit where the program of this machine belongs.
const START: &str = "ExecStart=/usr/bin/tunneld";

/// Where units for all users are looked for, besides each user's own folder.
const SHARED: [&str; 3] = [
    "/etc/systemd/user",
    "/usr/local/lib/systemd/user",
    "/usr/lib/systemd/user",
];

/// The user's manager, which has answered.
pub(crate) struct Systemd {
    /// What it starts services in, a variable a line.
    environment: String,
    socket: PathBuf,
}

/// Returns whether there is a unit of the daemon, the user's own or a package's.
pub(super) fn is_installed() -> bool {
    let shared = SHARED.into_iter().map(PathBuf::from);
    let mut folders = shared.chain(folder());
    folders.any(|folder| folder.join(SERVICE).exists())
}

/// Returns the folder of the user's own units.
fn folder() -> Option<PathBuf> {
    Some(folders::configuration()?.join("systemd/user"))
}

impl Systemd {
    /// Has the manager of this user answer.
    pub(super) fn find() -> Result<Self, Error> {
        let unanswered = |error: Error| error.leads_to("systemd's user manager does not answer");
        let environment = systemctl(&["show-environment"]).map_err(unanswered)?;
        let runtime = variable(&environment, "XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from))
            .ok_or_else(|| Error::failed("systemd's user manager does not say where its sockets are"))?;
        Ok(Self {
            environment,
            socket: runtime.join("tunneld/tunneld.sock"),
        })
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        variable(&self.environment, name)
    }

    pub(super) fn listens(&self) -> bool {
        // It fails for a unit that is not active, or not there.
        systemctl(&["is-active", SOCKET]).is_ok()
    }

    pub(super) fn state(&self) -> Result<State, Error> {
        let wanted = "--property=FragmentPath,UnitFileState,MainPID,StatusText";
        systemctl(&["show", wanted, SERVICE]).map(|told| state(&told))
    }

    pub(super) fn install(&self, program: &Path, arguments: &[&str]) -> Result<Installed, Error> {
        let folder = own_folder()?;
        let ran = self.state()?.pid.is_some();
        let units = [
            (folder.join(SOCKET), socket_unit()),
            (folder.join(SERVICE), service_unit(program, arguments)?),
        ];
        // Both or neither.
        for (path, _) in &units {
            file::refuse_anothers(path)?;
        }
        let mut installed = Installed::default();
        for (path, text) in units {
            match file::write(&path, &text)? {
                Written::New => installed.restarted = ran,
                Written::Same => {}
                Written::Replaced => {
                    installed.restarted = ran;
                    installed.replaced.push(path);
                }
            }
        }
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "--now", SOCKET, SERVICE])?;
        if installed.restarted {
            systemctl(&["restart", SERVICE])?;
        }
        Ok(installed)
    }

    pub(super) fn uninstall(&self) -> Result<Uninstalled, Error> {
        let folder = own_folder()?;
        let mut uninstalled = Uninstalled::default();
        let mut ours = Vec::new();
        for name in [SERVICE, SOCKET] {
            let path = folder.join(name);
            match file::whose(&path)? {
                Whose::Nobodys => {}
                Whose::Ours => ours.push(name),
                Whose::Anothers => uninstalled.left.push(path),
            }
        }
        if ours.is_empty() {
            return Ok(uninstalled);
        }
        systemctl(&[&["disable", "--now"][..], &ours].concat())?;
        for &name in &ours {
            let path = folder.join(name);
            file::remove(&path)?;
            uninstalled.removed.push(path);
        }
        systemctl(&["daemon-reload"])?;
        // A unit that failed is remembered until it is forgotten; for one that did not, this fails.
        let _ = systemctl(&[&["reset-failed"][..], &ours].concat());
        Ok(uninstalled)
    }

    pub(super) fn start(&self) -> Result<(), Error> {
        systemctl(&["start", SERVICE]).map(drop)
    }

    pub(super) fn stop(&self) -> Result<(), Error> {
        systemctl(&["stop", SOCKET, SERVICE]).map(drop)
    }

    pub(super) fn lingers(&self) -> Option<bool> {
        let user = rustix::process::getuid().as_raw().to_string();
        let told = ask("loginctl", &["show-user", &user, "--property=Linger", "--value"]).ok()?;
        match told.trim() {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        }
    }
}

fn own_folder() -> Result<PathBuf, Error> {
    folder().ok_or_else(|| Error::failed("there is no home folder to keep units in").hint("set HOME"))
}

fn systemctl(arguments: &[&str]) -> Result<String, Error> {
    ask("systemctl", &[&["--user"][..], arguments].concat())
}

/// Reads what `systemctl show` tells of the service.
fn state(told: &str) -> State {
    let property = |name| variable(told, name).filter(|value| !value.is_empty());
    State {
        file: property("FragmentPath").map(PathBuf::from),
        enabled: property("UnitFileState").is_some_and(|state| state.starts_with("enabled")),
        pid: property("MainPID")
            .and_then(|pid| pid.parse().ok())
            .filter(|pid| *pid != 0),
        words: property("StatusText").map(str::to_owned),
    }
}

/// Finds a line `NAME=VALUE`.
fn variable<'a>(lines: &'a str, name: &str) -> Option<&'a str> {
    lines
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

fn socket_unit() -> String {
    format!("# {MARK}\n{SOCKET_UNIT}")
}

/// Returns the service's unit, which starts `program` with more arguments than every daemon gets.
fn service_unit(program: &Path, arguments: &[&str]) -> Result<String, Error> {
    let program = quoted(writable(program)?);
    let lines = SERVICE_UNIT.lines().map(|line| match line.strip_prefix(START) {
        Some(rest) => {
            let more: String = arguments.iter().map(|argument| format!(" {argument}")).collect();
            format!("ExecStart={program}{rest}{more}\n")
        }
        None => format!("{line}\n"),
    });
    Ok(format!("# {MARK}\n{}", lines.collect::<String>()))
}

/// Writes a path so that systemd reads it as one word, without a specifier in it.
fn quoted(path: &str) -> String {
    let escaped = path.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the values of a setting.
    fn values<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
        let lines = unit.lines();
        lines
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .collect()
    }

    #[test]
    fn the_unit_starts_the_program_of_this_machine() {
        let unit = service_unit(Path::new("/opt/a b/tunneld"), &[]).unwrap();
        assert_eq!(
            values(&unit, "ExecStart"),
            ["\"/opt/a b/tunneld\" --socket %t/tunneld/tunneld.sock"]
        );
        assert!(!unit.contains("/usr/bin/tunneld"), "{unit}");
        let unit = service_unit(Path::new("/opt/tunneld"), &["--allow-root"]).unwrap();
        assert_eq!(
            values(&unit, "ExecStart"),
            ["\"/opt/tunneld\" --socket %t/tunneld/tunneld.sock --allow-root"]
        );
    }

    #[test]
    fn nothing_but_the_program_and_the_mark_differs_from_the_packages_unit() {
        let unit = service_unit(Path::new("/opt/tunneld"), &[]).unwrap();
        let ours: Vec<_> = unit
            .lines()
            .filter(|line| !SERVICE_UNIT.lines().any(|theirs| theirs == *line))
            .collect();
        assert_eq!(ours.len(), 2, "{ours:?}");
        assert_eq!(unit.lines().count(), SERVICE_UNIT.lines().count() + 1);
        assert!(ours[0].contains(MARK) && socket_unit().contains(MARK));
    }

    #[test]
    fn what_systemd_gives_a_meaning_to_is_escaped_in_a_path() {
        assert_eq!(quoted(r#"/a "b"\50%/tunneld"#), r#""/a \"b\"\\50%%/tunneld""#);
        assert!(service_unit(Path::new("/a\nExecStart=/b"), &[]).is_err());
    }

    #[test]
    fn a_restart_keeps_listeners_and_no_number_of_crashes_ends_it() {
        let unit = SERVICE_UNIT;
        assert_eq!(values(unit, "Type"), ["notify"]);
        assert_eq!(values(unit, "Restart"), ["on-failure"]);
        assert_eq!(values(unit, "RestartPreventExitStatus"), ["2"]);
        assert_eq!(values(unit, "StartLimitIntervalSec"), ["0"]);
        assert_eq!(values(unit, "FileDescriptorStoreMax").len(), 1);
        assert_eq!(values(unit, "WatchdogSec").len(), 1);
        assert_eq!(values(SOCKET_UNIT, "SocketMode"), ["0600"]);
        assert_eq!(values(SOCKET_UNIT, "DirectoryMode"), ["0700"]);
    }

    /// Settings that make systemd give the service a user or mount namespace of its own.
    #[test]
    fn nothing_in_the_unit_needs_a_namespace() {
        for line in SERVICE_UNIT.lines() {
            let namespaced = [
                "Private",
                "Protect",
                "ReadOnly",
                "Inaccessible",
                "Bind",
                "Temporary",
                "Root",
            ];
            assert!(!namespaced.iter().any(|begin| line.starts_with(begin)), "{line}");
        }
    }

    #[test]
    fn the_state_is_what_systemctl_tells() {
        let told = "MainPID=4711\nStatusText=3 up, 1 waiting\nUnitFileState=enabled\n\
                    FragmentPath=/home/dev/.config/systemd/user/tunneld.service\n";
        let installed = State {
            file: Some("/home/dev/.config/systemd/user/tunneld.service".into()),
            enabled: true,
            pid: Some(4711),
            words: Some("3 up, 1 waiting".to_owned()),
        };
        assert_eq!(state(told), installed);
        let absent = "MainPID=0\nStatusText=\nUnitFileState=\nFragmentPath=\n";
        assert_eq!(state(absent), State::default());
    }

    #[test]
    fn a_variable_is_found_by_its_whole_name() {
        let environment = "HOME=/home/dev\nMY_SSH_AUTH_SOCK=/no\nSSH_AUTH_SOCK=/tmp/a=b\n";
        assert_eq!(variable(environment, "SSH_AUTH_SOCK"), Some("/tmp/a=b"));
        assert_eq!(variable(environment, "SSH_AUTH"), None);
    }
}
