//! A transport that a test holds in its hand: attempts, links and streams do what the test says, when it says so.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::DuplexStream;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::aws::Aws;
use crate::config::{Config, Listen, Mode, TunnelSpec};
use crate::connector::Environment;
use crate::failure::{Failure, Reason, Remedy};
use crate::transport::{Delays, Health, Impaired, Link, LinkDetails, Stream, Transport};

/// A specification with this name, which listens on a free port.
pub(crate) fn spec(name: &str) -> TunnelSpec {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let port = free_port();
    let text = format!(
        "[tunnels.{name}]\nlisten = \"127.0.0.1:{port}\"\ntarget = \"127.0.0.1:5432\"\nroute = \"direct\"\n"
    );
    std::fs::write(&path, text).unwrap();
    Config::load(&path).unwrap().tunnels.remove(0)
}

/// The same of an on-demand tunnel.
pub(crate) fn on_demand(name: &str) -> TunnelSpec {
    TunnelSpec {
        mode: Mode::OnDemand {
            idle_after: Duration::from_secs(900),
        },
        ..spec(name)
    }
}

/// The address that such a specification listens on.
pub(crate) fn address(spec: &TunnelSpec) -> std::net::SocketAddr {
    match &spec.listen {
        Listen::Tcp(addresses) => addresses[0],
        Listen::Unix(path) => panic!("{} is no address", path.display()),
    }
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Access to AWS in an empty environment.
pub(crate) fn aws() -> Arc<Aws> {
    Arc::new(Aws::new(Environment::default()).unwrap())
}

/// A failure of the link that time may mend.
pub(crate) fn lost() -> Failure {
    Failure::new(Reason::Unreachable, Remedy::Retry, "the websocket was closed")
}

/// The transport, as the code under test sees it.
pub(crate) struct FakeTransport {
    attempts: mpsc::UnboundedSender<Attempt>,
    /// What it waits for.
    pub(crate) delays: Delays,
}

/// The attempts of a transport, as the test sees them.
pub(crate) struct Attempts(mpsc::UnboundedReceiver<Attempt>);

/// An attempt that waits for the test's decision; keeping it lets the attempt hang.
pub(crate) struct Attempt(oneshot::Sender<Result<Arc<dyn Link>, Failure>>);

/// A transport and its attempts.
pub(crate) fn transport() -> (Arc<FakeTransport>, Attempts) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let transport = FakeTransport {
        attempts: sender,
        delays: Delays::default(),
    };
    (Arc::new(transport), Attempts(receiver))
}

#[async_trait]
impl Transport for FakeTransport {
    async fn connect(&self) -> Result<Arc<dyn Link>, Failure> {
        let (answer, answered) = oneshot::channel();
        self.attempts.send(Attempt(answer)).ok();
        answered.await.expect("the test decides about every attempt")
    }

    fn delays(&self) -> watch::Receiver<Vec<Arc<Failure>>> {
        self.delays.watch()
    }
}

impl Attempts {
    /// Waits for the next attempt.
    pub(crate) async fn next(&mut self) -> Attempt {
        tokio::time::timeout(Duration::from_secs(600), self.0.recv())
            .await
            .expect("an attempt")
            .unwrap()
    }

    /// Returns whether no attempt has begun.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.0.try_recv().is_err()
    }
}

impl Attempt {
    /// Lets it make a link.
    pub(crate) fn succeed(self) -> FakeFar {
        let (opening, openings) = mpsc::unbounded_channel();
        let details = LinkDetails {
            via: "bastion".to_owned(),
            ..LinkDetails::default()
        };
        let health = watch::Sender::new(Health {
            impaired: None,
            ended: None,
            details,
        });
        let link = Arc::new(FakeLink {
            opening,
            health: health.clone(),
            ended: watch::Sender::new(None),
            said_goodbye: watch::Sender::new(false),
        });
        let far = FakeFar {
            link: Arc::clone(&link),
            openings: Mutex::new(openings),
        };
        assert!(self.0.send(Ok(link)).is_ok(), "the attempt was given up");
        far
    }

