//! Logging in to an SSH server: with a key made for this one connection, with a key in a file, or by the ssh-agent.
//!
//! ```text
//!   instance-connect   make a key ─► push it ─► log in ─ refused ─► push it again ─► log in
//!   FILE               read it ─────────────► log in
//!   agent              ask for its keys ────► log in with each
//! ```
//!
//! A pushed key is good for a minute. So it is pushed once the connection stands, and nothing but the login is left.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use russh::client::{AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, decode_secret_key};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::debug;

use super::aside;
use super::handler::Ears;
use super::host::Server;
use crate::aws::Account;
use crate::config::Identity;
use crate::failure::{Cause, Failure, Reason, Remedy};

/// How long a login may take. A server may ask a program for keys twice, 5 s each time, and an agent may ask a person;
/// sshd itself gives 120 s.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most of a key file that is read: an RSA key of 16,384 bits has 12 KiB.
const MOST_KEY: u64 = 64 << 10;
/// The most keys of an agent that are tried: sshd hangs up after six refusals.
const MOST_TRIED: usize = 5;

/// What a login needs.
pub(super) struct Login<'a> {
    pub(super) server: &'a Server,
    pub(super) identity: &'a Identity,
    /// Where the ssh-agent listens, as the environment says.
    pub(super) agent: Option<&'a PathBuf>,
    pub(super) account: &'a Account,
}

