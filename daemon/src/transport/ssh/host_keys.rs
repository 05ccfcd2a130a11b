//! Whether a server is the one it should be.
//!
//! ```text
//!   first-use   the store has a key?  ─ yes ─► that one alone
//!                                     └ no ──► the one it shows, which is learned
//!   strict      known_hosts, else the store's keys from the console, else the console ─► those alone
//!                                     └ none ─► refused
//! ```
//!
//! A key other than those expected is never accepted: a person has to say that it was changed on purpose.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use russh::Preferred;
use russh::keys::{Algorithm, HashAlg, PublicKey, PublicKeyOrCertificate};
use tracing::{info, warn};

use super::aside;
use super::host::Server;
use super::sources::{KnownHosts, keys_on_console};
use super::store::{HostKeyStore, Origin, Pin, Unusable};
use crate::aws::Account;
use crate::config::HostKeys;
use crate::failure::{Cause, Failure, Reason, Remedy};

/// What is expected of one server.
#[derive(Debug)]
pub(super) struct Expectation {
    /// The instance's id, and what to call it.
    id: String,
    name: String,
    expected: Expected,
    revoked: Vec<PublicKey>,
    store: Arc<HostKeyStore>,
    /// What a person should know of the key that was accepted.
    note: Arc<OnceLock<String>>,
}

#[derive(Debug)]
enum Expected {
    /// One of these, as is written there.
    Known { keys: Vec<PublicKey>, place: Place },
    /// Any, to be learned.
    Anything,
}

/// Where expected keys are from.
#[derive(Debug)]
enum Place {
    /// The store, in these lines.
    Store { trusted: Origin, lines: Vec<usize> },
    /// The user's `known_hosts`, under this name.
    KnownHosts { path: PathBuf, host: String },
    /// The console, read for this connection.
    Console,
}

impl Expectation {
    /// Finds out what to expect of a server.
    pub(super) async fn of(
        server: &Server,
        rule: HostKeys,
        store: &Arc<HostKeyStore>,
        known_hosts: Option<&PathBuf>,
        account: &Account,
    ) -> Result<Self, Failure> {
        let id = server.instance.id().to_owned();
        let (pins, known) = read(server, rule, store, known_hosts).await?;
        let from_store = |pins: Vec<Pin>, trusted| Expected::Known {
            place: Place::Store {
                trusted,
                lines: pins.iter().map(|pin| pin.line).collect(),
            },
            keys: pins.into_iter().map(|pin| pin.key).collect(),
        };
        let expected = match (rule, known.keys, known_hosts) {
            (HostKeys::FirstUse, ..) if pins.is_empty() => Expected::Anything,
            (HostKeys::FirstUse, ..) => from_store(pins, Origin::FirstUse),
            (HostKeys::Strict, Some((host, keys)), Some(path)) => Expected::Known {
                keys,
                place: Place::KnownHosts {
                    path: path.clone(),
                    host,
                },
            },
            (HostKeys::Strict, ..) => {
                let pins: Vec<_> = pins
                    .into_iter()
                    .filter(|pin| pin.origin == Origin::Console)
                    .collect();
                if pins.is_empty() {
                    Expected::Known {
                        keys: on_console(server, account).await?,
                        place: Place::Console,
                    }
                } else {
                    from_store(pins, Origin::Console)
                }
            }
        };
        Ok(Self {
            id,
            name: server.to_string(),
            expected,
            revoked: known.revoked,
            store: Arc::clone(store),
            note: Arc::default(),
        })
    }

    /// Returns where to read, once a key was accepted, what a person should know of it.
    pub(super) fn note(&self) -> Arc<OnceLock<String>> {
        Arc::clone(&self.note)
    }

