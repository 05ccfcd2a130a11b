//! What an SSH connection tells us while it is driven: the server's key, why it refused a stream, how it ended.
//!
//! A server that opens channels towards us is declined: there is nothing here that it could reach. The library would
//! accept all of them, and keep a queue for each.

use russh::client::{ChannelOpenHandle, DisconnectReason, Handler, Msg, Session};
use russh::keys::PublicKeyOrCertificate;
use russh::{Channel, ChannelId, ChannelOpenFailure};
use tokio::sync::{mpsc, oneshot};
use tunneld_wire::text::in_one_line;

use super::host_keys::Expectation;
use crate::failure::Failure;

/// The most characters of a server's text that are kept: it is shown to a person.
const LONGEST_TEXT: usize = 300;

/// The listener of one connection.
pub(super) struct Ears {
    pub(super) expectation: Expectation,
    /// The server's text for each stream that it refused, in their order.
    pub(super) refusals: mpsc::UnboundedSender<String>,
    /// Told once, when the connection has ended.
    pub(super) ended: Option<oneshot::Sender<Ended>>,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The server said goodbye, with these words.
    Said(String),
    /// It broke.
    Broke(Trouble),
}

/// What can go wrong with a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The protocol, or the bytes under it.
    #[error(transparent)]
    Ssh(#[from] russh::Error),
    /// The server's key is not accepted.
    #[error(transparent)]
    Refused(Box<Failure>),
}

impl Handler for Ears {
    type Error = Trouble;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Trouble> {
        match self.expectation.check(shown).await {
            Ok(()) => Ok(true),
            Err(failure) => Err(Trouble::Refused(Box::new(failure))),
        }
    }

    async fn channel_open_failure(
        &mut self,
        _: ChannelId,
        _: ChannelOpenFailure,
        description: &str,
        _: &str,
        _: &mut Session,
    ) -> Result<(), Trouble> {
        // Who asked for the stream may have gone with its connection.
        let _ = self.refusals.send(in_one_line(description, LONGEST_TEXT));
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Trouble> {
        decline(reply).await
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Trouble> {
        decline(reply).await
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Trouble> {
        decline(reply).await
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Trouble> {
        decline(reply).await
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Trouble> {
        decline(reply).await
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Trouble> {
        decline(reply).await
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Trouble> {
        decline(reply).await
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Trouble>) -> Result<(), Trouble> {
        let ended = match reason {
            DisconnectReason::ReceivedDisconnect(said) => {
                Ended::Said(in_one_line(&said.message, LONGEST_TEXT))
            }
            DisconnectReason::Error(trouble) => Ended::Broke(trouble),
        };
        if let Some(listener) = self.ended.take() {
            // Its owner may be gone.
            let _ = listener.send(ended);
        }
        Ok(())
    }
}

async fn decline(reply: ChannelOpenHandle) -> Result<(), Trouble> {
    reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
    Ok(())
}
