//! The way to the daemon: connecting, asking, and turning its refusals into errors that a person understands.

use std::error::Error as _;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};
use tunneld_proto::socket;
use tunneld_proto::v1::tunnels_client::TunnelsClient;
use tunneld_proto::v1::{
    DownRequest, ListRequest, OpenRequest, OpenResponse, PushKeyRequest, ReloadRequest, ReloadResponse,
    ResolveRequest, Resolved, Tunnel, UpRequest, VersionRequest, VersionResponse, WatchRequest,
    WatchResponse, resolve_response,
};

use crate::error::{Error, Exit};
use crate::output::Output;
use crate::tunnel;

/// This program's version, which the daemon's should equal.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How long a question about the daemon's own memory may take: it answers in milliseconds, unless it hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long a question that the daemon asks AWS may take: some calls, each with its attempts.
const AWS_LIMIT: Duration = Duration::from_mins(3);

/// How long the daemon may take to end what it has: more than any sensible grace period for open connections.
const END_LIMIT: Duration = Duration::from_mins(5);

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
        if client.daemon.version != VERSION {
            output.talk(&format!(
                "warning: tunneld is version {} and tunnelctl {VERSION}; restart tunneld after an update",
                client.daemon.version
            ));
        }
        Ok(client)
    }

    /// The same without the warning: for what runs behind another program.
    pub(crate) async fn quietly(explicit: Option<&Path>) -> Result<Self, Error> {
        let socket = socket::default_path(explicit)?;
        let mut rpc = connect(&socket).await?;
        let daemon = answer(ANSWER_LIMIT, rpc.version(VersionRequest {})).await?;
        Ok(Self { rpc, socket, daemon })
    }

    /// Returns what the daemon said of itself.
    pub(crate) fn daemon(&self) -> &VersionResponse {
        &self.daemon
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
    /// Waits for the next change; the daemon's end is an error.
    pub(crate) async fn next(&mut self) -> Result<WatchResponse, Error> {
        next(&mut self.stream).await
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
        return Err(Error::new(Exit::NoDaemon, "tunneld has stopped").hint(start_command()));
    };
    response.tunnels.iter_mut().for_each(tunnel::disarm);
    Ok(response)
}

fn disarmed(mut tunnels: Vec<Tunnel>) -> Vec<Tunnel> {
    tunnels.iter_mut().for_each(tunnel::disarm);
    tunnels
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
        .hint("restart tunneld, so that the installed version runs");
    }
    if status.code() == Code::Unavailable {
        return Error::new(Exit::NoDaemon, "tunneld is stopping")
            .because(said)
            .hint(start_command());
    }
    if matches!(
        status.code(),
        Code::NotFound | Code::FailedPrecondition | Code::InvalidArgument
    ) && !said.is_empty()
    {
        return Error::failed(said);
    }
    Error::failed("tunneld refused").because(format!("{} ({:?})", said, status.code()))
}

/// The command that starts the daemon on this machine.
fn start_command() -> &'static str {
    let own = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))
        .map(|configuration| configuration.join("systemd/user"));
    let shared = [
        "/etc/systemd/user",
        "/usr/local/lib/systemd/user",
        "/usr/lib/systemd/user",
    ];
    let mut folders = shared.into_iter().map(PathBuf::from).chain(own);
    if folders.any(|folder| folder.join("tunneld.service").exists()) {
        "systemctl --user start tunneld"
    } else {
        "tunneld &"
    }
}
