//! The websocket upgrade of one connection: its limits in time and size, and what a refusal says.
//!
//! The HTTP part is hyper's: a refusal's body may come later than its head, and is wanted whole.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::time::Duration;

use aws_smithy_types::body::SdkBody;
use futures_util::future::{Either, select};
use http::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Request, Response, StatusCode, Uri};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tunneld_wire::eice::{Denial, LARGEST_FRAME, LARGEST_FRAME_TAKEN};

use crate::aws::RefusedOpening;
use crate::connector::{Connector, Socket};
use crate::failure::{Cause, Failure, Reason, Remedy};

/// The longest that the connection may take, proxy and TLS included: as long as any connection here.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest that the answer to the upgrade may take. AWS checks a signature and a policy before it gives one; the
/// official client waits for ever.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(15);

/// The most of a refusal's body that is read: AWS's fit many times, and a page of a proxy says enough at its beginning.
const LONGEST_BODY: usize = 16 << 10;

/// What is read at once: a frame of the size that we send. The library clears a buffer of this size before each read.
const READ_BUFFER: usize = LARGEST_FRAME;

/// What came of it instead of a websocket.
#[derive(Debug)]
pub(super) enum Error {
    /// The endpoint answered, and not with a websocket.
    Refused(RefusedOpening),
    /// It did not answer.
    Failed(Failure),
}

/// Opens a websocket with a signed request, which is taken as it is.
pub(super) async fn connect(
    connector: &Connector,
    request: &Request<()>,
) -> Result<WebSocketStream<Socket>, Error> {
    let uri = request.uri();
    let host = uri.host().unwrap_or_default();
    let late = |what: &str, limit: Duration| {
        let doing = format!("cannot open a websocket to `{host}`");
        let problem = format!("no {what} within {} s", limit.as_secs());
        Error::Failed(Failure::new(Reason::Unreachable, Remedy::Retry, doing).because(problem))
    };
    let socket = timeout(CONNECT_TIMEOUT, connector.connect(uri))
        .await
        .map_err(|_| late("connection", CONNECT_TIMEOUT))?
        .map_err(Error::Failed)?;
    timeout(UPGRADE_TIMEOUT, upgrade(socket, request, host))
        .await
        .map_err(|_| late("answer", UPGRADE_TIMEOUT))?
}

async fn upgrade(socket: Socket, signed: &Request<()>, host: &str) -> Result<WebSocketStream<Socket>, Error> {
    let broken = |cause: Cause| {
        let doing = format!("cannot open a websocket to `{host}`");
        Error::Failed(Failure::new(Reason::Unreachable, Remedy::Retry, doing).because(cause))
    };
    let key = generate_key();
    let request = with_handshake(signed, &key).map_err(|error| broken(error.into()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket))
        .await
        .map_err(|error| broken(error.into()))?;
    let exchange = async {
        let mut response = sender.send_request(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let body = beginning(response.body_mut()).await;
            return Ok(Err(refusal(&response, &body)));
        }
        let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT).cloned();
        Ok::<_, hyper::Error>(Ok((accepted, hyper::upgrade::on(response).await?)))
    };
    let exchanged = match select(pin!(exchange), pin!(connection.with_upgrades())).await {
        Either::Left((exchanged, _)) => exchanged,
        // The connection has done its part; what it read is there to be taken.
        Either::Right((_, exchange)) => exchange.await,
    };
    let (accepted, upgraded) = exchanged
        .map_err(|error| broken(error.into()))?
        .map_err(Error::Refused)?;
    if accepted.as_ref().map(HeaderValue::as_bytes) != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(broken("the answer is to somebody else's request".into()));
    }
    let parts = upgraded
        .downcast::<TokioIo<Socket>>()
        .map_err(|_| broken("the connection is not the one that was made".into()))?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(LARGEST_FRAME)
        .max_message_size(Some(LARGEST_FRAME_TAKEN))
        .max_frame_size(Some(LARGEST_FRAME_TAKEN));
    let (socket, read) = (parts.io.into_inner(), parts.read_buf.to_vec());
    Ok(WebSocketStream::from_partially_read(socket, read, Role::Client, Some(config)).await)
}

/// Returns the request with what makes it an upgrade.
fn with_handshake(signed: &Request<()>, key: &str) -> Result<Request<SdkBody>, http::Error> {
    // Once there is a connection, a request says the path alone.
    let target: Uri = signed
        .uri()
        .path_and_query()
        .cloned()
        .map_or_else(Uri::default, Uri::from);
    let mut request = Request::get(target)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, key)
        .body(SdkBody::empty())?;
    for (name, value) in signed.headers() {
        request.headers_mut().insert(name, value.clone());
    }
    Ok(request)
}

fn refusal(response: &Response<Incoming>, body: &[u8]) -> RefusedOpening {
    let request_id = response.headers().get("x-amzn-requestid");
    RefusedOpening {
        status: response.status().as_u16(),
        denial: Denial::read(body),
        request_id: request_id.and_then(|id| id.to_str().ok()).map(str::to_owned),
    }
}

/// Reads a body as far as it is of interest, and as far as it comes.
async fn beginning(body: &mut Incoming) -> Vec<u8> {
    let mut beginning = Vec::new();
    while beginning.len() < LONGEST_BODY {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        let Some(Ok(frame)) = frame else { break };
        if let Some(data) = frame.data_ref() {
            beginning.extend_from_slice(data);
        }
    }
    beginning
}
