//! The control API: gRPC on a Unix socket that only its owner can open.
//!
//! No logic lives here: a request becomes a method of `Daemon`, what it answers goes through `convert`. Beside our own
//! service stand gRPC health and reflection, so that any gRPC client can look around.

mod convert;
mod logs;
mod pipe;
mod routes;
mod service;
mod socket;

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::stream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::debug;
use tunneld_proto::v1::{self, tunnels_server::TunnelsServer};

use crate::rpc::routes::Routes;

pub(crate) use self::service::{Asks, Service};
pub use self::socket::{BindError, ControlSocket};
pub use tunneld_proto::socket::{SocketPathError, default_path};

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

/// Serves the API until `ended`: also while the daemon stops, when only looking is allowed.
pub(crate) async fn serve(
    socket: Arc<ControlSocket>,
    service: Service,
    ended: CancellationToken,
) -> Result<(), ServeError> {
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<TunnelsServer<Service>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = Routes::default()
        .with(TunnelsServer::new(service))
        .with(health)
        .with(reflection().build_v1()?)
        .with(reflection().build_v1alpha()?);
    let connections = stream::unfold(&*socket, async |socket| {
        let connection = socket.accept().await;
        debug!("a client connected");
        Some((Ok::<_, Infallible>(connection), socket))
    });
    Server::builder()
        .serve_with_incoming_shutdown(routes, connections, ended.cancelled())
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests;
