use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tracing::level_filters::LevelFilter;
use tracing::{error_span, info};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tunneld_proto::v1::tunnels_client::TunnelsClient;
use tunneld_proto::v1::{
    DownRequest, ListRequest, LogsRequest, PushKeyRequest, ReloadRequest, ResolveRequest, RestartRequest,
    ShutdownRequest, UpRequest, VersionRequest, WatchRequest, open_request, open_response, tunnel,
};

use super::*;
use crate::config::{Config, DaemonSettings, TunnelSpec};
use crate::daemon::{Daemon, Means};
use crate::heritage::Heritage;
use crate::logging::RecentLines;
use crate::restart::Program;
use crate::tunnel::Afterwards;
use crate::tunnel::fake::{self, Attempts};

/// A served daemon with one tunnel, and a client.
struct Rig {
    client: TunnelsClient<Channel>,
    channel: Channel,
    daemon: Arc<Daemon>,
    log: RecentLines,
    attempts: Attempts,
    asks: Asks,
    ended: CancellationToken,
    serving: JoinSet<Result<(), ServeError>>,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Rig {
    async fn new() -> Self {
        Self::of(fake::spec("db")).await
    }

    async fn of(spec: TunnelSpec) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("private/tunneld.sock");
        let socket = ControlSocket::bind(&path, &Heritage::default()).unwrap();
        let (transport, attempts) = fake::transport();
        let spec = TunnelSpec {
            autostart: false,
            ..spec
        };
        let config = Config {
            path: folder.path().join("config.toml"),
            daemon: DaemonSettings::default(),
            tunnels: vec![spec],
            defaults: Arc::default(),
        };
        let transports = Arc::new(move |_: &TunnelSpec| Arc::clone(&transport) as _);
        let daemon = Daemon::start(config, Means::for_test(transports)).await;
        Self::serving(daemon, socket, attempts, folder).await
    }

    /// A client of a daemon that has no tunnels, because its file is missing.
    async fn without_tunnels() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("private/tunneld.sock");
        let socket = ControlSocket::bind(&path, &Heritage::default()).unwrap();
        let (transport, attempts) = fake::transport();
        let transports = Arc::new(move |_: &TunnelSpec| Arc::clone(&transport) as _);
        let file = folder.path().join("config.toml");
        let problems = Config::load(&file).unwrap_err();
        let daemon = Daemon::without_tunnels(file, problems, Means::for_test(transports));
        Self::serving(daemon, socket, attempts, folder).await
    }

    async fn serving(
        daemon: Arc<Daemon>,
        socket: ControlSocket,
        attempts: Attempts,
        folder: tempfile::TempDir,
    ) -> Self {
        let path = folder.path().join("private/tunneld.sock");
        let ended = CancellationToken::new();
        let asks = Asks {
            stop: CancellationToken::new(),
            restart: CancellationToken::new(),
        };
        let mut serving = JoinSet::new();
        let log = RecentLines::default();
        let service = Service::new(
            Arc::clone(&daemon),
            log.clone(),
            "systemd",
            Arc::new(Program::of_this_process().unwrap()),
            asks.clone(),
            ended.clone(),
        );
        serving.spawn(serve(Arc::new(socket), service, ended.clone()));
        let channel = tunneld_proto::connect(&path).await.unwrap();
        let client = TunnelsClient::new(channel.clone());
        Self {
            client,
            channel,
            daemon,
            log,
            attempts,
            asks,
            ended,
            serving,
            path,
            _folder: folder,
        }
    }

    async fn watch(&mut self) -> tonic::Streaming<v1::WatchResponse> {
        self.client
            .watch(WatchRequest::default())
            .await
            .unwrap()
            .into_inner()
    }
}

fn db() -> Vec<String> {
    vec!["db".to_owned()]
}

fn up() -> UpRequest {
    UpRequest {
        names: db(),
        connect: false,
    }
}

async fn next<T>(stream: &mut tonic::Streaming<T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), stream.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
}

