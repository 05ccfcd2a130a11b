//! `tunnelctl rdp`: a local port that leads to an instance's desktop, and the system's client for it.

use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tunneld_proto::v1::Opening;

use crate::cli::remote::{Rdp, Reach};
use crate::client::Client;
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::remote::foreground;
use crate::remote::pipe::Pipe;

/// The port of RDP.
const RDP_PORT: u16 = 3389;

/// How many connections there may be at a time: a client opens one or two.
const MOST_CONNECTIONS: usize = 64;

/// Serves the local port as long as the client runs, or until Ctrl-C.
pub(super) async fn run(told: &Rdp, client: &mut Client, output: &Output) -> Result<ExitCode, Error> {
    let resolved = client
        .resolve(told.reach.question(&told.instance, RDP_PORT))
        .await?;
    // A client that connects again is to meet the same desktop.
    let destination = Destination {
        reach: Reach {
            route: Some(resolved.route),
            ..told.reach.clone()
        },
        instance: resolved.id,
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, told.port.unwrap_or_default()));
    let unbound = |error: std::io::Error| {
        Error::new(Exit::MustAct, format!("cannot listen on {address}")).because(error.to_string())
    };
    let listener = TcpListener::bind(address).await.map_err(unbound)?;
    let address = listener.local_addr().map_err(unbound)?;
    let serving = serve(&listener, &destination, client, output);

    let candidates = candidates(address, &told.arguments);
    let mut started = None;
    if !told.print {
        for mut command in candidates.iter().map(Candidate::command) {
            started = foreground::start(&mut command)?;
            if started.is_some() {
                break;
            }
        }
    }
    if let Some(child) = started {
        return tokio::select! {
            code = foreground::wait(&child) => code,
            error = serving => Err(error),
        };
    }
    output.answer(&candidates.first().map(Candidate::line).unwrap_or_default())?;
    if !told.print {
        output.talk("there is no RDP client on this machine: install the package freerdp2-x11 or remmina");
    }
    output.talk(&format!("{address} leads to {} until Ctrl-C", told.instance));
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.map_err(|error| Error::failed("cannot wait for Ctrl-C").because(error.to_string()))?;
            Ok(ExitCode::SUCCESS)
        }
        error = serving => Err(error),
    }
}

/// Where connections go.
struct Destination {
    reach: Reach,
    instance: String,
}

/// Serves connections for ever. One that fails ends alone.
async fn serve(listener: &TcpListener, to: &Destination, client: &Client, output: &Output) -> Error {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MOST_CONNECTIONS => match accepted {
                Ok((socket, _)) => {
                    let opening = to.reach.opening(&to.instance, RDP_PORT);
                    connections.spawn(carry(client.socket().to_owned(), opening, socket, *output));
                }
                Err(error) => return Error::failed("cannot accept a connection").because(error.to_string()),
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries a connection. One that fails is told of, and ends by a reset, so that it cannot pass for one that is complete.
async fn carry(daemon: PathBuf, opening: Opening, mut socket: TcpStream, output: Output) {
    // Refused by a socket that is gone already.
    let _ = socket.set_nodelay(true);
    let carried = async {
        // A call on a connection of its own, so that no desktop fills the window of another.
        let mut client = Client::quietly(Some(&daemon)).await?;
        let pipe = Pipe::open(&mut client, opening).await?;
        let (input, output) = socket.split();
        pipe.carry(input, output).await
    };
    if let Err(error) = carried.await {
        error.signed().tell(&output);
        let _ = rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
    }
}

/// A program that shows desktops, and how it is told of one.
struct Candidate {
    program: &'static str,
    arguments: Vec<OsString>,
}

impl Candidate {
    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command.args(&self.arguments);
        command
    }

    /// Returns the command as a person types it.
    fn line(&self) -> String {
        let arguments = self.arguments.iter().map(|argument| argument.to_string_lossy());
        std::iter::once(self.program.into())
            .chain(arguments)
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// Returns the clients to try, the best first.
fn candidates(address: SocketAddr, more: &[OsString]) -> Vec<Candidate> {
    let with = |program, first: &[&str]| Candidate {
        program,
        arguments: first
            .iter()
            .map(OsStr::new)
            .chain(more.iter().map(OsString::as_os_str))
            .map(OsStr::to_owned)
            .collect(),
    };
    if cfg!(target_os = "macos") {
        return vec![with("open", &[&format!("rdp://full%20address=s:{address}")])];
    }
    // The certificate of an instance is its own, and no authority's; what lies before it is authenticated.
    let freerdp = |program| with(program, &[&format!("/v:{address}"), "/cert:tofu"]);
    vec![
        freerdp("xfreerdp3"),
        freerdp("xfreerdp"),
        freerdp("wlfreerdp"),
        with("remmina", &["-c", &format!("rdp://{address}")]),
    ]
}
