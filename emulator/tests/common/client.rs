//! A correct client of one session: `wire`'s, over a websocket whose frames are kept to be looked at.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tunneld_wire::smux::StreamId;
use tunneld_wire::ssm::message::{self, Kind};
use tunneld_wire::ssm::{ClientOptions, Event, Frame, Origin, Policy, Session};

use super::far::INSTANCE;
use super::{Caller, wall_clock};

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A client's side of one session.
pub(crate) struct Client {
    pub(crate) ticket: Value,
    pub(crate) session: Session,
    pub(crate) socket: WebSocketStream<TcpStream>,
    /// How the present websocket ended.
    pub(crate) end: Option<End>,
    /// A write to it found it reset.
    is_reset: bool,
    /// Every binary message, in the order in which they came.
    pub(crate) frames: Vec<Bytes>,
    /// The payloads of every pong.
    pub(crate) pongs: Vec<Bytes>,
    pub(crate) events: Vec<Event>,
    /// The payload's length of each data message that was sent, by number.
    pub(crate) sent: BTreeMap<u64, usize>,
    /// The last of them.
    pub(crate) last_sent: Bytes,
    /// What each stream has brought.
    pub(crate) data: BTreeMap<StreamId, Vec<u8>>,
}

/// How a websocket ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With a close frame: its code and its reason.
    Closed(Option<(u16, String)>),
    /// The connection was reset.
    Reset,
    /// The connection ended without a close frame.
    Gone,
}

impl Client {
    /// Starts a session to a port of the instance, and opens its websocket.
    pub(crate) async fn start(caller: &Caller, port: u16) -> Self {
        Self::start_over(caller, port, TcpSocket::new_v4().expect("a socket")).await
    }

    /// The same, with a socket of one's own.
    pub(crate) async fn start_over(caller: &Caller, port: u16, tcp: TcpSocket) -> Self {
        let input = json!({
            "Target": INSTANCE,
            "DocumentName": "AWS-StartPortForwardingSession",
            "Parameters": { "portNumber": [port.to_string()] },
        });
        let ticket = caller.ssm("StartSession", &input).await.json();
        let origin = Origin {
            seed: 1,
            began: Instant::now().into_std(),
            began_unix: wall_clock()
                .duration_since(SystemTime::UNIX_EPOCH)
                .expect("after 1970"),
            half_close_grace: Duration::from_secs(30),
        };
        let options = ClientOptions {
            policy: Policy::client(),
            keep_alive: None,
            stall_timeout: Duration::from_secs(120),
        };
        let mut session = Session::client(options, origin);
        let socket = connect(&ticket, tcp).await;
        session.attach(token(&ticket), Instant::now().into_std());
        Self {
            ticket,
            session,
            socket,
            end: None,
            is_reset: false,
            frames: Vec::new(),
            pongs: Vec::new(),
            events: Vec::new(),
            sent: BTreeMap::new(),
            last_sent: Bytes::new(),
            data: BTreeMap::new(),
        }
    }

    /// Starts a session and opens a stream.
    pub(crate) async fn with_stream(caller: &Caller, port: u16) -> (Self, StreamId) {
        let mut client = Self::start(caller, port).await;
        let id = client.open().await;
        (client, id)
    }

    /// Resumes the session on a new websocket; returns the one before, if somebody wants to look at it.
    pub(crate) async fn resume(&mut self, caller: &Caller) -> WebSocketStream<TcpStream> {
        let input = json!({ "SessionId": self.ticket["SessionId"] });
        self.ticket = caller.ssm("ResumeSession", &input).await.json();
        let tcp = TcpSocket::new_v4().expect("a socket");
        let before = std::mem::replace(&mut self.socket, connect(&self.ticket, tcp).await);
        self.end = None;
        self.is_reset = false;
        self.session.detach();
        self.session
            .attach(token(&self.ticket), Instant::now().into_std());
        before
    }

    /// Opens a stream, once the session can have one.
    pub(crate) async fn open(&mut self) -> StreamId {
        self.until(|client| client.session.open(Instant::now().into_std()))
            .await
    }

    pub(crate) fn write(&mut self, id: StreamId, bytes: impl Into<Bytes>) {
        self.session.write(id, bytes.into());
    }

    /// Returns the first so many bytes of a stream, once they are there.
    pub(crate) async fn read(&mut self, id: StreamId, length: usize) -> Vec<u8> {
        self.until(|client| Some(client.data.get(&id)?.get(..length)?.to_vec()))
            .await
    }

    /// Returns how the websocket ended, once it has.
    pub(crate) async fn end(&mut self) -> End {
        self.until(|client| client.end.take()).await
    }

