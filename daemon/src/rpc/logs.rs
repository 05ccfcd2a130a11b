//! The lines of the log, as one client of the RPC `Logs` is sent them.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::logging::{Batch, Reader};

/// How long lines are gathered before they are sent: a person sees no difference, and a flood of lines, even one that
/// sending itself brings about, becomes a few messages a second.
const GATHERING: Duration = Duration::from_millis(50);

/// What a client is sent.
pub(crate) struct Lines {
    reader: Reader,
    /// Cancelled when the stream is to end; `None`: it ends with the lines that there are.
    ended: Option<CancellationToken>,
}

impl Lines {
    /// The lines that there are.
    pub(crate) fn so_far(reader: Reader) -> Self {
        Self { reader, ended: None }
    }

    /// The lines that there are, and those that come until `ended`.
    pub(crate) fn followed(reader: Reader, ended: CancellationToken) -> Self {
        Self {
            reader,
            ended: Some(ended),
        }
    }

    /// Waits for lines; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Batch> {
        loop {
            let batch = self.reader.take();
            if !batch.is_empty() {
                return Some(batch);
            }
            let ended = self.ended.as_ref()?;
            tokio::select! {
                () = self.reader.written() => sleep(GATHERING).await,
                // What was written up to now is sent, and no more.
                () = ended.cancelled() => self.ended = None,
            }
        }
    }
}
