//! A member as its keeper knows it.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::transport::member::Term;

/// A member as its keeper knows it.
pub(super) struct Held<C> {
    pub(super) commands: mpsc::UnboundedSender<C>,
    pub(super) goodbye: CancellationToken,
    pub(super) finished: CancellationToken,
    pub(super) trouble: Option<Trouble>,
    /// Whether credentials have changed since it was started, which may have read them before.
    pub(super) renewed: bool,
    pub(super) term: Option<Term>,
    /// What there is to say of one whose streams will be cut.
    pub(super) farewell: Option<String>,
}

/// What keeps it from taking streams.
pub(super) enum Trouble {
    Impaired(Arc<Failure>),
    Stalled(Arc<Failure>),
}

impl<C> Held<C> {
    /// A member that was just started.
    pub(super) fn new(
        commands: mpsc::UnboundedSender<C>,
        goodbye: CancellationToken,
        finished: CancellationToken,
    ) -> Self {
        Self {
            commands,
            goodbye,
            finished,
            trouble: None,
            renewed: false,
            term: None,
            farewell: None,
        }
    }

    /// Returns why it stands still, if it does.
    pub(super) fn stall(&self) -> Option<&Arc<Failure>> {
        match &self.trouble {
            Some(Trouble::Stalled(cause)) => Some(cause),
            Some(Trouble::Impaired(_)) | None => None,
        }
    }
}