    /// Returns the algorithms to offer: those of expected keys first, or the server would show another of its keys.
    pub(super) fn algorithms(&self) -> Vec<Algorithm> {
        let mut algorithms = Preferred::DEFAULT.key.to_vec();
        if let Expected::Known { keys, .. } = &self.expected {
            algorithms.sort_by_key(|offered| !keys.iter().any(|key| same_kind(&key.algorithm(), offered)));
        }
        algorithms
    }

    /// Judges what a server has shown, and proven to hold.
    pub(super) async fn check(&self, shown: &PublicKeyOrCertificate) -> Result<(), Failure> {
        let key = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => key,
            PublicKeyOrCertificate::Certificate(_) => {
                let why = "it showed a certificate, which was not asked for";
                return Err(self.refused(why));
            }
        };
        let fingerprint = fingerprint(key);
        if self.revoked.iter().any(|revoked| same(revoked, key)) {
            return Err(self.refused(format!("its key {fingerprint} is revoked in known_hosts")));
        }
        match &self.expected {
            Expected::Known { keys, place } => self.compare(key, keys, place).await,
            Expected::Anything => {
                let learned = self.learn(key, Origin::FirstUse).await?;
                let faster = learned.map_err(|problem| {
                    self.refused(problem)
                        .hint("the state folder must be writable, to remember host keys")
                })?;
                if !faster.is_empty() {
                    let place = Place::Store {
                        trusted: Origin::FirstUse,
                        lines: faster.iter().map(|pin| pin.line).collect(),
                    };
                    let keys: Vec<_> = faster.into_iter().map(|pin| pin.key).collect();
                    return self.compare(key, &keys, &place).await;
                }
                info!(
                    instance = self.id,
                    fingerprint, "trusted the host key of {} on first use", self.name
                );
                self.tell_first_use(&fingerprint);
                Ok(())
            }
        }
    }

    async fn compare(&self, key: &PublicKey, expected: &[PublicKey], place: &Place) -> Result<(), Failure> {
        if expected.iter().any(|known| same(known, key)) {
            match place {
                Place::Store {
                    trusted: Origin::FirstUse,
                    ..
                } => self.tell_first_use(&fingerprint(key)),
                Place::Console => {
                    // The console forgets; a store that cannot be written only means to ask it again.
                    if let Err(problem) = self.learn(key, Origin::Console).await? {
                        warn!(
                            instance = self.id,
                            %problem,
                            "cannot remember the host key that the console shows"
                        );
                    }
                }
                Place::Store { .. } | Place::KnownHosts { .. } => {}
            }
            return Ok(());
        }
        Err(self.changed(key, expected, place))
    }

    async fn learn(&self, key: &PublicKey, origin: Origin) -> Result<Result<Vec<Pin>, Unusable>, Failure> {
        let (store, id, key) = (Arc::clone(&self.store), self.id.clone(), key.clone());
        aside(move || store.learn(&id, &key, origin)).await
    }

    fn changed(&self, key: &PublicKey, expected: &[PublicKey], place: &Place) -> Failure {
        let known: Vec<_> = expected.iter().map(fingerprint).collect();
        let known = known.join(" or ");
        let shown = fingerprint(key);
        let (whence, hint) = match place {
            Place::Store { lines, .. } => {
                let file = self.store.path().display();
                let lines: Vec<_> = lines.iter().map(ToString::to_string).collect();
                let lines = format!(
                    "line{} {}",
                    if lines.len() == 1 { "" } else { "s" },
                    lines.join(", ")
                );
                (
                    format!("{lines} of {file}"),
                    format!(
                        "if it was changed on purpose, forget the old one: ssh-keygen -R {} -f {file}",
                        self.id
                    ),
                )
            }
            Place::KnownHosts { path, host } => (
                format!("{}, under `{host}`", path.display()),
                format!(
                    "if it was changed on purpose, forget the old one: ssh-keygen -R {host} -f {}",
                    path.display()
                ),
            ),
            Place::Console => (
                "the instance's console".to_owned(),
                "if it was changed on purpose, add the new one to ~/.ssh/known_hosts under the instance's id"
                    .to_owned(),
            ),
        };
        self.refused(format!(
            "it showed the host key {shown}, but {known} is known from {whence}"
        ))
        .hint("somebody may be in between: find out why before you go on")
        .hint(hint)
    }

    fn refused(&self, why: impl Into<Cause>) -> Failure {
        let doing = format!("the host key of {} is not accepted", self.name);
        Failure::new(Reason::Denied, Remedy::Fix, doing).because(why)
    }

    fn tell_first_use(&self, fingerprint: &str) {
        let note = format!("the host key {fingerprint} was trusted on first use");
        // Each connection shows one key.
        let _ = self.note.set(note);
    }
}

