//! One tunnel: dials the target, then moves bytes both ways until either side ends.
//!
//! ```text
//!   101 ─► dial ─► relay ─┬─ target closed ─────────► close 1000
//!            │            ├─ client closed ─────────► target closed too: there is no half-close
//!            │            └─ time over, or ordered ─► close, or less
//!            └ failed ──────────────────────────────► close, "Unable to connect to target"
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};

use super::line::Line;
use super::{Place, TunnelEnd};
use crate::conditions::{Conditions, TunnelExpiry, TunnelMessages};
use crate::faults::{Fault, Faults};
use crate::socket::SocketControl;

/// How long a target may take to accept.
const DIAL: Duration = Duration::from_secs(10);

/// How long a client may take to read the last messages and to close.
const LAST_READING: Duration = Duration::from_secs(1);

/// Bytes of one read of the target, and so of one frame.
const LONGEST_READ: usize = 64 << 10;

/// Bytes of one giant message: a quarter of what clients take at most, for the library that most of them use.
const GIANT: usize = 4 << 20;

/// How long a giant message waits for more bytes.
const GIANT_PAUSE: Duration = Duration::from_millis(20);

/// What a tunnel is served with.
pub(super) struct Serving {
    /// `None`: it cannot be reached.
    pub(super) target: Option<SocketAddr>,
    pub(super) life: Duration,
    pub(super) orders: mpsc::Receiver<TunnelEnd>,
    pub(super) conditions: watch::Receiver<Arc<Conditions>>,
    pub(super) faults: Arc<Faults>,
    pub(super) control: SocketControl,
    pub(super) place: Arc<Place>,
}

/// What ended a tunnel.
enum Ended {
    /// The target did not accept.
    Unreachable(io::Error),
    /// The client closed its websocket, or its connection ended.
    ByClient,
    /// The client sent what is no binary message.
    Protocol,
    /// The target closed its connection.
    ByTarget,
    /// The connection to the target broke.
    TargetLost(io::Error),
    TimeOver,
    Ordered(TunnelEnd),
}

/// Serves a tunnel to its end, and returns the cause.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<S>,
    mut serving: Serving,
) -> String {
    let deadline = Instant::now() + serving.life;
    let dialled = tokio::select! {
        dialled = dial(serving.target) => dialled,
        () = sleep_until(deadline) => return end(socket, Ended::TimeOver, serving).await,
        Some(order) = serving.orders.recv() => return end(socket, Ended::Ordered(order), serving).await,
    };
    let target = match dialled {
        Ok(target) => target,
        Err(error) => return end(socket, Ended::Unreachable(error), serving).await,
    };
    let (mut sink, mut stream) = socket.split();
    let (mut reader, mut writer) = target.into_split();
    let ended = tokio::select! {
        ended = carry_up(&mut stream, &mut writer, &serving.conditions) => ended,
        ended = carry_down(&mut reader, &mut sink, &serving.conditions, &serving.faults) => ended,
        () = sleep_until(deadline) => Ended::TimeOver,
        Some(order) = serving.orders.recv() => Ended::Ordered(order),
    };
    let socket = sink.reunite(stream).expect("both halves are of one websocket");
    end(socket, ended, serving).await
}

/// What the service says of a target that it cannot reach. The code that goes with it is not public.
const UNREACHABLE: &str = "Unable to connect to target";

async fn dial(target: Option<SocketAddr>) -> io::Result<TcpStream> {
    let address = target.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "nothing is there"))?;
    let target = timeout(DIAL, TcpStream::connect(address)).await??;
    target.set_nodelay(true)?;
    Ok(target)
}

