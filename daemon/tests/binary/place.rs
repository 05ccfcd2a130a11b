//! A folder with a configuration, and the daemon that runs by it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;
use tunneld_proto::v1::tunnels_client::TunnelsClient;

/// Longer than anything here takes on a busy machine.
pub(crate) const ENOUGH: Duration = Duration::from_secs(60);

/// A folder with a configuration: one tunnel to a server of the test's own.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) server: TcpListener,
    pub(crate) port: u16,
}

impl Place {
    pub(crate) async fn new() -> Self {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = free.local_addr().unwrap().port();
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
            server,
            port,
        };
        place.configure(&place.tunnel("db"));
        place
    }

    pub(crate) fn tunnel(&self, name: &str) -> String {
        let (listen, target) = (self.port, self.server.local_addr().unwrap());
        format!(
            "[tunnels.{name}]\nlisten = \"127.0.0.1:{listen}\"\ntarget = \"{target}\"\nroute = \"direct\"\n\
             autostart = true\n"
        )
    }

    pub(crate) fn configure(&self, text: &str) {
        std::fs::write(self.config(), text).unwrap();
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("run/tunneld.sock")
    }

    /// The binary, with an environment of its own.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunneld"));
        command
            .env_clear()
            .env("HOME", self.folder.path())
            .kill_on_drop(true);
        command.arg("--allow-root");
        command.arg("--config").arg(self.config());
        command.arg("--socket").arg(self.socket());
        command.arg("--state").arg(self.folder.path().join("state"));
        command
    }

    /// Starts the daemon and waits until it serves.
    pub(crate) async fn start(&self) -> Running {
        let mut running = Running::of(self.command());
        running.says("configuration adopted").await;
        running
    }

    /// The binary, which inherits these sockets as a service manager hands them over; at most two.
    pub(crate) fn inheriting(&self, mut sockets: Vec<OwnedFd>) -> Command {
        let own = self.command();
        let own = own.as_std();
        let count = sockets.len();
        // The shell has the id of the process already that the binary will have.
        let script = format!(
            "exec 3<&0 4<&1 0</dev/null 1>/dev/null; export LISTEN_FDS={count} LISTEN_PID=$$; exec \"$@\""
        );
        let mut command = Command::new("/bin/sh");
        command.env_clear().kill_on_drop(true);
        command.args(["-c", &script, "sh"]);
        command.arg(own.get_program()).args(own.get_args());
        for (name, value) in own.get_envs() {
            command.env(name, value.unwrap());
        }
        let second = (count > 1).then(|| sockets.remove(1));
        command.stdin(Stdio::from(sockets.remove(0)));
        command.stdout(second.map_or_else(Stdio::null, Stdio::from));
        command
    }

    /// Runs the binary with these arguments alone, and with its configuration, until it ends.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunneld"));
        command.env_clear().env("HOME", self.folder.path());
        command.args(arguments).arg("--config").arg(self.config());
        command.output().await.unwrap()
    }

    pub(crate) async fn check(&self, arguments: &[&str]) -> Output {
        self.run(&[&["check"], arguments].concat()).await
    }

    pub(crate) async fn client(&self) -> TunnelsClient<tonic::transport::Channel> {
        TunnelsClient::new(tunneld_proto::connect(&self.socket()).await.unwrap())
    }

    /// Opens a connection through the tunnel, and returns both ends once bytes have passed.
    pub(crate) async fn through(&self) -> (TcpStream, TcpStream) {
        let mut near = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let (mut far, _) = timeout(ENOUGH, self.server.accept()).await.unwrap().unwrap();
        far.write_all(b"hello").await.unwrap();
        near.read_exact(&mut [0; 5]).await.unwrap();
        (near, far)
    }
}

pub(crate) struct Running {
    pub(crate) child: Child,
    log: Lines<BufReader<ChildStderr>>,
}

impl Running {
    /// Starts it.
    pub(crate) fn of(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, log }
    }

    /// Waits until the log has a line with these words.
    pub(crate) async fn says(&mut self, words: &str) -> String {
        let line = async {
            loop {
                let line = self.log.next_line().await.unwrap().expect("the daemon lives");
                if line.contains(words) {
                    return line;
                }
            }
        };
        timeout(ENOUGH, line).await.unwrap()
    }

    /// Reads what it says, so that it never waits for a reader; until it ends.
    pub(crate) async fn is_heard(&mut self) {
        while self.log.next_line().await.unwrap().is_some() {}
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    pub(crate) async fn end(mut self) -> ExitStatus {
        timeout(ENOUGH, self.child.wait()).await.unwrap().unwrap()
    }
}
