//! Where words go: answers to standard output, talk to standard error.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::error::Error;

/// How often it is looked whether anybody still reads: as often as `tail -f` does.
const READER_CHECK: Duration = Duration::from_secs(1);

/// Standard output and standard error, and how the answer is wanted.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    colour: bool,
}

impl Output {
    /// The process's own streams.
    pub(crate) fn standard(json: bool) -> Self {
        // https://no-color.org: set to anything but the empty string.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        Self {
            json,
            colour: io::stdout().is_terminal() && !refused,
        }
    }

    /// Returns whether the answer is for a program.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Returns whether the answer may be coloured.
    pub(crate) fn colour(&self) -> bool {
        self.colour
    }

    /// Writes a piece of the answer, with a line end, at once.
    pub(crate) fn answer(&self, text: &str) -> Result<(), Error> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}")
            .and_then(|()| stdout.flush())
            .map_err(|error| {
                if error.kind() == io::ErrorKind::BrokenPipe {
                    return Error::reader_left();
                }
                Error::failed("cannot write the answer").because(error.to_string())
            })
    }

    /// Writes a piece of the answer as one line of JSON.
    pub(crate) fn answer_json(&self, value: &impl Serialize) -> Result<(), Error> {
        self.answer(&json(value)?)
    }

    /// Says something as one line of JSON, beside an answer that another program gives.
    pub(crate) fn talk_json(&self, value: &impl Serialize) -> Result<(), Error> {
        self.talk(&json(value)?);
        Ok(())
    }

    /// Says something to the person. Nobody listening is no reason to stop.
    pub(crate) fn talk(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Resolves once the reader of the answer has left; never, where there is none to leave (a file).
    pub(crate) async fn reader_left(&self) {
        let mut ticks = tokio::time::interval(READER_CHECK);
        let stdout = io::stdout();
        loop {
            ticks.tick().await;
            let mut stdout = [PollFd::new(&stdout, PollFlags::empty())];
            let gone = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
            if poll(&mut stdout, Some(&Timespec::default())).is_ok() && stdout[0].revents().intersects(gone) {
                return;
            }
        }
    }
}

fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value)
        .map_err(|error| Error::failed("cannot write the answer as JSON").because(error.to_string()))
}