impl Login<'_> {
    /// Logs in. A connection that broke meanwhile looks like a refusal here; ask it.
    pub(super) async fn run(&self, handle: &mut Handle<Ears>) -> Result<(), Failure> {
        let login = async {
            match self.identity {
                Identity::InstanceConnect => self.with_pushed_key(handle).await,
                Identity::File(path) => self.with_file(handle, path).await,
                Identity::Agent => self.with_agent(handle).await,
            }
        };
        let late = || {
            let why = format!("the login took longer than {} s", PATIENCE.as_secs());
            Failure::new(Reason::Unreachable, Remedy::Retry, self.doing()).because(why)
        };
        timeout(PATIENCE, login).await.unwrap_or_else(|_| Err(late()))
    }

    async fn with_pushed_key(&self, handle: &mut Handle<Ears>) -> Result<(), Failure> {
        let instance = &self.server.instance;
        if !instance.id().starts_with("i-") {
            return Err(self.invalid(
                "EC2 Instance Connect takes keys to EC2 instances only",
                "give the tunnel an identity: identity = \"~/.ssh/id_ed25519\" or \"agent\"",
            ));
        }
        let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519);
        let key = Arc::new(key.map_err(|error| self.broken(Box::new(error)))?);
        let public = key.public_key().to_openssh();
        let public = public.map_err(|error| self.broken(Box::new(error)))?;
        let zone = instance
            .place()
            .and_then(|place| place.availability_zone.as_deref());
        for attempt in 1..=2 {
            self.account
                .send_ssh_public_key(instance.id(), zone, &self.server.user, public.trim())
                .await?;
            if self.authenticate(handle, &key, None).await?.success() {
                return Ok(());
            }
            debug!(attempt, instance = instance.id(), "a pushed key was not accepted");
        }
        Err(self
            .denied("the server does not accept the key that was just pushed to it")
            .hint(format!(
                "is there a user `{}`? It is ec2-user on Amazon Linux and RHEL, ubuntu on Ubuntu, admin on Debian",
                self.server.user
            ))
            .hint("is the package ec2-instance-connect installed there? Not every image has it")
            .hint("the instance must reach its metadata service, and its clock must be right")
            .hint("or log in with a key of your own: identity = \"~/.ssh/id_ed25519\" or \"agent\""))
    }

    async fn with_file(&self, handle: &mut Handle<Ears>, path: &Path) -> Result<(), Failure> {
        let key = {
            let path = path.to_owned();
            Arc::new(aside(move || read_key(&path)).await??)
        };
        let hash = self.rsa_hash(handle, &key.algorithm()).await?;
        if self.authenticate(handle, &key, hash).await?.success() {
            return Ok(());
        }
        Err(self
            .denied(format!(
                "the server does not accept the key in {}",
                path.display()
            ))
            .hint(format!(
                "its public half must stand in ~{}/.ssh/authorized_keys there",
                self.server.user
            )))
    }

    async fn with_agent(&self, handle: &mut Handle<Ears>) -> Result<(), Failure> {
        let Some(path) = self.agent else {
            return Err(self.invalid(
                "there is no ssh-agent: SSH_AUTH_SOCK is not set in the daemon's environment",
                "start the daemon where it is set, or name a key: identity = \"~/.ssh/id_ed25519\"",
            ));
        };
        let silent = |cause: Cause| {
            let doing = format!("cannot ask the ssh-agent at `{}`", path.display());
            Failure::new(Reason::Invalid, Remedy::Fix, doing)
                .because(cause)
                .hint("SSH_AUTH_SOCK is as it was when the daemon started; restart it with the present one")
        };
        let socket = UnixStream::connect(path).await;
        let mut agent = AgentClient::connect(socket.map_err(|error| silent(Box::new(error)))?);
        let identities = agent.request_identities().await;
        let identities = identities.map_err(|error| silent(Box::new(error)))?;
        let keys: Vec<_> = identities
            .into_iter()
            .filter_map(|identity| match identity {
                AgentIdentity::PublicKey { key, .. } => Some(key),
                AgentIdentity::Certificate { .. } => None,
            })
            .take(MOST_TRIED)
            .collect();
        if keys.is_empty() {
            return Err(silent("it has no keys".into()).hint("ssh-add"));
        }
        let tried = keys.len();
        for key in keys {
            let hash = self.rsa_hash(handle, &key.algorithm()).await?;
            let answer = handle
                .authenticate_publickey_with(&self.server.user, key, hash, &mut agent)
                .await;
            match answer {
                Ok(answer) if answer.success() => return Ok(()),
                Ok(_) => {}
                Err(error) => debug!(%error, "the ssh-agent did not sign"),
            }
        }
        Err(self.denied(format!(
            "the server accepts none of the {tried} keys of the ssh-agent that were tried"
        )))
    }

    async fn authenticate(
        &self,
        handle: &mut Handle<Ears>,
        key: &Arc<PrivateKey>,
        hash: Option<HashAlg>,
    ) -> Result<AuthResult, Failure> {
        let key = PrivateKeyWithHashAlg::new(Arc::clone(key), hash);
        let answer = handle.authenticate_publickey(&self.server.user, key).await;
        answer.map_err(|error| self.broken(Box::new(error)))
    }

    /// Finds out how an RSA key may sign for this server.
    async fn rsa_hash(
        &self,
        handle: &Handle<Ears>,
        algorithm: &Algorithm,
    ) -> Result<Option<HashAlg>, Failure> {
        if !matches!(algorithm, Algorithm::Rsa { .. }) {
            return Ok(None);
        }
        let best = handle.best_supported_rsa_hash().await;
        let best = best.map_err(|error| self.broken(Box::new(error)))?;
        // Servers that do not say know SHA-2: OpenSSH does since 7.2, and refuses SHA-1 since 8.8.
        Ok(best.unwrap_or(Some(HashAlg::Sha512)))
    }

    fn doing(&self) -> String {
        format!("cannot log in to {} as `{}`", self.server, self.server.user)
    }

    fn denied(&self, why: impl Into<Cause>) -> Failure {
        Failure::new(Reason::Denied, Remedy::Fix, self.doing()).because(why)
    }

    fn invalid(&self, why: &str, hint: &str) -> Failure {
        Failure::new(Reason::Invalid, Remedy::Fix, self.doing())
            .because(why)
            .hint(hint)
    }

    fn broken(&self, cause: Cause) -> Failure {
        Failure::new(Reason::Unreachable, Remedy::Retry, self.doing()).because(cause)
    }
}

fn read_key(path: &Path) -> Result<PrivateKey, Failure> {
    let unreadable = |cause: Cause| {
        let doing = format!("cannot read the key in `{}`", path.display());
        Failure::new(Reason::Invalid, Remedy::Fix, doing).because(cause)
    };
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MOST_KEY).read_to_string(&mut text))
        .map_err(|error| unreadable(Box::new(error)))?;
    let decoded = decode_secret_key(&text, None);
    let is_locked = match &decoded {
        Ok(key) => key.is_encrypted(),
        Err(error) => matches!(error, russh::keys::Error::KeyIsEncrypted),
    };
    if is_locked {
        return Err(
            unreadable("it has a passphrase, which a daemon cannot ask for".into())
                .hint(format!("ssh-add {}", path.display()))
                .hint("and have the agent log in: identity = \"agent\""),
        );
    }
    decoded.map_err(|error| unreadable(Box::new(error)))
}
