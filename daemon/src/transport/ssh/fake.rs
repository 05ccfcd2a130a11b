//! What tests of this folder share: keys, an OpenSSH server, and a route to it.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PublicKey};
use russh::server::{Auth, Handler, PublicKeyOffer, VerifiedPublicKey};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::RouteTo;
use crate::failure::{Failure, Reason, Remedy};
use crate::transport::{Health, Link, LinkDetails, Stream, Transport};

/// How long anything may take that a test waits for.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A key that nobody else has.
pub(super) fn private_key() -> PrivateKey {
    PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap()
}

/// The public half of one.
pub(super) fn public_key() -> PublicKey {
    private_key().public_key().clone()
}

/// Writes a key where its owner alone may read it, as OpenSSH demands.
pub(super) fn write_key(path: &Path, key: &PrivateKey) {
    key.write_openssh_file(path, LineEnding::LF).unwrap();
}

/// A server of OpenSSH on a loopback port, with a host key and a user's key of its own.
pub(super) struct Sshd {
    folder: TempDir,
    pub(super) port: u16,
    process: Child,
}

impl Sshd {
    /// Starts one; `settings` come first in its configuration.
    pub(super) async fn start(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_key(&folder.path().join("host_key"), &private_key());
        let key = private_key();
        write_key(&folder.path().join("user_key"), &key);
        let authorized = key.public_key().to_openssh().unwrap();
        std::fs::write(folder.path().join("authorized_keys"), authorized + "\n").unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let path = folder.path().display();
        let text = format!(
            "{settings}\nPort {port}\nListenAddress 127.0.0.1\nHostKey {path}/host_key\nPidFile none\n\
             AuthorizedKeysFile {path}/authorized_keys\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        );
        std::fs::write(folder.path().join("sshd_config"), text).unwrap();
        let process = spawn(folder.path());
        let mut sshd = Self {
            folder,
            port,
            process,
        };
        sshd.listens().await;
        sshd
    }

    /// Returns the user's key.
    pub(super) fn user_key(&self) -> PathBuf {
        self.folder.path().join("user_key")
    }

    /// Gives it another host key, with its next start.
    pub(super) fn change_host_key(&self) {
        let path = self.folder.path().join("host_key");
        std::fs::remove_file(&path).unwrap();
        write_key(&path, &private_key());
    }

    /// Returns the public half of its host key.
    pub(super) fn host_key(&self) -> PublicKey {
        let key = PrivateKey::read_openssh_file(self.folder.path().join("host_key"));
        key.unwrap().public_key().clone()
    }

    /// Returns what it has logged.
    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Ends it and every login on it, as a reboot does.
    pub(super) fn stop(&mut self) {
        // A login has a process, which has another one; both leave the server's group.
        for login in descendants(self.process.id()) {
            // It may have ended by itself meanwhile.
            let _ = rustix::process::kill_process(login, rustix::process::Signal::KILL);
        }
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it anew.
    pub(super) async fn start_again(&mut self) {
        self.process = spawn(self.folder.path());
        self.listens().await;
    }

    async fn listens(&mut self) {
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))
            .await
            .is_err()
        {
            assert!(began.elapsed() < PATIENCE, "sshd does not listen");
            assert!(
                self.process.try_wait().unwrap().is_none(),
                "sshd ended: is its configuration right?"
            );
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|status| status.is_none()) {
            self.stop();
        }
    }
}

fn spawn(folder: &Path) -> Child {
    // As root, sshd wants the folder that its service makes.
    if rustix::process::geteuid().is_root() {
        std::fs::create_dir_all("/run/sshd").unwrap();
    }
    let program = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("sshd is installed: `scripts/setup test` does it");
    Command::new(program)
        .args(["-D", "-e", "-f"])
        .arg(folder.join("sshd_config"))
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(folder.join("log")).unwrap())
        .spawn()
        .unwrap()
}

/// A server in this process that lets everybody in.
pub(super) struct Welcoming(tokio::net::TcpListener);

impl Welcoming {
    /// Listens on a loopback port.
    pub(super) async fn start() -> Self {
        Self(
            tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .await
                .unwrap(),
        )
    }