/// Reads what files say of a server. Keys that `known_hosts` has for it are of use for a strict rule alone; those that it
/// revokes, for every one.
async fn read(
    server: &Server,
    rule: HostKeys,
    store: &Arc<HostKeyStore>,
    known_hosts: Option<&PathBuf>,
) -> Result<(Vec<Pin>, KnownHosts), Failure> {
    let (id, store, path) = (
        server.instance.id().to_owned(),
        Arc::clone(store),
        known_hosts.cloned(),
    );
    let names = match rule {
        HostKeys::Strict => server.names(),
        HostKeys::FirstUse => Vec::new(),
    };
    let (pins, known) = aside(move || {
        let known = path.map_or_else(
            || Ok(KnownHosts::default()),
            |path| KnownHosts::read(&path, &names).map_err(|error| (path, error)),
        );
        (store.pins(&id), known)
    })
    .await?;
    Ok((
        pins.map_err(|problem| unusable(server, problem))?,
        known.map_err(|(path, error)| unreadable(server, &path, error))?,
    ))
}

async fn on_console(server: &Server, account: &Account) -> Result<Vec<PublicKey>, Failure> {
    let unknown = |why: Cause| {
        let doing = format!("no host key of {server} is known");
        let names = server.names();
        let name = names.first().map_or("", String::as_str);
        Failure::new(Reason::Denied, Remedy::Fix, doing)
            .because(why)
            .hint(format!("add its key to ~/.ssh/known_hosts under the name {name}"))
            .hint("or trust the key that it shows first: host_keys = \"first-use\"")
    };
    if !server.instance.id().starts_with("i-") {
        return Err(unknown("it has no console that could show one".into()));
    }
    let output = account.console_output(server.instance.id()).await;
    let keys = keys_on_console(&output.map_err(|failure| unknown(Box::new(failure)))?);
    if keys.is_empty() {
        return Err(unknown(
            "its console does not show any, as it does soon after the first boot only".into(),
        ));
    }
    Ok(keys)
}

fn unusable(server: &Server, problem: Unusable) -> Failure {
    let doing = format!("cannot look up the host key of {server}");
    let failure = Failure::new(Reason::Invalid, Remedy::Fix, doing);
    let failure = match &problem {
        Unusable::Damaged { path, line, .. } => {
            failure.hint(format!("mend or remove line {line} of {}", path.display()))
        }
        Unusable::Io(..) | Unusable::TooLarge(_) => failure,
    };
    failure.because(problem)
}

fn unreadable(server: &Server, path: &std::path::Path, error: std::io::Error) -> Failure {
    let doing = format!("cannot look up the host key of {server} in `{}`", path.display());
    Failure::new(Reason::Invalid, Remedy::Fix, doing).because(error)
}

/// Keys are compared without their comments.
fn same(left: &PublicKey, right: &PublicKey) -> bool {
    left.key_data() == right.key_data()
}

/// RSA keys sign in several ways.
fn same_kind(of_key: &Algorithm, offered: &Algorithm) -> bool {
    let is_rsa = |algorithm| matches!(algorithm, &Algorithm::Rsa { .. });
    of_key == offered || (is_rsa(of_key) && is_rsa(offered))
}

fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}