/// Reads until the tunnel is in a state that `wanted` accepts.
async fn until(
    stream: &mut tonic::Streaming<v1::WatchResponse>,
    wanted: impl Fn(&tunnel::State) -> bool,
) -> v1::Tunnel {
    loop {
        let mut tunnels = next(stream).await.tunnels;
        if let Some(tunnel) = tunnels
            .pop()
            .filter(|tunnel| wanted(tunnel.state.as_ref().unwrap()))
        {
            return tunnel;
        }
    }
}

#[tokio::test]
async fn a_watcher_sees_the_present_first_and_then_every_way_to_up() {
    let mut rig = Rig::new().await;
    let mut watching = rig.watch().await;
    let first = next(&mut watching).await;
    assert_eq!(first.tunnels.len(), 1);
    assert!(matches!(first.tunnels[0].state, Some(tunnel::State::Down(_))));
    let response = rig.client.up(up()).await.unwrap().into_inner();
    assert!(
        matches!(response.tunnels[0].state, Some(tunnel::State::Connecting(_))),
        "{response:?}"
    );
    rig.attempts.next().await.succeed();
    let up = until(&mut watching, |state| matches!(state, tunnel::State::Up(_))).await;
    assert_eq!(up.link.unwrap().via, "bastion");
    assert!(up.generation > first.tunnels[0].generation);
    let down = rig
        .client
        .down(DownRequest { names: db() })
        .await
        .unwrap()
        .into_inner();
    assert!(matches!(down.tunnels[0].state, Some(tunnel::State::Down(_))));
    assert!(down.tunnels[0].link.is_none());
}

#[tokio::test]
async fn an_on_demand_tunnel_is_idle_until_a_client_asks_for_its_link() {
    let mut rig = Rig::of(fake::on_demand("db")).await;
    let idle = rig.client.up(up()).await.unwrap().into_inner();
    assert!(
        matches!(idle.tunnels[0].state, Some(tunnel::State::Idle(_))),
        "{idle:?}"
    );
    assert!(rig.attempts.is_quiet());
    let request = UpRequest {
        connect: true,
        ..up()
    };
    let connecting = rig.client.up(request).await.unwrap().into_inner();
    assert!(
        matches!(connecting.tunnels[0].state, Some(tunnel::State::Connecting(_))),
        "{connecting:?}"
    );
}

#[tokio::test]
async fn a_watcher_is_told_of_traffic() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut rig = Rig::new().await;
    let mut watching = rig.watch().await;
    let address = next(&mut watching).await.tunnels[0].local[0].clone();
    rig.client.up(up()).await.unwrap();
    let far = rig.attempts.next().await.succeed();
    until(&mut watching, |state| matches!(state, tunnel::State::Up(_))).await;
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    far.accept().await.write_all(b"12345").await.unwrap();
    client.read_exact(&mut [0; 5]).await.unwrap();
    loop {
        let news = next(&mut watching).await;
        if news.tunnels[0].traffic.as_ref().unwrap().bytes_in == 5 {
            break;
        }
    }
}

#[tokio::test]
async fn a_watcher_is_told_of_tunnels_that_a_reload_removed_and_added() {
    let mut rig = Rig::new().await;
    let mut watching = rig.watch().await;
    next(&mut watching).await;
    let port = fake::free_port();
    let text = format!("[tunnels.web]\nlisten = {port}\ntarget = \"127.0.0.1:80\"\nroute = \"direct\"\n");
    std::fs::write(rig.daemon.path(), text).unwrap();
    let response = rig.client.reload(ReloadRequest {}).await.unwrap().into_inner();
    assert_eq!((response.added, response.removed), (vec!["web".to_owned()], db()));
    let (mut added, mut removed) = (false, false);
    while !(added && removed) {
        let news = next(&mut watching).await;
        added |= news.tunnels.iter().any(|tunnel| tunnel.name == "web");
        removed |= news.removed == db();
    }
}

#[tokio::test]
async fn a_refused_file_is_answered_with_its_problems() {
    let mut rig = Rig::new().await;
    std::fs::write(rig.daemon.path(), "[tunnels.db]\nlissen = 1\n").unwrap();
    let response = rig.client.reload(ReloadRequest {}).await.unwrap().into_inner();
    assert!(
        response
            .problems
            .iter()
            .any(|problem| problem.message.contains("lissen")),
        "{response:?}"
    );
    assert!(response.changed.is_empty() && response.removed.is_empty());
}

