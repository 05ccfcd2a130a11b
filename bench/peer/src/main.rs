//! Forwards local ports by the crate `aws-ssm-bridge`, until SIGTERM or until a session ends.
//!
//! ```text
//!   client ──TCP──► forwarder ──► session (aws-ssm-bridge) ══websocket══► emulator
//! ```
//!
//! The crate is used as its documentation shows: one session and one forwarder a local port. Only two things differ
//! from its defaults: any endpoint is allowed, since the emulator is not AWS, and the limit of connections. Where the
//! emulator is, and its credentials, come from the environment, which the AWS SDK reads.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use aws_ssm_bridge::documents::PortForwardingToRemoteHost;
use aws_ssm_bridge::{
    EndpointPolicy, PortForwardConfig, PortForwarder, SessionBuilder, SessionManager, ShutdownSignal,
    install_signal_handlers,
};
use clap::Parser;
use tokio::task::JoinSet;

/// More than a measurement opens at once; the crate's default is 100.
const MOST_CONNECTIONS: usize = 1_000;

/// Forward local ports to one host and port behind an instance
///
/// Prints a line with the address of each local port once connections to it are taken.
#[derive(Parser)]
struct Arguments {
    /// The instance whose agent connects to the host
    #[arg(long)]
    instance: String,

    /// The host, as the instance sees it
    #[arg(long)]
    host: String,

    /// The port on the host
    #[arg(long)]
    port: u16,

    /// How many sessions to start, each with a local port of its own
    #[arg(long, default_value_t = 1)]
    sessions: usize,

    /// Bytes per message; left out, what the crate thinks best
    #[arg(long)]
    payload: Option<usize>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_ansi(false)
        .init();
    let shutdown = ShutdownSignal::new();
    install_signal_handlers(shutdown.clone());
    let manager = SessionManager::new().await?;
    let (mut sessions, mut forwarding) = (Vec::new(), JoinSet::new());
    for _ in 0..arguments.sessions {
        let mut builder = SessionBuilder::new(&arguments.instance)
            .document(PortForwardingToRemoteHost::new(&arguments.host, arguments.port))
            .endpoint_policy(EndpointPolicy::AllowAny);
        if let Some(bytes) = arguments.payload {
            builder = builder.payload_chunk_size(bytes);
        }
        let session = Arc::new(builder.start_with(&manager).await?);
        session.wait_ready().await?;
        let forwarder = PortForwarder::bind(PortForwardConfig {
            local_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            max_connections: MOST_CONNECTIONS,
            ..PortForwardConfig::default()
        })
        .await?;
        writeln!(std::io::stdout(), "{}", forwarder.local_addr())?;
        forwarding.spawn(forwarder.forward(Arc::clone(&session), shutdown.clone()));
        sessions.push(session);
    }
    // All of them end with the first: the crate's forwarder gives the signal when its session is gone.
    while let Some(forwarded) = forwarding.join_next().await {
        forwarded??;
    }
    for session in sessions {
        if let Some(reason) = session.close_reason() {
            writeln!(std::io::stderr(), "a session ended: {reason}")?;
        }
        session.terminate().await?;
    }
    Ok(())
}
