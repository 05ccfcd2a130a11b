//! A daemon made of scripts, served over a real Unix socket, and the program run against it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};
use tunneld_proto::v1::tunnel::State;
use tunneld_proto::v1::tunnels_server::{Tunnels, TunnelsServer};
use tunneld_proto::v1::{
    Account, Blocked, Connecting, Down, DownRequest, DownResponse, End, Ended, Failure, Idle, Link,
    ListRequest, ListResponse, LogsRequest, LogsResponse, OpenRequest, OpenResponse, Opened, PushKeyRequest,
    PushKeyResponse, Reason, ReloadRequest, ReloadResponse, ResolveRequest, ResolveResponse, Resolved,
    RestartRequest, RestartResponse, ShutdownRequest, ShutdownResponse, Tunnel, Up, UpRequest, UpResponse,
    VersionRequest, VersionResponse, Waiting, WatchRequest, WatchResponse, open_request, open_response,
    resolve_response,
};

/// No run takes a tenth of this; it only keeps a hanging program from hanging the tests.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// The daemon's side of a test. Dropping it ends the daemon.
pub(crate) struct Fake {
    folder: TempDir,
    pub(crate) script: Arc<Script>,
    /// Runs the server and all its connections, so that both end with it.
    runtime: Option<Runtime>,
}

/// What the daemon says, and what it was asked.
pub(crate) struct Script {
    tunnels: Mutex<Vec<Tunnel>>,
    /// What a tunnel goes through when asked to come up: the first is the answer, the others are published after it.
    on_up: Mutex<HashMap<String, Vec<WatchResponse>>>,
    /// Closes every subscription after the answer to Up.
    leaves_after_up: Mutex<bool>,
    refusals: Mutex<HashMap<&'static str, Status>>,
    silent: Mutex<Option<&'static str>>,
    watchers: Mutex<Vec<mpsc::Sender<Result<WatchResponse, Status>>>>,
    calls: Mutex<Vec<String>>,
    version: Mutex<VersionResponse>,
    /// What a reader of the log is sent; whoever follows is then sent nothing more.
    log: Mutex<Vec<LogsResponse>>,
    followers: Mutex<Vec<mpsc::Sender<Result<LogsResponse, Status>>>>,
    reload: Mutex<ReloadResponse>,
    instance: Mutex<Option<Resolved>>,
    /// Why a key is not accepted.
    unaccepted: Mutex<Option<Failure>>,
    far_end: Mutex<FarEnd>,
    /// Who takes its place when it is asked to restart, with these tunnels.
    successor: Mutex<Option<(VersionResponse, Vec<Tunnel>)>>,
    /// Ends without a successor when it is asked to restart.
    is_last: Mutex<bool>,
    /// Has nobody listen any more.
    stop: Mutex<Option<oneshot::Sender<()>>>,
    /// Connections without a tunnel.
    serving: Mutex<JoinSet<()>>,
}

/// What a connection without a tunnel meets.
#[derive(Clone)]
pub(crate) enum FarEnd {
    /// Sends back what comes, and ends when the client has.
    Echo,
    /// Ends at once, whatever the client says.
    Leaves,
    /// Is not reached.
    Unreachable(Failure),
    /// Sends a little, and is lost.
    Lost(Failure),
}

