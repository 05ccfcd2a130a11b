//! One TCP connection to a name: resolve, then try the addresses, a few at a time.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// The longest a TCP connection may take to be made, name resolution included: a little more than the 3 SYN
/// retransmissions of Linux (1 + 2 + 4 s) need.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one address has to answer before the next is tried beside it. RFC 8305 recommends 250 ms.
const STAGGER: Duration = Duration::from_millis(250);

/// Connects to `host` (a name or an address without brackets), with TCP_NODELAY set.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    timeout(CONNECT_TIMEOUT, async {
        let addresses = tokio::net::lookup_host((host, port)).await?.collect();
        let stream = first_to_answer(interleaved(addresses)).await?;
        // Nagle's algorithm against delayed acknowledgements costs a ping-pong about 40 ms a turn.
        stream.set_nodelay(true)?;
        Ok(stream)
    })
    .await
    .unwrap_or_else(|_| {
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        ))
    })
}

/// Alternates the address families, beginning with the resolver's first choice, so that one broken family costs
/// a single [`STAGGER`].
fn interleaved(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let starts_with_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == starts_with_v6);
    let mut second = second.into_iter();
    let mut mixed: VecDeque<_> = first
        .into_iter()
        .flat_map(|address| [Some(address), second.next()])
        .flatten()
        .collect();
    mixed.extend(second);
    mixed
}

async fn first_to_answer(mut untried: VecDeque<SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = FuturesUnordered::new();
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        match untried.pop_front() {
            Some(address) => attempts.push(TcpStream::connect(address)),
            None if attempts.is_empty() => return Err(last_error),
            None => {}
        }
        tokio::select! {
            Some(outcome) = attempts.next() => match outcome {
                Ok(stream) => return Ok(stream),
                Err(error) => last_error = error,
            },
            () = sleep(STAGGER), if !untried.is_empty() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_families_alternate_from_the_resolvers_first_choice() {
        let addresses = ["[::1]:1", "[::2]:1", "[::3]:1", "10.0.0.1:1"].map(|text| text.parse().unwrap());
        let order: Vec<_> = interleaved(addresses.to_vec())
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(order, ["[::1]:1", "10.0.0.1:1", "[::2]:1", "[::3]:1"]);
    }

    #[tokio::test]
    async fn an_address_that_refuses_does_not_keep_the_next_from_being_tried() {
        let closed = closed_port().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let stream = first_to_answer([closed, open].into()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open);
    }

    #[tokio::test]
    async fn a_connection_has_no_delay() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = connect("localhost", listener.local_addr().unwrap().port())
            .await
            .unwrap();
        assert!(stream.nodelay().unwrap());
    }

    #[tokio::test]
    async fn when_every_address_refuses_the_error_says_so() {
        let error = connect("127.0.0.1", closed_port().await.port())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    async fn closed_port() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    }
}