    /// Lets things happen until a check finds what it looks for.
    pub(crate) async fn until<T>(&mut self, mut check: impl FnMut(&mut Self) -> Option<T>) -> T {
        let found = async {
            loop {
                if let Some(found) = check(self) {
                    return found;
                }
                let now = self.transmit().await;
                self.step(now).await;
            }
        };
        match timeout(PATIENCE, found).await {
            Ok(found) => found,
            Err(_) => panic!(
                "nothing came of it in {PATIENCE:?}: {:?}, {:?} after {:?}",
                self.end,
                self.kinds(),
                self.events
            ),
        }
    }

    /// Sends a ping and waits for its own pong.
    pub(crate) async fn ping(&mut self, words: &'static str) {
        self.send_ping(words).await;
        self.until(|client| client.pongs.iter().any(|pong| pong == words).then_some(()))
            .await;
    }

    pub(crate) async fn send_ping(&mut self, words: &'static str) {
        self.socket
            .send(Message::Ping(words.into()))
            .await
            .expect("the websocket takes it");
    }

    /// Returns the frames that can be decoded.
    pub(crate) fn messages(&self) -> impl Iterator<Item = message::Message> + '_ {
        self.frames
            .iter()
            .filter_map(|frame| message::Message::decode(frame.clone()).ok())
    }

    pub(crate) fn kinds(&self) -> Vec<Kind> {
        self.messages().map(|message| message.kind).collect()
    }

    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.messages().filter(|message| message.kind == kind).count()
    }

    /// Sends what the session has to send; returns when it had no more.
    async fn transmit(&mut self) -> std::time::Instant {
        loop {
            let now = Instant::now().into_std();
            let Some(frame) = self.session.poll_transmit(now) else {
                return now;
            };
            let message = match frame {
                Frame::Text(text) => Message::text(text),
                Frame::Binary(frame) => {
                    let sent = message::Message::decode(frame.clone()).expect("a frame of our own");
                    if sent.kind == Kind::InputStreamData {
                        self.sent.insert(sent.sequence, sent.payload.len());
                        self.last_sent = frame.clone();
                    }
                    Message::Binary(frame)
                }
            };
            if let Err(error) = self.socket.send(message).await {
                // The system tells of a reset once, whoever asks first; what has come can still be read.
                self.is_reset |= is_reset(&error);
                self.session.detach();
            }
        }
    }

    /// Waits for the next thing to happen; `now` is that of the last [`Client::transmit`].
    async fn step(&mut self, now: std::time::Instant) {
        let due = self.session.poll_timeout(now).map(Instant::from_std);
        let waits = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = self.socket.next(), if self.end.is_none() => self.handle(message),
            () = waits => self.session.handle_timeout(Instant::now().into_std()),
        }
        while let Some(event) = self.session.poll_event() {
            if let Event::Data(id, bytes) = &event {
                self.data.entry(*id).or_default().extend_from_slice(bytes);
            } else {
                self.events.push(event);
            }
        }
    }

    fn handle(&mut self, message: Option<Result<Message, Error>>) {
        let end = match message {
            Some(Ok(Message::Binary(frame))) => {
                self.frames.push(frame.clone());
                // Junk is no reason for anything.
                let _ = self.session.handle_frame(frame, Instant::now().into_std());
                return;
            }
            Some(Ok(Message::Pong(words))) => return self.pongs.push(words),
            Some(Ok(Message::Close(frame))) => End::Closed(
                frame.map(|CloseFrame { code, reason }| (code.into(), reason.as_str().to_owned())),
            ),
            Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Frame(_))) => return,
            Some(Err(error)) if is_reset(&error) => End::Reset,
            Some(Err(_)) | None if self.is_reset => End::Reset,
            Some(Err(_)) | None => End::Gone,
        };
        self.end = Some(end);
        self.session.detach();
    }
}

fn is_reset(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionReset)
}

async fn connect(ticket: &Value, tcp: TcpSocket) -> WebSocketStream<TcpStream> {
    let url = ticket["StreamUrl"].as_str().expect("a URL");
    let (_, rest) = url.split_once("://").expect("a scheme");
    let (authority, _) = rest.split_once('/').expect("a path");
    let address = authority.parse().expect("an address");
    let tcp = tcp.connect(address).await.expect("the emulator listens");
    let (socket, _) = tokio_tungstenite::client_async(url, tcp)
        .await
        .expect("the upgrade is accepted");
    socket
}

fn token(ticket: &Value) -> &str {
    ticket["TokenValue"].as_str().expect("a token")
}