/// How a run of the program ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Fake {
    /// Serves `tunnels`.
    pub(crate) fn serving(tunnels: Vec<Tunnel>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let version = VersionResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: 4711,
            started: Some(ago(Duration::from_hours(2))),
            config_path: "/home/dev/.config/tunneld/config.toml".to_owned(),
            manager: String::new(),
        };
        let (stop, stopped) = oneshot::channel();
        let script = Arc::new(Script {
            tunnels: Mutex::new(tunnels),
            on_up: Mutex::default(),
            leaves_after_up: Mutex::default(),
            refusals: Mutex::default(),
            silent: Mutex::default(),
            watchers: Mutex::default(),
            calls: Mutex::default(),
            version: Mutex::new(version),
            log: Mutex::default(),
            followers: Mutex::default(),
            reload: Mutex::default(),
            instance: Mutex::default(),
            unaccepted: Mutex::default(),
            far_end: Mutex::new(FarEnd::Echo),
            successor: Mutex::default(),
            is_last: Mutex::default(),
            stop: Mutex::new(Some(stop)),
            serving: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let inside = runtime.enter();
        let incoming = UnixListenerStream::new(UnixListener::bind(socket_in(folder.path())).unwrap());
        drop(inside);
        let service = TunnelsServer::from_arc(Arc::clone(&script));
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming_shutdown(incoming, async {
                    // A script that is dropped has nobody to serve.
                    let _ = stopped.await;
                }),
        );
        Self {
            folder,
            script,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket_in(self.folder.path())
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The program with these arguments, pointed at this daemon.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(Path::new(env!("CARGO_BIN_EXE_tunnelctl")), self.folder.path());
        command.env("TUNNELD_SOCKET", self.socket()).args(arguments);
        command
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Ran {
        run(self.command(arguments)).await
    }

    /// Ends the daemon as `kill -9` would: nobody says goodbye, and the socket stays.
    pub(crate) async fn kill(&mut self) {
        let runtime = self.runtime.take().unwrap();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(LIMIT))
            .await
            .unwrap();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The program at `path` in an environment of its own.
pub(crate) fn command(path: &Path, home: &Path) -> Command {
    let mut command = Command::new(path);
    command
        .env_clear()
        .env("HOME", home)
        .env("XDG_RUNTIME_DIR", home.join("run"))
        .env("TZ", "UTC");
    command.env("PATH", std::env::var_os("PATH").unwrap());
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

pub(crate) async fn run(mut command: Command) -> Ran {
    let output = timeout(LIMIT, command.output())
        .await
        .expect("the program hangs")
        .unwrap();
    output.into()
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// Asserts the code and both streams.
    #[track_caller]
    pub(crate) fn is(&self, code: i32, stdout: &str, stderr: &str) {
        assert_eq!(
            (self.code, self.stdout.as_str(), self.stderr.as_str()),
            (Some(code), stdout, stderr)
        );
    }
}

fn socket_in(folder: &Path) -> PathBuf {
    folder.join("d.sock")
}

impl Script {
    /// Has `name` go through `states` when it is asked to come up.
    pub(crate) fn on_up(&self, name: &str, states: impl IntoIterator<Item = State>) {
        let tunnel = self.tunnel(name);
        let steps = (tunnel.generation + 1..)
            .zip(states)
            .map(|(generation, state)| WatchResponse {
                tunnels: vec![Tunnel {
                    state: Some(state),
                    generation,
                    ..tunnel.clone()
                }],
                removed: Vec::new(),
            });
        self.on_up
            .lock()
            .unwrap()
            .insert(name.to_owned(), steps.collect());
    }

    /// Adds to what happens after `name` was asked to come up.
    pub(crate) fn then(&self, name: &str, change: WatchResponse) {
        self.on_up.lock().unwrap().get_mut(name).unwrap().push(change);
    }

    pub(crate) fn leaves_after_up(&self) {
        *self.leaves_after_up.lock().unwrap() = true;
    }

    pub(crate) fn refuses(&self, rpc: &'static str, status: Status) {
        self.refusals.lock().unwrap().insert(rpc, status);
    }

    /// Never answers `rpc`.
    pub(crate) fn ignores(&self, rpc: &'static str) {
        *self.silent.lock().unwrap() = Some(rpc);
    }

    pub(crate) fn is_version(&self, version: &str) {
        self.version.lock().unwrap().version = version.to_owned();
    }

    /// Is followed by this version, with these tunnels, when it is asked to restart.
    pub(crate) fn is_followed_by(&self, version: &str, tunnels: Vec<Tunnel>) {
        let successor = VersionResponse {
            version: version.to_owned(),
            started: Some(ago(Duration::ZERO)),
            ..self.version.lock().unwrap().clone()
        };
        *self.successor.lock().unwrap() = Some((successor, tunnels));
    }

    /// Ends when it is asked to restart, and nobody takes its place.
    pub(crate) fn is_followed_by_nobody(&self) {
        *self.is_last.lock().unwrap() = true;
    }

    pub(crate) fn uses_configuration(&self, path: &str) {
        self.version.lock().unwrap().config_path = path.to_owned();
    }

    pub(crate) fn reloads(&self, response: ReloadResponse) {
        *self.reload.lock().unwrap() = response;
    }

    /// Finds this instance, whatever is asked for.
    pub(crate) fn finds(&self, instance: Resolved) {
        *self.instance.lock().unwrap() = Some(instance);
    }

    pub(crate) fn accepts_no_key(&self, failure: Failure) {
        *self.unaccepted.lock().unwrap() = Some(failure);
    }

    pub(crate) fn connects_to(&self, far_end: FarEnd) {
        *self.far_end.lock().unwrap() = far_end;
    }

    /// The tunnel of that name, as it stands.
    pub(crate) fn tunnel(&self, name: &str) -> Tunnel {
        self.tunnels
            .lock()
            .unwrap()
            .iter()
            .find(|tunnel| tunnel.name == name)
            .unwrap()
            .clone()
    }

    /// What was asked, in order.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    /// Tells every subscriber.
    pub(crate) fn publish(&self, change: &WatchResponse) {
        for watcher in self.watchers.lock().unwrap().iter() {
            watcher.try_send(Ok(change.clone())).unwrap();
        }
    }

    /// Has these lines in the log.
    pub(crate) fn logged(&self, log: Vec<LogsResponse>) {
        *self.log.lock().unwrap() = log;
    }

    /// Tells everybody who follows the log.
    pub(crate) fn log(&self, lines: &LogsResponse) {
        for follower in self.followers.lock().unwrap().iter() {
            follower.try_send(Ok(lines.clone())).unwrap();
        }
    }

    /// Ends the log of everybody who follows it.
    pub(crate) fn end_logs(&self) {
        self.followers.lock().unwrap().clear();
    }

    /// Ends every subscription.
    pub(crate) fn end_watches(&self) {
        self.watchers.lock().unwrap().clear();
    }

    async fn called(&self, rpc: &'static str, names: &[String]) -> Result<(), Status> {
        self.calls
            .lock()
            .unwrap()
            .push([&[rpc.to_owned()], names].concat().join(" "));
        if *self.silent.lock().unwrap() == Some(rpc) {
            std::future::pending::<()>().await;
        }
        self.refusals
            .lock()
            .unwrap()
            .get(rpc)
            .cloned()
            .map_or(Ok(()), Err)
    }
}

#[tonic::async_trait]
impl Tunnels for Script {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn up(&self, request: Request<UpRequest>) -> Result<Response<UpResponse>, Status> {
        let UpRequest { names, connect } = request.into_inner();
        let flag = connect.then(|| "--connect".to_owned());
        let asked: Vec<_> = flag.into_iter().chain(names.iter().cloned()).collect();
        self.called("up", &asked).await?;
        let mut answer = Vec::new();
        let mut later = Vec::new();
        for name in &names {
            let mut steps = self
                .on_up
                .lock()
                .unwrap()
                .remove(name)
                .unwrap_or_default()
                .into_iter();
            answer.push(
                steps
                    .next()
                    .map_or_else(|| self.tunnel(name), |mut first| first.tunnels.remove(0)),
            );
            later.extend(steps);
        }
        later.iter().for_each(|change| self.publish(change));
        if *self.leaves_after_up.lock().unwrap() {
            self.end_watches();
        }
        Ok(Response::new(UpResponse { tunnels: answer }))
    }

    async fn down(&self, request: Request<DownRequest>) -> Result<Response<DownResponse>, Status> {
        let names = request.into_inner().names;
        self.called("down", &names).await?;
        let tunnels = names
            .iter()
            .map(|name| Tunnel {
                state: Some(down()),
                ..self.tunnel(name)
            })
            .collect::<Vec<_>>();
        Ok(Response::new(DownResponse { tunnels }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        self.called("list", &request.into_inner().names).await?;
        Ok(Response::new(ListResponse {
            tunnels: self.tunnels.lock().unwrap().clone(),
        }))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.called("watch", &request.into_inner().names).await?;
        let (sender, receiver) = mpsc::channel(64);
        let tunnels = self.tunnels.lock().unwrap().clone();
        sender
            .try_send(Ok(WatchResponse {
                tunnels,
                removed: Vec::new(),
            }))
            .unwrap();
        self.watchers.lock().unwrap().push(sender);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type LogsStream = ReceiverStream<Result<LogsResponse, Status>>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let LogsRequest { names, follow, lines } = request.into_inner();
        let flags = [
            follow.then(|| "-f".to_owned()),
            lines.map(|lines| format!("-n {lines}")),
        ];
        let asked: Vec<_> = flags.into_iter().flatten().chain(names).collect();
        self.called("logs", &asked).await?;
        let (sender, receiver) = mpsc::channel(64);
        for response in self.log.lock().unwrap().iter() {
            sender.try_send(Ok(response.clone())).unwrap();
        }
        if follow {
            self.followers.lock().unwrap().push(sender);
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn reload(&self, _: Request<ReloadRequest>) -> Result<Response<ReloadResponse>, Status> {
        self.called("reload", &[]).await?;
        Ok(Response::new(self.reload.lock().unwrap().clone()))
    }

    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        self.called("version", &[]).await?;
        Ok(Response::new(self.version.lock().unwrap().clone()))
    }

    async fn resolve(&self, request: Request<ResolveRequest>) -> Result<Response<ResolveResponse>, Status> {
        let ResolveRequest {
            account,
            instance,
            port,
            route,
        } = request.into_inner();
        self.called(
            "resolve",
            &[account_words(account), instance, port.to_string(), route],
        )
        .await?;
        let found = self.instance.lock().unwrap().clone();
        let outcome = found.map_or_else(
            || resolve_response::Outcome::Failure(not_found()),
            resolve_response::Outcome::Resolved,
        );
        Ok(Response::new(ResolveResponse {
            outcome: Some(outcome),
        }))
    }

    async fn push_key(&self, request: Request<PushKeyRequest>) -> Result<Response<PushKeyResponse>, Status> {
        let PushKeyRequest {
            account,
            instance,
            user,
            public_key,
        } = request.into_inner();
        self.called("push", &[account_words(account), instance, user, public_key])
            .await?;
        let failure = self.unaccepted.lock().unwrap().clone();
        Ok(Response::new(PushKeyResponse { failure }))
    }

    type OpenStream = ReceiverStream<Result<OpenResponse, Status>>;

    async fn open(
        &self,
        request: Request<Streaming<OpenRequest>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|request| request.message);
        let Some(open_request::Message::Opening(opening)) = first else {
            return Err(Status::invalid_argument("the first message names no target"));
        };
        let words = [account_words(opening.account), opening.target, opening.route];
        self.called("open", &words).await?;
        let (responses, sent) = mpsc::channel(4);
        let far_end = self.far_end.lock().unwrap().clone();
        let serving = async move {
            // A client that left needs to hear no end.
            let _ = far_end.serve(requests, responses).await;
        };
        self.serving.lock().unwrap().spawn(serving);
        Ok(Response::new(ReceiverStream::new(sent)))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Result<Response<ShutdownResponse>, Status> {
        self.called("shutdown", &[]).await?;
        if let Some(stop) = self.stop.lock().unwrap().take() {
            stop.send(()).unwrap();
        }
        Ok(Response::new(ShutdownResponse {}))
    }

    async fn restart(&self, _: Request<RestartRequest>) -> Result<Response<RestartResponse>, Status> {
        self.called("restart", &[]).await?;
        if let Some((version, tunnels)) = self.successor.lock().unwrap().take() {
            *self.version.lock().unwrap() = version;
            *self.tunnels.lock().unwrap() = tunnels;
        }
        if *self.is_last.lock().unwrap()
            && let Some(stop) = self.stop.lock().unwrap().take()
        {
            stop.send(()).unwrap();
        }
        Ok(Response::new(RestartResponse {}))
    }
}

impl FarEnd {
    /// A client that leaves needs no more of it.
    async fn serve(
        self,
        mut requests: Streaming<OpenRequest>,
        responses: mpsc::Sender<Result<OpenResponse, Status>>,
    ) -> Option<()> {
        let tell = async |message| {
            let message = Some(message);
            responses.send(Ok(OpenResponse { message })).await.ok()
        };
        let ended = |failure| open_response::Message::Ended(Ended { failure });
        if let Self::Unreachable(failure) = self {
            return tell(ended(Some(failure))).await;
        }
        tell(open_response::Message::Opened(Opened { link: Some(link()) })).await?;
        if let Self::Lost(failure) = self {
            tell(open_response::Message::Data("half of".into())).await?;
            return tell(ended(Some(failure))).await;
        }
        while let Self::Echo = self {
            match requests.message().await.ok()??.message? {
                open_request::Message::Data(data) => tell(open_response::Message::Data(data)).await?,
                open_request::Message::End(End {}) => break,
                open_request::Message::Opening(_) => panic!("there is one opening"),
            }
        }
        tell(open_response::Message::End(End {})).await?;
        while let Self::Leaves = self {
            if let open_request::Message::End(End {}) = requests.message().await.ok()??.message? {
                break;
            }
        }
        tell(ended(None)).await
    }
}

/// Whose credentials are used, and where.
fn account_words(account: Option<Account>) -> String {
    let Account { profile, region } = account.unwrap();
    format!("{profile}/{region}")
}

/// What is said of an instance that there is not.
pub(crate) fn not_found() -> Failure {
    Failure {
        reason: Reason::NotFound.into(),
        chain: vec!["there is no running instance named `wbe-1`".to_owned()],
        hints: vec!["did you mean `web-1`?".to_owned()],
    }
}

/// An instance that an endpoint leads to.
pub(crate) fn instance() -> Resolved {
    Resolved {
        id: "i-0123456789abcdef0".to_owned(),
        name: "web-1".to_owned(),
        route: "eice".to_owned(),
        passed_over: Vec::new(),
        addresses: vec!["10.0.1.10".to_owned()],
        platform: "Linux/UNIX".to_owned(),
    }
}

/// A moment in the past, for what is shown as an age.
pub(crate) fn ago(age: Duration) -> prost_types::Timestamp {
    let at = jiff::Timestamp::now() - age;
    prost_types::Timestamp {
        seconds: at.as_second(),
        nanos: at.subsec_nanosecond(),
    }
}

/// A fixed moment, for what is shown as it is.
pub(crate) fn at(time: &str) -> prost_types::Timestamp {
    let at: jiff::Timestamp = time.parse().unwrap();
    prost_types::Timestamp {
        seconds: at.as_second(),
        nanos: at.subsec_nanosecond(),
    }
}

/// A tunnel that has been in `state` for two hours.
pub(crate) fn tunnel(name: &str, port: u16, state: State) -> Tunnel {
    Tunnel {
        name: name.to_owned(),
        state: Some(state),
        local: vec![format!("127.0.0.1:{port}")],
        target: format!("rds:{name}"),
        route: "ssm via bastion".to_owned(),
        since: Some(ago(Duration::from_hours(2))),
        generation: 10,
        ..Tunnel::default()
    }
}

/// What a link through a bastion to a database looks like.
pub(crate) fn link() -> Link {
    Link {
        via: "bastion-a (i-0abc)".to_owned(),
        target_host: "prod-db.rds.example".to_owned(),
        target_port: 5432,
        sessions: 1,
        agent_version: "3.3.1142".to_owned(),
        engine: "postgres".to_owned(),
        notes: Vec::new(),
    }
}

pub(crate) fn down() -> State {
    State::Down(Down {})
}

pub(crate) fn idle() -> State {
    State::Idle(Idle {})
}

pub(crate) fn up() -> State {
    State::Up(Up {})
}

pub(crate) fn connecting(attempt: u32) -> State {
    State::Connecting(Connecting { attempt })
}

/// Waiting for the network; the next attempt is overdue, so that its time reads the same always.
pub(crate) fn waiting(attempt: u32) -> State {
    let chain = vec![
        "cannot start a session at `bastion`".to_owned(),
        "connection refused".to_owned(),
    ];
    let cause = Failure {
        reason: Reason::Unreachable.into(),
        chain,
        hints: Vec::new(),
    };
    State::Waiting(Waiting {
        attempt,
        until: Some(at("2025-11-24T09:00:08Z")),
        cause: Some(cause),
    })
}

/// Blocked until somebody logs in.
pub(crate) fn blocked() -> State {
    let chain = vec![
        "the login of profile stage expired".to_owned(),
        "ExpiredTokenException".to_owned(),
    ];
    let hints = vec!["aws sso login --profile stage".to_owned()];
    State::Blocked(Blocked {
        cause: Some(Failure {
            reason: Reason::Login.into(),
            chain,
            hints,
        }),
    })
}
