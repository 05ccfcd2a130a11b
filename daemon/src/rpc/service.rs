//! The RPCs: request → `Daemon` → answer.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, BoxStream};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status as RpcStatus, Streaming};
use tracing::info;
use tunneld_proto::v1;

use crate::config::{SSH_PORT, TunnelName};
use crate::daemon::{Daemon, Error};
use crate::logging::RecentLines;
use crate::meter::Traffic;
use crate::restart::Program;
use crate::rpc::convert;
use crate::rpc::logs::Lines;
use crate::rpc::pipe::{self, Pipe};
use crate::status::{Changes, Snapshot, Status, wall_clock};

/// How often a watcher is told of changed counters: a person reads no faster.
const TRAFFIC_EVERY: Duration = Duration::from_secs(1);

/// The service `Tunnels`.
#[derive(Clone)]
pub(crate) struct Service {
    daemon: Arc<Daemon>,
    log: RecentLines,
    started: SystemTime,
    /// Who starts the daemon; empty: a person.
    manager: &'static str,
    /// What a restart runs.
    program: Arc<Program>,
    asks: Asks,
    ended: CancellationToken,
}

/// Cancelled when a client asks for it.
#[derive(Debug, Clone)]
pub(crate) struct Asks {
    /// That the daemon stops.
    pub(crate) stop: CancellationToken,
    /// That it begins anew.
    pub(crate) restart: CancellationToken,
}

impl Service {
    /// The service of a daemon that starts now. Who watches or follows is let go when `ended` is cancelled.
    pub(crate) fn new(
        daemon: Arc<Daemon>,
        log: RecentLines,
        manager: &'static str,
        program: Arc<Program>,
        asks: Asks,
        ended: CancellationToken,
    ) -> Self {
        Self {
            daemon,
            log,
            started: wall_clock(),
            manager,
            program,
            asks,
            ended,
        }
    }

    /// Returns the daemon, if it has a configuration to answer by.
    fn ready(&self) -> Result<&Arc<Daemon>, RpcStatus> {
        self.daemon.ready().map_err(refused)?;
        Ok(&self.daemon)
    }
}

#[tonic::async_trait]
impl v1::tunnels_server::Tunnels for Service {
    async fn up(&self, request: Request<v1::UpRequest>) -> Result<Response<v1::UpResponse>, RpcStatus> {
        let request = request.into_inner();
        let wish = convert::wish(&request);
        let names = named(request.names)?;
        let tunnels = self.ready()?.up(&names, wish).await.map_err(refused)?;
        Ok(Response::new(v1::UpResponse {
            tunnels: convert::tunnels(&tunnels),
        }))
    }

