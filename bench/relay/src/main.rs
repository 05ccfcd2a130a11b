//! Relays each connection to a local port through an EC2 Instance Connect Endpoint, until SIGTERM.
//!
//! ```text
//!   client ──TCP──► relay ══websocket over TLS══► endpoint ──TCP──► target
//!            a read is a frame            a frame is a write
//! ```
//!
//! It is as little as such a program can be: no pings, no limits in time, no slots, and no word about how a connection
//! ended. What it shares with tunneld are the libraries, the largest frame, the buffers of the websocket and that it
//! has one thread; so what differs is what tunneld adds. It goes to one address, whatever the name of the endpoint is.
//! Where that is, whom to trust, and its credentials come from the environment, as the emulator prints it.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use bytes::BytesMut;
use clap::Parser;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use http::Uri;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tunneld_wire::eice::{LARGEST_FRAME, LARGEST_FRAME_TAKEN, Opening, encoded};

/// The name of the service in a signature.
const SERVICE: &str = "ec2-instance-connect";
/// How long a signature is good for: what the official client gives it.
const LIFETIME: Duration = Duration::from_secs(60);

/// Relay a local port to a port of an instance through an endpoint
///
/// Prints a line with the address of the local port once connections to it are taken.
#[derive(Parser)]
struct Arguments {
    /// The endpoint's id
    #[arg(long)]
    endpoint: String,

    /// The endpoint's name, which is signed
    #[arg(long)]
    name: String,

    /// The instance's private address
    #[arg(long)]
    address: String,

    /// The port of the instance
    #[arg(long)]
    port: u16,

    /// Where the endpoint really is: a wss URL with an address and a port
    #[arg(long, env = "TUNNELD_ENDPOINT_URL_EICE")]
    url: Uri,

    /// A PEM file with the authority to trust
    #[arg(long, env = "AWS_CA_BUNDLE")]
    authority: PathBuf,

    #[arg(long, env = "AWS_REGION")]
    region: String,

    #[arg(long, env = "AWS_ACCESS_KEY_ID")]
    access_key_id: String,

    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true)]
    secret_access_key: String,
}

// One thread, as tunneld has.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let connector = connector(&arguments.authority).context("cannot use the authority's certificate")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
    let relay = Arc::new(Relay { arguments, connector });
    let mut relaying = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted?;
                let relay = Arc::clone(&relay);
                relaying.spawn(async move { relay.relay(client).await });
            }
            Some(relayed) = relaying.join_next() => {
                if let Err(error) = relayed? {
                    writeln!(std::io::stderr(), "{error:#}")?;
                }
            }
        }
    }
}

fn connector(authority: &Path) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority)? {
        roots.add(certificate?)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

struct Relay {
    arguments: Arguments,
    connector: TlsConnector,
}

impl Relay {
    /// Relays a connection until either side ends: a websocket has no half-close.
    async fn relay(&self, client: TcpStream) -> anyhow::Result<()> {
        client.set_nodelay(true)?;
        let url = &self.arguments.url;
        let (host, port) = url
            .host()
            .zip(url.port_u16())
            .context("the URL has no address and port")?;
        let socket = TcpStream::connect((host, port)).await?;
        socket.set_nodelay(true)?;
        let socket = self
            .connector
            .connect(ServerName::try_from(host.to_owned())?, socket)
            .await
            .context("no TLS")?;
        let config = WebSocketConfig::default()
            .read_buffer_size(LARGEST_FRAME)
            .write_buffer_size(LARGEST_FRAME)
            .max_message_size(Some(LARGEST_FRAME_TAKEN))
            .max_frame_size(Some(LARGEST_FRAME_TAKEN));
        let request = self.signed()?.into_client_request()?;
        let (socket, _) = client_async_with_config(request, socket, Some(config))
            .await
            .context("no websocket")?;
        let (mut sink, mut stream) = socket.split();
        let (mut reader, mut writer) = client.into_split();
        tokio::select! {
            ended = carry_up(&mut reader, &mut sink) => ended?,
            ended = carry_down(&mut stream, &mut writer) => ended?,
        }
        // The other side may have closed it.
        sink.close().await.ok();
        Ok(())
    }

    /// Returns the URL that opens a connection, signed for the endpoint's name.
    fn signed(&self) -> anyhow::Result<String> {
        let Arguments {
            endpoint,
            name,
            address,
            port,
            region,
            access_key_id,
            secret_access_key,
            ..
        } = &self.arguments;
        let opening = Opening {
            endpoint,
            port: *port,
            address,
            duration: None,
        };
        let mut url = format!("wss://{name}{}", opening.target());
        let mut settings = SigningSettings::default();
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(LIFETIME);
        let identity = Credentials::from_keys(access_key_id, secret_access_key, None).into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name(SERVICE)
            .time(SystemTime::now())
            .settings(settings)
            .build()?
            .into();
        let request = SignableRequest::new("GET", &url, std::iter::empty(), SignableBody::Bytes(b""))?;
        let (instructions, _) = sign(request, &parameters)?.into_parts();
        for (name, value) in instructions.params() {
            url = format!("{url}&{name}={}", encoded(value));
        }
        Ok(url)
    }
}

/// Carries what the client sends until its end; each read is a frame.
async fn carry_up(
    reader: &mut OwnedReadHalf,
    sink: &mut (impl Sink<Message, Error = Error> + Unpin),
) -> anyhow::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(LARGEST_FRAME);
        if reader.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        sink.send(Message::Binary(buffer.split().freeze())).await?;
    }
}

/// Carries what the endpoint sends until its end.
async fn carry_down(
    stream: &mut (impl Stream<Item = Result<Message, Error>> + Unpin),
    writer: &mut OwnedWriteHalf,
) -> anyhow::Result<()> {
    while let Some(message) = stream.next().await {
        if let Message::Binary(bytes) = message? {
            writer.write_all(&bytes).await?;
        }
    }
    Ok(())
}