async fn carry_up<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut SplitStream<WebSocketStream<S>>,
    writer: &mut OwnedWriteHalf,
    conditions: &watch::Receiver<Arc<Conditions>>,
) -> Ended {
    let mut line = Line::default();
    let ended = loop {
        tokio::select! {
            message = stream.next(), if line.has_room() => {
                let bytes = match message {
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    // Pings are answered by the library.
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Text(_) | Message::Frame(_))) => break Ended::Protocol,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break Ended::ByClient,
                };
                let delay = conditions.borrow().line.delay;
                if line.is_busy() || !delay.is_zero() {
                    line.push(bytes, delay);
                } else if let Err(error) = writer.write_all(&bytes).await {
                    return Ended::TargetLost(error);
                }
            }
            () = line.arrive() => {
                while let Some(bytes) = line.poll() {
                    if let Err(error) = writer.write_all(&bytes).await {
                        return Ended::TargetLost(error);
                    }
                }
            }
        }
    };
    // The end has the same way as what was sent before.
    while line.is_busy() {
        line.arrive().await;
        while let Some(bytes) = line.poll() {
            if let Err(error) = writer.write_all(&bytes).await {
                return Ended::TargetLost(error);
            }
        }
    }
    ended
}

async fn carry_down<S: AsyncRead + AsyncWrite + Unpin>(
    reader: &mut OwnedReadHalf,
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    conditions: &watch::Receiver<Arc<Conditions>>,
    faults: &Faults,
) -> Ended {
    let mut line = Line::default();
    let mut buffer = BytesMut::new();
    let ended = loop {
        tokio::select! {
            read = read(reader, &mut buffer, conditions), if line.has_room() => {
                match read {
                    Ok(0) => break Ended::ByTarget,
                    Ok(_) => {}
                    Err(error) => break Ended::TargetLost(error),
                }
                let bytes = buffer.split().freeze();
                let delay = conditions.borrow().line.delay;
                if line.is_busy() || !delay.is_zero() {
                    line.push(bytes, delay);
                    continue;
                }
                if feed(sink, bytes, conditions, faults).await.is_err() || sink.flush().await.is_err() {
                    return Ended::ByClient;
                }
            }
            () = line.arrive() => {
                if arrive(&mut line, sink, conditions, faults).await.is_err() {
                    return Ended::ByClient;
                }
            }
        }
    };
    while line.is_busy() {
        line.arrive().await;
        if arrive(&mut line, sink, conditions, faults).await.is_err() {
            return Ended::ByClient;
        }
    }
    ended
}

/// Reads what there is, or more where messages are to be giants. Cancelled, it keeps what it has read in the buffer.
async fn read(
    reader: &mut OwnedReadHalf,
    buffer: &mut BytesMut,
    conditions: &watch::Receiver<Arc<Conditions>>,
) -> io::Result<usize> {
    if buffer.is_empty() {
        buffer.reserve(LONGEST_READ);
        if reader.read_buf(buffer).await? == 0 {
            return Ok(0);
        }
    }
    let is_giant = conditions.borrow().connect.messages == TunnelMessages::Giant;
    while is_giant && buffer.len() < GIANT {
        buffer.reserve(LONGEST_READ);
        match timeout(GIANT_PAUSE, reader.read_buf(buffer)).await {
            Ok(Ok(1..)) => {}
            // An end or an error is met again by the next read.
            Ok(Ok(0) | Err(_)) | Err(_) => break,
        }
    }
    Ok(buffer.len())
}

type Sent = Result<(), tokio_tungstenite::tungstenite::Error>;

/// Sends what has arrived.
async fn arrive<S: AsyncRead + AsyncWrite + Unpin>(
    line: &mut Line,
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    conditions: &watch::Receiver<Arc<Conditions>>,
    faults: &Faults,
) -> Sent {
    while let Some(bytes) = line.poll() {
        feed(sink, bytes, conditions, faults).await?;
    }
    sink.flush().await
}

