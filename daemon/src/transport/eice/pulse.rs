//! Whether the far end lives: asked every half minute, and believed to be dead when nothing at all comes after that.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// How often the endpoint is asked for a sign of life. Whether it has an idle timeout is not public; NATs forget
/// connections after minutes.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(30);

/// How long one may take to come, pong or anything else.
pub(super) const PONG_TIMEOUT: Duration = Duration::from_secs(20);

/// The signs of life of a stream. Polled only when nothing can be read: what waits to be read is one.
pub(super) struct Pulse {
    due: Pin<Box<Sleep>>,
    /// Whether a question is out.
    asked: bool,
    /// Whether anything has come since.
    heard: bool,
}

/// What it is time for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beat {
    /// To ask for a sign of life.
    Ask,
    /// To give the far end up.
    Dead,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self {
            due: Box::pin(sleep(PING_INTERVAL)),
            asked: false,
            heard: false,
        }
    }

    /// Something has come.
    pub(super) fn heard(&mut self) {
        self.heard = true;
    }

    /// The far end has been asked, or could not be, because a writer waits for it.
    pub(super) fn asked(&mut self, sent: bool) {
        self.asked = sent;
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Beat> {
        loop {
            ready!(self.due.as_mut().poll(context));
            match (self.asked, self.heard) {
                (true, false) => return Poll::Ready(Beat::Dead),
                (true, true) => {
                    self.asked = false;
                    self.again_in(PING_INTERVAL.saturating_sub(PONG_TIMEOUT));
                }
                (false, _) => {
                    self.heard = false;
                    self.again_in(PONG_TIMEOUT);
                    return Poll::Ready(Beat::Ask);
                }
            }
        }
    }

    fn again_in(&mut self, time: Duration) {
        self.due.as_mut().reset(Instant::now() + time);
    }
}
