//! The websocket upgrade of a tunnel, at `/openTunnel`: who may open it, and to what.

use std::net::IpAddr;
use std::slice;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::tunnel::{self, Serving};
use super::{Opening, Place, Tunnel};
use crate::config::{Endpoint, SSH};
use crate::faults::Fault;
use crate::sigv4::{self, Expected, Rejection};
use crate::socket::SocketControl;
use crate::websocket::Handshake;
use crate::world::World;

/// Where tunnels are opened.
pub(crate) const PATH: &str = "/openTunnel";

/// The port of RDP, the only one beside that of SSH.
const RDP: u16 = 3389;

/// Largest websocket message taken: sixteen times what the official client sends.
const LARGEST_MESSAGE: usize = 1 << 20;

/// What is read at once: the library clears a buffer of this size before each read.
const READ_BUFFER: usize = 64 << 10;

/// How far the caller's clock may be ahead of ours.
const SKEW: Duration = Duration::from_secs(60);

/// The longest tunnel that can be asked for, in seconds.
const LONGEST_DURATION: u64 = 3600;

/// A refused upgrade.
#[derive(Debug)]
struct Denial {
    status: StatusCode,
    code: &'static str,
    message: String,
}

/// Answers an upgrade; the tunnel is dialled once the answer is out. `None`: there is no answer.
pub(crate) fn answer(
    world: &World,
    request: Parts,
    control: SocketControl,
    now: SystemTime,
) -> Option<Response<Full<Bytes>>> {
    world.calls.count("ec2-instance-connect", "OpenTunnel");
    if world.faults.strikes(Fault::EiceDropsUpgrade) {
        control.reset();
        return None;
    }
    if world.faults.strikes(Fault::EiceStallsUpgrade) {
        return None;
    }
    let mut response = match open(world, &request, control, now) {
        Ok((handshake, tunnel, serving)) => {
            tracing::info!(
                endpoint = tunnel.endpoint,
                address = %tunnel.address,
                port = tunnel.port,
                "tunnel accepted"
            );
            attach(world, request, tunnel, serving);
            handshake.response()
        }
        Err(denial) => {
            tracing::info!(status = %denial.status, denial.code, denial.message, "tunnel refused");
            denial.response()
        }
    };
    let request_id = uuid::Uuid::from_u128(fastrand::u128(..)).to_string();
    response.headers_mut().insert(
        "x-amzn-requestid",
        HeaderValue::from_str(&request_id).expect("letters, digits and dashes"),
    );
    Some(response)
}

fn open(
    world: &World,
    request: &Parts,
    control: SocketControl,
    now: SystemTime,
) -> Result<(Handshake, Arc<Tunnel>, Serving), Denial> {
    let handshake = Handshake::of(request)
        .map_err(|(status, message)| Denial::new(status, "BadRequestException", message))?;
    let opening = check(world, request, now)?;
    let conditions = world.conditions.borrow().connect.clone();
    let (orders, ordered) = mpsc::channel(1);
    let life = opening
        .duration
        .unwrap_or(conditions.longest_tunnel)
        .min(conditions.longest_tunnel);
    let place = Arc::new(Place);
    let serving = Serving {
        target: opening.target,
        life,
        orders: ordered,
        conditions: world.conditions.subscribe(),
        faults: Arc::clone(&world.faults),
        control: control.clone(),
        place: Arc::clone(&place),
    };
    let tunnel = Tunnel {
        endpoint: opening.endpoint,
        address: opening.address,
        port: opening.port,
        duration: opening.duration,
        control,
        orders,
        place: Arc::downgrade(&place),
        ended: OnceLock::new(),
    };
    let most = conditions.most_tunnels;
    let tunnel = world.tunnels.add(tunnel, most).ok_or_else(|| {
        Denial::new(
            StatusCode::TOO_MANY_REQUESTS,
            "ServiceQuotaExceededException",
            format!("The endpoint has {most} concurrent connections, which is the maximum."),
        )
    })?;
    Ok((handshake, tunnel, serving))
}

