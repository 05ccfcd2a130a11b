//! The websocket upgrade of a session's client, at `/v1/data-channel/SESSION`.
//!
//! Only what HTTP can tell is checked here; the token comes in the first message, which is the gateway's to read.

use std::slice;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::config::UnsignedUpgrades;
use crate::gateway::Inspected;
use crate::sessions::Session;
use crate::sigv4::{self, Expected};
use crate::socket::SocketControl;
use crate::websocket::Handshake;
use crate::world::World;

/// Where the data channels are.
pub(crate) const PREFIX: &str = "/v1/data-channel/";

/// Largest websocket message taken. Clients have been measured with payloads of up to 64 KiB; what the service
/// allows is not known.
const LARGEST_MESSAGE: usize = 1024 * 1024;

/// What is read at once: the library clears a buffer of this size before each read.
const READ_BUFFER: usize = 32 * 1024;

/// How far the caller's clock may be off, as for the JSON services.
const SKEW: Duration = Duration::from_secs(5 * 60);

/// Answers an upgrade, and attaches the websocket to its session once the answer is out.
pub(crate) fn answer(
    world: &World,
    request: Parts,
    control: SocketControl,
    now: SystemTime,
) -> Response<Full<Bytes>> {
    world.calls.count("ssmmessages", "OpenDataChannel");
    let (session, handshake) = match check(world, &request, now) {
        Ok(checked) => checked,
        Err((status, message)) => {
            tracing::info!(%status, message, "websocket refused");
            let mut response = Response::new(Full::from(json!({ "message": message }).to_string()));
            *response.status_mut() = status;
            return response;
        }
    };
    tracing::info!(session = session.id, "websocket accepted");
    let conditions = world.conditions.subscribe();
    world.tasks.spawn(async move {
        match hyper::upgrade::on(Request::from_parts(request, ())).await {
            Ok(upgraded) => {
                let limits = WebSocketConfig::default()
                    .read_buffer_size(READ_BUFFER)
                    .max_message_size(Some(LARGEST_MESSAGE))
                    .max_frame_size(Some(LARGEST_MESSAGE));
                let io = Inspected::new(TokioIo::new(upgraded), conditions);
                let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(limits)).await;
                session.attach(socket, control);
            }
            Err(error) => tracing::debug!(%error, session = session.id, "the client left during the upgrade"),
        }
    });
    handshake.response()
}

fn check(
    world: &World,
    request: &Parts,
    now: SystemTime,
) -> Result<(Arc<Session>, Handshake), (StatusCode, &'static str)> {
    let handshake = Handshake::of(request)?;
    let id = request.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let session = world.sessions.find(id);
    verify(world, request, session.as_deref(), now).map_err(|message| (StatusCode::FORBIDDEN, message))?;
    let session = session.ok_or((StatusCode::NOT_FOUND, "no such session"))?;
    if session.ended().is_some() {
        return Err((StatusCode::FORBIDDEN, "Session is already terminated"));
    }
    Ok((session, handshake))
}

fn verify(
    world: &World,
    request: &Parts,
    session: Option<&Session>,
    now: SystemTime,
) -> Result<(), &'static str> {
    if !request.headers.contains_key(AUTHORIZATION) {
        return match world.config.unsigned_upgrades {
            UnsignedUpgrades::Accept => Ok(()),
            UnsignedUpgrades::Refuse => Err("Missing Authentication Token"),
        };
    }
    // A session of another region is told as a wrong scope; no session at all comes later, once the caller is known.
    let regions = session.map_or(world.config.regions.as_slice(), |session| {
        slice::from_ref(&session.region)
    });
    let expected = Expected {
        service: "ssmmessages",
        regions,
        skew: SKEW,
    };
    match sigv4::verify(request, b"", &world.keys, &expected, now) {
        Ok(verified) => {
            world.secrets.note(&verified.signature);
            Ok(())
        }
        Err(rejection) => {
            tracing::info!(?rejection, "the upgrade's signature is refused");
            Err("the signature of the upgrade is refused")
        }
    }
}