    async fn down(&self, request: Request<v1::DownRequest>) -> Result<Response<v1::DownResponse>, RpcStatus> {
        let names = named(request.into_inner().names)?;
        let tunnels = self.ready()?.down(&names).await.map_err(refused)?;
        Ok(Response::new(v1::DownResponse {
            tunnels: convert::tunnels(&tunnels),
        }))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, RpcStatus> {
        let tunnels = self.ready()?.list(&request.into_inner().names).map_err(refused)?;
        Ok(Response::new(v1::ListResponse {
            tunnels: convert::tunnels(&tunnels),
        }))
    }

    type WatchStream = BoxStream<'static, Result<v1::WatchResponse, RpcStatus>>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, RpcStatus> {
        let names = request.into_inner().names;
        let daemon = self.ready()?;
        daemon.list(&names).map_err(refused)?;
        let watcher = Watcher::new(names, daemon.watch(), self.ended.clone());
        let responses = stream::unfold(watcher, async |mut watcher| {
            Some((Ok(watcher.next().await?), watcher))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn reload(
        &self,
        _request: Request<v1::ReloadRequest>,
    ) -> Result<Response<v1::ReloadResponse>, RpcStatus> {
        let path = self.daemon.path();
        match self.daemon.reload().await {
            Ok(reloaded) => Ok(Response::new(convert::reloaded(path, &reloaded))),
            Err(Error::Problems(problems) | Error::NoTunnels(problems)) => {
                Ok(Response::new(convert::problems(path, &problems)))
            }
            Err(error @ (Error::Unknown(_) | Error::Reloaded(_) | Error::Stopping)) => Err(refused(error)),
        }
    }

    type LogsStream = BoxStream<'static, Result<v1::LogsResponse, RpcStatus>>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, RpcStatus> {
        let v1::LogsRequest { names, follow, lines } = request.into_inner();
        self.daemon.list(&names).map_err(refused)?;
        let most = lines.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX));
        let reader = self.log.read(names, most);
        let ended = self.ended.clone();
        let lines = if follow {
            Lines::followed(reader, ended)
        } else {
            Lines::so_far(reader)
        };
        let responses = stream::unfold(lines, async |mut lines| {
            Some((Ok(convert::log_lines(&lines.next().await?)), lines))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn version(
        &self,
        _request: Request<v1::VersionRequest>,
    ) -> Result<Response<v1::VersionResponse>, RpcStatus> {
        Ok(Response::new(v1::VersionResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: Some(self.started.into()),
            config_path: self.daemon.path().display().to_string(),
            manager: self.manager.to_owned(),
        }))
    }

    async fn shutdown(
        &self,
        _request: Request<v1::ShutdownRequest>,
    ) -> Result<Response<v1::ShutdownResponse>, RpcStatus> {
        info!("a client asked the daemon to stop");
        self.asks.stop.cancel();
        Ok(Response::new(v1::ShutdownResponse {}))
    }

    async fn restart(
        &self,
        _request: Request<v1::RestartRequest>,
    ) -> Result<Response<v1::RestartResponse>, RpcStatus> {
        // Once the tunnels have ended it is too late to go on.
        self.program.check().map_err(|error| {
            let path = self.program.path().display();
            RpcStatus::failed_precondition(format!("cannot run `{path}` anew: {error}"))
        })?;
        info!("a client asked the daemon to restart");
        self.asks.restart.cancel();
        Ok(Response::new(v1::RestartResponse {}))
    }

    async fn resolve(
        &self,
        request: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::ResolveResponse>, RpcStatus> {
        let resolved = self
            .ready()?
            .resolve(convert::to_resolve(request.into_inner()))
            .await;
        Ok(Response::new(convert::resolved(resolved)))
    }

    async fn push_key(
        &self,
        request: Request<v1::PushKeyRequest>,
    ) -> Result<Response<v1::PushKeyResponse>, RpcStatus> {
        let v1::PushKeyRequest {
            account,
            instance,
            user,
            public_key,
        } = request.into_inner();
        let written = convert::written(
            account,
            convert::port_of(&instance, SSH_PORT.into()),
            String::new(),
        );
        let pushed = self.ready()?.push_key(written, &user, &public_key).await;
        Ok(Response::new(v1::PushKeyResponse {
            failure: pushed.err().map(|failure| convert::failure(&failure)),
        }))
    }

    type OpenStream = ReceiverStream<Result<v1::OpenResponse, RpcStatus>>;

    async fn open(
        &self,
        request: Request<Streaming<v1::OpenRequest>>,
    ) -> Result<Response<Self::OpenStream>, RpcStatus> {
        let daemon = self.ready()?;
        let mut requests = request.into_inner();
        let opening = pipe::opening(&mut requests).await?;
        let (pipe, responses) = Pipe::new(requests);
        let visit = pipe.run(Arc::clone(daemon), convert::to_open(opening));
        daemon.spawn_visit(visit);
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

fn named(names: Vec<String>) -> Result<Vec<String>, RpcStatus> {
    if names.is_empty() {
        Err(RpcStatus::invalid_argument("no tunnel is named"))
    } else {
        Ok(names)
    }
}

fn refused(error: Error) -> RpcStatus {
    let words = error.to_string();
    match error {
        Error::Unknown(_) => RpcStatus::not_found(words),
        Error::Problems(_) | Error::NoTunnels(_) => RpcStatus::failed_precondition(words),
        Error::Reloaded(_) => RpcStatus::aborted(words),
        Error::Stopping => RpcStatus::unavailable(words),
    }
}

/// One watching client: what it was sent, and where its next news comes from.
struct Watcher {
    /// The tunnels it asked for; empty for all.
    names: Vec<String>,
    changes: Changes,
    ended: CancellationToken,
    refresh: Interval,
    sent: HashMap<TunnelName, (u64, Traffic)>,
    /// Whether the first response, which is sent even if there is nothing to say, is out.
    greeted: bool,
}

impl Watcher {
    fn new(names: Vec<String>, changes: Changes, ended: CancellationToken) -> Self {
        let mut refresh = tokio::time::interval(TRAFFIC_EVERY);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        refresh.reset();
        Self {
            names,
            changes,
            ended,
            refresh,
            sent: HashMap::new(),
            greeted: false,
        }
    }

    /// Waits for news. The first call returns at once, with every watched tunnel, even if there is none.
    async fn next(&mut self) -> Option<v1::WatchResponse> {
        loop {
            let snapshot = tokio::select! {
                snapshot = self.changes.next() => snapshot?,
                _ = self.refresh.tick() => self.changes.latest(),
                () = self.ended.cancelled() => return None,
            };
            let news = self.news(&snapshot);
            if !self.greeted || !news.tunnels.is_empty() || !news.removed.is_empty() {
                self.greeted = true;
                return Some(news);
            }
        }
    }

    /// Returns what of the snapshot was not sent, and notes it as sent.
    fn news(&mut self, snapshot: &Snapshot) -> v1::WatchResponse {
        let mut fresh = Vec::new();
        for status in snapshot.iter().filter(|status| watches(&self.names, status)) {
            let present = (status.generation, status.meter.read());
            if self.sent.insert(status.name.clone(), present) != Some(present) {
                fresh.push(Arc::clone(status));
            }
        }
        let configured: HashSet<_> = snapshot.iter().map(|status| &status.name).collect();
        let mut removed = Vec::new();
        self.sent.retain(|name, _| {
            let stays = configured.contains(name);
            if !stays {
                removed.push(name.to_string());
            }
            stays
        });
        v1::WatchResponse {
            tunnels: convert::tunnels(&fresh),
            removed,
        }
    }
}

fn watches(names: &[String], status: &Status) -> bool {
    names.is_empty() || names.iter().any(|name| name == status.name.as_str())
}
