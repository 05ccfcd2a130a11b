//! The sessions open at AWS, on disk, so that those of a daemon that was killed are ended at the next start.
//!
//! Each daemon has a file of its own in the state folder and holds a lock on it while it lives. A file whose lock can
//! be had belongs to nobody: its open sessions are orphans. Lines are only appended, one JSON object each; a torn last
//! line is skipped.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::config::AccountSpec;
use crate::private_file;

/// The most that is read of a file: a million bytes hold five thousand sessions.
const MOST_BYTES: u64 = 1 << 20;

/// Lines after which the history is dropped, long before the file is as large as is read.
const MOST_LINES: usize = 1_000;

/// The open sessions of this daemon.
pub struct Ledger {
    path: PathBuf,
    entries: Mutex<Entries>,
}

struct Entries {
    file: File,
    lines: usize,
    open: BTreeMap<String, AccountSpec>,
}

/// A session that nobody owns any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Its id at AWS.
    pub session_id: String,
    /// With whose credentials it was started.
    pub account: AccountSpec,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Opened {
        session_id: String,
        profile: Option<String>,
        region: Option<String>,
    },
    Closed {
        session_id: String,
    },
}

impl Ledger {
    /// Opens this daemon's ledger in `folder` and takes over what daemons that are gone have left open.
    pub fn open(folder: &Path) -> io::Result<(Self, Vec<Orphan>)> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let abandoned = abandoned(folder)?;
        // Not the process id: in a container each daemon has the same.
        let path = folder.join(format!("sessions-{:016x}.jsonl", fastrand::u64(..)));
        let file = private_file::open(&path, OpenOptions::new().append(true).read(true))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let ledger = Self {
            path,
            entries: Mutex::new(Entries {
                file,
                lines: 0,
                open: BTreeMap::new(),
            }),
        };
        let mut orphans = Vec::new();
        for file in abandoned {
            for orphan in file.orphans {
                ledger.opened(&orphan.session_id, &orphan.account);
                orphans.push(orphan);
            }
            // Only what stands in the new file may go; the lock is held until then.
            fs::remove_file(&file.path)?;
        }
        Ok((ledger, orphans))
    }

    /// A session was started.
    pub(super) fn opened(&self, session_id: &str, account: &AccountSpec) {
        let AccountSpec { profile, region } = account.clone();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.open.insert(session_id.to_owned(), account.clone());
        entries.append(&Line::Opened {
            session_id: session_id.to_owned(),
            profile,
            region,
        });
    }

    /// A session has ended at AWS.
    pub fn closed(&self, session_id: &str) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.open.remove(session_id).is_none() {
            return;
        }
        if entries.open.is_empty() || entries.lines > MOST_LINES {
            entries.rewrite();
        } else {
            entries.append(&Line::Closed {
                session_id: session_id.to_owned(),
            });
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let entries = self.entries.get_mut().unwrap_or_else(PoisonError::into_inner);
        if entries.open.is_empty() {
            // A file that stays is harmless: the next start finds it empty and removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Entries {
    /// Drops the history: only what is open is worth a line.
    fn rewrite(&mut self) {
        if let Err(error) = self.file.set_len(0) {
            warn!(%error, "cannot shorten the ledger of sessions");
            return;
        }
        self.lines = 0;
        for (session_id, account) in self.open.clone() {
            let AccountSpec { profile, region } = account;
            self.append(&Line::Opened {
                session_id,
                profile,
                region,
            });
        }
    }

    /// Losing the ledger must not stop a tunnel: it is said, and a crash would then leave an orphan until its timeout.
    fn append(&mut self, line: &Line) {
        self.lines += 1;
        let written = serde_json::to_string(line)
            .map_err(io::Error::from)
            .and_then(|line| self.file.write_all(format!("{line}\n").as_bytes()));
        if let Err(error) = written {
            warn!(%error, "cannot note a session in the state folder; a crash would leave it open until it idles out");
        }
    }
}

/// The ledger of a daemon that is gone.
struct Abandoned {
    path: PathBuf,
    orphans: Vec<Orphan>,
    /// Keeps other daemons from taking it too.
    _locked: File,
}

/// Reads the ledgers that no living daemon holds.
fn abandoned(folder: &Path) -> io::Result<Vec<Abandoned>> {
    let mut abandoned = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if !name.starts_with("sessions-") || !name.ends_with(".jsonl") {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let mut text = Vec::new();
        (&file).take(MOST_BYTES).read_to_end(&mut text)?;
        abandoned.push(Abandoned {
            path,
            orphans: still_open(&String::from_utf8_lossy(&text)),
            _locked: file,
        });
    }
    Ok(abandoned)
}

fn still_open(text: &str) -> Vec<Orphan> {
    let mut open = BTreeMap::new();
    for line in text.lines() {
        match serde_json::from_str(line) {
            Ok(Line::Opened {
                session_id,
                profile,
                region,
            }) => {
                open.insert(session_id, AccountSpec { profile, region });
            }
            Ok(Line::Closed { session_id }) => {
                open.remove(&session_id);
            }
            Err(_) => {}
        }
    }
    open.into_iter()
        .map(|(session_id, account)| Orphan { session_id, account })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(profile: &str) -> AccountSpec {
        AccountSpec {
            profile: Some(profile.to_owned()),
            region: None,
        }
    }

    #[test]
    fn sessions_of_a_daemon_that_is_gone_are_orphans_once() {
        let folder = tempfile::tempdir().unwrap();
        let left = "{\"opened\":{\"session_id\":\"a\",\"profile\":\"prod\",\"region\":null}}\n\
                    {\"opened\":{\"session_id\":\"b\",\"profile\":null,\"region\":null}}\n\
                    {\"closed\":{\"session_id\":\"b\"}}\n{\"opened\":{\"sess";
        fs::write(folder.path().join("sessions-1.jsonl"), left).unwrap();
        let (ledger, orphans) = Ledger::open(folder.path()).unwrap();
        assert_eq!(
            orphans,
            [Orphan {
                session_id: "a".to_owned(),
                account: account("prod")
            }]
        );
        ledger.closed("a");
        drop(ledger);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_sessions_of_a_living_daemon_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(folder.path()).unwrap();
        ledger.opened("mine", &account("prod"));
        assert!(abandoned(folder.path()).unwrap().is_empty());
    }

    #[test]
    fn an_orphan_that_can_not_be_ended_stays_one() {
        let folder = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(folder.path()).unwrap();
        ledger.opened("a", &account("prod"));
        drop(ledger);
        let (_ledger, orphans) = Ledger::open(folder.path()).unwrap();
        assert_eq!(orphans.len(), 1);
    }

    #[test]
    fn the_files_are_readable_by_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("state");
        let (ledger, _) = Ledger::open(&inner).unwrap();
        assert_eq!(fs::metadata(&inner).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(
            fs::metadata(&ledger.path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}