fn attach(world: &World, request: Parts, tunnel: Arc<Tunnel>, serving: Serving) {
    world.tasks.spawn(async move {
        let cause = match hyper::upgrade::on(Request::from_parts(request, ())).await {
            Ok(upgraded) => {
                let limits = WebSocketConfig::default()
                    .read_buffer_size(READ_BUFFER)
                    .max_message_size(Some(LARGEST_MESSAGE))
                    .max_frame_size(Some(LARGEST_MESSAGE));
                let io = TokioIo::new(upgraded);
                let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(limits)).await;
                tunnel::serve(socket, serving).await
            }
            Err(_) => "the client left during the upgrade".to_owned(),
        };
        tracing::info!(endpoint = tunnel.endpoint, cause, "tunnel ended");
        // Nobody else ends it.
        let _ = tunnel.ended.set(cause);
    });
}

/// Checks everything but how many tunnels there are.
fn check(world: &World, request: &Parts, now: SystemTime) -> Result<Opening, Denial> {
    let host = request
        .headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let (endpoint, region) = called(world, host).ok_or_else(|| {
        Denial::new(
            StatusCode::NOT_FOUND,
            "ResourceNotFoundException",
            "There is no endpoint by this name.",
        )
    })?;
    let caller = verify(world, request, region, now)?;
    let faults = &world.faults;
    if faults.strikes(Fault::EiceThrottled) {
        return Err(Denial::new(
            StatusCode::TOO_MANY_REQUESTS,
            "ThrottlingException",
            "Rate exceeded",
        ));
    }
    if faults.strikes(Fault::EiceFails) {
        return Err(Denial::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceException",
            "The service is unavailable.",
        ));
    }
    let query = Query::of(request)?;
    if query.endpoint != endpoint.id {
        return Err(invalid("InstanceConnectEndpointId"));
    }
    let is_denied = faults.strikes_subject(Fault::EiceDenied, &endpoint.id);
    if is_denied || !is_permitted(endpoint, query.duration) {
        let arn = format!(
            "arn:aws:ec2:{region}:{}:instance-connect-endpoint/{}",
            world.config.account, endpoint.id
        );
        return Err(Denial::new(
            StatusCode::FORBIDDEN,
            "AccessDeniedException",
            format!(
                "User: {caller} is not authorized to perform: ec2-instance-connect:OpenTunnel on resource: {arn}"
            ),
        ));
    }
    if ![SSH, RDP].contains(&query.port) {
        return Err(invalid_with(
            "RemotePort",
            " Specify either 22 or 3389 as the RemotePort and retry your request.",
        ));
    }
    let state = world.state_of(endpoint);
    if !state.is_usable() {
        return Err(Denial::new(
            StatusCode::NOT_FOUND,
            "ResourceNotFoundException",
            format!("The endpoint is in the state {}.", state.name()),
        ));
    }
    let is_unreachable = faults.strikes_subject(Fault::EiceUnreachable, &query.address.to_string());
    let target = world
        .config
        .address_behind(endpoint, query.address, query.port)
        .filter(|_| !is_unreachable);
    Ok(Opening {
        endpoint: endpoint.id.clone(),
        address: query.address,
        port: query.port,
        duration: query.duration,
        target,
    })
}

/// Returns the endpoint that has a name, and its region.
fn called<'a>(world: &'a World, name: &str) -> Option<(&'a Endpoint, &'a String)> {
    let regions = world.config.regions.iter();
    let mut all = regions.flat_map(|region| {
        let endpoints = world.config.endpoints_in(region);
        endpoints.map(move |endpoint| (endpoint, region))
    });
    all.find(|(endpoint, region)| endpoint.names(region).all().any(|known| known == name))
}

