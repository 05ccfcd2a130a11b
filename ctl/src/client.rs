//! The way to the daemon: connecting, asking, and turning its refusals into errors that a person understands.

use std::error::Error as _;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};
use tunneld_proto::socket;
use tunneld_proto::v1::tunnels_client::TunnelsClient;
use tunneld_proto::v1::{
    DownRequest, ListRequest, LogsRequest, LogsResponse, OpenRequest, OpenResponse, PushKeyRequest,
    ReloadRequest, ReloadResponse, ResolveRequest, Resolved, RestartRequest, ShutdownRequest, Tunnel,
    UpRequest, VersionRequest, VersionResponse, WatchRequest, WatchResponse, resolve_response,
};

use crate::error::{Error, Exit};
use crate::output::Output;
use crate::render::words::{Clock, span};
use crate::{service, tunnel};

/// This program's version, which the daemon's should equal.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How long a question about the daemon's own memory may take: it answers in milliseconds, unless it hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long the first question may take, which a daemon answers that has to be started first, by its service manager,
/// and perhaps to end before: 20 s of grace and of farewell, and a start.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(30);

/// How long a question that the daemon asks AWS may take: some calls, each with its attempts.
const AWS_LIMIT: Duration = Duration::from_mins(3);

/// How long the daemon may take to end what it has: more than any sensible grace period for open connections.
pub(crate) const END_LIMIT: Duration = Duration::from_mins(5);

/// Between two looks at whether a daemon that starts or stops answers: no person sees the difference.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// The largest answer: ten thousand tunnels, each with a history of long sentences.
const LARGEST_ANSWER: usize = 64 << 20;

/// A connection to the daemon.
pub(crate) struct Client {
    rpc: TunnelsClient<Channel>,
    socket: PathBuf,
    daemon: VersionResponse,
}

impl Client {
    /// Connects to the daemon on `explicit` or on the usual socket, and warns where its version is another than ours.
    pub(crate) async fn connect(explicit: Option<&Path>, output: &Output) -> Result<Self, Error> {
        let client = Self::quietly(explicit).await?;
        client.compare(output);
        Ok(client)
    }