#[tokio::test]
async fn a_taken_port_is_a_state_and_no_error() {
    let mut rig = Rig::new().await;
    let list = rig
        .client
        .list(ListRequest::default())
        .await
        .unwrap()
        .into_inner();
    let _other = std::net::TcpListener::bind(list.tunnels[0].local[0].as_str()).unwrap();
    let up = rig.client.up(up()).await.unwrap().into_inner();
    let Some(tunnel::State::Blocked(blocked)) = &up.tunnels[0].state else {
        panic!("{up:?}")
    };
    let cause = blocked.cause.as_ref().unwrap();
    assert_eq!(cause.reason(), v1::Reason::PortInUse);
    assert!(cause.chain[0].contains("is held by"), "{cause:?}");
    assert!(!cause.hints.is_empty());
}

#[tokio::test]
async fn requests_that_name_nobody_or_strangers_are_refused() {
    let mut rig = Rig::new().await;
    let nobody = rig.client.up(UpRequest::default()).await.unwrap_err();
    assert_eq!(nobody.code(), Code::InvalidArgument);
    let stranger = vec!["dbb".to_owned()];
    let unknown = rig
        .client
        .down(DownRequest {
            names: stranger.clone(),
        })
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(unknown.message(), "there is no tunnel `dbb`; did you mean `db`");
    let watched = rig
        .client
        .watch(WatchRequest { names: stranger })
        .await
        .unwrap_err();
    assert_eq!(watched.code(), Code::NotFound);
}

#[tokio::test]
async fn version_says_who_serves() {
    let mut rig = Rig::new().await;
    let version = rig.client.version(VersionRequest {}).await.unwrap().into_inner();
    assert_eq!(version.pid, std::process::id());
    assert_eq!(version.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(version.config_path, rig.daemon.path().display().to_string());
    assert_eq!(version.manager, "systemd");
}

#[tokio::test]
async fn a_restart_is_only_asked_for() {
    let mut rig = Rig::new().await;
    rig.client.restart(RestartRequest {}).await.unwrap();
    assert!(rig.asks.restart.is_cancelled() && !rig.asks.stop.is_cancelled());
    rig.client.list(ListRequest::default()).await.unwrap();
}

#[tokio::test]
async fn without_a_configuration_everything_that_needs_one_is_refused_with_the_problems() {
    let mut rig = Rig::without_tunnels().await;
    let client = &mut rig.client;
    let refusals = [
        client.up(up()).await.unwrap_err(),
        client.down(DownRequest { names: db() }).await.unwrap_err(),
        client.list(ListRequest::default()).await.unwrap_err(),
        client.watch(WatchRequest::default()).await.unwrap_err(),
        client.resolve(ResolveRequest::default()).await.unwrap_err(),
        client.push_key(PushKeyRequest::default()).await.unwrap_err(),
        client.open(tokio_stream::empty()).await.unwrap_err(),
    ];
    for refusal in refusals {
        assert_eq!(refusal.code(), Code::FailedPrecondition, "{refusal}");
        assert!(refusal.message().contains("config.toml"), "{refusal}");
    }
    let reloaded = client.reload(ReloadRequest {}).await.unwrap().into_inner();
    assert_eq!(reloaded.problems.len(), 1);
    client.version(VersionRequest {}).await.unwrap();
    std::fs::write(rig.daemon.path(), "").unwrap();
    let reloaded = client.reload(ReloadRequest {}).await.unwrap().into_inner();
    assert_eq!(reloaded.problems, []);
    client.list(ListRequest::default()).await.unwrap();
    client.restart(RestartRequest {}).await.unwrap();
    client.shutdown(ShutdownRequest {}).await.unwrap();
}

#[tokio::test]
async fn shutdown_only_asks_and_looking_is_allowed_until_the_end() {
    let mut rig = Rig::new().await;
    let mut watching = rig.watch().await;
    next(&mut watching).await;
    rig.client.shutdown(ShutdownRequest {}).await.unwrap();
    assert!(rig.asks.stop.is_cancelled() && !rig.asks.restart.is_cancelled());
    rig.daemon.shutdown(Duration::ZERO, Afterwards::Free).await;
    let refused = rig.client.up(up()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    rig.client.list(ListRequest::default()).await.unwrap();
    rig.ended.cancel();
    let last = tokio::time::timeout(Duration::from_secs(60), watching.message())
        .await
        .unwrap();
    assert!(last.unwrap().is_none(), "watchers are let go");
    drop((rig.client, rig.channel, watching));
    rig.serving.join_next().await.unwrap().unwrap().unwrap();
    assert!(!rig.path.exists());
}

#[tokio::test]
async fn any_grpc_client_can_look_around() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

    let rig = Rig::new().await;
    let service = "tunneld.v1.Tunnels".to_owned();
    let health = HealthClient::new(rig.channel.clone())
        .check(HealthCheckRequest {
            service: service.clone(),
        })
        .await
        .unwrap();
    assert_eq!(health.into_inner().status(), ServingStatus::Serving);

    let ask = |question| {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(question),
        };
        Request::new(stream::iter([request]))
    };
    let mut reflection = ServerReflectionClient::new(rig.channel.clone());
    let question = MessageRequest::ListServices(String::new());
    let mut answers = reflection
        .server_reflection_info(ask(question))
        .await
        .unwrap()
        .into_inner();
    let answer: ServerReflectionResponse = answers.message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
        panic!("{answer:?}")
    };
    assert!(
        services.service.iter().any(|known| known.name == service),
        "{services:?}"
    );
}

