//! What a client of a tunnel does: bulk transfers and ping-pongs through a local address.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::target::{self, RECEIPT, Wish};

/// How long a connection may be without a byte: longer than any outage here.
const PATIENCE: Duration = Duration::from_secs(12);
/// Between two looks at something that another thread does.
const LOOK: Duration = Duration::from_millis(1);

/// Which way the bytes of a bulk transfer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Direction {
    Down,
    Up,
}

/// Connects to a tunnel and tells the target what to be.
pub(crate) fn connect(address: SocketAddr, wish: Wish) -> io::Result<TcpStream> {
    let mut socket = open(address)?;
    socket.write_all(&wish.encode())?;
    Ok(socket)
}

fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Moves `length` bytes over each of several connections at once; returns how long all of them took. A download's clock
/// starts at its first byte, whose time is a figure of its own; an upload's stops at the target's receipt.
pub(crate) fn transfer(
    address: SocketAddr,
    direction: Direction,
    connections: u32,
    length: u64,
) -> anyhow::Result<Duration> {
    /// For the streams to be opened: the peer refuses one while another's bytes fill its queue.
    const SETTLING: Duration = Duration::from_millis(20);
    let sockets = (0..connections)
        .map(|_| open(address))
        .collect::<io::Result<Vec<_>>>()?;
    thread::sleep(SETTLING);
    let start = Barrier::new(sockets.len());
    let times = thread::scope(|scope| {
        let transfers: Vec<_> = sockets
            .into_iter()
            .map(|socket| {
                scope.spawn(|| {
                    start.wait();
                    transfer_over(socket, direction, length)
                })
            })
            .collect();
        transfers
            .into_iter()
            .map(|transfer| {
                transfer
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect::<anyhow::Result<Vec<(Instant, Instant)>>>()
    })?;
    let began = times.iter().map(|(began, _)| *began).min();
    let ended = times.iter().map(|(_, ended)| *ended).max();
    let (began, ended) = began.zip(ended).context("no connection was asked for")?;
    Ok(ended - began)
}

/// Moves `length` bytes, which their receiver checks; returns when that began and when it ended.
fn transfer_over(
    mut socket: TcpStream,
    direction: Direction,
    length: u64,
) -> anyhow::Result<(Instant, Instant)> {
    let began = match direction {
        Direction::Down => {
            socket.write_all(&Wish::Download(length).encode())?;
            // Looks without taking: the bytes are checked all together.
            socket.peek(&mut [0])?;
            let began = Instant::now();
            target::receive(&mut socket, length, |_| true)?;
            began
        }
        Direction::Up => {
            let began = Instant::now();
            socket.write_all(&Wish::Upload(length).encode())?;
            target::send(&mut socket, length, |_| true)?;
            let mut receipt = [0];
            socket.read_exact(&mut receipt).context("no receipt came")?;
            if receipt != RECEIPT {
                bail!("the target did not get what was sent");
            }
            began
        }
    };
    Ok((began, Instant::now()))
}

/// Returns how long after its connection the first byte of a bulk download came.
pub(crate) fn time_to_first_byte(address: SocketAddr) -> io::Result<Duration> {
    let began = Instant::now();
    let socket = connect(address, ENDLESS)?;
    socket.peek(&mut [0])?;
    Ok(began.elapsed())
}

/// A connection whose far end sends back what it gets.
pub(crate) struct Echo(TcpStream);

/// The bytes of a ping.
const PING: usize = 64;

impl Echo {
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        let mut echo = Self(connect(address, Wish::Echo)?);
        echo.ping()?;
        Ok(echo)
    }

    /// Sends a ping and waits until it is back.
    pub(crate) fn ping(&mut self) -> io::Result<Duration> {
        let began = Instant::now();
        self.0.write_all(&[7; PING])?;
        self.0.read_exact(&mut [0; PING])?;
        Ok(began.elapsed())
    }

    /// Pings for this long, and at least as often as a percentile needs; returns milliseconds.
    pub(crate) fn pings(&mut self, duration: Duration) -> io::Result<Vec<f64>> {
        /// The 99th percentile of fewer is their maximum.
        const FEWEST: usize = 25;
        let began = Instant::now();
        let mut times = Vec::new();
        while began.elapsed() < duration || times.len() < FEWEST {
            times.push(self.ping()?.as_secs_f64() * 1e3);
        }
        Ok(times)
    }
}

/// A download that nobody will see the end of.
pub(crate) const ENDLESS: Wish = Wish::Download(u64::MAX);

/// A bulk transfer that goes on until it is stopped, for others to be measured beside.
#[derive(Default)]
pub(crate) struct Bulk {
    moved: AtomicU64,
    stopped: AtomicBool,
    failure: OnceLock<String>,
}

impl Bulk {
    /// Moves bytes until [`Bulk::stop`]; those that come are checked.
    pub(crate) fn run(&self, address: SocketAddr, direction: Direction) {
        let progress = |moved| {
            self.moved.store(moved, Ordering::Relaxed);
            !self.stopped.load(Ordering::Relaxed)
        };
        let outcome = match direction {
            Direction::Down => connect(address, ENDLESS)
                .and_then(|mut socket| target::receive(&mut socket, u64::MAX, progress)),
            Direction::Up => connect(address, Wish::Upload(u64::MAX))
                .and_then(|mut socket| target::send(&mut socket, u64::MAX, progress)),
        };
        if let Err(error) = outcome {
            // This is the only place that sets it.
            let _ = self.failure.set(error.to_string());
        }
    }

    /// Waits until the transfer flows, and then for as long as queues take to fill.
    pub(crate) fn wait_until_it_flows(&self) -> anyhow::Result<()> {
        /// What waits in sockets and queues at the official agent's pace, see observed.md: 208 KB, or 270 ms.
        const FILLING: Duration = Duration::from_secs(1);
        self.wait_beyond(0)?;
        thread::sleep(FILLING);
        self.must_flow()
    }

    /// Waits until more than this many bytes have moved.
    pub(crate) fn wait_beyond(&self, bytes: u64) -> anyhow::Result<()> {
        while self.moved() <= bytes {
            self.must_flow()?;
            thread::sleep(LOOK);
        }
        Ok(())
    }

    pub(crate) fn must_flow(&self) -> anyhow::Result<()> {
        match self.failure.get() {
            Some(failure) => bail!("the bulk transfer failed: {failure}"),
            None => Ok(()),
        }
    }

    /// Returns how many bytes have moved.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}
