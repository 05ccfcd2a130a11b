//! Malformed, slow and half-open clients, on the control socket and on the port of a tunnel. Whoever behaves is served
//! meanwhile, and afterwards the daemon has what it had.
//!
//! ```text
//!   lanes ── one attack after the other ──► daemon ◄── tunnelctl status, and bytes through the tunnel: all is well
//!     └── the latest are left open
//! ```
//!
//! `SOAK=10m`, which `make soak` sets, goes on for that long.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use crate::account;
use crate::crowd::{connect, direct, echo, exchange};
use crate::resources::Resources;
use crate::world::{PATIENCE, World, free_port};

/// How long an ordinary run takes.
const BRIEFLY: Duration = Duration::from_secs(5);
/// Attackers at a time.
const LANES: u64 = 4;
/// Connections that each of them leaves open. With those of all lanes there are places left on the control socket.
const LEFT_OPEN: usize = 40;
/// How long an attacker waits for the daemon to take what it sends, or to say something.
const IMPATIENCE: Duration = Duration::from_millis(50);
/// How much more memory the daemon may have in the end than after the first fifth of the time: what its allocator keeps,
/// which differs with the attacks. In KiB.
const MORE_MEMORY: u64 = 16 << 10;

/// The first words of HTTP/2, and a frame with no settings in it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The most bytes of a frame that nobody has agreed on larger ones with.
const LARGEST_FRAME: usize = 16_384;

/// What a client of the control socket does.
#[derive(Debug, Clone, Copy)]
enum Attack {
    /// Says nothing.
    Silence,
    /// Sends bytes by chance.
    Noise,
    /// Speaks another protocol.
    Http1,
    /// Sends a part of its first words.
    PartOfThePreface,
    /// Sends its first words, and nothing more.
    Preface,
    /// Announces a frame that is larger than any may be, and sends a part of it.
    HugeFrame,
    /// Sends the head of a request without an end.
    EndlessHead,
    /// Sends the head of a request byte by byte.
    SlowHead,
    /// Watches all tunnels, and reads nothing.
    DeafWatcher,
    /// Makes more calls than it may, and reads no answer.
    ManyCalls,
    /// Makes calls and takes them back at once.
    RapidResets,
    /// Announces a message that is larger than any may be, and sends a part of it.
    HugeMessage,
}

impl Attack {
    const ALL: [Self; 12] = [
        Self::Silence,
        Self::Noise,
        Self::Http1,
        Self::PartOfThePreface,
        Self::Preface,
        Self::HugeFrame,
        Self::EndlessHead,
        Self::SlowHead,
        Self::DeafWatcher,
        Self::ManyCalls,
        Self::RapidResets,
        Self::HugeMessage,
    ];

    /// Does it. The daemon may end the connection at any time.
    fn begin(self, socket: &mut impl Write, random: &mut Rng) -> std::io::Result<()> {
        match self {
            Self::Silence => Ok(()),
            Self::Noise => socket.write_all(&noise(random)),
            Self::Http1 => socket.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            Self::PartOfThePreface => socket.write_all(&PREFACE[..random.usize(1..24)]),
            Self::Preface => socket.write_all(PREFACE),
            Self::HugeFrame => {
                socket.write_all(PREFACE)?;
                socket.write_all(b"\xff\xff\xff\0\0\0\0\0\x01")?;
                socket.write_all(&noise(random))
            }
            Self::EndlessHead => {
                socket.write_all(PREFACE)?;
                socket.write_all(&frame(HEADERS, 0, 1, &head("Watch")))?;
                let more = literal(b"x", &vec![b'y'; LARGEST_FRAME / 2]);
                (0..256).try_for_each(|_| socket.write_all(&frame(CONTINUATION, 0, 1, &more)))
            }
            Self::SlowHead => {
                socket.write_all(PREFACE)?;
                let request = frame(HEADERS, END_OF_HEAD, 1, &head("List"));
                request[..random.usize(1..request.len())]
                    .iter()
                    .try_for_each(|byte| socket.write_all(&[*byte]))
            }
            Self::DeafWatcher => {
                socket.write_all(PREFACE)?;
                socket.write_all(&call(1, "Watch"))
            }
            Self::ManyCalls => {
                socket.write_all(PREFACE)?;
                (0..500).try_for_each(|number| socket.write_all(&call(2 * number + 1, "List")))
            }
            Self::RapidResets => {
                socket.write_all(PREFACE)?;
                (0..500).try_for_each(|number| {
                    socket.write_all(&call(2 * number + 1, "List"))?;
                    socket.write_all(&frame(RESET, 0, 2 * number + 1, &[0, 0, 0, 8]))
                })
            }
            Self::HugeMessage => {
                socket.write_all(PREFACE)?;
                socket.write_all(&frame(HEADERS, END_OF_HEAD, 1, &head("Up")))?;
                socket.write_all(&frame(DATA, 0, 1, b"\0\xff\xff\xff\xff"))?;
                socket.write_all(&frame(DATA, 0, 1, &noise(random)))
            }
        }
    }
}

/// Kinds of frames, and what is said of them.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const CONTINUATION: u8 = 9;
const END_OF_STREAM: u8 = 1;
const END_OF_HEAD: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A whole call without an argument.
fn call(stream: u32, method: &str) -> Vec<u8> {
    let mut call = frame(HEADERS, END_OF_HEAD, stream, &head(method));
    call.extend(frame(DATA, END_OF_STREAM, stream, &[0; 5]));
    call
}

