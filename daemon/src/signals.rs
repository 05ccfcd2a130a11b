//! Signals: the first SIGTERM or SIGINT stops the daemon in order, the second at once; SIGHUP reloads.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The signals that the daemon minds. From its making on they no longer end the process by themselves.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Starts to mind the signals.
    ///
    /// # Errors
    ///
    /// The system refuses a handler.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Turns signals into `stop` and `reload`. Resolves when the daemon must exit at once, with the exit code that
    /// says which signal asked for it.
    pub async fn mind(mut self, stop: CancellationToken, reload: mpsc::Sender<()>) -> u8 {
        loop {
            let (name, number) = tokio::select! {
                _ = self.terminate.recv() => ("SIGTERM", 15),
                _ = self.interrupt.recv() => ("SIGINT", 2),
                _ = self.hangup.recv() => {
                    info!("SIGHUP: reading the configuration again");
                    // A full channel means that a reload is due anyway.
                    reload.try_send(()).ok();
                    continue;
                }
            };
            if stop.is_cancelled() {
                warn!("{name} again: exiting at once");
                // As a shell reports a process that a signal ended.
                return 128 + number;
            }
            info!("{name}: stopping");
            stop.cancel();
        }
    }
}