async fn feed<S: AsyncRead + AsyncWrite + Unpin>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    mut bytes: Bytes,
    conditions: &watch::Receiver<Arc<Conditions>>,
    faults: &Faults,
) -> Sent {
    if faults.strikes(Fault::EiceSendsText) {
        sink.feed(Message::text("this is no binary message")).await?;
    }
    let messages = conditions.borrow().connect.messages;
    match messages {
        TunnelMessages::Plain | TunnelMessages::Giant => sink.feed(Message::Binary(bytes)).await,
        TunnelMessages::Fragmented => {
            let first = bytes.split_to(bytes.len() / 3);
            let second = bytes.split_to(bytes.len() / 2);
            let fragment =
                |bytes, kind, is_last| Message::Frame(Frame::message(bytes, OpCode::Data(kind), is_last));
            sink.feed(fragment(first, Data::Binary, false)).await?;
            sink.feed(Message::Ping(Bytes::from_static(b"in between")))
                .await?;
            sink.feed(fragment(second, Data::Continue, false)).await?;
            sink.feed(fragment(bytes, Data::Continue, true)).await
        }
    }
}

/// Ends the websocket as the cause asks, and puts that in words.
async fn end<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: WebSocketStream<S>,
    ended: Ended,
    serving: Serving,
) -> String {
    // Whoever waits for the place may come as soon as the client knows of the end.
    drop(serving.place);
    match ended {
        Ended::Unreachable(error) => {
            tracing::info!(%error, "the target of a tunnel cannot be reached");
            close(&mut socket, CloseCode::Error, UNREACHABLE).await;
            UNREACHABLE.to_owned()
        }
        Ended::ByClient => {
            // The client's own close is answered, if there was one.
            let _ = timeout(LAST_READING, socket.close(None)).await;
            "the client closed it".to_owned()
        }
        Ended::Protocol => {
            close(
                &mut socket,
                CloseCode::Unsupported,
                "binary messages alone are taken",
            )
            .await;
            "the client sent no binary message".to_owned()
        }
        Ended::ByTarget => {
            close(&mut socket, CloseCode::Normal, "").await;
            "the target closed it".to_owned()
        }
        Ended::TargetLost(error) => {
            close(
                &mut socket,
                CloseCode::Error,
                "The connection to the target was lost",
            )
            .await;
            format!("the target is lost: {error}")
        }
        Ended::TimeOver => {
            let expiry = serving.conditions.borrow().connect.expiry;
            match expiry {
                TunnelExpiry::Close => {
                    close(&mut socket, CloseCode::Away, "Maximum tunnel duration reached").await;
                }
                TunnelExpiry::Fin => fin(&mut socket).await,
                TunnelExpiry::Reset => serving.control.reset(),
            }
            "its time was over".to_owned()
        }
        Ended::Ordered(TunnelEnd::Close(code, reason)) => {
            close(&mut socket, code.into(), &reason).await;
            format!("closed with code {code} as ordered")
        }
        Ended::Ordered(TunnelEnd::Fin) => {
            fin(&mut socket).await;
            "ended without a close as ordered".to_owned()
        }
        Ended::Ordered(TunnelEnd::Reset) => {
            serving.control.reset();
            "reset as ordered".to_owned()
        }
    }
}

async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    code: CloseCode,
    reason: &str,
) {
    let frame = CloseFrame {
        code,
        reason: reason.into(),
    };
    let closing = async {
        socket.close(Some(frame)).await?;
        // Closing a socket with unread bytes resets it, and the reset may overtake the last messages.
        while socket.next().await.is_some_and(|message| message.is_ok()) {}
        Sent::Ok(())
    };
    // The client may be gone, or not read any more.
    let _ = timeout(LAST_READING, closing).await;
}

/// Ends the connection without a close.
async fn fin<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) {
    let ending = async {
        socket.flush().await?;
        socket.get_mut().shutdown().await?;
        while socket.next().await.is_some_and(|message| message.is_ok()) {}
        Sent::Ok(())
    };
    let _ = timeout(LAST_READING, ending).await;
}
