//! The agent's side of one stream: a TCP connection to the target.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tunneld_wire::smux::StreamId;

/// Reads of one target that wait in the session.
const READS: usize = 8;
/// Bytes of one read.
const LONGEST_READ: usize = 32_768;

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

/// Connects to a target.
pub(super) async fn dial(address: Option<SocketAddr>) -> io::Result<TcpStream> {
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
        while let Some(bytes) = outgoing.recv().await {
            let written = writer.write_all(&bytes).await;
            // The relay is gone: so is the session.
            let told = reports
                .send(Report::Wrote {
                    id,
                    length: bytes.len(),
                })
                .await;
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
