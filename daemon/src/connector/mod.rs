//! The one way out to AWS: used by the SDK's clients and by the websockets alike.
//!
//! ```text
//!   destination ──► proxy? ──no──► TCP ────────────► TLS? ──► Socket
//!                     └───yes────► TCP ─► CONNECT ──►┘
//! ```
//!
//! Trust is the operating system's, by its own verifier. When AWS_CA_BUNDLE names a PEM file, the certificates in it
//! are trusted *instead*, as in the AWS CLI: who sets it says exactly whom to trust.
//!
//! Nothing here logs a URL: the query of a websocket's carries credentials.

mod environment;
mod proxy;
mod tcp;
mod tls;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::proxy::matcher::Intercept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::sleep;

pub use self::environment::Environment;
pub(crate) use self::proxy::is_loopback;
use self::proxy::{Proxies, Refusal};
pub(crate) use self::tcp::connect as connect_tcp;
use self::tls::Trust;
use crate::failure::{Cause, Failure, Reason, Remedy};

/// Makes connections: through the proxies and with the trust of an [`Environment`]. Clones share both.
#[derive(Clone)]
pub struct Connector {
    inner: Arc<Inner>,
}

struct Inner {
    proxies: Proxies,
    trust: Trust,
    /// Told when the network is another than before.
    network: watch::Sender<()>,
}

/// How long an answer may still take when the network has changed since the question. One that is on its way over a
/// network that lives takes less; one that is not would be waited for until its time limit.
const STRANDED: Duration = Duration::from_secs(1);

impl Connector {
    /// Reads proxies and trust from the environment. What is set but cannot be used is a failure.
    pub fn new(environment: &Environment) -> Result<Self, Failure> {
        Ok(Self {
            inner: Arc::new(Inner {
                proxies: Proxies::new(environment)?,
                trust: Trust::new(environment)?,
                network: watch::Sender::new(()),
            }),
        })
    }

    /// The machine woke, or its network is another than before.
    pub(crate) fn network_changed(&self) {
        self.inner.network.send_replace(());
    }

    /// Resolves when whoever waits for an answer since the call had better ask again: the network has changed, and no
    /// answer came soon after that.
    pub(crate) async fn stranded(&self) -> Failure {
        // The sender lives as long as this.
        let _ = self.inner.network.subscribe().changed().await;
        sleep(STRANDED).await;
        let doing = "the network changed, and no answer came over the former one";
        Failure::new(Reason::Unreachable, Remedy::Retry, doing)
    }

    /// Connects to where an `http`, `ws`, `https` or `wss` URL points, with TLS for the last two.
    pub(crate) async fn connect(&self, uri: &Uri) -> Result<Socket, Failure> {
        let destination = Destination::of(uri)?;
        let Destination { host, port, .. } = &destination;
        let doing = format!("cannot connect to `{}`", authority(host, *port));
        let socket = match self.inner.proxies.for_destination(&destination.as_http()) {
            None => Socket::new(
                tcp::connect(host, *port)
                    .await
                    .map_err(|error| unreachable(&doing, error))?,
            ),
            Some(proxy) => self.through(&proxy, &destination).await?,
        };
        if destination.encrypted {
            self.encrypt(socket, host, &doing).await
        } else {
            Ok(socket)
        }
    }

    async fn through(&self, proxy: &Intercept, destination: &Destination) -> Result<Socket, Failure> {
        let Destination { host, port, .. } = destination;
        let hop = Destination::of(proxy.uri())?;
        let name = authority(&hop.host, hop.port);
        let doing = format!(
            "cannot connect to `{}` through the proxy `{name}`",
            authority(host, *port)
        );
        let mut socket = Socket::new(
            tcp::connect(&hop.host, hop.port)
                .await
                .map_err(|error| unreachable(&doing, error))?,
        );
        if hop.encrypted {
            socket = self.encrypt(socket, &hop.host, &doing).await?;
        }
        proxy::tunnel(socket, proxy, host, *port)
            .await
            .map_err(|refusal| refused(&doing, refusal))
    }

    async fn encrypt(&self, socket: Socket, host: &str, doing: &str) -> Result<Socket, Failure> {
        self.inner.trust.encrypt(socket, host, doing).await
    }
}

/// A connection, over whatever layers it needed.
pub(crate) struct Socket(Box<dyn Duplex>);

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<D: AsyncRead + AsyncWrite + Send + Unpin> Duplex for D {}

impl Socket {
    pub(crate) fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Box::new(stream))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// `host:port`, with the brackets that an IPv6 address needs.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Where a URL points.
struct Destination {
    /// Name or address, without brackets.
    host: String,
    port: u16,
    encrypted: bool,
}

impl Destination {
    fn of(uri: &Uri) -> Result<Self, Failure> {
        let invalid = |doing: &str| Failure::new(Reason::Invalid, Remedy::Fix, doing);
        let (encrypted, usual_port) = match uri.scheme_str() {
            Some("https" | "wss") => (true, 443),
            Some("http" | "ws") => (false, 80),
            _ => {
                return Err(invalid(
                    "a URL to connect to must begin with http, https, ws or wss",
                ));
            }
        };
        let host = uri
            .host()
            .ok_or_else(|| invalid("a URL to connect to must name a host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self {
            host,
            port: uri.port_u16().unwrap_or(usual_port),
            encrypted,
        })
    }

    /// The destination as the proxy rules know it: they speak of http and https only.
    fn as_http(&self) -> Uri {
        let scheme = if self.encrypted { "https" } else { "http" };
        format!("{scheme}://{}", authority(&self.host, self.port))
            .parse()
            .expect("host and port came out of a URL")
    }
}

fn unreachable(doing: &str, cause: impl Into<Cause>) -> Failure {
    Failure::new(Reason::Unreachable, Remedy::Retry, doing).because(cause)
}

fn refused(doing: &str, refusal: Refusal) -> Failure {
    match &refusal {
        Refusal::Answered(http::StatusCode::PROXY_AUTHENTICATION_REQUIRED) => {
            Failure::new(Reason::Denied, Remedy::Fix, doing)
                .hint("export HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT")
                .because(refusal)
        }
        Refusal::Answered(_) | Refusal::Broken(_) => unreachable(doing, refusal),
    }
}

#[cfg(test)]
mod tests;
