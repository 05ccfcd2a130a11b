//! The host keys that the daemon has learned, by instance id: one file in the state folder, written as `known_hosts` is,
//! so that `ssh-keygen -R ID -f FILE` forgets one.
//!
//! ```text
//!   i-0123456789abcdef0 ssh-ed25519 AAAA… first-use
//! ```
//!
//! An id names one machine for ever, where addresses are used again; so a key that changes is news. The file is read
//! each time, because a person may edit it, and written whole beside itself and moved into place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use russh::keys::PublicKey;
use rustix::fs::{FlockOperation, flock};
use tracing::warn;

/// The most that is read: two thousand RSA keys.
const MOST_BYTES: u64 = 1 << 20;

/// The file of learned host keys.
#[derive(Debug)]
pub(super) struct HostKeyStore {
    path: PathBuf,
    /// Held while the file is written.
    writing: Mutex<()>,
}

/// A key that is in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pin {
    pub(super) key: PublicKey,
    pub(super) origin: Origin,
    pub(super) line: usize,
}

/// Where a key was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The server showed it, and no other was known.
    FirstUse,
    /// The instance printed it on its console.
    Console,
}

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("cannot read or write `{}`", .0.display())]
    Io(PathBuf, #[source] io::Error),
    #[error("`{}` is larger than {} MiB", .0.display(), MOST_BYTES >> 20)]
    TooLarge(PathBuf),
    #[error("line {line} of `{}`, about `{id}`, cannot be understood", .path.display())]
    Damaged { path: PathBuf, line: usize, id: String },
}

impl HostKeyStore {
    /// A store in this folder. Nothing is read or written yet.
    pub(super) fn in_folder(folder: &Path) -> Self {
        Self {
            path: folder.join("host_keys"),
            writing: Mutex::default(),
        }
    }

    /// Returns the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the keys of an instance.
    pub(super) fn pins(&self, id: &str) -> Result<Vec<Pin>, Unusable> {
        let text = self.read()?;
        let mut pins = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let (name, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            if name.is_empty() || name.starts_with('#') {
                continue;
            }
            match parse(rest) {
                Some((key, origin)) if name == id => pins.push(Pin {
                    key,
                    origin,
                    line: number,
                }),
                Some(_) => {}
                // To pass over it would be to trust whatever the server shows.
                None if name == id => {
                    return Err(Unusable::Damaged {
                        path: self.path.clone(),
                        line: number,
                        id: id.to_owned(),
                    });
                }
                None => {
                    warn!(file = %self.path.display(), line = number, "passed over a line that is no host key")
                }
            }
        }
        Ok(pins)
    }

    /// Adds a key for an instance of which none is known. Where somebody was faster, those keys come back instead; but
    /// one that was trusted on first use, and that the console shows too, is from then on known from there.
    pub(super) fn learn(&self, id: &str, key: &PublicKey, origin: Origin) -> Result<Vec<Pin>, Unusable> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let _locked = self.lock().map_err(|error| self.failed(error))?;
        let known = self.pins(id)?;
        let confirmed = known.iter().find(|pin| {
            (pin.origin, origin) == (Origin::FirstUse, Origin::Console)
                && pin.key.key_data() == key.key_data()
        });
        let confirmed = confirmed.map(|pin| pin.line);
        if confirmed.is_none() && !known.is_empty() {
            return Ok(known);
        }
        let encoded = key.to_openssh().map_err(io::Error::other);
        let encoded = encoded.map_err(|error| self.failed(error))?;
        // Without the comment, which is the server's.
        let key = encoded.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let entry = format!("{id} {key} {}", origin.name());
        let text = self.read()?;
        let mut lines: Vec<_> = text.lines().collect();
        match confirmed.and_then(|line| lines.get_mut(line - 1)) {
            Some(line) => *line = &entry,
            None => lines.push(&entry),
        }
        let text = lines.join("\n") + "\n";
        self.write(&text).map_err(|error| self.failed(error))?;
        Ok(Vec::new())
    }

    fn read(&self) -> Result<String, Unusable> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            Err(error) => return Err(self.failed(error)),
        };
        let mut bytes = Vec::new();
        let read = file.take(MOST_BYTES + 1).read_to_end(&mut bytes);
        let length = read.map_err(|error| self.failed(error))?;
        if length as u64 > MOST_BYTES {
            return Err(Unusable::TooLarge(self.path.clone()));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes the file anew beside itself, so that a crash leaves the old one or the new one.
    fn write(&self, text: &str) -> io::Result<()> {
        let beside = self.path.with_extension("new");
        let mut file = private(&beside, OpenOptions::new().truncate(true))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)
    }

    /// Keeps other daemons of this folder from writing until the file is dropped.
    fn lock(&self) -> io::Result<File> {
        let file = private(&self.path.with_extension("lock"), &mut OpenOptions::new())?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    fn failed(&self, error: io::Error) -> Unusable {
        Unusable::Io(self.path.clone(), error)
    }
}

