//! A child process: what it costs, and how it ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to end after it was asked: tunneld gives its sessions 5 s.
const GRACE: Duration = Duration::from_secs(8);
/// How long a process may take until it answers.
pub(crate) const STARTING: Duration = Duration::from_secs(10);
/// Between two looks at whether it has ended, or answers.
pub(crate) const LOOK: Duration = Duration::from_millis(5);
/// What the kernel counts CPU time in, on every architecture that Linux runs on today.
const TICKS_PER_SECOND: f64 = 100.0;

/// A child process. Dropped, it is asked to end, and killed where it does not.
pub(crate) struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts a program with the given environment alone; what it complains about goes to a log in `folder`,
    /// in place of that of an earlier one of the same name.
    pub(crate) fn start(command: &mut Command, name: &str, folder: &Path) -> anyhow::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = fs::File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self {
            child,
            name: name.to_owned(),
            log,
        })
    }

    /// Returns what it prints, to be taken once.
    pub(crate) fn lines(&mut self) -> anyhow::Result<Lines> {
        let stdout = self.child.stdout.take().context("its output is read already")?;
        Ok(Lines(BufReader::new(stdout)))
    }

    /// Returns an error with the end of its log if it has ended.
    pub(crate) fn must_live(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended, {status}: {}", self.name, self.last_words());
        }
        Ok(())
    }

    /// Waits until somebody listens at the address, which has to be it.
    pub(crate) fn wait_until_it_listens(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let deadline = Instant::now() + STARTING;
        while TcpStream::connect(address).is_err() {
            self.must_live()?;
            if Instant::now() > deadline {
                bail!("{} does not listen: {}", self.name, self.last_words());
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Returns the CPU time it has used, user and system, in seconds.
    pub(crate) fn cpu(&self) -> anyhow::Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        cpu_of(&text).context("/proc/PID/stat is not as expected")
    }

    /// Returns the memory it has resident, in MiB.
    pub(crate) fn resident(&self) -> anyhow::Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        resident_of(&text).context("/proc/PID/status is not as expected")
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        Ok(kill_process(id.context("it has no id")?, signal)?)
    }

    /// Returns the end of its log.
    pub(crate) fn last_words(&self) -> String {
        const LINES: usize = 3;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join(" / ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Once it has been waited for, its id may be another's.
        let alive = matches!(self.child.try_wait(), Ok(None));
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(id) = id.filter(|_| alive) {
            // It may be about to end by itself; one that was stopped hears nothing else.
            let _ = kill_process(id, Signal::TERM);
            let _ = kill_process(id, Signal::CONT);
        }
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(LOOK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process prints, line by line.
pub(crate) struct Lines(BufReader<ChildStdout>);

impl Lines {
    /// Returns the next line, without its end; an error once there are no more.
    pub(crate) fn next(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            bail!("it said nothing more");
        }
        Ok(line.trim_end().to_owned())
    }
}

/// User and system time, fields 14 and 15 of `/proc/PID/stat`, counted from the end of the name, which may hold
/// anything.
fn cpu_of(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut times = after_name.split_whitespace().skip(11);
    let user: f64 = times.next()?.parse().ok()?;
    let system: f64 = times.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn resident_of(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_and_memory_are_read_as_the_kernel_writes_them() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 900 0 0 0 150 50 7 8 20 0 3 0 5000 1 2";
        assert_eq!(cpu_of(stat), Some(2.0));
        assert_eq!(cpu_of("42 (a"), None);
        let status = "Name:\ttunneld\nVmHWM:\t    9000 kB\nVmRSS:\t   20480 kB\nThreads:\t3\n";
        assert_eq!(resident_of(status), Some(20.0));
        assert_eq!(resident_of("VmRSS: many"), None);
    }
}
