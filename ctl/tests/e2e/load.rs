//! What moves through a tunnel in a test: bytes that are computed from their place, so that each is compared on arrival.
//!
//! ```text
//!   connection ── its number ──────────────────────────────► target
//!              ── request: so many bytes up, so many down ─►
//!              ── the bytes up ────────────────────────────►
//!              ◄──────────────────────────── the bytes down ──  meanwhile
//! ```
//!
//! Requests follow each other without waiting for answers. Either side can be kept from reading.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;

/// The most that is written or read at once.
const PIECE: usize = 64 * 1024;

/// A target that answers requests, and what is known of all connections to it.
pub(crate) struct Load {
    /// Where the target listens.
    pub(crate) port: u16,
    tally: Arc<Tally>,
}

/// What has happened so far.
#[derive(Default)]
struct Tally {
    connections: AtomicU64,
    /// Bytes that were asked for, both ways.
    asked: AtomicU64,
    /// Bytes that have arrived as they should be, both ways.
    arrived: AtomicU64,
    /// Bytes that the target has sent.
    sent: AtomicU64,
    /// Connections that the target serves.
    served: AtomicU64,
    troubles: Mutex<Vec<String>>,
    /// Connections that the target does not read.
    unread: Mutex<BTreeSet<u64>>,
    changed: Condvar,
}

/// One connection through the tunnel.
pub(crate) struct Connection {
    number: u64,
    /// Its local end: what status and log call it.
    pub(crate) address: SocketAddr,
    socket: TcpStream,
    tally: Arc<Tally>,
    arrived: Arc<AtomicU64>,
    sending: mpsc::Sender<Request>,
    expecting: mpsc::Sender<u32>,
}

#[derive(Clone, Copy)]
struct Request {
    up: u32,
    down: u32,
}

