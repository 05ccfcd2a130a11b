//! What is below the websocket: the headers of a client's frames, which the websocket itself hides.
//!
//! ```text
//!   client ──bytes──► Inspected ──bytes──► websocket
//!                        │ a message in fragments: refused, if so wished
//!                        └ a ping: turned into a pong, which nobody answers, if so wished
//! ```

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::conditions::{Conditions, Fragments, ServiceConditions};

/// A client's connection, whose websocket headers are looked at as they pass.
pub(crate) struct Inspected<S> {
    inner: S,
    headers: Headers,
    conditions: watch::Receiver<Arc<Conditions>>,
}

impl<S> Inspected<S> {
    pub(crate) fn new(inner: S, conditions: watch::Receiver<Arc<Conditions>>) -> Self {
        Self {
            inner,
            headers: Headers::default(),
            conditions,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Inspected<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        let service = &this.conditions.borrow().service;
        let passed = this.headers.pass(&mut buf.filled_mut()[before..], service);
        Poll::Ready(passed.map_err(|Refused| io::Error::other("a websocket message in fragments")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Inspected<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// In the first byte of a frame (RFC 6455 section 5.2).
const FINAL: u8 = 0x80;
const OPCODE: u8 = 0x0f;
const CONTINUATION: u8 = 0x0;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
/// In the second byte.
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;

/// Follows the frames of one direction through its bytes.
struct Headers(Place);

/// Where in a frame the next byte is.
enum Place {
    First,
    Second,
    /// The length that follows the second byte: so many bytes are missing, and what they have come to.
    Length {
        missing: u8,
        length: u64,
        mask: u64,
    },
    Payload(u64),
}

/// A message in fragments was refused.
#[derive(Debug, PartialEq, Eq)]
struct Refused;

impl Default for Headers {
    fn default() -> Self {
        Self(Place::First)
    }
}

impl Headers {
    fn pass(&mut self, mut bytes: &mut [u8], service: &ServiceConditions) -> Result<(), Refused> {
        loop {
            if let Place::Payload(left) = &mut self.0 {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= here as u64;
                bytes = &mut bytes[here..];
                if *left == 0 {
                    self.0 = Place::First;
                }
            }
            let Some((byte, rest)) = bytes.split_first_mut() else {
                return Ok(());
            };
            self.0 = match self.0 {
                Place::First => {
                    let in_fragments = *byte & FINAL == 0 || *byte & OPCODE == CONTINUATION;
                    if in_fragments && service.fragments == Fragments::Refuse {
                        return Err(Refused);
                    }
                    if *byte & OPCODE == PING && !service.pongs {
                        *byte = *byte & !OPCODE | PONG;
                    }
                    Place::Second
                }
                Place::Second => {
                    let mask = if *byte & MASKED == 0 { 0 } else { 4 };
                    match *byte & LENGTH {
                        127 => Place::Length {
                            missing: 8,
                            length: 0,
                            mask,
                        },
                        126 => Place::Length {
                            missing: 2,
                            length: 0,
                            mask,
                        },
                        length => Place::Payload(mask + u64::from(length)),
                    }
                }
                Place::Length {
                    missing,
                    length,
                    mask,
                } => {
                    let length = length << 8 | u64::from(*byte);
                    match missing {
                        1 => Place::Payload(mask.saturating_add(length)),
                        more => Place::Length {
                            missing: more - 1,
                            length,
                            mask,
                        },
                    }
                }
                Place::Payload(left) => Place::Payload(left),
            };
            bytes = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A masked frame whose payload looks like headers of pings and fragments.
    fn frame(first: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![first];
        match u8::try_from(length) {
            Ok(short) if short < 126 => frame.push(MASKED | short),
            Ok(_) | Err(_) => match u16::try_from(length) {
                Ok(length) => {
                    frame.push(MASKED | 126);
                    frame.extend(length.to_be_bytes());
                }
                Err(_) => {
                    frame.push(MASKED | 127);
                    frame.extend((length as u64).to_be_bytes());
                }
            },
        }
        frame.extend([1, 2, 3, 4]);
        frame.extend(std::iter::repeat_n(PING, length));
        frame
    }

    fn conditions(pongs: bool, fragments: Fragments) -> ServiceConditions {
        ServiceConditions {
            pongs,
            fragments,
            ..ServiceConditions::default()
        }
    }

    const BINARY: u8 = FINAL | 0x2;

    #[test]
    fn pings_alone_become_pongs_however_the_bytes_are_cut() {
        let lengths = [0, 1, 125, 126, 65_535, 65_536];
        let mut sent = Vec::new();
        let mut wanted = Vec::new();
        for length in lengths {
            sent.extend(frame(BINARY, length));
            wanted.extend(frame(BINARY, length));
            sent.extend(frame(FINAL | PING, 7));
            wanted.extend(frame(FINAL | PONG, 7));
        }
        let silent = conditions(false, Fragments::Refuse);
        for cut in [1, 2, 3, 7, 1_000, usize::MAX] {
            let mut bytes = sent.clone();
            let mut headers = Headers::default();
            for piece in bytes.chunks_mut(cut.min(sent.len())) {
                headers.pass(piece, &silent).expect("whole messages");
            }
            assert!(bytes == wanted, "cut every {cut} bytes");
        }
    }

    #[test]
    fn nothing_is_changed_under_kind_conditions() {
        let mut bytes = [frame(0x2, 10), frame(FINAL | PING, 3), frame(FINAL, 10)].concat();
        let sent = bytes.clone();
        Headers::default()
            .pass(&mut bytes, &conditions(true, Fragments::Accept))
            .expect("fragments are accepted");
        assert_eq!(bytes, sent);
    }

    #[test]
    fn the_first_piece_of_a_message_in_fragments_is_refused_and_so_is_a_later_one() {
        let hostile = conditions(true, Fragments::Refuse);
        for first in [0x2, FINAL, 0x0] {
            let mut bytes = [frame(BINARY, 4), frame(first, 4)].concat();
            assert_eq!(Headers::default().pass(&mut bytes, &hostile), Err(Refused));
        }
    }

    #[test]
    fn a_length_that_no_frame_has_is_followed_without_harm() {
        let mut bytes = vec![BINARY, MASKED | 127];
        bytes.extend([0xff; 40]);
        Headers::default()
            .pass(&mut bytes, &conditions(true, Fragments::Accept))
            .expect("accepted");
    }
}
