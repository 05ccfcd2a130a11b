//! What a person typed last about each tunnel, `up` or `down`: on disk, so that it counts after a restart as well.
//!
//! ```text
//!   {"version": 1, "tunnels": {"prod-db": {"wanted": "up", "entry": "listen 127.0.0.1:15432\n…"}}}
//! ```
//!
//! It overrides `autostart` as long as the tunnel's entry in the configuration is the one that it was typed for, which is
//! written beside it; a reload that changes the entry takes it along. The file is a comfort: one that cannot be understood
//! is set aside, one that cannot be written is said, and neither keeps a tunnel from anything.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::config::{AllowedUsers, EiceSettings, Mode, SshSettings, SsmSettings, TunnelSpec};
use crate::private_file;

/// The form of the file that is read and written here.
const VERSION: u32 = 1;

/// The most that is read: ten thousand tunnels.
const MOST_BYTES: u64 = 8 << 20;

/// Under how many names files are set aside; after that, nothing is written over the one that is there.
const ASIDES: u32 = 100;

/// What was typed last about the tunnels.
#[derive(Debug, Default)]
pub struct Wishes {
    /// `None`: in memory alone.
    path: Option<PathBuf>,
    typed: Arc<Mutex<BTreeMap<String, Typed>>>,
    /// Held while the file is written.
    writing: Arc<Mutex<()>>,
}

/// What was typed about a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Typed {
    wanted: Wanted,
    /// The entry that it was typed for.
    entry: String,
}

/// What a person wants of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wanted {
    /// That it is up.
    Up,
    /// That it is down.
    Down,
}

/// What every form of the file has.
#[derive(Serialize, Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(flatten)]
    versioned: Versioned,
    tunnels: BTreeMap<String, Typed>,
}

/// Why a file was set aside.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    #[error("it cannot be understood")]
    Damaged(#[from] serde_json::Error),
    #[error("it is of the future: version {0}, where this daemon writes version {VERSION}")]
    Future(u32),
}

impl Wishes {
    /// Reads what was typed for an earlier daemon from the state folder.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join("wanted.json");
        match read(&path) {
            Ok(typed) => Self {
                path: Some(path),
                typed: Arc::new(Mutex::new(typed)),
                ..Self::default()
            },
            Err(error) => {
                let aside = set_aside(&path);
                let is_aside = aside.is_ok();
                let to = aside.map_or_else(|error| error.to_string(), |aside| aside.display().to_string());
                warn!(
                    file = %path.display(), %to,
                    "set aside what tunnels were up and down, so `autostart` decides: {:#}",
                    anyhow::Error::new(error)
                );
                Self {
                    path: Some(path).filter(|_| is_aside),
                    ..Self::default()
                }
            }
        }
    }

    /// Returns whether a tunnel is wanted: as was typed last, or else as its entry says.
    pub(crate) fn wants(&self, spec: &TunnelSpec) -> bool {
        let typed = self.typed.lock().unwrap_or_else(PoisonError::into_inner);
        let of_this_entry = typed
            .get(spec.name.as_str())
            .filter(|typed| typed.entry == entry(spec));
        match of_this_entry.map(|typed| typed.wanted) {
            Some(Wanted::Up) => true,
            Some(Wanted::Down) => false,
            None => spec.autostart,
        }
    }

    /// Returns whether a person typed something about this entry.
    pub(crate) fn has(&self, spec: &TunnelSpec) -> bool {
        let typed = self.typed.lock().unwrap_or_else(PoisonError::into_inner);
        typed
            .get(spec.name.as_str())
            .is_some_and(|typed| typed.entry == entry(spec))
    }

    /// A person typed something about tunnels. Returns when it is on disk, or could not be written.
    pub(crate) async fn typed(&self, specs: &[&TunnelSpec], wanted: Wanted) {
        let entries = specs.iter().map(|spec| {
            let entry = entry(spec);
            (spec.name.to_string(), Typed { wanted, entry })
        });
        self.change(|typed| typed.extend(entries)).await;
    }

    /// Forgets what was typed about entries that have changed or are gone.
    pub(crate) async fn forget_all_but(&self, specs: &[TunnelSpec]) {
        let entries: BTreeMap<_, _> = specs
            .iter()
            .map(|spec| (spec.name.as_str(), entry(spec)))
            .collect();
        self.change(|typed| typed.retain(|name, typed| entries.get(name.as_str()) == Some(&typed.entry)))
            .await;
    }

    async fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Typed>)) {
        {
            let mut typed = self.typed.lock().unwrap_or_else(PoisonError::into_inner);
            let former = typed.clone();
            change(&mut typed);
            if *typed == former {
                return;
            }
        }
        let Some(path) = self.path.clone() else { return };
        let (typed, writing) = (Arc::clone(&self.typed), Arc::clone(&self.writing));
        let written = tokio::task::spawn_blocking(move || {
            // Whoever writes last writes the latest.
            let _writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
            let tunnels = typed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let versioned = Versioned { version: VERSION };
            let text = serde_json::to_vec_pretty(&Written { versioned, tunnels })?;
            private_file::replace(&path, &text)
        });
        // Joining fails only when the runtime ends.
        if let Ok(Err(error)) = written.await {
            warn!(%error, "cannot write down which tunnels are wanted; after a restart `autostart` decides");
        }
    }
}

