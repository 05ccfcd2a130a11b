//! One SSH connection of a link: how it comes about, and the task that keeps it.
//!
//! ```text
//!   stream of the route below ─► key exchange ─► host key ─► login ─► Ready
//!                                                                      │ ◄─ Open: a channel, a pump
//!                                                                      │ ◄─ Probe: a ping
//!                                                                      │ ◄─ health of the route below
//!                                        streams fail ◄── lost, closed ┘
//! ```

use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use russh::client::{Config, Handle};
use russh::{Disconnect, Preferred, SshId};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument, debug, info};

use super::Context;
use super::greeting::{Heard, Tally};
use super::handler::{Ears, Ended};
use super::host::Places;
use super::host_keys::Expectation;
use super::life::Life;
use super::login::Login;
use super::members::Connections;
use super::stream::{Berth, Company, pair};
use super::words;
use crate::failure::Failure;
use crate::transport::member::{Ask, Judgement, Report, Station, Term};
use crate::transport::pool::{Need, Sharing};
use crate::transport::{Health, Link, LinkDetails, Stream};

/// How long the server may take from the first byte to the end of the key exchange. The way below says only that it was
/// opened, not that somebody is there.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(15);
/// How often the server is asked for a sign of life when nothing comes, and how many may stay unanswered: a dead path is
/// noticed within a minute, and a NAT that forgets after a few is kept awake.
const KEEPALIVE: Duration = Duration::from_secs(15);
const MOST_MISSED: usize = 3;
/// What a server may send ahead on one channel. It is asked for more when half of it has come, so that at least 4 MiB are
/// under way: 40 MB/s at a round trip of 100 ms, four times what OpenSSH's own window of 2 MiB gives in this way. An sshd
/// gathers in memory what it may send ahead, and with 16 MiB it was half as fast on a short path.
const WINDOW: u32 = 8 << 20;
/// The largest packet: what OpenSSH uses, and every server must take.
const PACKET: u32 = 32 << 10;
/// Messages of one channel that wait for its pump, 2 MiB at most: the pump takes them at once unless its stream is alone
/// and not read.
const MESSAGES: usize = 64;
/// How long what clients that left said last may take to reach their targets, and then a goodbye the server.
const LAST_BYTES: Duration = Duration::from_secs(2);
const GOODBYE: Duration = Duration::from_secs(2);
/// A connection that is logged in.
pub(super) struct Connection {
    context: Arc<Context>,
    places: Arc<Places>,
    handle: Arc<Handle<Ears>>,
    below: Arc<dyn Link>,
    tally: Tally,
    /// Where the route below will cut it.
    term: Option<Term>,
    refusals: Arc<Mutex<mpsc::UnboundedReceiver<String>>>,
    ended: oneshot::Receiver<Ended>,
    /// What a person should know of the host key.
    note: Arc<OnceLock<String>>,
    /// Takes the bytes below away from the library when this is dropped: it may wait for a network that is gone.
    _cut: DropGuard,
}

impl Connections {
    /// Makes a connection and logs in.
    pub(super) async fn establish(&self, need: Need) -> Result<Connection, Failure> {
        let context = &self.context;
        let account = context.shared.aws.account(&context.account).await?;
        let places = context.directory.find(&account).await?;
        let server = &places.server;
        let (below, stream) = match self.open_below(&server.instance, need).await {
            Ok(opened) => opened,
            Err(failure) => {
                context.directory.forget();
                return Err(words::unreachable(server, failure));
            }
        };
        let term = stream
            .expires()
            .map(|ends_at| Term::between(Instant::now(), ends_at));
        let files = &context.shared.ssh;
        let expectation = Expectation::of(
            server,
            context.settings.host_keys,
            &files.host_keys,
            files.known_hosts.as_ref(),
            &account,
        )
        .await?;
        let note = expectation.note();
        let (tell, refusals) = mpsc::unbounded_channel();
        let (tell_end, mut ended) = oneshot::channel();
        let config = Arc::new(config(&expectation));
        let ears = Ears {
            expectation,
            refusals: tell,
            ended: Some(tell_end),
        };
        let cut = CancellationToken::new();
        let (heard, greeting, tally) = Heard::new(stream, cut.clone());
        let cut = cut.drop_guard();
        let shaken = timeout(HANDSHAKE, russh::client::connect_stream(config, heard, ears)).await;
        let mut handle = match shaken {
            Ok(Ok(handle)) => handle,
            Ok(Err(trouble)) => return Err(words::not_shaken(server, trouble, &greeting)),
            Err(_) => return Err(words::silent(server)),
        };
        let login = Login {
            server,
            identity: &context.settings.identity,
            agent: files.agent.as_ref(),
            account: &account,
        };
        if let Err(failure) = login.run(&mut handle).await {
            // A connection that ended looks like a refusal; what the server said last is the reason then.
            return Err(match ended.try_recv() {
                Ok(ended) => words::hung_up(server, ended),
                Err(_) => failure,
            });
        }
        info!(server = %server, user = server.user, "SSH connection ready");
        Ok(Connection {
            context: Arc::clone(context),
            places,
            handle: Arc::new(handle),
            below,
            tally,
            _cut: cut,
            term,
            refusals: Arc::new(Mutex::new(refusals)),
            ended,
            note,
        })
    }
}

