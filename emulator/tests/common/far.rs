//! An account with one instance, behind whose agent a small TCP server answers.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tunneld_emulator::{Config, Emulator};

use super::Caller;

pub(crate) const INSTANCE: &str = "i-0123456789abcdef0";

/// Ports of the instance, and what listens there.
pub(crate) const ECHO: u16 = 7;
/// Sends an endless stream in which each eight bytes are their own number.
pub(crate) const SOURCE: u16 = 19;
/// Reads everything, and says at the end how many bytes that were, as text.
pub(crate) const SINK: u16 = 9;

/// An emulator with its targets. Dropped, all of them end.
pub(crate) struct Far {
    pub(crate) emulator: Emulator,
    pub(crate) caller: Caller,
    _targets: JoinSet<()>,
}

impl Far {
    /// Starts everything; `agent` is the kind of the instance's agent.
    pub(crate) async fn start(agent: &str) -> Self {
        Self::start_with(&format!("agent = \"{agent}\"")).await
    }

    /// Starts everything, with a fast agent of that version.
    pub(crate) async fn of_version(version: &str) -> Self {
        Self::start_with(&format!("agent = \"fast\", version = \"{version}\"")).await
    }

    async fn start_with(agent: &str) -> Self {
        let mut targets = JoinSet::new();
        let mut ports = Vec::new();
        for port in [ECHO, SOURCE, SINK] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address: SocketAddr = listener.local_addr().expect("an address");
            ports.push(format!("{port} = \"{address}\""));
            targets.spawn(accept(listener, port));
        }
        let account = format!(
            "[[instances]]\nid = \"{INSTANCE}\"\nssm = {{ {agent} }}\nports = {{ {} }}",
            ports.join(", ")
        );
        let config = Config::parse(&account).expect("a good configuration");
        let emulator = Emulator::start(config).await.expect("the emulator starts");
        let caller = Caller::of(&emulator);
        Self {
            emulator,
            caller,
            _targets: targets,
        }
    }
}

/// Returns so many bytes of what [`SOURCE`] sends.
pub(crate) fn source_bytes(length: usize) -> Vec<u8> {
    let numbers = (0_u64..).flat_map(u64::to_be_bytes);
    numbers.take(length).collect()
}

async fn accept(listener: TcpListener, port: u16) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        connections.spawn(answer(tcp, port));
    }
}

/// Whoever leaves early has had enough.
async fn answer(mut tcp: TcpStream, port: u16) {
    let (mut reader, mut writer) = tcp.split();
    match port {
        ECHO => {
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        }
        SOURCE => {
            let mut next = 0_u64;
            loop {
                let piece: Vec<u8> = (next..next + 4_096).flat_map(u64::to_be_bytes).collect();
                if writer.write_all(&piece).await.is_err() {
                    return;
                }
                next += 4_096;
            }
        }
        _ => {
            let mut buffer = vec![0; 65_536];
            while let Ok(1..) = reader.read(&mut buffer).await {}
        }
    }
}