impl Origin {
    fn name(self) -> &'static str {
        match self {
            Self::FirstUse => "first-use",
            Self::Console => "console",
        }
    }
}

/// Opens a file for writing that its owner alone may read.
fn private(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.create(true).write(true).mode(0o600).open(path)
}

/// Reads what stands behind the id. A line that a person wrote counts as one of the first use.
fn parse(rest: &str) -> Option<(PublicKey, Origin)> {
    let mut words = rest.split_whitespace();
    let (algorithm, encoded) = (words.next()?, words.next()?);
    let key = PublicKey::from_openssh(&format!("{algorithm} {encoded}")).ok()?;
    let origin = match words.next() {
        Some("console") => Origin::Console,
        Some(_) | None => Origin::FirstUse,
    };
    Some((key, origin))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::fake;
    use super::*;

    #[test]
    fn a_key_that_was_learned_is_known_and_the_owner_alone_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = HostKeyStore::in_folder(folder.path());
        assert_eq!(store.pins("i-0a").unwrap(), []);
        let key = fake::public_key();
        assert_eq!(store.learn("i-0a", &key, Origin::FirstUse).unwrap(), []);
        store.learn("i-0b", &fake::public_key(), Origin::Console).unwrap();
        let pin = Pin {
            key,
            origin: Origin::FirstUse,
            line: 1,
        };
        assert_eq!(store.pins("i-0a").unwrap(), [pin]);
        assert_eq!(store.pins("i-0b").unwrap()[0].origin, Origin::Console);
        let mode = fs::metadata(store.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_key_is_learned_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = HostKeyStore::in_folder(folder.path());
        let first = fake::public_key();
        store.learn("i-0a", &first, Origin::FirstUse).unwrap();
        let known = store
            .learn("i-0a", &fake::public_key(), Origin::FirstUse)
            .unwrap();
        assert_eq!(known[0].key, first);
        assert_eq!(store.pins("i-0a").unwrap().len(), 1);
    }

    #[test]
    fn a_key_of_first_use_that_the_console_shows_is_known_from_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = HostKeyStore::in_folder(folder.path());
        let key = fake::public_key();
        fs::write(store.path(), "# mine\n").unwrap();
        store.learn("i-0a", &key, Origin::FirstUse).unwrap();
        store
            .learn("i-0b", &fake::public_key(), Origin::FirstUse)
            .unwrap();
        let before = fs::read_to_string(store.path()).unwrap();
        let others = store.learn("i-0a", &fake::public_key(), Origin::Console).unwrap();
        assert_eq!(others[0].key, key, "another key is none that it confirms");
        assert_eq!(fs::read_to_string(store.path()).unwrap(), before);

        assert_eq!(store.learn("i-0a", &key, Origin::Console).unwrap(), []);
        let pin = Pin {
            key: key.clone(),
            origin: Origin::Console,
            line: 2,
        };
        assert_eq!(store.pins("i-0a").unwrap(), [pin]);
        let after = fs::read_to_string(store.path()).unwrap();
        assert_eq!(after, before.replacen("first-use", "console", 1));
        let known = store.learn("i-0a", &key, Origin::FirstUse).unwrap();
        assert_eq!(known[0].origin, Origin::Console, "and stays so");
    }

    #[test]
    fn a_damaged_line_keeps_its_own_instance_from_being_trusted_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = HostKeyStore::in_folder(folder.path());
        fs::write(store.path(), "# mine\ni-0a ssh-ed25519 AAAAC3Nz\n").unwrap();
        assert!(matches!(
            store.pins("i-0a"),
            Err(Unusable::Damaged { line: 2, .. })
        ));
        store
            .learn("i-0b", &fake::public_key(), Origin::FirstUse)
            .unwrap();
        assert_eq!(store.pins("i-0b").unwrap()[0].line, 3);
        assert!(
            store.pins("i-0a").is_err(),
            "what is damaged stays, to be looked at"
        );
    }

    #[test]
    fn a_file_beyond_all_reason_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = HostKeyStore::in_folder(folder.path());
        fs::write(store.path(), vec![b'#'; (MOST_BYTES + 1) as usize]).unwrap();
        assert!(matches!(store.pins("i-0a"), Err(Unusable::TooLarge(_))));
    }
}
