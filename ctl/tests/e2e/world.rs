//! A machine of a user in a folder: the emulated AWS, a real `tunneld`, a real `tunnelctl`, and what they print.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::Instant;
use tunneld_emulator::{Config, Credentials, Emulator};

/// How long anything may take that a test waits for: ten times what the slowest has been seen to need.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(10);

/// One user's machine.
pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) emulator: Emulator,
    runtime: Runtime,
    environment: BTreeMap<String, String>,
    /// How many files the daemon may open, where a test has set it.
    most_files: Option<u32>,
    daemon: Option<Child>,
}

impl World {
    /// Starts the emulator with an account and writes the user's configuration; no daemon runs yet.
    pub(crate) fn new(account: &str, configuration: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.toml"), configuration).unwrap();
        let runtime = Runtime::new().unwrap();
        let emulator = runtime
            .block_on(Emulator::start(Config::parse(account).unwrap()))
            .unwrap();
        let mut environment: BTreeMap<String, String> = emulator
            .environment()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        environment.insert("HOME".to_owned(), folder.path().display().to_string());
        let programs = Path::new(env!("CARGO_BIN_EXE_tunnelctl")).parent().unwrap();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        environment.insert("PATH".to_owned(), path);
        environment.insert(
            "TUNNELD_SOCKET".to_owned(),
            folder.path().join("run/t.sock").display().to_string(),
        );
        Self {
            folder,
            emulator,
            runtime,
            environment,
            most_files: None,
            daemon: None,
        }
    }

    /// The same, with a daemon that answers.
    pub(crate) fn started(account: &str, configuration: &str) -> Self {
        let mut world = Self::new(account, configuration);
        world.start();
        world
    }

    /// Changes what the daemon and client find in their environment.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// Lets the next daemon open no more than so many files.
    pub(crate) fn limit_files(&mut self, most: u32) {
        self.most_files = Some(most);
    }

    /// Has AWS replace its credentials, which have expired then, and writes the new ones to a profile as the AWS CLI does:
    /// all at once.
    pub(crate) fn log_in(&self, profile: &str) -> Credentials {
        let credentials = self.emulator.rotate_credentials();
        let mut text = format!(
            "[{profile}]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            credentials.access_key_id, credentials.secret_access_key
        );
        if let Some(token) = &credentials.session_token {
            text += &format!("aws_session_token = {token}\n");
        }
        let file = self.path(".aws/credentials");
        fs::create_dir_all(self.path(".aws")).unwrap();
        fs::write(file.with_extension("new"), text).unwrap();
        fs::rename(file.with_extension("new"), file).unwrap();
        credentials
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) fn start(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("daemon.log"))
            .unwrap();
        let child = self
            .daemon()
            .args(["--log", "debug", "--config"])
            .arg(self.path("config.toml"))
            .arg("--state")
            .arg(self.path("state"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(child);
        self.wait_for("the daemon answers", |world| {
            world.tunnelctl(&["version"]).status.success().then_some(())
        });
    }

    /// The daemon's program, under the limits that are set for it.
    fn daemon(&self) -> Command {
        let Some(most) = self.most_files else {
            return self.command("tunneld");
        };
        // A shell's limit is both of them, so that the daemon cannot raise it.
        let mut command = Command::new("sh");
        self.in_environment(&mut command).args([
            "-c",
            "ulimit -n \"$0\" && exec tunneld \"$@\"",
            &most.to_string(),
        ]);
        command
    }

    /// Kills the daemon as nothing can be survived.
    pub(crate) fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Asks the daemon to stop as a service manager does; returns whether it exited with 0.
    pub(crate) fn stop(&mut self) -> bool {
        self.signal("TERM");
        self.daemon.take().unwrap().wait().unwrap().success()
    }

    /// Sends the daemon a signal.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args(["-s", name, &self.daemon_id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success(), "kill -s {name}");
    }

    pub(crate) fn daemon_id(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program of ours, in the user's environment alone.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(binary(program));
        self.in_environment(&mut command);
        command
    }

    /// Gives a command the user's environment alone, with our programs first in the path.
    pub(crate) fn in_environment<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::null())
            .current_dir(self.folder.path())
    }

    pub(crate) fn tunnelctl(&self, arguments: &[&str]) -> Output {
        self.command("tunnelctl").args(arguments).output().unwrap()
    }

    /// Runs `tunnelctl`, which must succeed; returns what it printed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.tunnelctl(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {output:?}\n{}",
            self.log()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns a tunnel's status as `tunnelctl status --json` prints it.
    pub(crate) fn tunnel(&self, name: &str) -> Value {
        let all: Value = serde_json::from_str(&self.ok(&["status", name, "--json"])).unwrap();
        all["tunnels"][0].clone()
    }

    /// Waits until `look` finds something.
    pub(crate) fn wait_for<T>(&self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "waited in vain: {what}\n{}",
                self.log()
            );
            sleep(LOOK);
        }
    }

    /// Waits until a tunnel's status has something.
    pub(crate) fn wait_for_tunnel(&self, name: &str, what: &str, look: impl Fn(&Value) -> bool) -> Value {
        self.wait_for(what, |world| Some(world.tunnel(name)).filter(&look))
    }

    /// Waits until AWS has exactly the sessions that a tunnel shows; returns how many those are.
    pub(crate) fn wait_for_sessions(&self, name: &str) -> usize {
        self.wait_for("AWS and the status agree on the sessions", |world| {
            let shown = world.tunnel(name)["link"]["sessions"].as_u64()?;
            let open = world.emulator.sessions().len();
            (open as u64 == shown).then_some(open)
        })
    }

    /// Returns how often the daemon has said these words.
    pub(crate) fn said(&self, words: &str) -> usize {
        self.log().matches(words).count()
    }

    /// Everything the daemon has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // It may have ended by itself.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let _inside = self.runtime.enter();
    }
}

/// Returns a program of this workspace, which `make test` builds before any test runs.
fn binary(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_tunnelctl")).with_file_name(name);
    assert!(
        path.exists(),
        "`{name}` is not built: run `cargo build --workspace`, or `make test`, which does"
    );
    path
}

/// Returns a port that nobody listens on at the moment.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