/// Checks the signature; returns whose it is.
fn verify(world: &World, request: &Parts, region: &String, now: SystemTime) -> Result<String, Denial> {
    let expected = Expected {
        service: "ec2-instance-connect",
        regions: slice::from_ref(region),
        skew: SKEW,
    };
    let verified = sigv4::verify_presigned(request, &world.keys, &expected, now);
    if let Ok(verified) = &verified {
        world.secrets.note(&verified.signature);
    }
    match verified {
        Ok(_) if world.faults.strikes(Fault::ExpiredToken) => Err(Rejection::ExpiredKey.into()),
        Ok(verified) => Ok(verified.caller.arn),
        Err(rejection) => {
            tracing::info!(?rejection, "the tunnel's signature is refused");
            Err(rejection.into())
        }
    }
}

/// Whether the caller's policy permits a tunnel of this duration: who may not have the longest one has to say so.
fn is_permitted(endpoint: &Endpoint, duration: Option<Duration>) -> bool {
    endpoint
        .permitted_duration
        .is_none_or(|longest| duration.is_some_and(|duration| duration <= longest))
}

/// What the query asks for, beside the signature.
struct Query {
    endpoint: String,
    address: IpAddr,
    port: u16,
    duration: Option<Duration>,
}

impl Query {
    fn of(request: &Parts) -> Result<Self, Denial> {
        let query = request.uri.query().unwrap_or_default();
        let mut pairs: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .filter(|(name, _)| !name.starts_with("X-Amz-"))
            .collect();
        let mut take = |name: &str| {
            let place = pairs.iter().position(|(key, _)| key == name);
            place.map(|place| pairs.remove(place).1)
        };
        let endpoint =
            take("instanceConnectEndpointId").ok_or_else(|| invalid("InstanceConnectEndpointId"))?;
        let port = take("remotePort").and_then(|port| port.parse().ok());
        let address = take("privateIpAddress").and_then(|address| address.parse().ok());
        let duration = take("maxTunnelDuration").map(|seconds| seconds.parse().ok());
        let duration = match duration {
            None => None,
            Some(Some(seconds @ 1..=LONGEST_DURATION)) => Some(Duration::from_secs(seconds)),
            Some(_) => return Err(invalid("MaxTunnelDuration")),
        };
        // Twice, or of another sort.
        if let Some((name, _)) = pairs.first() {
            return Err(invalid(name));
        }
        Ok(Self {
            endpoint,
            address: address.ok_or_else(|| invalid("PrivateIpAddress"))?,
            port: port.ok_or_else(|| invalid("RemotePort"))?,
            duration,
        })
    }
}

fn invalid(parameter: &str) -> Denial {
    invalid_with(parameter, "")
}

fn invalid_with(parameter: &str, advice: &str) -> Denial {
    Denial::new(
        StatusCode::BAD_REQUEST,
        "InvalidParameter",
        format!("The specified {parameter} is not valid.{advice}"),
    )
}

impl Denial {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }

    fn response(self) -> Response<Full<Bytes>> {
        let body = json!({ "ErrorCode": self.code, "Message": self.message });
        let mut response = Response::new(Full::from(body.to_string()));
        *response.status_mut() = self.status;
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        response
    }
}

impl From<Rejection> for Denial {
    fn from(rejection: Rejection) -> Self {
        let (code, message) = match rejection {
            Rejection::Missing => (
                "MissingAuthenticationTokenException",
                "Missing Authentication Token".to_owned(),
            ),
            Rejection::Incomplete(what) => ("IncompleteSignatureException", what),
            Rejection::UnknownKey => (
                "UnrecognizedClientException",
                "The security token included in the request is invalid.".to_owned(),
            ),
            Rejection::ExpiredKey => (
                "ExpiredTokenException",
                "The security token included in the request is expired".to_owned(),
            ),
            Rejection::Stale(what) | Rejection::Scope(what) => ("InvalidSignatureException", what),
            Rejection::Mismatch => (
                "InvalidSignatureException",
                "The request signature we calculated does not match the signature you provided.".to_owned(),
            ),
        };
        Self::new(StatusCode::FORBIDDEN, code, message)
    }
}

#[cfg(test)]
mod tests;