/// Begins a call of `Open` whose first message is this.
async fn open(
    rig: &mut Rig,
    first: open_request::Message,
) -> (
    mpsc::Sender<v1::OpenRequest>,
    Result<tonic::Streaming<v1::OpenResponse>, tonic::Status>,
) {
    let (requests, sent) = mpsc::channel(8);
    requests.send(asked(first)).await.unwrap();
    let opened = rig.client.open(ReceiverStream::new(sent)).await;
    (requests, opened.map(tonic::Response::into_inner))
}

fn asked(message: open_request::Message) -> v1::OpenRequest {
    v1::OpenRequest {
        message: Some(message),
    }
}

fn to(target: &str) -> open_request::Message {
    open_request::Message::Opening(v1::Opening {
        account: None,
        target: target.to_owned(),
        route: "direct".to_owned(),
    })
}

async fn answer(responses: &mut tonic::Streaming<v1::OpenResponse>) -> open_response::Message {
    let response = tokio::time::timeout(Duration::from_secs(60), responses.message()).await;
    response.unwrap().unwrap().unwrap().message.unwrap()
}

/// Reads the last message, and that nothing follows it.
async fn end(responses: &mut tonic::Streaming<v1::OpenResponse>) -> Option<v1::Failure> {
    let open_response::Message::Ended(ended) = answer(responses).await else {
        panic!("not the end");
    };
    assert!(responses.message().await.unwrap().is_none());
    ended.failure
}

#[tokio::test]
async fn a_connection_without_a_tunnel_passes_bytes_and_both_ends() {
    let mut rig = Rig::new().await;
    let (requests, responses) = open(&mut rig, to("a:1")).await;
    let mut responses = responses.unwrap();
    let mut target = rig.attempts.next().await.succeed().accept().await;
    assert!(matches!(
        answer(&mut responses).await,
        open_response::Message::Opened(_)
    ));
    requests
        .send(asked(open_request::Message::Data("there".into())))
        .await
        .unwrap();
    requests
        .send(asked(open_request::Message::End(v1::End {})))
        .await
        .unwrap();
    let mut received = String::new();
    target.read_to_string(&mut received).await.unwrap();
    assert_eq!(received, "there");
    target.write_all(b"and back").await.unwrap();
    drop(target);
    assert_eq!(
        answer(&mut responses).await,
        open_response::Message::Data("and back".into())
    );
    assert_eq!(
        answer(&mut responses).await,
        open_response::Message::End(v1::End {})
    );
    assert_eq!(end(&mut responses).await, None);
}

#[tokio::test]
async fn a_target_that_is_not_reached_is_told_of_in_the_answer() {
    let mut rig = Rig::new().await;
    let (_requests, responses) = open(&mut rig, to("a:1")).await;
    rig.attempts.next().await.fail(fake::lost());
    let failure = end(&mut responses.unwrap()).await.unwrap();
    assert_eq!(failure.reason(), v1::Reason::Unreachable);
    assert_eq!(failure.chain, ["the websocket was closed"]);
}

