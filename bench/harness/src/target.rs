//! The far end of all tunnels: a server that each connection tells what to be.
//!
//! ```text
//!   the client's first nine bytes     what follows
//!   D and a length, u64 big-endian    the server sends that many bytes of the pattern
//!   U and a length                    the client sends them, and gets one byte once all have come as they should
//!   E and 0                           whatever the client sends comes back
//! ```

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;

use crate::pattern;

/// What a connection asks the server to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Send this many bytes.
    Download(u64),
    /// Take this many bytes.
    Upload(u64),
    /// Send back whatever comes.
    Echo,
}

/// The bytes of a wish.
const WISH: usize = 9;
/// What the server says when an upload has come wholly and rightly.
pub(crate) const RECEIPT: [u8; 1] = *b"!";

impl Wish {
    pub(crate) fn encode(self) -> [u8; WISH] {
        let (kind, length) = match self {
            Self::Download(length) => (b'D', length),
            Self::Upload(length) => (b'U', length),
            Self::Echo => (b'E', 0),
        };
        let mut bytes = [kind; WISH];
        bytes[1..].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    fn decode(bytes: [u8; WISH]) -> Option<Self> {
        let [kind, length @ ..] = bytes;
        let length = u64::from_be_bytes(length);
        match kind {
            b'D' => Some(Self::Download(length)),
            b'U' => Some(Self::Upload(length)),
            b'E' => Some(Self::Echo),
            _ => None,
        }
    }
}

/// Serves on a free port of loopback, which it returns, until the process ends.
pub(crate) fn start() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            // Whoever is at the other end sees what became of it.
            thread::spawn(move || drop(serve(socket)));
        }
    });
    Ok(address)
}

fn serve(mut socket: TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut wish = [0; WISH];
    socket.read_exact(&mut wish)?;
    match Wish::decode(wish) {
        Some(Wish::Download(length)) => send(&mut socket, length, |_| true),
        Some(Wish::Upload(length)) => {
            receive(&mut socket, length, |_| true)?;
            socket.write_all(&RECEIPT)
        }
        Some(Wish::Echo) => io::copy(&mut socket.try_clone()?, &mut socket).map(drop),
        None => Err(ErrorKind::InvalidData.into()),
    }
}

/// Sends the pattern's first bytes. `progress` is called with how many have gone; `false` ends it.
pub(crate) fn send(socket: &mut TcpStream, length: u64, progress: impl Fn(u64) -> bool) -> io::Result<()> {
    let mut sent = 0;
    while sent < length {
        let piece = pattern::at(sent, length - sent);
        socket.write_all(piece)?;
        sent += piece.len() as u64;
        if !progress(sent) {
            break;
        }
    }
    Ok(())
}

/// Takes the pattern's first bytes, and nothing else. `progress` is called with how many have come; `false` ends it.
pub(crate) fn receive(socket: &mut TcpStream, length: u64, progress: impl Fn(u64) -> bool) -> io::Result<()> {
    let mut buffer = vec![0; pattern::LONGEST];
    let mut received = 0;
    while received < length {
        let wanted = (length - received).min(pattern::LONGEST as u64) as usize;
        let got = socket.read(&mut buffer[..wanted])?;
        if got == 0 {
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                format!("the connection ended after {received} of {length} bytes"),
            ));
        }
        if !pattern::is_at(received, &buffer[..got]) {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("wrong bytes came after {received} of {length}"),
            ));
        }
        received += got as u64;
        if !progress(received) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(wish: Wish) -> TcpStream {
        let mut socket = TcpStream::connect(start().unwrap()).unwrap();
        socket.write_all(&wish.encode()).unwrap();
        socket
    }

    #[test]
    fn it_sends_and_takes_the_pattern_and_echoes() {
        let length = 3_000_000;
        receive(&mut asking(Wish::Download(length)), length, |_| true).unwrap();

        let mut upload = asking(Wish::Upload(length));
        send(&mut upload, length, |_| true).unwrap();
        let mut receipt = [0];
        upload.read_exact(&mut receipt).unwrap();
        assert_eq!(receipt, RECEIPT);

        let mut echo = asking(Wish::Echo);
        echo.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        echo.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
    }

    #[test]
    fn wrong_bytes_get_no_receipt() {
        let mut upload = asking(Wish::Upload(1_000));
        upload.write_all(&[0; 1_000]).unwrap();
        assert!(upload.read_exact(&mut [0]).is_err());
    }

    #[test]
    fn a_download_that_ends_early_is_an_error() {
        let error = receive(&mut asking(Wish::Download(10)), 11, |_| true).unwrap_err();
        assert_eq!(error.to_string(), "the connection ended after 10 of 11 bytes");
    }
}
