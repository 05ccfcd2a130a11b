//! The SSH connections of one link, and the link below that carries them all.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::Context;
use crate::aws::FoundInstance;
use crate::config::{Instance, PoolSize};
use crate::failure::{Failure, Scope};
use crate::transport::member::{Ask, Kind, Report, Station};
use crate::transport::pool::Need;
use crate::transport::{Link, Stream};

/// What to call the streams of the link below in messages.
const CLIENT: &str = "an SSH connection";

/// The connections of one link.
pub(super) struct Connections {
    pub(super) context: Arc<Context>,
    /// Made with the first connection, and made anew when it has ended or the server is another one.
    below: Mutex<Option<Below>>,
}

/// The link below.
struct Below {
    link: Arc<dyn Link>,
    /// The id of the instance that it leads to.
    server: String,
}

impl Connections {
    pub(super) fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            below: Mutex::default(),
        }
    }

    /// Opens a stream to the server's port on the link below.
    pub(super) async fn open_below(
        &self,
        server: &FoundInstance,
        need: Need,
    ) -> Result<(Arc<dyn Link>, Box<dyn Stream>), Failure> {
        let link = self.link_below(server.id()).await?;
        let opened = match need {
            Need::Required => link.open(CLIENT).await,
            Need::Spare => link.open_at_once(CLIENT).await,
        };
        match opened {
            Ok(stream) => Ok((link, stream)),
            Err(failure) if failure.scope() == Scope::Stream => Err(failure),
            Err(failure) => {
                debug!("the link below is made anew: {}", failure.in_one_line());
                let mut below = self.below.lock().await;
                // Another connection may have made a new one.
                if below
                    .as_ref()
                    .is_some_and(|known| Arc::ptr_eq(&known.link, &link))
                {
                    *below = None;
                }
                Err(failure)
            }
        }
    }

    async fn link_below(&self, server: &str) -> Result<Arc<dyn Link>, Failure> {
        // Held while it is made, so that connections that start together share one.
        let mut below = self.below.lock().await;
        if let Some(known) = &*below
            && known.server == server
            && known.link.closed().now_or_never().is_none()
        {
            return Ok(Arc::clone(&known.link));
        }
        let route = (self.context.below)(Instance::Id(server.to_owned()));
        let link = route.connect().await?;
        // Connections to another server keep the link that they have.
        *below = Some(Below {
            link: Arc::clone(&link),
            server: server.to_owned(),
        });
        Ok(link)
    }
}

impl Kind for Connections {
    const NAME: &'static str = "the SSH connection";
    type Command = Ask;

    fn limits(&self) -> PoolSize {
        self.context.settings.connections
    }

    fn tasks(&self) -> &TaskTracker {
        &self.context.shared.tasks
    }

    async fn run(self: Arc<Self>, station: Station<Ask>) {
        let established = tokio::select! {
            () = station.goodbye.cancelled() => return,
            established = self.establish(station.need) => established,
        };
        match established {
            Ok(connection) => connection.run(station).await,
            Err(failure) => station.reporter.tell(Report::Failed(failure)),
        }
    }

    fn notes(&self) -> Vec<String> {
        // While it is being made it has none.
        let below = self.below.try_lock().ok();
        let link = below.and_then(|below| below.as_ref().map(|below| below.link.health()));
        link.map(|health| health.borrow().details.notes.clone())
            .unwrap_or_default()
    }

    async fn finish(&self) {
        if let Some(below) = self.below.lock().await.take() {
            below.link.close().await;
        }
    }
}