    /// Lets it fail.
    pub(crate) fn fail(self, failure: Failure) {
        assert!(self.0.send(Err(failure)).is_ok(), "the attempt was given up");
    }

    /// Waits until the code under test gives it up.
    pub(crate) async fn given_up(mut self) {
        self.0.closed().await;
    }
}

struct FakeLink {
    opening: mpsc::UnboundedSender<Opening>,
    health: watch::Sender<Health>,
    ended: watch::Sender<Option<Arc<Failure>>>,
    said_goodbye: watch::Sender<bool>,
}

/// The far end of a link, as the test sees it.
pub(crate) struct FakeFar {
    link: Arc<FakeLink>,
    openings: Mutex<mpsc::UnboundedReceiver<Opening>>,
}

impl Stream for DuplexStream {}

/// A stream that waits for the test's decision.
pub(crate) struct Opening(oneshot::Sender<Result<Box<dyn Stream>, Failure>>);

#[async_trait]
impl Link for FakeLink {
    async fn open(&self, _: &str) -> Result<Box<dyn Stream>, Failure> {
        let (answer, answered) = oneshot::channel();
        self.opening.send(Opening(answer)).map_err(|_| lost())?;
        answered.await.map_err(|_| lost())?
    }

    async fn closed(&self) -> Arc<Failure> {
        let mut ended = self.ended.subscribe();
        let ended = ended
            .wait_for(Option::is_some)
            .await
            .expect("the link holds the sender");
        ended.clone().expect("waited for")
    }

    async fn close(&self) {
        self.said_goodbye.send_replace(true);
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn probe(&self) {}
}

impl FakeFar {
    /// Waits for the next stream that is asked for.
    pub(crate) async fn opening(&self) -> Opening {
        let mut openings = self.openings.lock().await;
        tokio::time::timeout(Duration::from_secs(600), openings.recv())
            .await
            .expect("a stream")
            .unwrap()
    }

    /// Accepts the next stream and returns the target's end of it.
    pub(crate) async fn accept(&self) -> DuplexStream {
        self.opening().await.accept()
    }

    /// Ends the link.
    pub(crate) fn end(&self, failure: Failure) {
        self.link.ended.send_replace(Some(Arc::new(failure)));
    }

    /// Lets the link carry nothing, and be kept.
    pub(crate) fn impair(&self) {
        let impaired = Impaired {
            since: Instant::now(),
            cause: Arc::new(lost()),
        };
        self.link
            .health
            .send_modify(|health| health.impaired = Some(impaired));
    }

    /// Has the link say something.
    pub(crate) fn note(&self, note: &str) {
        let note = note.to_owned();
        self.link
            .health
            .send_modify(|health| health.details.notes.push(note));
    }

    /// Lets the link carry bytes again.
    pub(crate) fn recover(&self) {
        self.link.health.send_modify(|health| health.impaired = None);
    }

    /// Ends a part of the link.
    pub(crate) fn end_part(&self, failure: Failure) {
        self.link
            .health
            .send_modify(|health| health.ended = Some(Arc::new(failure)));
    }

    /// Waits until the code under test has closed the link.
    pub(crate) async fn goodbye(&self) {
        let mut said = self.link.said_goodbye.subscribe();
        said.wait_for(|said| *said)
            .await
            .expect("the link holds the sender");
    }

    /// Returns whether the code under test has closed the link.
    pub(crate) fn has_goodbye(&self) -> bool {
        *self.link.said_goodbye.borrow()
    }
}

impl Opening {
    /// Opens it, and returns the target's end.
    pub(crate) fn accept(self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 * 1024);
        self.accept_as(near);
        far
    }

    /// Opens it as this stream.
    pub(crate) fn accept_as(self, stream: impl Stream + 'static) {
        self.0
            .send(Ok(Box::new(stream)))
            .ok()
            .expect("the stream was given up");
    }

    /// Refuses it.
    pub(crate) fn refuse(self, failure: Failure) {
        self.0.send(Err(failure)).ok().expect("the stream was given up");
    }

    /// Waits until the code under test gives it up.
    pub(crate) async fn given_up(mut self) {
        self.0.closed().await;
    }
}
