//! The HTTP side: one path, one method, and clients that are given little and not for long.
//!
//! Any user of this machine can read the metrics on a TCP port: they tell names of tunnels and figures, and let nobody
//! in. On a Unix socket their owner alone can.

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use futures_util::future::select_all;
use http::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::{Source, exposition};
use crate::config::Listen;
use crate::socket_file::{self, Audience, SocketFile};

/// The path of the metrics.
const PATH: &str = "/metrics";

/// How long a client may take to ask and to read the answer: a scrape takes milliseconds, and Prometheus itself gives up
/// after this time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients that are served at a time: a scraper or two, and a person who looks.
const MOST_CLIENTS: usize = 16;

/// The most of a request that is read: the smallest that the HTTP library can do with.
const MOST_ASKED: usize = 8 << 10;

/// The most headers of a request: browsers send two dozen.
const MOST_HEADERS: usize = 64;

/// How long nothing is accepted after accepting failed: the cause, a want of file descriptors, passes by itself.
const PAUSE: Duration = Duration::from_millis(100);

/// The bound address, and the clients that are being served. Dropping it closes all.
#[derive(Debug)]
pub(super) struct Server {
    sockets: Vec<Socket>,
    clients: JoinSet<()>,
}

#[derive(Debug)]
enum Socket {
    Tcp(tokio::net::TcpListener),
    Unix { socket: UnixListener, _file: SocketFile },
}

/// Who may have sent a request.
#[derive(Debug, Clone, Copy)]
enum Door {
    /// Any program of this machine, also a browser that shows a page from elsewhere.
    Tcp,
    /// A program of our own user.
    Unix,
}

impl Server {
    /// Binds the whole address.
    pub(super) fn bind(listen: &Listen) -> io::Result<Self> {
        let sockets = match listen {
            Listen::Tcp(addresses) => addresses.iter().map(bind_tcp).collect::<io::Result<_>>()?,
            Listen::Unix(path) => {
                let (socket, file) =
                    socket_file::bind(path, Audience::Owner).map_err(|error| match error {
                        socket_file::BindError::Io(error) => error,
                        socket_file::BindError::Answered { .. } | socket_file::BindError::NoSocket => {
                            io::Error::new(io::ErrorKind::AddrInUse, error.to_string())
                        }
                    })?;
                vec![Socket::Unix {
                    socket: UnixListener::from_std(socket)?,
                    _file: file,
                }]
            }
        };
        Ok(Self {
            sockets,
            clients: JoinSet::new(),
        })
    }

