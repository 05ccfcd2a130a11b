//! One websocket of a session's client: checks its opening, then moves frames between it and the relay.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// What counts in the first message of a client, OpenDataChannelInput. Some clients send as their id what is no UUID,
/// and the service lets them in.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Opening {
    token_value: String,
}

/// How long a client may take to send its opening.
const OPENING_DEADLINE: Duration = Duration::from_secs(10);

/// How long a client may take to read the last frames and to close.
const LAST_READING: Duration = Duration::from_secs(1);

/// How long a client that is disconnected without a close may take to read the last frames.
const LAST_MOMENT: Duration = Duration::from_millis(100);

/// How much may be on its way to a client: what a cut loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Buffers {
    /// Frames wait only where they can be counted, and are written one at a time.
    Small,
    /// As much as is good for speed.
    Large,
}

impl Buffers {
    /// Returns how many frames wait to be written or relayed.
    fn frames(self) -> usize {
        match self {
            Self::Small => 4,
            Self::Large => 128,
        }
    }
}

/// What a websocket is given when its token is good.
pub(super) struct Admission {
    /// Newer websockets have higher ones.
    pub(super) generation: u64,
    /// Cancelled when another takes its place, or it is cut.
    pub(super) replaced: CancellationToken,
}

/// A websocket whose token was good.
pub(super) struct Arrival {
    pub(super) generation: u64,
    /// Its frames; closed when the websocket is gone.
    pub(super) frames: mpsc::Receiver<Bytes>,
    /// Frames for it. Dropped: the websocket is closed, after what waits was written.
    pub(super) writer: mpsc::Sender<Bytes>,
    farewell: oneshot::Sender<Farewell>,
}

/// The end of a websocket whose session lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Farewell {
    /// A close with code 1000.
    Bye,
    /// The connection just ends.
    Nothing,
}

impl Arrival {
    /// Ends the websocket in this way, after what waits was written.
    pub(super) fn leave(self, farewell: Farewell) {
        // It may have ended by itself.
        let _ = self.farewell.send(farewell);
    }
}

/// Serves a websocket until it ends, the session ends or it is replaced: then it is dropped without a close. `admit`
/// judges the token that it opens with.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    mut socket: WebSocketStream<S>,
    admit: impl FnOnce(&str) -> Option<Admission> + Send + 'static,
    arrivals: mpsc::Sender<Arrival>,
    over: CancellationToken,
    buffers: Buffers,
) {
    let token = tokio::select! {
        () = over.cancelled() => None,
        token = timeout(OPENING_DEADLINE, opening_token(&mut socket)) => token.ok().flatten(),
    };
    let Some(admission) = token.and_then(|token| admit(&token)) else {
        debug!("a websocket did not open its data channel");
        // The client may be gone.
        let _ = timeout(LAST_READING, socket.close(None)).await;
        return;
    };
    let (frames_in, frames) = mpsc::channel(buffers.frames());
    let (writer, frames_out) = mpsc::channel(buffers.frames());
    let (farewell, farewells) = oneshot::channel();
    let arrival = Arrival {
        generation: admission.generation,
        frames,
        writer,
        farewell,
    };
    if arrivals.send(arrival).await.is_err() {
        let _ = timeout(LAST_READING, socket.close(None)).await;
        return;
    }
    let (sink, stream) = socket.split();
    let mut reading = std::pin::pin!(read(stream, frames_in));
    tokio::select! {
        () = admission.replaced.cancelled() => {}
        () = &mut reading => {}
        patience = write(sink, frames_out, farewells, buffers) => {
            // Closing a socket with unread bytes resets it, and the reset may overtake the last frames.
            let _ = timeout(patience, reading).await;
        }
    }
}

/// Reads the opening, the only text message, and returns its token: no answer is given to it.
async fn opening_token<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) -> Option<String> {
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Text(text) => {
                let opening = serde_json::from_str::<Opening>(&text).ok()?;
                return Some(opening.token_value);
            }
            // The official client pings at once after opening, and before its text on a slow start.
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Binary(_) | Message::Close(_) | Message::Frame(_) => return None,
        }
    }
    None
}

async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<WebSocketStream<S>>,
    frames: mpsc::Sender<Bytes>,
) {
    while let Some(Ok(message)) = stream.next().await {
        if let Message::Binary(frame) = message {
            // Where the session is over, the writer closes the websocket and what still comes is of no interest.
            let _ = frames.send(frame).await;
        }
    }
}

/// Writes until there is nothing to write any more; returns how long the client may take to end its side.
async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut frames: mpsc::Receiver<Bytes>,
    mut farewells: oneshot::Receiver<Farewell>,
    buffers: Buffers,
) -> Duration {
    while let Some(frame) = frames.recv().await {
        if sink.feed(Message::Binary(frame)).await.is_err() {
            return LAST_READING;
        }
        while buffers == Buffers::Large
            && let Ok(frame) = frames.try_recv()
        {
            if sink.feed(Message::Binary(frame)).await.is_err() {
                return LAST_READING;
            }
        }
        if sink.flush().await.is_err() {
            return LAST_READING;
        }
    }
    let close = match farewells.try_recv() {
        Ok(Farewell::Nothing) => return LAST_MOMENT,
        Ok(Farewell::Bye) => Some(CloseFrame {
            code: CloseCode::Normal,
            reason: "Bye".into(),
        }),
        Err(_) => None,
    };
    // The client may be gone, or not read any more.
    let _ = timeout(LAST_READING, sink.send(Message::Close(close))).await;
    LAST_READING
}
