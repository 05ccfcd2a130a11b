//! A client of the RPC `Open` as bytes that can be read and written.
//!
//! ```text
//!   requests:   opening · data … · end          ──► poll_read, and its end
//!   responses:  opened · data … · end · ended   ◄── poll_write, poll_shutdown
//! ```
//!
//! Nothing is kept here but one message each way: a client that sends faster than the target takes is held back by the
//! flow control of its call, and so is the target by a client that does not read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use tonic::{Status as RpcStatus, Streaming};
use tunneld_proto::v1::open_request::Message as Asked;
use tunneld_proto::v1::open_response::Message as Answer;
use tunneld_proto::v1::{End, Ended, OpenRequest, OpenResponse, Opened, Opening};

use crate::config::Written;
use crate::daemon::Daemon;
use crate::failure::Failure;
use crate::rpc::convert;
use crate::visit::Visit;

/// Messages on their way to the client: one that is being sent, and one that is ready.
const RESPONSES: usize = 2;

/// The most bytes of a message to the client: what is copied at once, so that few messages carry it.
const LONGEST: usize = 64 * 1024;

type Response = Result<OpenResponse, RpcStatus>;

/// The client's side of a visit.
pub(crate) struct Pipe {
    requests: Streaming<OpenRequest>,
    /// What was received and not read yet.
    unread: Bytes,
    /// Whether the client has said that no more comes.
    finished: bool,
    responses: PollSender<Response>,
}

/// Waits for a client's first message.
pub(crate) async fn opening(requests: &mut Streaming<OpenRequest>) -> Result<Opening, RpcStatus> {
    match requests.message().await?.and_then(|request| request.message) {
        Some(Asked::Opening(opening)) => Ok(opening),
        Some(Asked::Data(_) | Asked::End(_)) | None => {
            Err(RpcStatus::invalid_argument("the first message names no target"))
        }
    }
}

impl Pipe {
    /// A pipe to the client whose requests these are, and what it is sent.
    pub(crate) fn new(requests: Streaming<OpenRequest>) -> (Self, mpsc::Receiver<Response>) {
        let (responses, sent) = mpsc::channel(RESPONSES);
        let pipe = Self {
            requests,
            unread: Bytes::new(),
            finished: false,
            responses: PollSender::new(responses),
        };
        (pipe, sent)
    }

    /// Serves the client to the end of its visit, or until it goes.
    pub(crate) async fn run(mut self, daemon: Arc<Daemon>, written: Written) {
        let Some(responses) = self.responses.get_ref().cloned() else {
            return;
        };
        let served = async {
            let visited = match daemon.visit(written).await {
                Ok(visit) => self.serve(visit).await,
                Err(failure) => Err(failure),
            };
            let failure = visited.err().map(|failure| convert::failure(&failure));
            self.tell(Answer::Ended(Ended { failure })).await;
        };
        tokio::select! {
            () = served => {}
            () = responses.closed() => {}
        }
    }

    async fn serve(&mut self, visit: Visit) -> Result<(), Arc<Failure>> {
        let link = Some(convert::link(visit.details()));
        self.tell(Answer::Opened(Opened { link })).await;
        visit.carry(self).await
    }

    async fn tell(&mut self, message: Answer) {
        // A client that is gone hears nothing.
        if std::future::poll_fn(|context| self.responses.poll_reserve(context))
            .await
            .is_ok()
        {
            let _ = self.responses.send_item(answer(message));
        }
    }
}

fn answer(message: Answer) -> Response {
    Ok(OpenResponse {
        message: Some(message),
    })
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the client has left")
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            if self.finished {
                return Poll::Ready(Ok(()));
            }
            let Some(Ok(request)) = ready!(self.requests.poll_next_unpin(context)) else {
                // A client that says nothing of an end has been ended.
                return Poll::Ready(Err(gone()));
            };
            match request.message {
                Some(Asked::Data(data)) => self.unread = data,
                Some(Asked::End(End {})) => self.finished = true,
                Some(Asked::Opening(_)) | None => {
                    let error =
                        io::Error::new(io::ErrorKind::InvalidData, "a message that does not belong here");
                    return Poll::Ready(Err(error));
                }
            }
        }
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.responses.poll_reserve(context)).map_err(|_| gone())?;
        let bytes = &bytes[..bytes.len().min(LONGEST)];
        let data = Answer::Data(Bytes::copy_from_slice(bytes));
        self.responses.send_item(answer(data)).map_err(|_| gone())?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.responses.poll_reserve(context)).map_err(|_| gone())?;
        self.responses
            .send_item(answer(Answer::End(End {})))
            .map_err(|_| gone())?;
        Poll::Ready(Ok(()))
    }
}