fn read(path: &Path) -> Result<BTreeMap<String, Typed>, Unusable> {
    let Some(bytes) = private_file::read(path, MOST_BYTES)? else {
        return Ok(BTreeMap::new());
    };
    let Versioned { version } = serde_json::from_slice(&bytes)?;
    if version > VERSION {
        return Err(Unusable::Future(version));
    }
    Ok(serde_json::from_slice::<Written>(&bytes)?.tunnels)
}

/// Moves a file out of the way, over no other one. Returns where it is.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let free = (1..=ASIDES)
        .map(|number| path.with_added_extension(format!("bad-{number}")))
        .find(|aside| aside.symlink_metadata().is_err());
    let aside = free.ok_or_else(|| io::Error::other("too many files were set aside before"))?;
    std::fs::rename(path, &aside)?;
    Ok(aside)
}

/// Returns a tunnel's entry as text that does not depend on how it is written or on who reads it: settings that a later
/// daemon adds are not in it while they have their defaults.
fn entry(spec: &TunnelSpec) -> String {
    let TunnelSpec {
        name: _,
        listen,
        target,
        route,
        account,
        mode,
        autostart,
        hold,
        half_close_grace,
        receive_buffer,
        allow_users,
        ssm,
        ssh,
        eice,
    } = spec;
    let mode = match mode {
        Mode::Always => "always".to_owned(),
        Mode::OnDemand { idle_after } => format!("on-demand {}", idle_after.as_millis()),
    };
    let mut entry = format!(
        "listen {listen}\ntarget {target}\nroute {}\nprofile {}\nregion {}\nmode {mode}\nautostart {autostart}\n\
         hold {}\nhalf_close_grace {}\nreceive_buffer {receive_buffer}\n",
        route.written(),
        account.profile.as_deref().unwrap_or_default(),
        account.region.as_deref().unwrap_or_default(),
        hold.as_millis(),
        half_close_grace.as_millis(),
    );
    if *allow_users != AllowedUsers::default() {
        entry += &format!("allow_users {allow_users:?}\n");
    }
    if *ssm != SsmSettings::default() {
        entry += &format!("{ssm:?}\n");
    }
    if *ssh != SshSettings::default() {
        entry += &format!("{ssh:?}\n");
    }
    if *eice != EiceSettings::default() {
        entry += &format!("{eice:?}\n");
    }
    entry
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::tunnel::fake;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn what_was_typed_counts_in_the_next_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let (up, down) = (fake::spec("up"), fake::spec("down"));
        let down = TunnelSpec {
            autostart: true,
            ..down
        };
        let up = TunnelSpec {
            autostart: false,
            ..up
        };
        let wishes = Wishes::open(folder.path());
        assert!(!wishes.wants(&up) && wishes.wants(&down), "as the entries say");
        wishes.typed(&[&up], Wanted::Up).await;
        wishes.typed(&[&down], Wanted::Down).await;
        let wishes = Wishes::open(folder.path());
        assert!(wishes.wants(&up) && !wishes.wants(&down));
        assert_eq!(names(folder.path()), ["wanted.json"]);
    }

    #[tokio::test]
    async fn an_entry_that_changed_is_as_it_says_itself() {
        let folder = tempfile::tempdir().unwrap();
        let spec = TunnelSpec {
            autostart: false,
            ..fake::spec("db")
        };
        let changed = TunnelSpec {
            receive_buffer: spec.receive_buffer + 1,
            ..spec.clone()
        };
        let wishes = Wishes::open(folder.path());
        wishes.typed(&[&spec], Wanted::Up).await;
        assert!(wishes.wants(&spec) && !wishes.wants(&changed));
        wishes.forget_all_but(std::slice::from_ref(&changed)).await;
        assert!(!wishes.wants(&spec), "to change it back is a change");
        assert!(!Wishes::open(folder.path()).wants(&spec));
    }

    #[tokio::test]
    async fn what_cannot_be_understood_is_set_aside_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wanted.json");
        let spec = fake::spec("db");
        for text in [
            "{\"version\": 1, \"tunn",
            "{\"version\": 2, \"everything\": {}}",
            "[]",
        ] {
            fs::write(&path, text).unwrap();
            let wishes = Wishes::open(folder.path());
            assert_eq!(wishes.wants(&spec), spec.autostart);
            wishes.typed(&[&spec], Wanted::Down).await;
            assert!(!Wishes::open(folder.path()).wants(&spec));
        }
        let asides = [
            "wanted.json",
            "wanted.json.bad-1",
            "wanted.json.bad-2",
            "wanted.json.bad-3",
        ];
        assert_eq!(names(folder.path()), asides);
        let future = fs::read_to_string(folder.path().join("wanted.json.bad-2")).unwrap();
        assert!(future.contains("everything"), "nothing is lost");
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_set_aside_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wanted.json");
        for number in 1..=ASIDES {
            fs::write(path.with_added_extension(format!("bad-{number}")), "").unwrap();
        }
        fs::write(&path, "precious").unwrap();
        let wishes = Wishes::open(folder.path());
        let spec = fake::spec("db");
        wishes.typed(&[&spec], Wanted::Down).await;
        assert!(!wishes.wants(&spec), "it counts until the end");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn an_entry_is_the_same_text_in_every_daemon() {
        let spec = TunnelSpec {
            listen: crate::config::Listen::Unix("/run/db".into()),
            ..fake::on_demand("db")
        };
        let text = "listen unix:/run/db\ntarget 127.0.0.1:5432\nroute direct\nprofile \nregion \n\
                    mode on-demand 900000\nautostart true\nhold 30000\nhalf_close_grace 30000\n\
                    receive_buffer 268435456\n";
        assert_eq!(entry(&spec), text);
    }
}