    /// Connects to a daemon that was just started, as soon as it answers, unless something `ended` its start.
    pub(crate) async fn started(
        explicit: Option<&Path>,
        mut ended: impl FnMut() -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match Self::quietly(explicit).await {
                Err(error) if error.exit() == Exit::NoDaemon => {}
                answered => return answered,
            }
            ended()?;
            if Instant::now() > deadline {
                return Err(silent(START_LIMIT));
            }
            sleep(LOOK).await;
        }
    }

    /// Warns where the daemon's version is another than ours.
    pub(crate) fn compare(&self, output: &Output) {
        if self.daemon.version != VERSION {
            output.talk(&format!(
                "warning: tunneld is version {} and tunnelctl {VERSION}; after an update: tunnelctl restart-daemon",
                self.daemon.version
            ));
        }
    }

    /// The same without the warning: for what runs behind another program.
    pub(crate) async fn quietly(explicit: Option<&Path>) -> Result<Self, Error> {
        let socket = socket::default_path(explicit)?;
        let mut rpc = connect(&socket).await?;
        let daemon = answer(START_LIMIT, rpc.version(VersionRequest {})).await?;
        Ok(Self { rpc, socket, daemon })
    }

    /// Returns what the daemon said of itself.
    pub(crate) fn daemon(&self) -> &VersionResponse {
        &self.daemon
    }

    /// Returns the daemon's process and how long it has been running, as a person is told.
    pub(crate) fn words(&self, clock: &Clock) -> String {
        let running = self
            .daemon
            .started
            .as_ref()
            .and_then(|started| clock.age(started))
            .map(|age| format!(", running for {}", span(age)))
            .unwrap_or_default();
        format!("pid {}{running}", self.daemon.pid)
    }

    /// Returns the socket it serves on.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns every tunnel.
    pub(crate) async fn list(&mut self) -> Result<Vec<Tunnel>, Error> {
        let response = answer(ANSWER_LIMIT, self.rpc.list(ListRequest::default())).await?;
        Ok(disarmed(response.tunnels))
    }

    /// Wants tunnels up. Has no limit of its own: the caller has one.
    pub(crate) async fn up(&mut self, request: UpRequest) -> Result<Vec<Tunnel>, Error> {
        let response = self.rpc.up(request).await.map_err(refused)?;
        Ok(disarmed(response.into_inner().tunnels))
    }

    /// Takes tunnels down.
    pub(crate) async fn down(&mut self, names: &[String]) -> Result<Vec<Tunnel>, Error> {
        let response = answer(
            END_LIMIT,
            self.rpc.down(DownRequest {
                names: names.to_vec(),
            }),
        )
        .await?;
        Ok(disarmed(response.tunnels))
    }

    /// Reads the configuration again.
    pub(crate) async fn reload(&mut self) -> Result<ReloadResponse, Error> {
        answer(END_LIMIT, self.rpc.reload(ReloadRequest {})).await
    }

    /// Asks the daemon to stop. It has agreed, and not yet stopped, when this returns.
    pub(crate) async fn shutdown(mut self) -> Result<(), Error> {
        answer(ANSWER_LIMIT, self.rpc.shutdown(ShutdownRequest {})).await?;
        Ok(())
    }

    /// Asks the daemon to start anew, which it has not yet done when this returns. Returns who it was.
    pub(crate) async fn restart(mut self) -> Result<VersionResponse, Error> {
        let asked = timeout(ANSWER_LIMIT, self.rpc.restart(RestartRequest {}))
            .await
            .map_err(|_elapsed| silent(ANSWER_LIMIT))?;
        match asked {
            Ok(_) => Ok(self.daemon),
            Err(status) if status.code() == Code::Unimplemented => Err(Error::failed(format!(
                "the running tunneld {} cannot restart itself",
                self.daemon.version
            ))
            .hint(replace_command())),
            Err(status) => Err(refused(status)),
        }
    }

    /// Finds an instance, and the way to one of its ports.
    pub(crate) async fn resolve(&mut self, request: ResolveRequest) -> Result<Resolved, Error> {
        let response = answer(AWS_LIMIT, self.rpc.resolve(request)).await?;
        match response.outcome {
            Some(resolve_response::Outcome::Resolved(mut resolved)) => {
                tunnel::disarm_resolved(&mut resolved);
                Ok(resolved)
            }
            Some(resolve_response::Outcome::Failure(failure)) => Err(failure.into()),
            None => Err(Error::failed("tunneld answered nothing")),
        }
    }

    /// Has an instance accept an SSH public key for a minute.
    pub(crate) async fn push_key(&mut self, request: PushKeyRequest) -> Result<(), Error> {
        let response = answer(AWS_LIMIT, self.rpc.push_key(request)).await?;
        response.failure.map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// Begins a call that carries the bytes of a connection.
    pub(crate) async fn open(
        &mut self,
        requests: mpsc::Receiver<OpenRequest>,
    ) -> Result<Streaming<OpenResponse>, Error> {
        answer(ANSWER_LIMIT, self.rpc.open(ReceiverStream::new(requests))).await
    }

    /// Asks for lines of the daemon's log.
    pub(crate) async fn logs(&mut self, request: LogsRequest) -> Result<Lines, Error> {
        answer(ANSWER_LIMIT, self.rpc.logs(request)).await.map(Lines)
    }

    /// Subscribes to every tunnel.
    pub(crate) async fn watch(&mut self) -> Result<Changes, Error> {
        let mut stream = answer(ANSWER_LIMIT, self.rpc.watch(WatchRequest::default())).await?;
        let first = timeout(ANSWER_LIMIT, next(&mut stream))
            .await
            .map_err(|_elapsed| silent(ANSWER_LIMIT))??;
        Ok(Changes {
            present: first.tunnels,
            stream,
        })
    }
}

/// What happens to the tunnels, from a moment on.
pub(crate) struct Changes {
    /// Every tunnel as it was at that moment.
    pub(crate) present: Vec<Tunnel>,
    stream: Streaming<WatchResponse>,
}

impl Changes {
    /// Takes the beginning as if it were a change: every tunnel is news.
    pub(crate) fn take_present(&mut self) -> WatchResponse {
        WatchResponse {
            tunnels: std::mem::take(&mut self.present),
            removed: Vec::new(),
        }
    }

