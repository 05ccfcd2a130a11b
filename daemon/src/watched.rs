//! Files and folders that are watched: whoever waits is told, a moment after the last of a burst of changes.
//!
//! ```text
//!   ~/.aws/config ────────► its folder is watched: editors move a new file into the place of the old one
//!   ~/.aws/sso/cache ─────► what is missing is watched for in the nearest folder that is there
//!   a symbolic link ──────► the place of what it leads to is watched as well
//! ```
//!
//! What changed is not told: the reader reads again. Where each path leads is looked up anew after each change.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::warn;

/// A burst of changes is over when there was none for so long: an editor or a login writes several files within a few
/// milliseconds, and nobody notices a tenth of a second.
const QUIET: Duration = Duration::from_millis(100);

/// A burst that does not end is told after this time nevertheless.
const LONGEST_BURST: Duration = Duration::from_secs(1);

/// Files and folders that are watched, from making to drop.
#[derive(Debug)]
pub(crate) struct Watched {
    /// As they were asked for, in full.
    paths: Vec<PathBuf>,
    /// The same, and what they lead to. Shared with the watcher's thread.
    places: Arc<Mutex<Vec<PathBuf>>>,
    /// Folders that the system was asked to watch.
    folders: BTreeSet<PathBuf>,
    watcher: RecommendedWatcher,
    noticed: mpsc::Receiver<()>,
    /// When a burst began that was not told yet.
    burst: Option<Instant>,
}

impl Watched {
    /// Begins to watch these files and folders, which need not exist.
    ///
    /// # Errors
    ///
    /// The system can watch nothing.
    pub(crate) fn new(paths: &[PathBuf]) -> notify::Result<Self> {
        let (notice, noticed) = mpsc::channel(1);
        let places = Arc::new(Mutex::new(Vec::new()));
        let concerned = Arc::clone(&places);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            let places = concerned.lock().unwrap_or_else(PoisonError::into_inner);
            // After an error, such as too many changes at a time, nobody knows what changed.
            if event.map_or(true, |event| concerns(&event, &places)) {
                // A full channel means that a change is noticed anyway.
                notice.try_send(()).ok();
            }
        })?;
        let paths = paths.iter().map(std::path::absolute).collect::<Result<_, _>>();
        let mut watched = Self {
            paths: paths.map_err(notify::Error::io)?,
            places,
            folders: BTreeSet::new(),
            watcher,
            noticed,
            burst: None,
        };
        watched.aim();
        Ok(watched)
    }

    /// Waits until something has changed, and then until the changes pause. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        let began = match self.burst {
            Some(began) => began,
            None => {
                // The sender lives in the watcher, which is ours.
                self.noticed.recv().await;
                *self.burst.insert(Instant::now())
            }
        };
        while began.elapsed() < LONGEST_BURST && timeout(QUIET, self.noticed.recv()).await.is_ok() {}
        self.aim();
        self.burst = None;
    }

    /// Looks up where the paths lead, and has the folders watched in which something would change.
    fn aim(&mut self) {
        let resolved = self.paths.iter().filter_map(|path| fs::canonicalize(path).ok());
        let places: BTreeSet<PathBuf> = self.paths.iter().cloned().chain(resolved).collect();
        let folders: BTreeSet<PathBuf> = places.iter().flat_map(|place| folders(place)).collect();
        *self.places.lock().unwrap_or_else(PoisonError::into_inner) = places.into_iter().collect();
        for former in self.folders.difference(&folders) {
            // One that is gone is not watched any more.
            self.watcher.unwatch(former).ok();
        }
        for folder in &folders {
            // Also one that is watched already: it may be another folder of the same name.
            if let Err(error) = self.watcher.watch(folder, RecursiveMode::NonRecursive) {
                warn!(folder = %folder.display(), %error, "cannot watch a folder; changes in it are not noticed");
            }
        }
        self.folders = folders;
    }
}

/// Returns the folders to watch for a place: the one it is in and, if it is a folder, itself. While those are missing,
/// the nearest one that there is.
fn folders(place: &Path) -> impl Iterator<Item = PathBuf> {
    let itself = place.is_dir().then(|| place.to_owned());
    let around = place.ancestors().skip(1).find(|folder| folder.is_dir());
    itself.into_iter().chain(around.map(Path::to_owned))
}

/// Returns whether an event says that one of the places changed, or may be there now.
fn concerns(event: &Event, places: &[PathBuf]) -> bool {
    let about = |path: &PathBuf| {
        let concerned = |place: &PathBuf| path.starts_with(place) || place.starts_with(path);
        places.iter().any(concerned)
    };
    // Reading a file is an event as well, and whoever is told of a change reads.
    !event.kind.is_access() && (event.need_rescan() || event.paths.iter().any(about))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use notify::EventKind;
    use notify::event::{AccessKind, CreateKind};

    use super::*;

    /// Waits until a change is told.
    async fn told(watched: &mut Watched) {
        timeout(Duration::from_secs(30), watched.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_each_time_is_noticed_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let (path, beside) = (folder.path().join("config"), folder.path().join("new"));
        fs::write(&path, "0").unwrap();
        let mut watched = Watched::new(std::slice::from_ref(&path)).unwrap();
        for text in ["1", "2"] {
            fs::write(&beside, text).unwrap();
            fs::rename(&beside, &path).unwrap();
            told(&mut watched).await;
        }
    }

    #[tokio::test]
    async fn a_file_in_folders_that_do_not_exist_yet_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some/where/config");
        let mut watched = Watched::new(std::slice::from_ref(&path)).unwrap();
        fs::create_dir(folder.path().join("some")).unwrap();
        told(&mut watched).await;
        fs::create_dir(folder.path().join("some/where")).unwrap();
        told(&mut watched).await;
        fs::write(&path, "1").unwrap();
        told(&mut watched).await;
        fs::write(&path, "2").unwrap();
        told(&mut watched).await;
    }

    #[tokio::test]
    async fn a_new_file_in_a_folder_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        fs::create_dir(&cache).unwrap();
        let mut watched = Watched::new(std::slice::from_ref(&cache)).unwrap();
        fs::write(cache.join("token"), "1").unwrap();
        told(&mut watched).await;
    }

    #[tokio::test]
    async fn what_a_symbolic_link_leads_to_is_watched() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (link, file) = (folder.path().join("config"), elsewhere.path().join("file"));
        fs::write(&file, "1").unwrap();
        symlink(&file, &link).unwrap();
        let mut watched = Watched::new(&[link]).unwrap();
        fs::write(&file, "2").unwrap();
        told(&mut watched).await;
    }

    #[test]
    fn reading_and_neighbours_are_no_change() {
        let places = [PathBuf::from("/home/me/.aws/config")];
        let event = |kind, path: &str| Event::new(kind).add_path(path.into());
        let (created, read) = (
            EventKind::Create(CreateKind::Any),
            EventKind::Access(AccessKind::Any),
        );
        assert!(concerns(&event(created, "/home/me/.aws/config"), &places));
        assert!(concerns(&event(created, "/home/me/.aws"), &places));
        assert!(!concerns(&event(read, "/home/me/.aws/config"), &places));
        assert!(!concerns(&event(created, "/home/me/.aws/config.swp"), &places));
    }
}