#[tokio::test]
async fn words_that_name_no_target_are_told_of_in_the_answer_too() {
    let mut rig = Rig::new().await;
    let (_requests, responses) = open(&mut rig, to("a")).await;
    let failure = end(&mut responses.unwrap()).await.unwrap();
    assert_eq!(failure.reason(), v1::Reason::Invalid);
    assert!(failure.chain[0].contains("does not end in a port"), "{failure:?}");
    let (_requests, responses) = open(&mut rig, open_request::Message::End(v1::End {})).await;
    assert_eq!(responses.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_client_that_leaves_without_an_end_resets_its_connection() {
    let mut rig = Rig::new().await;
    let (requests, responses) = open(&mut rig, to("a:1")).await;
    let mut target = rig.attempts.next().await.succeed().accept().await;
    drop((requests, responses));
    let mut received = Vec::new();
    target.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"");
    assert!(
        target.write_all(b"nobody").await.is_err(),
        "the stream is gone, not half closed"
    );
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_target_back() {
    let mut rig = Rig::new().await;
    let (_requests, responses) = open(&mut rig, to("a:1")).await;
    let mut target = rig.attempts.next().await.succeed().accept().await;
    let block = vec![0; 1 << 20];
    let mut sent = 0;
    // Whatever windows and queues there are take some of it, and then no more.
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(500), target.write_all(&block)).await {
        written.unwrap();
        sent += block.len();
        assert!(sent < 64 << 20, "nobody reads, and all of it goes somewhere");
    }
    drop(responses);
}

#[tokio::test]
async fn the_log_ends_after_its_latest_lines_unless_it_is_followed() {
    let mut rig = Rig::new().await;
    let subscriber = tracing_subscriber::registry().with(rig.log.clone().with_filter(LevelFilter::INFO));
    let _logging = tracing::subscriber::set_default(subscriber);
    let says =
        |words: &str| error_span!("tunnel", name = %"db").in_scope(|| info!(target: "tunneld", "{words}"));
    says("first");
    says("second");
    let request = LogsRequest {
        names: db(),
        follow: false,
        lines: Some(1),
    };
    let mut so_far = rig.client.logs(request.clone()).await.unwrap().into_inner();
    let last = &next(&mut so_far).await.lines[0];
    assert_eq!(
        (last.message.as_str(), last.tunnel.as_str(), last.level()),
        ("second", "db", v1::LogLevel::Info)
    );
    assert!(so_far.message().await.unwrap().is_none());

    let request = LogsRequest {
        follow: true,
        ..request
    };
    let mut followed = rig.client.logs(request).await.unwrap().into_inner();
    assert_eq!(next(&mut followed).await.lines[0].message, "second");
    says("third");
    assert_eq!(next(&mut followed).await.lines[0].message, "third");
    rig.ended.cancel();
    assert!(followed.message().await.unwrap().is_none());
}

#[tokio::test]
async fn the_log_of_a_tunnel_that_there_is_not_is_refused_with_near_names() {
    let mut rig = Rig::new().await;
    let request = LogsRequest {
        names: vec!["bd".to_owned()],
        follow: true,
        lines: None,
    };
    let refused = rig.client.logs(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn clients_that_say_nothing_leave_their_places_to_others() {
    let mut rig = Rig::new().await;
    let mut silent = Vec::new();
    for _ in 0..MOST_CONNECTIONS {
        silent.push(UnixStream::connect(&rig.path).await.unwrap());
    }
    let began = Instant::now();
    let channel = tunneld_proto::connect(&rig.path).await.unwrap();
    let mut late = TunnelsClient::new(channel);
    late.list(ListRequest::default()).await.unwrap();
    assert!(began.elapsed() > Duration::from_secs(1), "it waited for a place");
    rig.client.list(ListRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused() {
    let mut rig = Rig::new().await;
    let names = vec!["x".repeat(LARGEST_REQUEST)];
    let refused = rig.client.list(ListRequest { names }).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange);
}