impl Load {
    /// Starts a target.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let tally = Arc::new(Tally::default());
        let at_target = Arc::clone(&tally);
        thread::spawn(move || {
            for socket in listener.incoming() {
                let tally = Arc::clone(&at_target);
                thread::spawn(move || {
                    tally.served.fetch_add(1, Ordering::Relaxed);
                    if let Err(trouble) = answer(socket.unwrap(), Arc::clone(&tally)) {
                        tally.tell(format!("target: {trouble}"));
                    }
                    tally.served.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { port, tally }
    }

    /// Connects through a tunnel.
    pub(crate) fn connect(&self, port: u16) -> Connection {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_nodelay(true).unwrap();
        let number = self.tally.connections.fetch_add(1, Ordering::Relaxed);
        socket.write_all(&number.to_le_bytes()).unwrap();
        let (sending, to_send) = mpsc::channel();
        let (expecting, expected) = mpsc::channel();
        let arrived = Arc::new(AtomicU64::new(0));
        let (writer, reader) = (socket.try_clone().unwrap(), socket.try_clone().unwrap());
        let tally = Arc::clone(&self.tally);
        thread::spawn(move || tally.note(number, ask(writer, number, &to_send)));
        let (tally, counter) = (Arc::clone(&self.tally), Arc::clone(&arrived));
        thread::spawn(move || {
            let received = receive(reader, number, &expected, &[&counter, &tally.arrived]);
            tally.note(number, received);
        });
        Connection {
            number,
            address: socket.local_addr().unwrap(),
            socket,
            tally: Arc::clone(&self.tally),
            arrived,
            sending,
            expecting,
        }
    }

    /// Returns how many bytes have arrived, both ways.
    pub(crate) fn arrived(&self) -> u64 {
        self.tally.arrived.load(Ordering::Relaxed)
    }

    /// Returns how many bytes were asked for, both ways.
    pub(crate) fn asked(&self) -> u64 {
        self.tally.asked.load(Ordering::Relaxed)
    }

    /// Returns how many bytes the target has sent.
    pub(crate) fn sent(&self) -> u64 {
        self.tally.sent.load(Ordering::Relaxed)
    }

    /// Returns how many connections the target serves.
    pub(crate) fn served(&self) -> u64 {
        self.tally.served.load(Ordering::Relaxed)
    }

    /// Returns what went wrong, on either side.
    pub(crate) fn troubles(&self) -> Vec<String> {
        self.tally.troubles.lock().unwrap().clone()
    }
}

impl Connection {
    /// Sends so many bytes and asks for so many, which are read as they come.
    pub(crate) fn exchange(&self, up: u32, down: u32) {
        self.ask(up, down);
        self.read(down);
    }

    /// Sends so many bytes and asks for so many.
    pub(crate) fn ask(&self, up: u32, down: u32) {
        let asked = u64::from(up) + u64::from(down);
        self.tally.asked.fetch_add(asked, Ordering::Relaxed);
        // A connection that failed has told its trouble.
        let _ = self.sending.send(Request { up, down });
    }

    /// Reads so many bytes of those that were asked for.
    pub(crate) fn read(&self, down: u32) {
        let _ = self.expecting.send(down);
    }

    /// Returns how many bytes have come to the local end.
    pub(crate) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Keeps the target from reading.
    pub(crate) fn stall_target(&self) {
        self.tally.unread.lock().unwrap().insert(self.number);
    }

    /// Lets the target read.
    pub(crate) fn release_target(&self) {
        self.tally.unread.lock().unwrap().remove(&self.number);
        self.tally.changed.notify_all();
    }

    /// Waits for the connection's end, however much is unread; returns the error that it ends with, `None` for a clean
    /// end. Nothing may be under way that [`Connection::read`] waits for.
    pub(crate) fn end(&self) -> Option<ErrorKind> {
        let mut socket = &self.socket;
        let mut bytes = [0; PIECE];
        loop {
            match socket.read(&mut bytes) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(error.kind()),
            }
        }
    }
}

impl Tally {
    fn tell(&self, trouble: String) {
        self.troubles.lock().unwrap().push(trouble);
    }

    fn note(&self, number: u64, outcome: Result<(), String>) {
        if let Err(trouble) = outcome {
            self.tell(format!("connection {number}: {trouble}"));
        }
    }

    /// Waits until the target may read a connection.
    fn wait_for_release(&self, number: u64) {
        let unread = self.unread.lock().unwrap();
        drop(
            self.changed
                .wait_while(unread, |unread| unread.contains(&number))
                .unwrap(),
        );
    }
}

/// The local end's requests.
fn ask(mut socket: TcpStream, number: u64, requests: &mpsc::Receiver<Request>) -> Result<(), String> {
    let mut place = 0;
    for Request { up, down } in requests {
        let header = [up.to_le_bytes(), down.to_le_bytes()].concat();
        socket.write_all(&header).map_err(|error| error.to_string())?;
        send(&mut socket, number, &mut place, up, &AtomicU64::new(0))?;
    }
    Ok(())
}

/// The local end's reading.
fn receive(
    mut socket: TcpStream,
    number: u64,
    expected: &mpsc::Receiver<u32>,
    counters: &[&AtomicU64],
) -> Result<(), String> {
    let mut place = 0;
    for length in expected {
        compare(&mut socket, !number, &mut place, length, counters, || {})?;
    }
    Ok(())
}

/// The target's side of one connection, to its end between two requests.
fn answer(mut socket: TcpStream, tally: Arc<Tally>) -> Result<(), String> {
    let mut number = [0; 8];
    match socket.read_exact(&mut number) {
        Ok(()) => {}
        // A stream that was given up before it carried a byte; its connection has got another one.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
        Err(error) => return Err(format!("no number came: {error}")),
    }
    let number = u64::from_le_bytes(number);
    let mut writer = socket.try_clone().map_err(|error| error.to_string())?;
    let (answering, answers) = mpsc::channel();
    let sent = Arc::clone(&tally);
    let sending = thread::spawn(move || {
        let mut place = 0;
        answers
            .iter()
            .try_for_each(|length| send(&mut writer, !number, &mut place, length, &sent.sent))
    });
    let mut place = 0;
    loop {
        tally.wait_for_release(number);
        let mut header = [0; 8];
        match socket.read(&mut header) {
            Ok(0) => break,
            Ok(length) => socket
                .read_exact(&mut header[length..])
                .map_err(|error| format!("{number}: a request broke off: {error}"))?,
            Err(error) => return Err(format!("{number}: {error}")),
        }
        let [up, down] = [0, 4].map(|at| u32::from_le_bytes(header[at..at + 4].try_into().unwrap()));
        // A side that failed to send says so at the end.
        let _ = answering.send(down);
        let arrived = [&tally.arrived];
        compare(&mut socket, number, &mut place, up, &arrived, || {
            tally.wait_for_release(number);
        })
        .map_err(|trouble| format!("{number}: {trouble}"))?;
    }
    drop(answering);
    sending
        .join()
        .unwrap()
        .map_err(|trouble| format!("{number}: {trouble}"))
}

/// Sends the next bytes of a stream.
fn send(
    socket: &mut TcpStream,
    key: u64,
    place: &mut u64,
    length: u32,
    counter: &AtomicU64,
) -> Result<(), String> {
    let mut left = length as usize;
    let mut bytes = [0; PIECE];
    while left > 0 {
        let piece = &mut bytes[..left.min(PIECE)];
        fill(key, *place, piece);
        socket
            .write_all(piece)
            .map_err(|error| format!("sending at byte {place}: {error}"))?;
        *place += piece.len() as u64;
        counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
        left -= piece.len();
    }
    Ok(())
}

/// Reads the next bytes of a stream, which must be those that were sent. `ready` is called before each read.
fn compare(
    socket: &mut TcpStream,
    key: u64,
    place: &mut u64,
    length: u32,
    counters: &[&AtomicU64],
    ready: impl Fn(),
) -> Result<(), String> {
    let mut left = length as usize;
    let (mut bytes, mut wanted) = ([0; PIECE], [0; PIECE]);
    while left > 0 {
        ready();
        let read = match socket.read(&mut bytes[..left.min(PIECE)]) {
            Ok(0) => return Err(format!("ended at byte {place}, with {left} to come")),
            Ok(read) => read,
            Err(error) => return Err(format!("at byte {place}, with {left} to come: {error}")),
        };
        fill(key, *place, &mut wanted[..read]);
        if bytes[..read] != wanted[..read] {
            return Err(format!("wrong bytes from byte {place} on"));
        }
        *place += read as u64;
        left -= read;
        for counter in counters {
            counter.fetch_add(read as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Computes the bytes of a stream from a place on.
fn fill(key: u64, place: u64, bytes: &mut [u8]) {
    let mut at = 0;
    while at < bytes.len() {
        let here = place + at as u64;
        let word = mixed(key.rotate_left(32) ^ (here / 8)).to_le_bytes();
        let offset = (here % 8) as usize;
        let length = (8 - offset).min(bytes.len() - at);
        bytes[at..at + length].copy_from_slice(&word[offset..offset + length]);
        at += length;
    }
}

/// A number that looks like chance (the finaliser of SplitMix64).
fn mixed(mut number: u64) -> u64 {
    number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
