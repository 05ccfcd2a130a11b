//! A proxy by CONNECT whose every destination is the emulator itself: for clients whose port 443 is fixed, such as the
//! official AWS CLI where it opens a tunnel.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::socket::ClientSocket;

/// How a request for a proxy begins.
pub(crate) const METHOD: &[u8] = b"CONNECT ";

/// Longest head of such a request: a name of 255 characters, and the credentials that some clients add.
const LONGEST_HEAD: usize = 8 << 10;

/// Answers a request for a proxy; what follows on the socket is for the emulator.
pub(crate) async fn connect(socket: &mut ClientSocket) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == LONGEST_HEAD {
            return refuse(socket, "431 Request Header Fields Too Large").await;
        }
        // Not a byte more: the next ones are for somebody else. It is a few hundred, once a connection.
        head.push(socket.read_u8().await?);
    }
    let destination = head.strip_prefix(METHOD).unwrap_or_default();
    let destination = destination.split(|byte| *byte == b' ').next().unwrap_or_default();
    if !destination.ends_with(b":443") {
        return refuse(socket, "403 Forbidden").await;
    }
    socket
        .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        .await
}

async fn refuse(socket: &mut ClientSocket, status: &str) -> io::Result<()> {
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    socket.write_all(answer.as_bytes()).await?;
    socket.shutdown().await?;
    Err(io::Error::new(io::ErrorKind::InvalidInput, status.to_owned()))
}
