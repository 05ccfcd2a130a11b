//! A crowd of connections, and a target for it: each is a process, because each needs a descriptor for every connection.
//!
//! ```text
//!   bench-crowd clients ══ thousands at once ══► tunneld ═══════► bench-crowd target
//!       └─ "SERVED REFUSED", then holds what is open until SIGTERM      └─ sends back what comes
//! ```

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What each connection sends and gets back: more than any one buffer on the way holds.
const PIECE: usize = 128 << 10;

/// What is copied at once: a connection has one such buffer, in this process.
const BUFFER: usize = 16 << 10;

/// Open thousands of connections at once, or take them
#[derive(Parser)]
enum Arguments {
    /// Send back what comes; prints the address
    Target,
    /// Connect, send a little on each connection and read it back, print how many were served and refused, and stay
    Clients {
        /// Where to connect
        address: SocketAddr,
        /// How often
        count: usize,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .context("cannot raise the limit of open files")?;
    match Arguments::parse() {
        Arguments::Target => serve().await,
        Arguments::Clients { address, count } => crowd(address, count).await,
    }
}

async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await?;
        connections.spawn(echo(socket));
        // What became of it shows at the other end.
        while connections.try_join_next().is_some() {}
    }
}

async fn echo(mut socket: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = socket.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        socket.write_all(&buffer[..read]).await?;
    }
}

async fn crowd(address: SocketAddr, count: usize) -> anyhow::Result<()> {
    let mut opening: JoinSet<_> = (0..count).map(|_| connect(address)).collect();
    let (mut open, mut refused) = (Vec::with_capacity(count), 0);
    while let Some(opened) = opening.join_next().await {
        match opened? {
            Ok(socket) => open.push(socket),
            Err(_) => refused += 1,
        }
    }
    writeln!(io::stdout(), "{} {refused}", open.len())?;
    std::future::pending::<()>().await;
    drop(open);
    Ok(())
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect(address).await?;
    let (mut reader, mut writer) = socket.split();
    tokio::try_join!(send(&mut writer), receive(&mut reader))?;
    Ok(socket)
}

async fn send(writer: &mut WriteHalf<'_>) -> io::Result<()> {
    for _ in 0..PIECE / BUFFER {
        writer.write_all(&[7; BUFFER]).await?;
    }
    Ok(())
}

async fn receive(reader: &mut ReadHalf<'_>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut left = PIECE;
    while left > 0 {
        let read = reader.read(&mut buffer).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= read.min(left);
    }
    Ok(())
}