fn config(expectation: &Expectation) -> Config {
    Config {
        client_id: SshId::Standard(concat!("SSH-2.0-tunneld_", env!("CARGO_PKG_VERSION")).into()),
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        channel_buffer_size: MESSAGES,
        preferred: Preferred {
            key: expectation.algorithms().into(),
            ..Preferred::DEFAULT
        },
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: MOST_MISSED,
        ..Config::default()
    }
}

/// Why a connection is kept no longer.
enum Stop {
    Goodbye,
    Lost(Failure),
}

enum Wake {
    Goodbye,
    Ended(Result<Ended, oneshot::error::RecvError>),
    Ask(Ask),
    Below,
    Answered,
    Silence,
    Finished,
}

impl Connection {
    /// Keeps the connection to its end.
    pub(super) async fn run(mut self, mut station: Station<Ask>) {
        station.reporter.tell(Report::Ready {
            sharing: Sharing::Shared,
            details: self.details(),
            term: self.term,
        });
        let (tell, why) = watch::channel(None);
        let mut streams = JoinSet::new();
        let company = Company::new();
        let stop = self.keep(&mut station, &mut streams, &company, &why).await;
        let (failure, is_goodbye) = match stop {
            Stop::Goodbye => (words::closed_by_us(), true),
            Stop::Lost(failure) => (failure, false),
        };
        let failure = Arc::new(failure);
        station.reporter.tell(Report::Ended(Arc::clone(&failure)));
        // Whoever asks for a stream from here on looks for another connection at once.
        station.commands.1.close();
        while station.commands.1.try_recv().is_ok() {}
        if is_goodbye {
            // What is still on the way then is lost.
            let _ = timeout(LAST_BYTES, company.has_said_all()).await;
        }
        tell.send_replace(Some(failure));
        if is_goodbye {
            self.say_goodbye().await;
        }
        // Takes the bytes below away, and so the last that streams could wait for: each learns why, and ends.
        drop(self);
        while streams.join_next().await.is_some() {}
    }

    async fn keep(
        &mut self,
        station: &mut Station<Ask>,
        streams: &mut JoinSet<()>,
        company: &Arc<Company>,
        why: &watch::Receiver<Option<Arc<Failure>>>,
    ) -> Stop {
        let mut is_worn_out = false;
        let mut below = self.below.health();
        below.mark_changed();
        let mut pings = JoinSet::new();
        let mut life = Life::Known;
        loop {
            let silence = async {
                match life.poll_timeout() {
                    Some(due) => sleep_until(due).await,
                    None => pending().await,
                }
            };
            let wake = tokio::select! {
                biased;
                () = station.goodbye.cancelled() => Wake::Goodbye,
                ended = &mut self.ended => Wake::Ended(ended),
                Ok(()) = below.changed() => Wake::Below,
                Some(_) = pings.join_next() => Wake::Answered,
                () = silence => Wake::Silence,
                Some(_) = streams.join_next() => Wake::Finished,
                Some(ask) = station.commands.1.recv() => Wake::Ask(ask),
            };
            match wake {
                Wake::Goodbye => return Stop::Goodbye,
                Wake::Ended(ended) => return Stop::Lost(self.lost(ended.ok())),
                Wake::Below => station.reporter.tell(self.judged(&mut below, life)),
                Wake::Ask(Ask::Open { seat, client, answer }) => {
                    let berth = Berth {
                        seat,
                        presence: company.join(),
                        share: self
                            .context
                            .shared
                            .budget
                            .share(self.context.receive_buffer, &client),
                        ended: why.clone(),
                        client,
                        expires: self.term.map(|term| term.ends_at),
                    };
                    streams.spawn(self.open(berth, answer).in_current_span());
                }
                Wake::Ask(Ask::Probe) => {
                    self.below.probe();
                    // A connection that waits for a reader has no ears for an answer.
                    if !company.stands_still() {
                        if pings.is_empty() {
                            pings.spawn(self.ping());
                        }
                        life.asked(Instant::now());
                        station.reporter.tell(self.judged(&mut below, life));
                    }
                }
                Wake::Ask(Ask::Retry) => self.below.retry(),
                Wake::Answered => {
                    life.answered();
                    station.reporter.tell(self.judged(&mut below, life));
                }
                Wake::Silence => {
                    let now = Instant::now();
                    if below.borrow().impaired.is_some() {
                        life.excused(now);
                    } else {
                        life.handle_timeout(self.tally.read(), now);
                    }
                    if life == Life::Lost && !company.stands_still() {
                        return Stop::Lost(words::unanswered(&self.places.server));
                    }
                    if life == Life::Lost {
                        life.answered();
                    }
                    station.reporter.tell(self.judged(&mut below, life));
                }
                Wake::Finished => {
                    if !is_worn_out && company.is_worn_out() {
                        is_worn_out = true;
                        station.reporter.tell(Report::WornOut);
                    }
                }
            }
        }
    }

