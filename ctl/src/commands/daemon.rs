//! `tunnelctl daemon`: starts the daemon where no service manager does, and stops it.
//!
//! ```text
//!   start ──► answers already ─► done
//!         ├─► is a service ────► its manager starts it
//!         └─► else ────────────► tunneld in a process group of its own, with its words in a file
//! ```

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tokio::time::{Instant, sleep};
use tunneld_proto::socket;

use crate::cli::service::Daemon;
use crate::client::{Client, END_LIMIT, LOOK};
use crate::error::{Error, Exit};
use crate::json::{Versioned, Versions};
use crate::output::Output;
use crate::render::words::Clock;
use crate::service::{self, Manager};
use crate::{folders, program};

/// How much of what a daemon said that did not start is shown: a screenful of problems.
const LAST_WORDS: u64 = 4096;

/// Does what is asked with the daemon.
pub(super) async fn run(asked: &Daemon, socket: Option<&Path>, output: &Output) -> Result<Exit, Error> {
    match asked {
        Daemon::Start { arguments } => start(arguments, socket, output).await,
        Daemon::Stop => stop(socket, output).await,
    }
}

async fn start(arguments: &[OsString], socket: Option<&Path>, output: &Output) -> Result<Exit, Error> {
    let running = match Client::connect(socket, output).await {
        Ok(client) => Some(client),
        Err(error) if error.exit() == Exit::NoDaemon => None,
        Err(error) => return Err(error),
    };
    if let Some(client) = running {
        let words = client.words(&Clock::read());
        return tell(&client, &format!("tunneld runs already ({words})"), output);
    }
    if let Some(manager) = manager_of(socket)? {
        if !arguments.is_empty() {
            return Err(
                Error::new(Exit::Usage, "the service takes no arguments from here")
                    .hint("systemctl --user edit tunneld"),
            );
        }
        manager.start()?;
        let client = Client::started(socket, || Ok(())).await?;
        client.compare(output);
        return tell_started(&client, output);
    }
    let mut log = Log::open()?;
    let child = launch(arguments, socket, &log)?;
    let client = answering(child, socket, &mut log).await?;
    let exit = tell_started(&client, output)?;
    output.talk(&format!("its log is `{}`", log.path.display()));
    Ok(exit)
}

/// Returns the manager of the service, if the daemon on this socket is one that it can start.
fn manager_of(socket: Option<&Path>) -> Result<Option<Manager>, Error> {
    if !service::is_installed() {
        return Ok(None);
    }
    // Out of reach, as in a session that another user opened, it starts nothing.
    let Ok(manager) = Manager::find() else {
        return Ok(None);
    };
    let meant = socket::default_path(socket)?;
    let serves = manager.socket().is_none_or(|served| served == meant);
    Ok(serves.then_some(manager))
}

fn launch(arguments: &[OsString], socket: Option<&Path>, log: &Log) -> Result<Child, Error> {
    let mut command = Command::new(program::daemon());
    if let Some(socket) = socket {
        command.arg("--socket").arg(socket);
    }
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.writer()?)
        .stderr(log.writer()?)
        // Away from the terminal's foreground, so that neither Ctrl-C nor its closing reaches it.
        .process_group(0)
        .spawn()
        .map_err(|error| program::missing("cannot run `tunneld`").because(error.to_string()))
}

/// Waits until the daemon answers that was just started, or has ended.
async fn answering(mut child: Child, socket: Option<&Path>, log: &mut Log) -> Result<Client, Error> {
    let ended = || {
        let ended = child
            .try_wait()
            .map_err(|error| Error::failed("cannot wait for `tunneld`").because(error.to_string()))?;
        let Some(status) = ended else { return Ok(()) };
        let exit = match status.code() {
            Some(code) if code == Exit::Usage as i32 => Exit::Usage,
            Some(_) | None => Exit::Failed,
        };
        Err(Error::new(exit, "tunneld did not start"))
    };
    let started = Client::started(socket, ended).await;
    started.map_err(|error| log.last_words(error))
}

async fn stop(socket: Option<&Path>, output: &Output) -> Result<Exit, Error> {
    let mut stopped = false;
    if let Some(manager) = manager_of(socket)? {
        stopped = manager.state()?.pid.is_some();
        // Also without a daemon: its socket, listened on, would start one when it is looked for.
        manager.stop()?;
    }
    // A daemon that was started by hand may have the socket in spite of the service.
    match Client::quietly(socket).await {
        Ok(client) => {
            client.shutdown().await?;
            gone(socket).await?;
            stopped = true;
        }
        Err(error) if error.exit() == Exit::NoDaemon => {}
        Err(error) => return Err(error),
    }
    if output.json() {
        output.answer_json(&Versioned::new(Versions::alone()))?;
    } else {
        output.answer(if stopped {
            "tunneld has stopped"
        } else {
            "tunneld is not running"
        })?;
    }
    Ok(Exit::Ok)
}

/// Waits until nobody serves the socket: it is the last that a daemon gives up.
async fn gone(socket: Option<&Path>) -> Result<(), Error> {
    let deadline = Instant::now() + END_LIMIT;
    while Instant::now() < deadline {
        match Client::quietly(socket).await {
            Err(error) if error.exit() == Exit::NoDaemon => return Ok(()),
            // What fails in another way was cut short by the end.
            Ok(_) | Err(_) => sleep(LOOK).await,
        }
    }
    Err(Error::new(
        Exit::TimedOut,
        format!("tunneld did not stop within {} s", END_LIMIT.as_secs()),
    )
    .hint("its log says what it is doing"))
}

fn tell_started(client: &Client, output: &Output) -> Result<Exit, Error> {
    tell(
        client,
        &format!("tunneld is running (pid {})", client.daemon().pid),
        output,
    )
}

fn tell(client: &Client, sentence: &str, output: &Output) -> Result<Exit, Error> {
    if output.json() {
        output.answer_json(&Versioned::new(Versions::with(client.daemon(), client.socket())))?;
    } else {
        output.answer(sentence)?;
    }
    Ok(Exit::Ok)
}

/// Where a daemon without a service manager says what it does.
struct Log {
    path: PathBuf,
    file: File,
    /// How long it was before this start.
    before: u64,
}

impl Log {
    fn open() -> Result<Self, Error> {
        let folder = folders::state()
            .ok_or_else(|| Error::failed("there is no home folder to keep a log in").hint("set HOME"))?;
        let path = folder.join("daemon.log");
        let opened = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .and_then(|()| {
                OpenOptions::new()
                    .read(true)
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .open(&path)
            })
            .and_then(|file| Ok((fs::metadata(&path)?.len(), file)));
        match opened {
            Ok((before, file)) => Ok(Self { path, file, before }),
            Err(error) => Err(unwritten(&path, &error)),
        }
    }

    fn writer(&self) -> Result<File, Error> {
        self.file
            .try_clone()
            .map_err(|error| unwritten(&self.path, &error))
    }

    /// The same error with what a daemon said that was started with this log.
    fn last_words(&mut self, error: Error) -> Error {
        let mut said = Vec::new();
        let read = self
            .file
            .seek(SeekFrom::Start(self.before))
            .and_then(|_| (&mut self.file).take(LAST_WORDS).read_to_end(&mut said));
        if read.is_err() {
            return error.hint(format!("its log is `{}`", self.path.display()));
        }
        String::from_utf8_lossy(&said).lines().fold(error, |error, line| {
            error.hint(line.replace(char::is_control, " "))
        })
    }
}

fn unwritten(path: &Path, error: &io::Error) -> Error {
    Error::failed(format!("cannot keep a log in `{}`", path.display())).because(error.to_string())
}
