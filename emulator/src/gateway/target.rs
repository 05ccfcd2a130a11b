//! The agent's side of one stream: a TCP connection to the target.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tunneld_wire::smux::StreamId;

use crate::conditions::{Conditions, Dials};

/// Reads of one target that wait in the session.
const READS: usize = 8;
/// Bytes of one read.
const LONGEST_READ: usize = 32_768;
/// Pieces for a target that are written together, so that a client's small messages cost no system call each.
const PIECES_AT_ONCE: usize = 256;
/// Pieces a second that a slow target takes, so that a rate is smooth.
const PIECES: u64 = 20;

/// What a target did.
pub(super) enum Report {
    /// It sent bytes; the permit comes back once the session has sent them.
    Read {
        id: StreamId,
        bytes: Bytes,
        permit: OwnedSemaphorePermit,
    },
    /// It took that many bytes.
    Wrote { id: StreamId, length: usize },
    /// It is gone: it closed, failed, or had nothing more to take.
    Closed(StreamId),
}

/// Connects to a target, under the conditions for that.
pub(super) async fn dial(
    address: Option<SocketAddr>,
    mut conditions: watch::Receiver<Arc<Conditions>>,
) -> io::Result<TcpStream> {
    let delay = conditions.borrow().agent.dial_delay;
    sleep(delay).await;
    let refuses = conditions
        .wait_for(|conditions| conditions.agent.dials != Dials::BlackHole)
        .await
        .map_err(io::Error::other)?
        .agent
        .dials
        == Dials::Refuse;
    if refuses {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let address = address.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "missing address"))?;
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Moves bytes until either side ends; then the target is closed fully, as the official agent does (ssm.md section
/// 6.3). `outgoing` ends when the client has.
pub(super) async fn serve(
    id: StreamId,
    socket: TcpStream,
    mut outgoing: mpsc::UnboundedReceiver<Bytes>,
    reports: mpsc::Sender<Report>,
    mut conditions: watch::Receiver<Arc<Conditions>>,
) {
    let (mut reader, mut writer) = socket.into_split();
    let reads = async {
        let permits = Arc::new(Semaphore::new(READS));
        let mut buffer = BytesMut::new();
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            buffer.reserve(LONGEST_READ);
            match reader.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let bytes = buffer.split().freeze();
            if reports.send(Report::Read { id, bytes, permit }).await.is_err() {
                return;
            }
        }
    };
    let writes = async {
        let mut pieces = Vec::new();
        while outgoing.recv_many(&mut pieces, PIECES_AT_ONCE).await > 0 {
            let bytes = joined(&mut pieces);
            let length = bytes.len();
            let written = write(&mut writer, bytes, &mut conditions).await;
            // The relay is gone: so is the session.
            let told = reports.send(Report::Wrote { id, length }).await;
            if written.is_err() || told.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = reads => {}
        () = writes => {}
    }
    let _ = reports.send(Report::Closed(id)).await;
}

/// Takes all pieces as one.
fn joined(pieces: &mut Vec<Bytes>) -> Bytes {
    let joined = match pieces.as_slice() {
        [alone] => alone.clone(),
        several => several.concat().into(),
    };
    pieces.clear();
    joined
}

/// Writes as fast as the conditions let the target take it.
async fn write(
    writer: &mut OwnedWriteHalf,
    mut bytes: Bytes,
    conditions: &mut watch::Receiver<Arc<Conditions>>,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let rate = conditions.borrow_and_update().agent.target_rate;
        match rate {
            None => return writer.write_all(&bytes).await,
            Some(0) => conditions.changed().await.map_err(io::Error::other)?,
            Some(rate) => {
                let piece = usize::try_from((rate / PIECES).max(1)).unwrap_or(usize::MAX);
                let piece = bytes.split_to(piece.min(bytes.len()));
                writer.write_all(&piece).await?;
                let pause = Duration::from_secs_f64(piece.len() as f64 / rate as f64);
                // A change ends the pause.
                let _ = timeout(pause, conditions.changed()).await;
            }
        }
    }
    Ok(())
}
