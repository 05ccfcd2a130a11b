//! A machine of a user in a folder: the emulated AWS, a real `tunneld`, a real `tunnelctl`, and what they print.
//!
//! At its end everything that they printed and kept is searched for the secrets that AWS gave out, whatever the test was
//! about.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
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
pub(crate) const LOOK: Duration = Duration::from_millis(10);
/// What is shorter is no secret that could be told from ordinary words; those of the emulator have 39 letters and more.
const SHORTEST_SECRET: usize = 16;

/// Tests run as whoever runs them, the daemon too.
const AS_WHOEVER: &str = "--allow-root";

/// One user's machine.
pub(crate) struct World {
    pub(crate) folder: TempDir,
    pub(crate) emulator: Emulator,
    runtime: Runtime,
    environment: BTreeMap<String, String>,
    /// What starts the daemon, where that is not the test itself: a program and its arguments.
    launcher: Vec<String>,
    daemon: Option<Child>,
    /// Who runs our programs, if somebody else than we, and where those programs are.
    user: Option<(u32, TempDir)>,
    /// What `tunnelctl` has printed.
    printed: Mutex<Vec<u8>>,
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
            launcher: Vec::new(),
            daemon: None,
            user: None,
            printed: Mutex::default(),
        }
    }

    /// The same, with a daemon that answers.
    pub(crate) fn started(account: &str, configuration: &str) -> Self {
        let mut world = Self::new(account, configuration);
        world.start();
        world
    }

    /// The same, with everything the other user's. Only root can do that.
    pub(crate) fn started_by(user: u32, account: &str, configuration: &str) -> Self {
        let mut world = Self::new(account, configuration);
        // Where ours are built that user may not come.
        let programs = tempfile::tempdir().unwrap();
        for program in ["tunneld", "tunnelctl"] {
            fs::copy(binary(program), programs.path().join(program)).unwrap();
        }
        for path in [programs.path(), world.folder.path(), &world.path("config.toml")] {
            chown(path, Some(user), Some(user)).unwrap();
        }
        world.user = Some((user, programs));
        world.start();
        world
    }

    /// Changes what the daemon and client find in their environment.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// Lets the next daemon open no more than so many files. A shell's limit is both of them, so that the daemon cannot
    /// raise it.
    pub(crate) fn limit_files(&mut self, most: u32) {
        self.launch_by(&["sh", "-c", "ulimit -n \"$0\" && exec \"$@\"", &most.to_string()]);
    }

    /// Has a program start the daemon in its own place.
    pub(crate) fn launch_by(&mut self, launcher: &[&str]) {
        self.launcher = launcher.iter().map(ToString::to_string).collect();
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
        let Some((launcher, arguments)) = self.launcher.split_first() else {
            return self.command("tunneld");
        };
        let mut command = Command::new(launcher);
        self.in_environment(&mut command)
            .args(arguments)
            .arg(binary("tunneld"))
            .arg(AS_WHOEVER);
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
        let mut command = match &self.user {
            None => Command::new(binary(program)),
            Some((user, programs)) => {
                let mut command = Command::new(programs.path().join(program));
                command.uid(*user).gid(*user);
                command
            }
        };
        self.in_environment(&mut command);
        if program == "tunneld" {
            command.arg(AS_WHOEVER);
        }
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
        let output = self.command("tunnelctl").args(arguments).output().unwrap();
        let mut printed = self.printed.lock().unwrap();
        printed.extend(&output.stdout);
        printed.extend(&output.stderr);
        output
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

    /// Returns where the daemon and `tunnelctl` have shown or kept a secret that AWS gave out.
    pub(crate) fn leaks(&self) -> Vec<String> {
        let mut texts = vec![
            (
                "what tunnelctl printed".to_owned(),
                self.printed.lock().unwrap().clone(),
            ),
            ("the daemon's log".to_owned(), self.log().into_bytes()),
        ];
        read_all(&self.path("state"), &mut texts);
        read_all(&self.path("run"), &mut texts);
        // Where a daemon that was told no place keeps its state, and one that was started by hand its log.
        read_all(&Path::new(&self.environment["HOME"]).join(".local"), &mut texts);
        let secrets = self.emulator.secrets();
        let mut leaks = Vec::new();
        for (place, bytes) in texts {
            let text = String::from_utf8_lossy(&bytes);
            for secret in secrets.iter().filter(|secret| secret.len() >= SHORTEST_SECRET) {
                if text.contains(secret.as_str()) {
                    leaks.push(format!("{place}: {secret}"));
                }
            }
        }
        leaks
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // It may have ended by itself.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // A test that failed has its own words.
        let leaks = if std::thread::panicking() {
            Vec::new()
        } else {
            self.leaks()
        };
        let _inside = self.runtime.enter();
        assert!(leaks.is_empty(), "secrets were shown or kept: {leaks:#?}");
    }
}

/// Reads every file below a folder, which may not be there.
fn read_all(folder: &Path, texts: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.unwrap();
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            read_all(&path, texts);
        } else if kind.is_file() {
            texts.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
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