    /// Serves whoever comes. Cancel-safe: those who came are served on, when this is called again or not.
    pub(super) async fn serve(&mut self, source: &Source) -> Infallible {
        loop {
            while self.clients.len() >= MOST_CLIENTS {
                self.clients.join_next().await;
            }
            let accepting = self.sockets.iter().map(|socket| Box::pin(socket.accept()));
            let accepted = tokio::select! {
                (accepted, _, _) = select_all(accepting) => accepted,
                Some(_) = self.clients.join_next() => continue,
            };
            match accepted {
                Ok((client, door)) => {
                    self.clients.spawn(answer(client, door, source.clone()));
                }
                Err(error) => {
                    debug!(%error, "cannot accept a reader of metrics");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

fn bind_tcp(address: &SocketAddr) -> io::Result<Socket> {
    let socket = TcpListener::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(Socket::Tcp(tokio::net::TcpListener::from_std(socket)?))
}

/// The bytes of a client.
trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

impl Socket {
    async fn accept(&self) -> io::Result<(Box<dyn Bytes>, Door)> {
        match self {
            Self::Tcp(socket) => Ok((Box::new(socket.accept().await?.0), Door::Tcp)),
            Self::Unix { socket, .. } => Ok((Box::new(socket.accept().await?.0), Door::Unix)),
        }
    }
}

/// Answers one request of a client.
async fn answer(client: Box<dyn Bytes>, door: Door, source: Source) {
    let service = service_fn(|request: Request<Incoming>| {
        let (request, _) = request.into_parts();
        let response = respond(&request, door, &source);
        ready(Ok::<_, Infallible>(response))
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MOST_ASKED)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(client), service);
    match timeout(PATIENCE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a reader of metrics was not answered"),
        Err(_) => debug!("a reader of metrics was too slow"),
    }
}

fn respond(request: &Parts, door: Door, source: &Source) -> Response<String> {
    if let Door::Tcp = door
        && !is_local(&request.headers)
    {
        return refusal(
            StatusCode::FORBIDDEN,
            "metrics are for this machine: ask by 127.0.0.1\n",
        );
    }
    if request.uri.path() != PATH {
        return refusal(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    if request.method != Method::GET {
        let mut refusal = refusal(StatusCode::METHOD_NOT_ALLOWED, "metrics are for GET\n");
        refusal
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET"));
        return refusal;
    }
    let Ok(text) = source.now().text() else {
        return refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the metrics cannot be written\n",
        );
    };
    let mut response = Response::new(text);
    let kind = HeaderValue::from_static(exposition::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn refusal(status: StatusCode, words: &str) -> Response<String> {
    let mut response = Response::new(words.to_owned());
    *response.status_mut() = status;
    response
}

/// Whether a request names this machine by an address or as `localhost`. A page from elsewhere, whose name was made to
/// lead here, has its own name in the requests that a browser lets it make and read.
fn is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST) else {
        return true;
    };
    let authority = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    authority.is_some_and(|authority| {
        let host = authority.host();
        let address = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || address
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixStream};

    use super::*;
    use crate::aws::Calls;
    use crate::config::{Config, DaemonSettings};
    use crate::daemon::{Daemon, Means};
    use crate::status::wall_clock;
    use crate::tunnel::fake;

    async fn source() -> Source {
        let config = Config {
            path: "config.toml".into(),
            daemon: DaemonSettings::default(),
            tunnels: vec![crate::config::TunnelSpec {
                autostart: false,
                ..fake::spec("db")
            }],
            defaults: Arc::default(),
        };
        let (transport, _attempts) = fake::transport();
        let transports = Arc::new(move |_: &_| Arc::clone(&transport) as _);
        Source {
            daemon: Daemon::start(config, Means::for_test(transports)).await,
            calls: Calls::default(),
            started: wall_clock(),
        }
    }

    /// Sends the bytes of a request to a server, and returns all that it answers.
    async fn asked(request: &str, door: Door) -> String {
        let (near, far) = tokio::io::duplex(1 << 20);
        let mut serving = JoinSet::new();
        serving.spawn(answer(Box::new(far), door, source().await));
        said(near, request).await
    }

    async fn said(mut socket: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
        // A server that has heard enough may close before the end of the request.
        let _ = socket.write_all(request.as_bytes()).await;
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        text
    }

    fn get(path: &str, host: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
    }

    #[tokio::test]
    async fn metrics_are_at_their_path_and_nothing_else_is_anywhere() {
        let answered = asked(&get("/metrics", "127.0.0.1:9464"), Door::Tcp).await;
        assert!(answered.starts_with("HTTP/1.1 200 OK\r\n"), "{answered}");
        assert!(
            answered.contains("\r\ncontent-type: text/plain; version=0.0.4"),
            "{answered}"
        );
        assert!(
            answered.contains("\ntunneld_tunnel_state{tunnel=\"db\",state=\"down\"} 1\n"),
            "{answered}"
        );
        let answered = asked(&get("/", "localhost:9464"), Door::Tcp).await;
        assert!(answered.starts_with("HTTP/1.1 404 "), "{answered}");
        let post = "POST /metrics HTTP/1.1\r\nHost: [::1]:9464\r\nContent-Length: 0\r\n\r\n";
        let answered = asked(post, Door::Tcp).await;
        assert!(
            answered.starts_with("HTTP/1.1 405 ") && answered.contains("\r\nallow: GET\r\n"),
            "{answered}"
        );
    }

    #[tokio::test]
    async fn a_page_from_elsewhere_reads_nothing() {
        for host in ["evil.example", "10.0.0.1:9464", "localhost.evil.example", ""] {
            let answered = asked(&get("/metrics", host), Door::Tcp).await;
            assert!(answered.starts_with("HTTP/1.1 403 "), "{host}: {answered}");
        }
        let answered = asked(&get("/metrics", "whatever"), Door::Unix).await;
        assert!(
            answered.starts_with("HTTP/1.1 200 "),
            "no browser comes by a Unix socket: {answered}"
        );
        let answered = asked("GET /metrics HTTP/1.0\r\n\r\n", Door::Tcp).await;
        assert!(answered.starts_with("HTTP/1.0 200 "), "{answered}");
    }

    #[tokio::test]
    async fn a_request_without_end_is_refused() {
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
        assert!(!asked(&long, Door::Tcp).await.contains(" 200 "));
        let many = format!(
            "GET /metrics HTTP/1.1\r\n{}\r\n",
            "X: y\r\n".repeat(MOST_HEADERS + 1)
        );
        assert!(!asked(&many, Door::Tcp).await.contains(" 200 "));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_let_go() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut serving = JoinSet::new();
        serving.spawn(answer(Box::new(far), Door::Tcp, source().await));
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn silent_clients_keep_nobody_out_for_long_and_are_bounded() {
        let listen = Listen::Tcp(vec!["127.0.0.1:0".parse().unwrap()]);
        let mut server = Server::bind(&listen).unwrap();
        let Socket::Tcp(socket) = &server.sockets[0] else {
            panic!("{server:?}")
        };
        let address = socket.local_addr().unwrap();
        let source = source().await;
        let mut silent = Vec::new();
        for _ in 0..MOST_CLIENTS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let asking = async {
            let socket = TcpStream::connect(address).await.unwrap();
            // One that leaves makes room.
            drop(silent);
            said(socket, &get("/metrics", "127.0.0.1")).await
        };
        let answered = tokio::select! {
            answered = asking => answered,
            never = server.serve(&source) => match never {},
        };
        assert!(answered.starts_with("HTTP/1.1 200 "), "{answered}");
        assert!(server.clients.len() <= MOST_CLIENTS);
    }

    #[tokio::test]
    async fn a_socket_is_for_its_owner_alone_and_is_removed_at_the_end() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        let mut server = Server::bind(&Listen::Unix(path.clone())).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let source = source().await;
        let asking = async { said(UnixStream::connect(&path).await.unwrap(), &get("/metrics", "x")).await };
        let answered = tokio::select! {
            answered = asking => answered,
            never = server.serve(&source) => match never {},
        };
        assert!(answered.starts_with("HTTP/1.1 200 "), "{answered}");
        drop(server);
        assert!(!path.exists());
    }
}
