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
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tracing::debug;
use tunneld_wire::eice::{Denial, LARGEST_FRAME, LARGEST_FRAME_TAKEN};

use crate::aws::RefusedOpening;
use crate::connector::{Connector, Socket};
use crate::failure::{Cause, Failure, Reason, Remedy};

/// The longest that the connection may take, proxy and TLS included: as long as any connection here.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest that the answer to the upgrade may take. AWS checks a signature and a policy before it gives one; the
/// official client waits for ever.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a refusal's body may take: the refusal is known without it.
const BODY_TIMEOUT: Duration = Duration::from_secs(2);

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
        debug!(
            host,
            request_id = request_id(&response),
            "the endpoint accepted a connection"
        );
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
    RefusedOpening {
        status: response.status().as_u16(),
        denial: Denial::read(body),
        request_id: request_id(response).map(str::to_owned),
    }
}

/// What AWS's support asks for.
fn request_id(response: &Response<Incoming>) -> Option<&str> {
    response.headers().get("x-amzn-requestid")?.to_str().ok()
}

/// Reads a body as far as it is of interest, and as far as it comes soon.
async fn beginning(body: &mut Incoming) -> Vec<u8> {
    let until = Instant::now() + BODY_TIMEOUT;
    let mut beginning = Vec::new();
    while beginning.len() < LONGEST_BODY {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
        let Ok(Some(Ok(frame))) = timeout_at(until, frame).await else {
            break;
        };
        if let Some(data) = frame.data_ref() {
            beginning.extend_from_slice(data);
        }
    }
    beginning
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::yield_now;
    use tokio_tungstenite::tungstenite::Message;

    use super::*;
    use crate::connector::Environment;

    /// What connecting comes to, and what was asked for, where the answer comes in these pieces; `ACCEPT` in the first
    /// stands for what accepts this upgrade.
    async fn answered(pieces: &[&[u8]]) -> (Result<WebSocketStream<Socket>, Error>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connector = Connector::new(&Environment::default()).unwrap();
        let address = listener.local_addr().unwrap();
        let request = Request::get(format!("ws://{address}/openTunnel?a=1%3A2&X-Amz-Signature=0"))
            .header("host", "eice-1.test")
            .header("user-agent", "tunneld/0")
            .body(())
            .unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = String::new();
            while !asked.ends_with("\r\n\r\n") {
                asked.push(char::from(stream.read_u8().await.unwrap()));
            }
            let key = asked
                .lines()
                .find_map(|line| line.strip_prefix("sec-websocket-key: "));
            let accept = derive_accept_key(key.unwrap().as_bytes());
            for piece in pieces {
                let piece = match piece.strip_suffix(WITH_FRAME) {
                    Some(head) => [with(&accept, head).as_slice(), WITH_FRAME].concat(),
                    None => with(&accept, piece),
                };
                stream.write_all(&piece).await.unwrap();
                // Whoever reads has its turn.
                for _ in 0..10 {
                    yield_now().await;
                }
            }
            (asked, stream)
        };
        let (connected, (asked, _held)) = tokio::join!(connect(&connector, &request), serve);
        (connected, asked)
    }

    fn with(accept: &str, piece: &[u8]) -> Vec<u8> {
        let text = str::from_utf8(piece).unwrap();
        text.replace("ACCEPT", accept).into_bytes()
    }

    /// A frame with one byte.
    const WITH_FRAME: &[u8] = b"\x82\x01!";

    const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
                            Sec-WebSocket-Accept: ACCEPT\r\n\r\n";

    #[tokio::test]
    async fn the_request_is_the_signed_one_and_an_upgrade() {
        let (connected, asked) = answered(&[ACCEPTED.as_bytes()]).await;
        connected.unwrap();
        let lines: Vec<_> = asked.lines().collect();
        assert_eq!(lines[0], "GET /openTunnel?a=1%3A2&X-Amz-Signature=0 HTTP/1.1");
        for line in [
            "host: eice-1.test",
            "user-agent: tunneld/0",
            "upgrade: websocket",
            "connection: Upgrade",
            "sec-websocket-version: 13",
        ] {
            assert!(lines.contains(&line), "{line} in {asked}");
        }
        assert_eq!(lines.iter().filter(|line| line.starts_with("host:")).count(), 1);
    }

    #[tokio::test]
    async fn bytes_that_came_with_the_answer_are_the_first_of_the_websocket() {
        let (connected, _) = answered(&[&[ACCEPTED.as_bytes(), WITH_FRAME].concat()]).await;
        let message = connected.unwrap().next().await.unwrap().unwrap();
        assert_eq!(message, Message::binary(&b"!"[..]));
    }

    #[tokio::test]
    async fn a_refusals_body_is_read_though_it_comes_late_and_in_pieces() {
        let head = "HTTP/1.1 403 Forbidden\r\nx-amzn-RequestId: 1234\r\nContent-Length: 43\r\n\r\n";
        let (connected, _) = answered(&[
            head.as_bytes(),
            br#"{"ErrorCode":"AccessDenied"#,
            br#"","Message":"no"}"#,
        ])
        .await;
        let Err(Error::Refused(refused)) = connected else {
            panic!("it is refused")
        };
        assert_eq!(
            (refused.status, refused.request_id.as_deref()),
            (403, Some("1234"))
        );
        assert_eq!(refused.denial.code.as_deref(), Some("AccessDenied"));
        assert_eq!(refused.denial.message, "no");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_whose_body_never_ends_is_one() {
        let (near, mut far) = tokio::io::duplex(4 << 10);
        let request = Request::get("ws://eice-1.test/openTunnel").body(()).unwrap();
        let began = Instant::now();
        let serve = async {
            assert_eq!(far.read_u8().await.unwrap(), b'G');
            let head = b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000000\r\n\r\n<html>";
            far.write_all(head).await.unwrap();
        };
        let (upgraded, ()) = tokio::join!(upgrade(Socket::new(near), &request, "eice-1.test"), serve);
        let Err(Error::Refused(refused)) = upgraded else {
            panic!("it is refused")
        };
        assert_eq!((refused.status, refused.denial.message.as_str()), (404, "<html>"));
        assert_eq!(began.elapsed(), BODY_TIMEOUT);
    }

    #[tokio::test]
    async fn what_is_no_answer_to_this_request_is_none() {
        for answer in [
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            &ACCEPTED.replace("ACCEPT", "c29tZWJvZHkgZWxzZSdz"),
        ] {
            let (connected, _) = answered(&[answer.as_bytes()]).await;
            let Err(Error::Failed(failure)) = connected else {
                panic!("{answer}")
            };
            assert_eq!(
                (failure.reason(), failure.remedy()),
                (Reason::Unreachable, &Remedy::Retry)
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_never_answers_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connector = Connector::new(&Environment::default()).unwrap();
        let url = format!("ws://{}/openTunnel", listener.local_addr().unwrap());
        let request = Request::get(url).body(()).unwrap();
        let (connected, _held) = tokio::join!(connect(&connector, &request), listener.accept());
        let Err(Error::Failed(failure)) = connected else {
            panic!("nobody answered")
        };
        let line = failure.in_one_line();
        assert!(line.contains("no answer within 15 s"), "{line}");
    }
}
