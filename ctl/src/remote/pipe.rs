//! One connection through the daemon: what a reader gives goes to the far end, what comes from there to a writer.
//!
//! Each side is held back by the other: nothing is kept here but two messages, beside what gRPC has in flight.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Streaming;
use tunneld_proto::v1::open_request::Message as Asked;
use tunneld_proto::v1::open_response::Message as Answer;
use tunneld_proto::v1::{End, OpenRequest, OpenResponse, Opening};

use crate::client::{Client, refused, silent};
use crate::error::Error;

/// How much is read at once: as much as a message of the daemon holds.
const BUFFER: usize = 64 * 1024;

/// Messages on their way to the daemon: one that is being sent, and one that is ready.
const REQUESTS: usize = 2;

/// How long the daemon may take to reach a target. It has less patience itself, and says why.
const OPENING_LIMIT: Duration = Duration::from_secs(150);

/// A connection that has reached its target.
pub(crate) struct Pipe {
    requests: mpsc::Sender<OpenRequest>,
    responses: Streaming<OpenResponse>,
}

impl Pipe {
    /// Reaches a target.
    pub(crate) async fn open(client: &mut Client, opening: Opening) -> Result<Self, Error> {
        let (requests, sent) = mpsc::channel(REQUESTS);
        let opening = OpenRequest {
            message: Some(Asked::Opening(opening)),
        };
        requests.send(opening).await.map_err(|_closed| lost())?;
        let responses = client.open(sent).await?;
        let mut pipe = Self { requests, responses };
        let answer = timeout(OPENING_LIMIT, pipe.next())
            .await
            .map_err(|_elapsed| silent(OPENING_LIMIT))??;
        match answer {
            Answer::Opened(_) => Ok(pipe),
            Answer::Ended(ended) => Err(ended.failure.map_or_else(lost, Error::from)),
            Answer::Data(_) | Answer::End(_) => Err(lost()),
        }
    }

    /// Carries bytes until the connection has ended; an error unless it ended as both sides wanted. The writer is shut
    /// down where the far end says that no more comes.
    pub(crate) async fn carry(
        mut self,
        input: impl AsyncRead + Unpin,
        mut output: impl AsyncWrite + Unpin,
    ) -> Result<(), Error> {
        let requests = self.requests.clone();
        let receiving = async {
            loop {
                match self.next().await? {
                    Answer::Data(data) => {
                        output.write_all(&data).await.map_err(unwritable)?;
                        output.flush().await.map_err(unwritable)?;
                    }
                    Answer::End(_) => output.shutdown().await.map_err(unwritable)?,
                    Answer::Ended(ended) => {
                        return ended.failure.map_or(Ok(()), |failure| Err(failure.into()));
                    }
                    Answer::Opened(_) => return Err(lost()),
                }
            }
        };
        tokio::select! {
            ended = receiving => ended,
            Err(error) = send(input, requests) => {
                Err(Error::failed("cannot read what is to be sent").because(error.to_string()))
            }
        }
    }

    async fn next(&mut self) -> Result<Answer, Error> {
        let response = self.responses.message().await.map_err(refused)?;
        response.and_then(|response| response.message).ok_or_else(lost)
    }
}

/// Sends all that is read, and that no more comes. How that went down shows in the responses.
async fn send(mut input: impl AsyncRead + Unpin, requests: mpsc::Sender<OpenRequest>) -> std::io::Result<()> {
    loop {
        let mut data = Vec::with_capacity(BUFFER);
        input.read_buf(&mut data).await?;
        let message = if data.is_empty() {
            Asked::End(End {})
        } else {
            Asked::Data(data.into())
        };
        let is_last = matches!(message, Asked::End(_));
        let request = OpenRequest {
            message: Some(message),
        };
        if requests.send(request).await.is_err() || is_last {
            return Ok(());
        }
    }
}

fn unwritable(error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        return Error::reader_left();
    }
    Error::failed("cannot write what was received").because(error.to_string())
}

fn lost() -> Error {
    Error::failed("tunneld broke off the connection")
}
