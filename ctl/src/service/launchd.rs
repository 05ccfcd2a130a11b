//! launchd of macOS: the agent of `systemd/tunneld.plist` in the repository, with this machine's paths, and `launchctl`.
//!
//! launchd hands sockets only to programs that ask it by a call of its own, so that the agent is one that simply runs.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::folders;
use crate::service::file::{self, MARK, Whose, Written};
use crate::service::{Installed, State, Uninstalled, ask, writable};

/// The agent as the repository has it.
const AGENT: &str = include_str!("../../../systemd/tunneld.plist");

/// What stands in the agent where the program of this machine belongs.
const PROGRAM: &str = "<string>/usr/local/bin/tunneld</string>";

/// What stands in the agent where the home of this user belongs.
const HOME: &str = "/Users/USER/";

/// The name that the agent gives itself.
const LABEL: &str = "tunneld";

/// launchd's domain of the logged-in user.
pub(crate) struct Launchd {
    home: PathBuf,
    domain: String,
}

/// Returns the file of the agent.
pub(super) fn agent() -> Option<PathBuf> {
    folders::home().map(|home| agent_in(&home))
}

fn agent_in(home: &Path) -> PathBuf {
    home.join("Library/LaunchAgents/tunneld.plist")
}

impl Launchd {
    /// Has the domain of this user answer.
    pub(super) fn find() -> Result<Self, Error> {
        let home = folders::home()
            .ok_or_else(|| Error::failed("there is no home folder to keep an agent in").hint("set HOME"))?;
        let domain = format!("gui/{}", rustix::process::getuid().as_raw());
        ask("launchctl", &["print", &domain])
            .map_err(|error| error.leads_to("launchd has no session of a logged-in user"))?;
        Ok(Self { home, domain })
    }

    pub(super) fn state(&self) -> State {
        let agent = agent_in(&self.home);
        // An agent that is not loaded is none to launchd.
        let told = ask("launchctl", &["print", &self.service()]).ok();
        State {
            file: agent.exists().then_some(agent),
            enabled: told.is_some(),
            pid: told.as_deref().and_then(pid),
            words: None,
        }
    }

    pub(super) fn install(&self, program: &Path, arguments: &[&str]) -> Result<Installed, Error> {
        let agent = agent_in(&self.home);
        let before = self.state();
        let mut installed = Installed::default();
        let text = agent_text(program, arguments, &self.home)?;
        match file::write(&agent, &text)? {
            Written::Same if before.enabled => {
                self.start()?;
                return Ok(installed);
            }
            Written::New | Written::Same => {}
            Written::Replaced => installed.replaced.push(agent.clone()),
        }
        if before.enabled {
            installed.restarted = before.pid.is_some();
            ask("launchctl", &["bootout", &self.service()])?;
        }
        ask("launchctl", &["enable", &self.service()])?;
        ask("launchctl", &["bootstrap", &self.domain, writable(&agent)?])?;
        Ok(installed)
    }

    pub(super) fn uninstall(&self) -> Result<Uninstalled, Error> {
        let agent = agent_in(&self.home);
        let mut uninstalled = Uninstalled::default();
        match file::whose(&agent)? {
            Whose::Nobodys => {}
            Whose::Anothers => uninstalled.left.push(agent),
            Whose::Ours => {
                if self.state().enabled {
                    ask("launchctl", &["bootout", &self.service()])?;
                }
                file::remove(&agent)?;
                uninstalled.removed.push(agent);
            }
        }
        Ok(uninstalled)
    }

    pub(super) fn start(&self) -> Result<(), Error> {
        ask("launchctl", &["kickstart", &self.service()]).map(drop)
    }

    pub(super) fn stop(&self) -> Result<(), Error> {
        if self.state().pid.is_none() {
            return Ok(());
        }
        ask("launchctl", &["kill", "SIGTERM", &self.service()]).map(drop)
    }

    fn service(&self) -> String {
        format!("{}/{LABEL}", self.domain)
    }
}

/// Reads the process out of what `launchctl print` tells of the agent.
fn pid(told: &str) -> Option<u32> {
    told.lines()
        .find_map(|line| line.trim().strip_prefix("pid = ")?.parse().ok())
}

/// Returns the agent that starts `program` with arguments.
fn agent_text(program: &Path, arguments: &[&str], home: &Path) -> Result<String, Error> {
    let words = [writable(program)?];
    let command: Vec<_> = words
        .iter()
        .chain(arguments)
        .map(|word| format!("<string>{}</string>", escaped(word)))
        .collect();
    let home = format!("{}/", escaped(writable(home)?.trim_end_matches('/')));
    let text = AGENT
        .replace(PROGRAM, &command.join("\n        "))
        .replace(HOME, &home);
    Ok(text.replacen("<plist", &format!("<!-- {MARK} -->\n<plist"), 1))
}

/// Writes text so that it stands for itself in XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use serde_json::{Value, json};

    use super::*;

    /// Has Python's parser read an agent.
    fn parsed(text: &str) -> Value {
        let script =
            "import json, plistlib, sys\njson.dump(plistlib.loads(sys.argv[1].encode()), sys.stdout)";
        let output = Command::new("python3")
            .args(["-c", script, text])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[test]
    fn a_parser_finds_the_keys_that_launchd_reads() {
        let agent = parsed(AGENT);
        let expected = json!({
            "Label": LABEL,
            "ProgramArguments": ["/usr/local/bin/tunneld"],
            "RunAtLoad": true,
            "KeepAlive": { "SuccessfulExit": false },
            "ThrottleInterval": 1,
            "ExitTimeOut": 30,
            "ProcessType": "Interactive",
            "Umask": 0o077,
            "SoftResourceLimits": { "Core": 0 },
            "StandardOutPath": "/Users/USER/Library/Logs/tunneld.log",
            "StandardErrorPath": "/Users/USER/Library/Logs/tunneld.log",
        });
        assert_eq!(agent, expected);
    }

    #[test]
    fn the_agent_starts_the_program_of_this_machine_and_logs_into_this_home() {
        let text = agent_text(
            Path::new("/opt/<a> & b/tunneld"),
            &["--allow-root"],
            Path::new("/Users/dev"),
        )
        .unwrap();
        let agent = parsed(&text);
        assert_eq!(
            agent["ProgramArguments"],
            json!(["/opt/<a> & b/tunneld", "--allow-root"])
        );
        assert_eq!(agent["StandardErrorPath"], "/Users/dev/Library/Logs/tunneld.log");
        assert_eq!(agent["StandardOutPath"], "/Users/dev/Library/Logs/tunneld.log");
        assert!(text.contains(MARK), "{text}");
    }

    #[test]
    fn the_process_is_read_out_of_what_launchctl_prints() {
        let running =
            "gui/501/tunneld = {\n\tactive count = 1\n\tstate = running\n\tpid = 4711\n\timmediate = 0\n}\n";
        assert_eq!(pid(running), Some(4711));
        assert_eq!(pid("gui/501/tunneld = {\n\tstate = not running\n}\n"), None);
    }
}