/// The head of a call, compressed as little as possible.
fn head(method: &str) -> Vec<u8> {
    // By their numbers in the table that both sides have: POST, http.
    let mut head = vec![0x83, 0x86];
    head.extend(literal(
        b":path",
        format!("/tunneld.v1.Tunnels/{method}").as_bytes(),
    ));
    head.extend(literal(b":authority", b"localhost"));
    head.extend(literal(b"content-type", b"application/grpc"));
    head.extend(literal(b"te", b"trailers"));
    head
}

fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut literal = vec![0];
    for text in [name, value] {
        // Seven bits of the length, and what is beyond them seven at a time.
        match text.len().checked_sub(127) {
            None => literal.push(u8::try_from(text.len()).unwrap()),
            Some(mut beyond) => {
                literal.push(127);
                while beyond >= 128 {
                    literal.push(u8::try_from(beyond % 128).unwrap() | 128);
                    beyond /= 128;
                }
                literal.push(u8::try_from(beyond).unwrap());
            }
        }
        literal.extend(text);
    }
    literal
}

fn noise(random: &mut Rng) -> Vec<u8> {
    let length = random.usize(1..8_192);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// Does something to the control socket; returns the connection, as it was left.
fn attack_control(socket: &Path, random: &mut Rng) -> std::io::Result<OwnedFd> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(IMPATIENCE))?;
    stream.set_read_timeout(Some(IMPATIENCE))?;
    let attack = Attack::ALL[random.usize(..Attack::ALL.len())];
    attack.begin(&mut stream, random)?;
    if random.bool() {
        stream.shutdown(Shutdown::Write)?;
    }
    if random.bool() {
        // A little of the answer.
        let _ = stream.read(&mut [0; 64]);
    }
    Ok(stream.into())
}

/// Does something to the port of a tunnel whose target sends back what it gets; returns the connection, as it was left.
fn attack_tunnel(port: u16, random: &mut Rng) -> std::io::Result<OwnedFd> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_write_timeout(Some(IMPATIENCE))?;
    stream.set_read_timeout(Some(IMPATIENCE))?;
    match random.u8(..4) {
        // Says nothing.
        0 => {}
        // Says something, and may not read the answer.
        1 => stream.write_all(&noise(random))?,
        // Sends until nobody takes any more, and reads nothing.
        2 => while stream.write(&[7; LARGEST_FRAME]).is_ok() {},
        // Sends byte by byte.
        _ => noise(random)
            .iter()
            .take(64)
            .try_for_each(|byte| stream.write_all(&[*byte]))?,
    }
    if random.bool() {
        stream.shutdown(Shutdown::Write)?;
    }
    if random.bool() {
        let _ = stream.read(&mut [0; 64]);
    }
    Ok(stream.into())
}

/// One attack after the other.
fn run_lane(socket: &Path, port: u16, end: Instant, mut random: Rng) {
    let mut left = VecDeque::new();
    while Instant::now() < end {
        let attacked = match random.bool() {
            true => attack_control(socket, &mut random),
            false => attack_tunnel(port, &mut random),
        };
        // A daemon that has ended the connection has done right.
        left.extend(attacked.ok());
        if left.len() > LEFT_OPEN {
            left.pop_front();
        }
    }
}

/// Makes a sound call by hand and reads its answer, so that attacks are known to be what they are meant to be.
fn watch(socket: &Path) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(PREFACE).unwrap();
    stream.write_all(&call(1, "Watch")).unwrap();
    let (mut answer, mut piece) = (Vec::new(), [0; 4_096]);
    while !String::from_utf8_lossy(&answer).contains("direct") {
        let read = stream.read(&mut piece).unwrap();
        assert_ne!(read, 0, "refused: {}", String::from_utf8_lossy(&answer));
        answer.extend(&piece[..read]);
    }
}

#[test]
fn hostile_clients_disturb_nobody_and_leave_nothing_behind() {
    let soak = std::env::var("SOAK").ok().filter(|text| !text.is_empty());
    let duration = soak.map_or(BRIEFLY, |text| humantime::parse_duration(&text).unwrap());
    let port = free_port();
    let world = World::started(&account("fast", 1), &direct("db", port, echo()));
    let socket: PathBuf = world.path("run/t.sock");
    watch(&socket);
    let before = Resources::of(&world);
    let began = Instant::now();
    let end = began + duration;
    let mut early = None;
    thread::scope(|scope| {
        for seed in 0..LANES {
            let socket = &socket;
            scope.spawn(move || run_lane(socket, port, end, Rng::with_seed(seed)));
        }
        while Instant::now() < end {
            assert_eq!(world.tunnel("db")["state"], "up");
            exchange(&connect(port), 100_000);
            if began.elapsed() > duration / 5 {
                early.get_or_insert_with(|| Resources::of(&world).memory);
            }
        }
    });
    world.wait_for_tunnel("db", "all connections have ended", |tunnel| {
        tunnel["traffic"]["connections"] == 0
    });
    world.wait_for("the daemon has the descriptors that it had", |world| {
        (Resources::of(world).files <= before.files).then_some(())
    });
    let (early, late) = (early.unwrap(), Resources::of(&world).memory);
    assert!(late <= early + MORE_MEMORY, "{late} KiB of memory after {early}");
    assert_eq!(world.said("panicked"), 0);
}
