//! The official AWS CLI of version 2 against the emulator, where it is installed: only that version opens tunnels, and
//! it cannot be had from a package index. It comes through the proxy, because its port 443 is fixed.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tunneld_emulator::{Config, Emulator};

/// Longer than the CLI takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const INSTANCE: &str = "i-0123456789abcdef0";
const SSH_INSTANCE: &str = "i-0123456789abcdef1";

struct Stage {
    emulator: Emulator,
    target: TcpListener,
    home: tempfile::TempDir,
}

impl Stage {
    /// Starts everything; or says what is missing.
    async fn start() -> Result<Self, String> {
        let version = Command::new("aws").arg("--version").output().await;
        let version = version.map_or(String::new(), |output| {
            String::from_utf8_lossy(&output.stdout).into_owned()
        });
        if !version.starts_with("aws-cli/2.") {
            return Err(format!("the `aws` in the path is no version 2, but {version:?}"));
        }
        let target = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = target.local_addr().expect("an address");
        let config = Config::parse(&format!(
            "[[endpoints]]\nid = \"eice-0123456789abcdef0\"\n\
             [[instances]]\nid = \"{INSTANCE}\"\nprivate_address = \"10.0.1.10\"\nports = {{ 22 = \"{address}\" }}\n\
             [[instances]]\nid = \"{SSH_INSTANCE}\"\nprivate_address = \"10.0.1.11\"\nssh = {{}}\n\
             [[hosts]]\nhost = \"db.example\"\nport = 5432\naddress = \"{address}\"\n"
        ))
        .expect("a good configuration");
        let emulator = Emulator::start(config).await.expect("the emulator starts");
        let home = tempfile::tempdir().expect("a temporary folder");
        fs::write(home.path().join("ca.pem"), emulator.ca_pem()).expect("written");
        Ok(Self {
            emulator,
            target,
            home,
        })
    }

    fn aws(&self, arguments: &[&str]) -> Child {
        let mut environment = self.emulator.environment();
        environment.remove("AWS_ENDPOINT_URL");
        let url = self.emulator.url();
        let own = env::var("PATH").expect("a path");
        let path = format!("{}:{own}", self.home.path().display());
        Command::new("aws")
            .arg("ec2-instance-connect")
            .args(arguments)
            .env_clear()
            .envs(environment)
            .envs([
                ("AWS_ENDPOINT_URL_EC2", &url),
                ("AWS_ENDPOINT_URL_EC2_INSTANCE_CONNECT", &url),
                ("HTTPS_PROXY", &url),
                ("PATH", &path),
            ])
            .env("HOME", self.home.path())
            .env("SSL_CERT_FILE", self.home.path().join("ca.pem"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts")
    }
}

/// Names a file that a line is added to for each test that was skipped.
const SKIPPED: &str = "TUNNELD_SKIPPED";

/// Says why the test of this thread is skipped: past the harness, which shows nothing of a test that passes.
fn skip(why: &str) {
    let thread = thread::current();
    let line = format!("skipped: {}: {why}\n", thread.name().unwrap_or("a test"));
    io::stderr().write_all(line.as_bytes()).expect("it can be said");
    if let Some(list) = env::var_os(SKIPPED) {
        let mut list = OpenOptions::new()
            .append(true)
            .create(true)
            .open(list)
            .expect("a file");
        list.write_all(line.as_bytes()).expect("written");
    }
}

/// Reads so many bytes.
async fn read(mut from: impl AsyncRead + Unpin, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    timeout(PATIENCE, from.read_exact(&mut bytes))
        .await
        .expect("they come")
        .expect("no end before");
    bytes
}

/// What someone says through a tunnel, and is answered.
async fn talk(tunnel: &mut Child, target: &mut TcpStream) {
    let stdin = tunnel.stdin.as_mut().expect("piped");
    stdin.write_all(b"hello").await.expect("it is taken");
    stdin.flush().await.expect("it is taken");
    assert_eq!(read(&mut *target, 5).await, b"hello");
    target.write_all(b"there").await.expect("it is taken");
    assert_eq!(read(tunnel.stdout.as_mut().expect("piped"), 5).await, b"there");
}

#[tokio::test]
async fn open_tunnel_pipes_its_input_and_ends_with_the_target() {
    let stage = match Stage::start().await {
        Ok(stage) => stage,
        Err(missing) => return skip(&missing),
    };
    let mut tunnel = stage.aws(&["open-tunnel", "--instance-id", INSTANCE]);
    let (mut target, _) = timeout(PATIENCE, stage.target.accept())
        .await
        .expect("it is dialled")
        .expect("a connection");
    talk(&mut tunnel, &mut target).await;
    drop(target);
    let status = timeout(PATIENCE, tunnel.wait())
        .await
        .expect("it ends")
        .expect("it can be waited for");
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn open_tunnel_prints_what_the_service_says_of_a_target_that_is_down() {
    let stage = match Stage::start().await {
        Ok(stage) => stage,
        Err(missing) => return skip(&missing),
    };
    let mut tunnel = stage.aws(&["open-tunnel", "--instance-id", INSTANCE, "--remote-port", "3389"]);
    let mut said = String::new();
    let talk = tunnel.stderr.as_mut().expect("piped");
    timeout(PATIENCE, talk.read_to_string(&mut said))
        .await
        .expect("it ends")
        .expect("text");
    assert!(said.contains("Unable to connect to target"), "{said}");
}

#[tokio::test]
async fn ssh_logs_in_by_a_pushed_key_through_the_tunnel() {
    let stage = match Stage::start().await {
        Ok(stage) => stage,
        Err(missing) => return skip(&missing),
    };
    // What the CLI runs as `ssh`: the real one, with a place to go, and without what its user has configured.
    let wrapper = stage.home.path().join("ssh");
    let script = "#!/bin/sh\nexec /usr/bin/ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
                  -o LogLevel=ERROR -W db.example:5432 \"$@\"\n";
    fs::write(&wrapper, script).expect("written");
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("made executable");
    assert!(
        Path::new("/usr/bin/ssh").exists(),
        "apt-get install openssh-client"
    );
    let mut ssh = stage.aws(&["ssh", "--instance-id", SSH_INSTANCE, "--connection-type", "eice"]);
    let (mut target, _) = timeout(PATIENCE, stage.target.accept())
        .await
        .expect("it is dialled")
        .expect("a connection");
    talk(&mut ssh, &mut target).await;
    assert_eq!(stage.emulator.tunnels().len(), 1);
}