    pub(super) fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// Serves the next connection, and returns the server's hand on it.
    pub(super) async fn accept(&self) -> russh::server::Handle {
        let config = russh::server::Config {
            keys: vec![private_key()],
            ..russh::server::Config::default()
        };
        let (stream, _) = self.0.accept().await.unwrap();
        let session = russh::server::run_stream(Arc::new(config), stream, LetIn).await;
        session.unwrap().handle()
    }
}

struct LetIn;

impl Handler for LetIn {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, _: &str, _: PublicKeyOffer<'_>) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn auth_publickey(&mut self, _: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }
}

/// The processes that a process has started, and those that they have.
fn descendants(parent: u32) -> Vec<rustix::process::Pid> {
    let list = format!("/proc/{parent}/task/{parent}/children");
    let children = std::fs::read_to_string(list).unwrap_or_default();
    let children = children.split_whitespace().map(|id| id.parse::<u32>().unwrap());
    children
        .flat_map(|child| {
            let own = rustix::process::Pid::from_raw(child.cast_signed());
            own.into_iter().chain(descendants(child))
        })
        .collect()
}

/// Who runs the tests, and so may log in.
pub(super) fn user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A route to a port of this machine, which may cut each stream after a while.
pub(super) struct Below {
    pub(super) port: u16,
    pub(super) life: Option<Duration>,
    pub(super) health: watch::Sender<Health>,
}

impl Below {
    pub(super) fn to(port: u16, life: Option<Duration>) -> Arc<Self> {
        let health = watch::Sender::new(Health {
            impaired: None,
            ended: None,
            details: LinkDetails::default(),
        });
        Arc::new(Self { port, life, health })
    }

    /// Takes it to any server.
    pub(super) fn whoever(self: &Arc<Self>) -> RouteTo {
        let below = Arc::clone(self);
        Box::new(move |_| Arc::clone(&below) as Arc<dyn Transport>)
    }
}

#[async_trait]
impl Transport for Below {
    async fn connect(&self) -> Result<Arc<dyn Link>, Failure> {
        Ok(Arc::new(BelowLink {
            port: self.port,
            life: self.life,
            health: self.health.clone(),
        }))
    }
}

struct BelowLink {
    port: u16,
    life: Option<Duration>,
    health: watch::Sender<Health>,
}

#[async_trait]
impl Link for BelowLink {
    async fn open(&self, _: &str) -> Result<Box<dyn Stream>, Failure> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await;
        let stream = stream.map_err(|error| {
            Failure::new(Reason::TargetRefused, Remedy::Retry, "cannot connect")
                .of_stream()
                .because(error)
        })?;
        stream.set_nodelay(true).unwrap();
        match self.life {
            None => Ok(Box::new(stream)),
            Some(life) => Ok(Box::new(mortal::Mortal::new(stream, Instant::now() + life))),
        }
    }

    async fn closed(&self) -> Arc<Failure> {
        std::future::pending().await
    }

    async fn close(&self) {}

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn probe(&self) {}
}

/// Streams that are cut.
mod mortal {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use tokio::time::{Sleep, sleep_until};

    use super::*;
    use crate::transport::io_error;

    pub(super) struct Mortal {
        stream: TcpStream,
        ends: Instant,
        end: Pin<Box<Sleep>>,
    }

    impl Mortal {
        pub(super) fn new(stream: TcpStream, ends: Instant) -> Self {
            let end = Box::pin(sleep_until(ends));
            Self { stream, ends, end }
        }
    }

    impl Stream for Mortal {
        fn expires(&self) -> Option<Instant> {
            Some(self.ends)
        }
    }

    impl AsyncRead for Mortal {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.end.as_mut().poll(context).is_ready() {
                let failure = Failure::new(Reason::Expired, Remedy::Retry, "its time was over");
                return Poll::Ready(Err(io_error(&Arc::new(failure.of_stream()))));
            }
            Pin::new(&mut self.stream).poll_read(context, buffer)
        }
    }

    impl AsyncWrite for Mortal {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.stream).poll_write(context, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(context)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(context)
        }
    }
}

/// Waits until something holds that nothing announces.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect(what);
}
