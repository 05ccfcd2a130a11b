//! Whether a server is the one it should be.
//!
//! ```text
//!   first-use   the store has a key?  ─ yes ─► that one alone
//!                                     └ no ──► the one it shows, which is learned
//!   strict      known_hosts, by id    ─ has one ─► that one alone
//!               known_hosts, by Name or address ─ has the one it shows ─► that one
//!               the store's keys from the console, else the console     ─► those alone
//!                                     └ none ─► refused
//! ```
//!
//! An id names one machine for ever. A Name or an address in `known_hosts` may be that of another one; so where its key is
//! not the one that is shown, the console decides.
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
pub(super) struct Expectation {
    /// The instance's id, and what to call it.
    id: String,
    name: String,
    expected: Expected,
    revoked: Vec<PublicKey>,
    store: Arc<HostKeyStore>,
    account: Arc<Account>,
    /// What a person should know of the key that was accepted.
    note: Arc<OnceLock<String>>,
}

enum Expected {
    /// One of these.
    Known(Known),
    /// One of these, or else one of the console's, where those are in the store already.
    Named { named: Known, console: Option<Known> },
    /// Any, to be learned.
    Anything,
}

/// Keys, and where they are written.
struct Known {
    keys: Vec<PublicKey>,
    place: Place,
}

/// Where expected keys are from.
enum Place {
    /// The store, in these lines.
    Store { trusted: Origin, lines: Vec<usize> },
    /// The user's `known_hosts`, under this name.
    KnownHosts { path: PathBuf, host: String },
    /// The console, read for this connection.
    Console,
}

impl Known {
    fn in_store(pins: Vec<Pin>, trusted: Origin) -> Self {
        Self {
            place: Place::Store {
                trusted,
                lines: pins.iter().map(|pin| pin.line).collect(),
            },
            keys: pins.into_iter().map(|pin| pin.key).collect(),
        }
    }

    fn has(&self, key: &PublicKey) -> bool {
        self.keys.iter().any(|known| same(known, key))
    }
}

impl Expectation {
    /// Finds out what to expect of a server.
    pub(super) async fn of(
        server: &Server,
        rule: HostKeys,
        store: &Arc<HostKeyStore>,
        known_hosts: Option<&PathBuf>,
        account: &Arc<Account>,
    ) -> Result<Self, Failure> {
        let id = server.instance.id().to_owned();
        let (pins, known) = read(server, rule, store, known_hosts).await?;
        let of_console = || {
            let is_from_there = |pin: &&Pin| pin.origin == Origin::Console;
            let pins: Vec<_> = pins.iter().filter(is_from_there).cloned().collect();
            (!pins.is_empty()).then(|| Known::in_store(pins, Origin::Console))
        };
        let named = known.keys.zip(known_hosts.cloned()).map(|((host, keys), path)| {
            let is_sure = host == id;
            let place = Place::KnownHosts { path, host };
            (Known { keys, place }, is_sure)
        });
        let expected = match (rule, named) {
            (HostKeys::FirstUse, _) if pins.is_empty() => Expected::Anything,
            (HostKeys::FirstUse, _) => Expected::Known(Known::in_store(pins, Origin::FirstUse)),
            (HostKeys::Strict, Some((known, true))) => Expected::Known(known),
            (HostKeys::Strict, Some((named, false))) => Expected::Named {
                named,
                console: of_console(),
            },
            (HostKeys::Strict, None) => Expected::Known(match of_console() {
                Some(known) => known,
                None => on_console(&id, &server.to_string(), account).await?,
            }),
        };
        Ok(Self {
            id,
            name: server.to_string(),
            expected,
            revoked: known.revoked,
            store: Arc::clone(store),
            account: Arc::clone(account),
            note: Arc::default(),
        })
    }

    /// Returns where to read, once a key was accepted, what a person should know of it.
    pub(super) fn note(&self) -> Arc<OnceLock<String>> {
        Arc::clone(&self.note)
    }

    /// Returns the algorithms to offer: those of expected keys first, or the server would show another of its keys.
    pub(super) fn algorithms(&self) -> Vec<Algorithm> {
        let known = match &self.expected {
            Expected::Known(known) => vec![known],
            Expected::Named { named, console } => console.iter().chain([named]).collect(),
            Expected::Anything => Vec::new(),
        };
        let keys: Vec<_> = known.into_iter().flat_map(|known| &known.keys).collect();
        let mut algorithms = Preferred::DEFAULT.key.to_vec();
        algorithms.sort_by_key(|offered| !keys.iter().any(|key| same_kind(&key.algorithm(), offered)));
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
            Expected::Known(known) => self.compare(key, known).await,
            Expected::Named { named, .. } if named.has(key) => Ok(()),
            Expected::Named {
                console: Some(known), ..
            } => self.compare(key, known).await,
            Expected::Named { named, console: None } => {
                match on_console(&self.id, &self.name, &self.account).await {
                    Ok(known) => self.compare(key, &known).await,
                    Err(_) => Err(self.changed(key, named)),
                }
            }
            Expected::Anything => self.trust(key, &fingerprint).await,
        }
    }

    /// Accepts a key of a server of which none is known.
    async fn trust(&self, key: &PublicKey, fingerprint: &str) -> Result<(), Failure> {
        let learned = self.learn(key, Origin::FirstUse).await?;
        let faster = learned.map_err(|problem| {
            self.refused(problem)
                .hint("the state folder must be writable, to remember host keys")
        })?;
        if !faster.is_empty() {
            let known = Known::in_store(faster, Origin::FirstUse);
            return self.compare(key, &known).await;
        }
        info!(
            instance = self.id,
            fingerprint, "trusted the host key of {} on first use", self.name
        );
        self.tell_first_use(fingerprint);
        Ok(())
    }

    async fn compare(&self, key: &PublicKey, known: &Known) -> Result<(), Failure> {
        if !known.has(key) {
            return Err(self.changed(key, known));
        }
        match known.place {
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
        Ok(())
    }

    async fn learn(&self, key: &PublicKey, origin: Origin) -> Result<Result<Vec<Pin>, Unusable>, Failure> {
        let (store, id, key) = (Arc::clone(&self.store), self.id.clone(), key.clone());
        aside(move || store.learn(&id, &key, origin)).await
    }

    fn changed(&self, key: &PublicKey, Known { keys, place }: &Known) -> Failure {
        let known: Vec<_> = keys.iter().map(fingerprint).collect();
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

/// Reads the keys on the console of an instance.
async fn on_console(id: &str, name: &str, account: &Account) -> Result<Known, Failure> {
    let unknown = |why: Cause| {
        let doing = format!("no host key of {name} is known");
        Failure::new(Reason::Denied, Remedy::Fix, doing)
            .because(why)
            .hint(format!("add its key to ~/.ssh/known_hosts under the name {id}"))
            .hint("or trust the key that it shows first: host_keys = \"first-use\"")
    };
    if !id.starts_with("i-") {
        return Err(unknown("it has no console that could show one".into()));
    }
    let output = account.console_output(id).await;
    let keys = keys_on_console(&output.map_err(|failure| unknown(Box::new(failure)))?);
    if keys.is_empty() {
        return Err(unknown(
            "its console does not show any, as it does soon after the first boot only".into(),
        ));
    }
    let place = Place::Console;
    Ok(Known { keys, place })
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
