//! One websocket of a session's client: checks its opening, then moves frames between it and the relay.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tunneld_wire::ssm::payload::OpenDataChannel;

/// Frames that wait to be written or relayed.
const FRAMES: usize = 16;
/// How long a client may take to send its opening.
const OPENING_DEADLINE: Duration = Duration::from_secs(10);

/// How long a client may take to read the last frames and to close.
const LAST_READING: Duration = Duration::from_secs(1);

/// A websocket whose token was good.
pub(super) struct Arrival {
    /// Its frames; closed when the websocket is gone.
    pub(super) frames: mpsc::Receiver<Bytes>,
    /// Frames for it. Dropped: the websocket is closed, after what waits was written.
    pub(super) writer: mpsc::Sender<Bytes>,
}

/// Serves a websocket until it ends, the session ends or `replaced`: then it is dropped without a close.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    mut socket: WebSocketStream<S>,
    check_token: impl Fn(&str) -> bool + Send + 'static,
    arrivals: mpsc::Sender<Arrival>,
    replaced: CancellationToken,
) {
    if !matches!(
        timeout(OPENING_DEADLINE, opens_well(&mut socket, check_token)).await,
        Ok(true)
    ) {
        debug!("a websocket did not open its data channel");
        // The client may be gone.
        let _ = socket.close(None).await;
        return;
    }
    let (frames_in, frames) = mpsc::channel(FRAMES);
    let (writer, frames_out) = mpsc::channel(FRAMES);
    if arrivals.send(Arrival { frames, writer }).await.is_err() {
        let _ = socket.close(None).await;
        return;
    }
    let (sink, stream) = socket.split();
    let mut reading = std::pin::pin!(read(stream, frames_in));
    tokio::select! {
        () = replaced.cancelled() => {}
        () = &mut reading => {}
        () = write(sink, frames_out) => {
            // Closing a socket with unread bytes resets it, and the reset may overtake the last frames.
            let _ = timeout(LAST_READING, reading).await;
        }
    }
}

/// Reads the opening, the only text message: no answer is given to it.
async fn opens_well<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    check_token: impl Fn(&str) -> bool,
) -> bool {
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Text(text) => {
                let opening = serde_json::from_str::<OpenDataChannel>(&text);
                return opening.is_ok_and(|opening| check_token(&opening.token_value));
            }
            // The official client pings at once after opening, and before its text on a slow start.
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Binary(_) | Message::Close(_) | Message::Frame(_) => return false,
        }
    }
    false
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

async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut frames: mpsc::Receiver<Bytes>,
) {
    while let Some(frame) = frames.recv().await {
        if sink.feed(Message::Binary(frame)).await.is_err() {
            return;
        }
        while let Ok(frame) = frames.try_recv() {
            if sink.feed(Message::Binary(frame)).await.is_err() {
                return;
            }
        }
        if sink.flush().await.is_err() {
            return;
        }
    }
    // The client may be gone, or not read any more.
    let _ = timeout(LAST_READING, sink.close()).await;
}
