//! A program that runs in our place: it has the terminal, gets our signals, stops when we stop, and its exit code is
//! ours.
//!
//! It is not exec'd, because something is left to do when it has ended. It stays in our process group, so that the shell
//! sees one job.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};
use tokio::signal::unix::{SignalKind, signal};

use crate::error::Error;

/// What a shell adds to the number of the signal that ended a program.
const SIGNALLED: i32 = 128;

/// Starts a program; `None` if there is no such program.
pub(crate) fn start(command: &mut Command) -> Result<Option<Child>, Error> {
    match command.spawn() {
        Ok(child) => Ok(Some(child)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let program = command.get_program().to_string_lossy();
            Err(Error::failed(format!("cannot run `{program}`")).because(error.to_string()))
        }
    }
}

/// Waits for the end of a program.
pub(crate) async fn wait(child: &Child) -> Result<ExitCode, Error> {
    let failed = |error: io::Error| Error::failed("cannot wait for the program").because(error.to_string());
    let child = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .expect("the id of a process is one");
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut quit = signal(SignalKind::quit()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    let mut ended = tokio::task::spawn_blocking(move || ended(child));
    loop {
        let signal = tokio::select! {
            status = &mut ended => {
                let status = status.map_err(|error| failed(error.into()))?.map_err(failed)?;
                return Ok(code(status));
            }
            // The terminal sends these to the program as well; a second one does no harm.
            _ = interrupt.recv() => Signal::INT,
            _ = quit.recv() => Signal::QUIT,
            _ = terminate.recv() => Signal::TERM,
            _ = hangup.recv() => Signal::HUP,
        };
        // One that has just ended needs none.
        let _ = kill_process(child, signal);
    }
}

/// Blocks until a program has ended; stops as long as it is stopped, so that the shell takes the terminal back.
fn ended(child: Pid) -> io::Result<ExitStatus> {
    loop {
        let Some((_, status)) = waitpid(Some(child), WaitOptions::UNTRACED)? else {
            continue;
        };
        if status.stopped() {
            kill_process(getpid(), Signal::STOP)?;
        } else {
            return Ok(ExitStatus::from_raw(status.as_raw()));
        }
    }
}

fn code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| SIGNALLED + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from)
}
