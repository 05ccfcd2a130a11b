//! The control API: gRPC on a Unix socket that only its owner can open.
//!
//! No logic lives here: a request becomes a method of `Daemon`, what it answers goes through `convert`. Beside our own
//! service stand gRPC health and reflection, so that any gRPC client can look around.

mod convert;
mod guest;
mod pipe;
mod routes;
mod service;
mod socket;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::debug;
use tunneld_proto::v1::{self, tunnels_server::TunnelsServer};

use crate::daemon::Daemon;
use crate::rpc::guest::Guest;
use crate::rpc::routes::Routes;
use crate::rpc::service::Service;

pub use self::socket::{BindError, ControlSocket};
pub use tunneld_proto::socket::{SocketPathError, default_path};

/// Connections at a time; more wait in the kernel. A command takes one for a moment, `tunnelctl ssh` and `stdio` one for as
/// long as they last, and what copies to many machines at once has some dozens of those.
const MOST_CONNECTIONS: usize = 256;

/// Calls of one connection at a time: a client of ours has two.
const MOST_CALLS: u32 = 64;

/// The largest head of a request: ours take some hundred bytes.
const LARGEST_HEAD: u32 = 16 * 1024;

/// The largest message of a client: the names of ten thousand tunnels, or sixteen times what ours send of a connection.
const LARGEST_REQUEST: usize = 1 << 20;

/// How often a client is asked for a sign of life: seldom, since one that ends is noticed by its socket at once.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(60);

/// How long the answer may take: so long may a person stop a program that copies files, and let it go on.
const SIGN_OF_LIFE_WITHIN: Duration = Duration::from_secs(600);

/// Why the control socket is not served any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The API cannot describe itself: a fault of this build.
    #[error("cannot describe the control API")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The server failed.
    #[error("cannot serve the control socket")]
    Transport(#[from] tonic::transport::Error),
    /// The server's task panicked.
    #[error("the control socket's task ended")]
    Task(#[from] tokio::task::JoinError),
}

/// Serves the API until `ended`: also while the daemon stops, when only looking is allowed. `stop` is cancelled when
/// a client asks the daemon to stop.
pub(crate) async fn serve(
    socket: ControlSocket,
    daemon: Arc<Daemon>,
    stop: CancellationToken,
    ended: CancellationToken,
) -> Result<(), ServeError> {
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<TunnelsServer<Service>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let tunnels = TunnelsServer::new(Service::new(daemon, stop, ended.clone()));
    let routes = Routes::default()
        .with(tunnels.max_decoding_message_size(LARGEST_REQUEST))
        .with(health)
        .with(reflection().build_v1()?)
        .with(reflection().build_v1alpha()?);
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let connections = stream::unfold((&socket, places), async |(socket, places)| {
        // Nobody closes the semaphore.
        let place = Arc::clone(&places).acquire_owned().await.ok()?;
        let guest = Guest::new(socket.accept().await, place);
        debug!("a client connected");
        Some((Ok::<_, Infallible>(guest), (socket, places)))
    });
    Server::builder()
        .max_concurrent_streams(MOST_CALLS)
        .http2_max_header_list_size(LARGEST_HEAD)
        .http2_keepalive_interval(Some(SIGN_OF_LIFE_EVERY))
        .http2_keepalive_timeout(Some(SIGN_OF_LIFE_WITHIN))
        .serve_with_incoming_shutdown(routes, connections, ended.cancelled())
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests;