    /// Waits for the next change; the daemon's end is an error.
    pub(crate) async fn next(&mut self) -> Result<WatchResponse, Error> {
        next(&mut self.stream).await
    }
}

/// Lines of the daemon's log.
pub(crate) struct Lines(Streaming<LogsResponse>);

impl Lines {
    /// Waits for the next ones; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<LogsResponse>, Error> {
        let mut response = self.0.message().await.map_err(refused)?;
        if let Some(response) = &mut response {
            response.lines.iter_mut().for_each(tunnel::disarm_log_line);
        }
        Ok(response)
    }
}

/// Returns all tunnels, or nothing at all: for the shell's completion, which has no place for trouble.
pub(crate) async fn tunnels(explicit: Option<&Path>) -> Option<Vec<Tunnel>> {
    let socket = socket::default_path(explicit).ok()?;
    let mut rpc = connect(&socket).await.ok()?;
    let response = rpc.list(ListRequest::default()).await.ok()?.into_inner();
    Some(response.tunnels)
}

async fn connect(socket: &Path) -> Result<TunnelsClient<Channel>, Error> {
    let channel = tunneld_proto::connect(socket).await.map_err(|error| {
        if error.nobody_listens() {
            return Error::new(Exit::NoDaemon, "tunneld is not running")
                .because(format!("nobody listens on `{}`", socket.display()))
                .hint(start_command());
        }
        let told = Error::failed(error.to_string());
        match error.source() {
            Some(source) => told.because(source.to_string()),
            None => told,
        }
    })?;
    Ok(TunnelsClient::new(channel).max_decoding_message_size(LARGEST_ANSWER))
}

async fn answer<T>(
    limit: Duration,
    question: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    let response = timeout(limit, question).await.map_err(|_elapsed| silent(limit))?;
    Ok(response.map_err(refused)?.into_inner())
}

async fn next(stream: &mut Streaming<WatchResponse>) -> Result<WatchResponse, Error> {
    let Some(mut response) = stream.message().await.map_err(refused)? else {
        return Err(stopped());
    };
    response.tunnels.iter_mut().for_each(tunnel::disarm);
    Ok(response)
}

fn disarmed(mut tunnels: Vec<Tunnel>) -> Vec<Tunnel> {
    tunnels.iter_mut().for_each(tunnel::disarm);
    tunnels
}

/// The daemon has ended what would go on for ever.
pub(crate) fn stopped() -> Error {
    Error::new(Exit::NoDaemon, "tunneld has stopped").hint(start_command())
}

pub(crate) fn silent(limit: Duration) -> Error {
    Error::new(
        Exit::TimedOut,
        format!("tunneld did not answer within {} s", limit.as_secs()),
    )
    .hint("its log says what it is doing; restart it if it hangs")
}

pub(crate) fn refused(status: Status) -> Error {
    // A status with a source was made on our side: the connection broke.
    if let Some(source) = status.source() {
        return Error::new(Exit::NoDaemon, "lost the connection to tunneld")
            .because(source.to_string())
            .hint(start_command());
    }
    let said = status.message();
    if status.code() == Code::Unimplemented {
        return Error::failed(format!(
            "the running tunneld is older than this tunnelctl {VERSION}"
        ))
        .because(format!("it does not know this command ({said})"))
        .hint("tunnelctl restart-daemon");
    }
    if status.code() == Code::Unavailable {
        return Error::new(Exit::NoDaemon, "tunneld is stopping")
            .because(said)
            .hint(start_command());
    }
    if matches!(
        status.code(),
        Code::NotFound | Code::FailedPrecondition | Code::InvalidArgument | Code::Aborted
    ) && !said.is_empty()
    {
        return Error::failed(said);
    }
    Error::failed("tunneld refused").because(format!("{} ({:?})", said, status.code()))
}

/// The command that starts the daemon on this machine.
fn start_command() -> &'static str {
    if service::is_installed() && !cfg!(target_os = "macos") {
        "systemctl --user start tunneld"
    } else {
        "tunnelctl daemon start"
    }
}

/// The commands that have another daemon take the place of one that is too old to do so itself.
fn replace_command() -> &'static str {
    if service::is_installed() && !cfg!(target_os = "macos") {
        "systemctl --user restart tunneld"
    } else {
        "tunnelctl daemon stop && tunnelctl daemon start"
    }
}