    /// Opens a stream and feeds it to its end.
    ///
    /// In a task of its own that nobody gives up: a channel whose opening was given up would stay open for ever.
    fn open(
        &self,
        berth: Berth,
        answer: oneshot::Sender<Result<Box<dyn Stream>, Failure>>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let places = Arc::clone(&self.places);
        let refusals = Arc::clone(&self.refusals);
        let handle = Arc::clone(&self.handle);
        async move {
            let (address, port) = originator(&berth.client);
            let opened = handle
                .channel_open_direct_tcpip(&places.host, places.port.into(), address, port)
                .await;
            match opened {
                Ok(channel) => {
                    let (stream, pump) = pair(channel, berth);
                    // A connection that left meanwhile drops the stream, and the pump closes the channel.
                    let _ = answer.send(Ok(Box::new(stream)));
                    pump.run().await;
                }
                Err(russh::Error::ChannelOpenFailure(reason)) => {
                    let text = refusals.lock().await.recv().await.unwrap_or_default();
                    // The connection may have left.
                    let _ = answer.send(Err(words::refused(&places, &reason, &text)));
                }
                // The connection has ended: without an answer the link looks for another one.
                Err(_) => {}
            }
        }
    }

    /// Resolves once the server has answered, or the connection has ended, which shows by itself.
    fn ping(&self) -> impl Future<Output = ()> + Send + 'static {
        let handle = Arc::clone(&self.handle);
        async move {
            let _ = handle.send_ping().await;
        }
    }

    /// Says whether new streams may be put on it.
    fn judged(&self, below: &mut watch::Receiver<Health>, life: Life) -> Report {
        let impaired = below.borrow_and_update().impaired.clone();
        Report::Judged(match (impaired, life) {
            (Some(impaired), _) => Judgement::Impaired(impaired.cause),
            (None, Life::Known) => Judgement::Fit,
            (None, Life::Asked { .. }) => Judgement::Suspect,
            (None, Life::Doubtful { .. } | Life::Lost) => {
                Judgement::Stalled(Arc::new(words::doubtful(&self.places.server)))
            }
        })
    }

    fn lost(&self, ended: Option<Ended>) -> Failure {
        let is_over = self.term.is_some_and(|term| term.is_over(Instant::now()));
        words::lost(&self.places.server, ended, is_over)
    }

    fn details(&self) -> LinkDetails {
        let below = self.below.health().borrow().details.clone();
        LinkDetails {
            via: self.places.server.to_string(),
            target_host: self.places.host.clone(),
            target_port: self.places.port,
            sessions: 1,
            agent_version: below.agent_version,
            engine: self.places.engine.clone(),
            notes: self.note.get().cloned().into_iter().collect(),
        }
    }

    async fn say_goodbye(&mut self) {
        let goodbye = self.handle.disconnect(Disconnect::ByApplication, "", "");
        let said = async {
            // A connection that is gone needs none.
            let _ = goodbye.await;
            // Only then it has left: the library takes what it is told, and sends it later.
            let _ = (&mut self.ended).await;
        };
        if timeout(GOODBYE, said).await.is_err() {
            debug!("the SSH server did not take a goodbye");
        }
    }
}

/// Who asks for a stream, as the protocol wants it: the local client's address, or nobody's.
fn originator(client: &str) -> (String, u32) {
    match client.parse::<SocketAddr>() {
        Ok(address) => (address.ip().to_string(), address.port().into()),
        Err(_) => ("127.0.0.1".to_owned(), 0),
    }
}
