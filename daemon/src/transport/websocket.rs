//! One websocket: the connection, the upgrade, and the limits on what comes in.
//!
//! Each message goes out as one unfragmented frame, which is how tungstenite writes every message, and without
//! compression, which it does not have.

use std::time::Duration;

use http::header::{CONNECTION, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{Request, StatusCode};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::handshake::client::{Response, generate_key};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use tunneld_wire::text::in_one_line;

use crate::connector::{Connector, Socket};
use crate::failure::{Failure, Reason, Remedy};

/// The longest that connection and upgrade may take together. The official client waits 45 s; a healthy upgrade takes
/// well under one, and the sooner a dead network is noticed, the sooner the next attempt finds a living one.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// The largest message taken in. Official agents send 1,024 bytes at a time, and 142,000 is the most that they name for a
/// message of any kind (ssm.md section 6.6); more is a hostile far end's, whose messages fill the memory until they are
/// whole.
const MAX_MESSAGE_SIZE: usize = 256 << 10;

/// What is read at once. The library clears a buffer of this size before each read, and most reads are acknowledgements.
const READ_BUFFER: usize = 16 << 10;

/// What is written without being asked to: more than whoever writes lets wait, so that flushing alone writes.
const WRITE_BUFFER: usize = 256 << 10;

/// What AWS says of a data channel whose session has ended since it was asked for. It refuses with the same status who
/// may not open one.
const ENDED: &str = "Session is already terminated";

/// The most characters of a refusal's body that are shown.
const SHOWN_BODY: usize = 200;

/// Opens a websocket with a `ws` or `wss` request. What the request has already, a signature above all, stays as it is.
pub(crate) async fn connect(
    connector: &Connector,
    request: Request<()>,
) -> Result<WebSocketStream<Socket>, Failure> {
    let host = request.uri().host().unwrap_or_default().to_owned();
    let doing = format!("cannot open a websocket to `{host}`");
    let unreachable = || Failure::new(Reason::Unreachable, Remedy::Retry, &doing);
    tokio::select! {
        upgraded = timeout(HANDSHAKE_TIMEOUT, upgrade(connector, request, &doing)) => upgraded.unwrap_or_else(|_| {
            let problem = format!("no answer within {} s", HANDSHAKE_TIMEOUT.as_secs());
            Err(unreachable().because(problem))
        }),
        stranded = connector.stranded() => Err(unreachable().because(stranded)),
    }
}

async fn upgrade(
    connector: &Connector,
    mut request: Request<()>,
    doing: &str,
) -> Result<WebSocketStream<Socket>, Failure> {
    let key = HeaderValue::from_str(&generate_key()).expect("base64 is a header value");
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(SEC_WEBSOCKET_KEY, key);

    let socket = connector.connect(request.uri()).await?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(Some(MAX_MESSAGE_SIZE))
        .max_frame_size(Some(MAX_MESSAGE_SIZE));
    match client_async_with_config(request, socket, Some(config)).await {
        Ok((stream, _)) => Ok(stream),
        Err(Error::Http(response)) => Err(refused(doing, &response)),
        Err(error) => Err(Failure::new(Reason::Unreachable, Remedy::Retry, doing).because(error)),
    }
}

fn refused(doing: &str, response: &Response) -> Failure {
    let status = response.status();
    let body = response.body().as_deref().unwrap_or_default();
    let said = in_one_line(&String::from_utf8_lossy(body), SHOWN_BODY);
    let asked = response.headers().get(RETRY_AFTER);
    let retry = Remedy::after(asked.and_then(|seconds| seconds.to_str().ok()));
    let failure = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if said.contains(ENDED) => {
            Failure::new(Reason::Unreachable, Remedy::Retry, doing)
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::new(Reason::Denied, Remedy::Fix, doing)
            .hint("ask for a policy that allows `ssmmessages:OpenDataChannel`")
            .hint("check the clock of this machine: timedatectl"),
        StatusCode::TOO_MANY_REQUESTS => Failure::new(Reason::Throttled, retry, doing),
        _ => Failure::new(Reason::Unreachable, retry, doing),
    };
    let said = if said.is_empty() {
        String::new()
    } else {
        format!(": {said}")
    };
    failure
        .because(format!("the server answered {status}{said}"))
        .answered()
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::handshake::server;

    use super::*;
    use crate::connector::Environment;

    fn connector() -> Connector {
        Connector::new(&Environment::default()).unwrap()
    }

    async fn listener() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!(
            "ws://{}/v1/data-channel/s?cell-number=A+b/c==",
            listener.local_addr().unwrap()
        );
        (listener, url)
    }

    fn request(url: &str) -> Request<()> {
        Request::get(url)
            .header("host", "signed.example")
            .header("authorization", "AWS4 x")
            .body(())
            .unwrap()
    }

    /// Answers one request with these bytes; returns what connecting came to.
    async fn answered_with(answer: &[u8]) -> Failure {
        let (listener, url) = listener().await;
        let connector = connector();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert_ne!(stream.read(&mut request).await.unwrap(), 0);
            stream.write_all(answer).await.unwrap();
        };
        tokio::join!(connect(&connector, request(&url)), serve)
            .0
            .err()
            .unwrap()
    }

    #[tokio::test]
    async fn the_upgrade_keeps_url_and_signed_headers_as_they_are() {
        let (listener, url) = listener().await;
        let (tell, told) = tokio::sync::oneshot::channel();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            #[expect(clippy::result_large_err, reason = "tungstenite's own type")]
            let look = |request: &server::Request, response: server::Response| {
                let header = |name| request.headers()[name].to_str().unwrap().to_owned();
                tell.send((request.uri().to_string(), header("host"), header("authorization")))
                    .unwrap();
                Ok(response)
            };
            let mut stream = tokio_tungstenite::accept_hdr_async(stream, look).await.unwrap();
            stream.next().await.unwrap().unwrap()
        };
        let connector = connector();
        let talk = async {
            let mut stream = connect(&connector, request(&url)).await.unwrap();
            stream.send(Message::binary(vec![7; 100_000])).await.unwrap();
        };
        let (message, ()) = tokio::join!(serve, talk);
        assert_eq!(message, Message::binary(vec![7; 100_000]));
        let (target, host, authorization) = told.await.unwrap();
        assert_eq!(target, "/v1/data-channel/s?cell-number=A+b/c==");
        assert_eq!(
            (host.as_str(), authorization.as_str()),
            ("signed.example", "AWS4 x")
        );
    }

    #[tokio::test]
    async fn a_message_beyond_the_limit_is_an_error() {
        let (listener, url) = listener().await;
        let connector = connector();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = tokio_tungstenite::accept_async(stream).await.unwrap();
            // The client gives up as soon as it has read the length.
            drop(stream.send(Message::binary(vec![0; MAX_MESSAGE_SIZE + 1])).await);
        };
        let talk = async {
            connect(&connector, request(&url))
                .await
                .unwrap()
                .next()
                .await
                .unwrap()
        };
        let (outcome, ()) = tokio::join!(talk, serve);
        assert!(matches!(outcome, Err(Error::Capacity(_))), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_refusal_is_told_with_its_status_and_the_start_of_its_body() {
        let long = "x".repeat(1000);
        let answer = format!(
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 1030\r\n\r\n<a>The signature\r\n\x1b[1mis wrong</a>{long}"
        );
        let failure = answered_with(answer.as_bytes()).await;
        assert_eq!(
            (failure.reason(), failure.remedy()),
            (Reason::Denied, &Remedy::Fix)
        );
        let cause = &failure.chain()[1];
        assert!(
            cause.starts_with("the server answered 403 Forbidden: <a>The signature [1mis wrong</a>xx"),
            "{cause}"
        );
        assert!(cause.len() < 300, "{cause}");
    }

    #[tokio::test]
    async fn a_server_in_trouble_is_worth_a_retry() {
        for (answer, reason, is_answered) in [
            (
                "HTTP/1.1 503 Service Unavailable\r\n\r\n",
                Reason::Unreachable,
                true,
            ),
            ("HTTP/1.1 429 Too Many Requests\r\n\r\n", Reason::Throttled, true),
            ("HTTP/1.1 200 OK\r\n\r\nhello", Reason::Unreachable, true),
            (
                "HTTP/1.1 403 Forbidden\r\nContent-Length: 43\r\n\r\n{\"message\":\"Session is already terminated\"}",
                Reason::Unreachable,
                true,
            ),
            ("SSH-2.0-OpenSSH\r\n", Reason::Unreachable, false),
            ("", Reason::Unreachable, false),
        ] {
            let failure = answered_with(answer.as_bytes()).await;
            assert_eq!(
                (failure.reason(), failure.remedy(), failure.is_answered()),
                (reason, &Remedy::Retry, is_answered),
                "{answer}"
            );
        }
        let answer = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\n\r\n";
        let failure = answered_with(answer.as_bytes()).await;
        assert_eq!(failure.remedy(), &Remedy::RetryAfter(Duration::from_secs(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_answers_is_given_up() {
        let (listener, url) = listener().await;
        let (connector, request) = (connector(), request(&url));
        let (outcome, _held) = tokio::join!(connect(&connector, request), listener.accept());
        let failure = outcome.err().unwrap();
        assert_eq!(failure.reason(), Reason::Unreachable);
        assert!(
            failure.in_one_line().contains("no answer within 20 s"),
            "{}",
            failure.in_one_line()
        );
    }
}
