//! How commands end that would go on for ever: a person interrupts them, or the reader of the answer leaves.

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Error, Exit};
use crate::output::Output;

/// Does the work until it ends, an interrupt comes, or nobody reads the answer any more. The work is dropped where it
/// waits.
pub(super) async fn until_left(
    output: &Output,
    work: impl Future<Output = Result<Exit, Error>>,
) -> Result<Exit, Error> {
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|error| Error::failed("cannot listen for interrupts").because(error.to_string()))?;
    tokio::select! {
        ended = work => ended,
        _ = interrupts.recv() => Ok(Exit::Ok),
        () = output.reader_left() => Ok(Exit::Ok),
    }
}
