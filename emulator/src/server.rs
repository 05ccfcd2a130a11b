//! The one port: plain HTTP and TLS, told apart by the first byte, with every request sent where it belongs.
//!
//! ```text
//!              ┌─ 0x16 ─► TLS ─┐          ┌─ /_emulator/…        ─► admin
//! TCP ─ peek ──┤               ├─ HTTP/1 ─┼─ /v1/data-channel/…  ─► upgrade ─► a session's gateway
//!       ▲  │   └───────────────┘          ├─ /openTunnel         ─► eice    ─► a tunnel
//!       └──┘ CONNECT                      └─ POST /              ─► api
//! ```

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::clock::wall_clock;
use crate::network::Outage;
use crate::sigv4::LONGEST_TARGET;
use crate::socket::{ClientSocket, SocketControl};
use crate::world::World;
use crate::{admin, api, eice, proxy, upgrade};

/// Largest request body taken. The largest real one is a list of a few hundred ids.
const LARGEST_BODY: usize = 1024 * 1024;

/// How long a client may take over its first byte, its TLS handshake, and each request head.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause after a failed accept: out of files, it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Enough of a request to see its path: the longest method of ours, a space, and where the admin endpoints are.
const FIRST_BYTES: usize = 20;

/// The first byte of a TLS connection: a record of type handshake. No HTTP method begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Accepts connections until told to stop.
pub(crate) async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    world: Arc<World>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, world_of_it, stop) = (acceptor.clone(), Arc::clone(&world), stop.clone());
        world.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => (),
                served = connection(tcp, acceptor, world_of_it) => {
                    if let Err(error) = served {
                        tracing::debug!(%error, "a connection ended badly");
                    }
                }
            }
        });
    }
}

async fn connection(tcp: TcpStream, acceptor: TlsAcceptor, world: Arc<World>) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let (mut socket, outage) = world.network.accept(tcp);
    let control = socket.control();
    let mut buffer = [0; FIRST_BYTES];
    let mut first_bytes = peek(&mut socket, &mut buffer).await?;
    if is_for_admin(first_bytes) {
        control.spare();
    } else {
        match outage {
            None => {}
            Some(Outage::Reset) => control.reset(),
            Some(Outage::Frozen) => {
                control.freeze();
                std::future::pending::<()>().await;
            }
        }
    }
    if first_bytes.starts_with(proxy::METHOD) {
        tokio::time::timeout(PATIENCE, proxy::connect(&mut socket)).await??;
        first_bytes = peek(&mut socket, &mut buffer).await?;
    }
    match first_bytes.first() {
        None => Ok(()),
        Some(&TLS_HANDSHAKE) => {
            let socket = tokio::time::timeout(PATIENCE, acceptor.accept(socket)).await??;
            let encrypted = true;
            http(socket, world, Door { encrypted, control }).await
        }
        Some(_) => {
            let encrypted = false;
            http(socket, world, Door { encrypted, control }).await
        }
    }
}

async fn peek<'b>(socket: &mut ClientSocket, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let length = tokio::time::timeout(PATIENCE, socket.peek(buffer)).await??;
    Ok(&buffer[..length])
}

/// Whether a request is for the emulator's own endpoints, which no outage takes away.
fn is_for_admin(first_bytes: &[u8]) -> bool {
    let path = first_bytes.splitn(2, |byte| *byte == b' ').nth(1);
    path.is_some_and(|path| path.starts_with(admin::PREFIX.as_bytes()))
}

/// How a connection came in.
#[derive(Clone)]
struct Door {
    encrypted: bool,
    control: SocketControl,
}

async fn http<S>(socket: S, world: Arc<World>, door: Door) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (world, door) = (Arc::clone(&world), door.clone());
        async move { Ok::<_, Infallible>(route(&world, request, door).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

async fn route(world: &World, request: Request<Incoming>, door: Door) -> Response<Full<Bytes>> {
    let now = wall_clock();
    let (request, body) = request.into_parts();
    if request
        .uri
        .path_and_query()
        .is_some_and(|target| target.as_str().len() > LONGEST_TARGET)
    {
        return bare(StatusCode::URI_TOO_LONG);
    }
    if request.uri.path().starts_with(upgrade::PREFIX) {
        return upgrade::answer(world, request, door.control, now);
    }
    if request.uri.path() == eice::PATH {
        return match eice::answer(world, request, door.control, now) {
            Some(response) => response,
            None => std::future::pending().await,
        };
    }
    let is_for_admin = request.uri.path().starts_with(admin::PREFIX);
    if is_for_admin {
        door.control.spare();
    }
    match Limited::new(body, LARGEST_BODY).collect().await {
        Ok(body) if is_for_admin => admin::answer(world, &request, &body.to_bytes()),
        Ok(body) => api::answer(world, &request, &body.to_bytes(), door.encrypted, now),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => bare(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => bare(StatusCode::BAD_REQUEST),
    }
}

fn bare(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
