//! A reader that stops for a minute in the midst of a large download through SSH: it gets every byte, the daemon's memory
//! stays small, and a neighbour notices nothing.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::ssh::{INSTANCE, account};
use crate::sshd::{Sshd, user};
use crate::target::echoes;
use crate::world::{PATIENCE, World, free_port};

/// How much the reader takes before it stops, and how much there is.
const BEFORE: usize = 1 << 20;
const ALL: usize = 1 << 30;
/// How long it stops.
const STOP: Duration = Duration::from_secs(60);
/// The longest that an exchange of the neighbour may take, on a machine that does much else: an exchange behind the
/// stopped reader would take the whole minute.
const LONGEST: Duration = Duration::from_secs(5);
/// What the daemon may hold more than before: the reader's `receive_buffer`, and as much again for all else.
const MOST_MEMORY: u64 = 2 * RECEIVE_BUFFER;
const RECEIVE_BUFFER: u64 = 32 << 20;
/// Bytes of one look.
const PIECE: usize = 64 << 10;

/// What a download is made of: 32-bit numbers, so that each byte tells its place.
fn piece(at: usize) -> Vec<u8> {
    let first = u32::try_from(at / 4).unwrap();
    let mut piece = vec![0; PIECE];
    for (word, number) in piece.chunks_exact_mut(4).zip(first..) {
        word.copy_from_slice(&number.to_be_bytes());
    }
    piece
}

/// Starts a target that sends everything, or what it gets, as the first byte says; returns its port.
fn target() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming() {
            // A client may leave at any time.
            thread::spawn(move || serve(socket.unwrap()).ok());
        }
    });
    port
}

fn serve(mut socket: TcpStream) -> io::Result<()> {
    let mut wanted = [0];
    socket.read_exact(&mut wanted)?;
    if wanted == [b'e'] {
        return io::copy(&mut socket.try_clone()?, &mut socket).map(drop);
    }
    (0..ALL)
        .step_by(PIECE)
        .try_for_each(|at| socket.write_all(&piece(at)))
}

fn connect(port: u16, wanted: u8) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(&[wanted]).unwrap();
    socket
}

/// Reads what lies between two places, and compares it.
fn read(socket: &mut TcpStream, from: usize, to: usize) {
    let mut bytes = vec![0; PIECE];
    for at in (from..to).step_by(PIECE) {
        socket.read_exact(&mut bytes).unwrap();
        assert!(bytes == piece(at), "between {at} and {}", at + PIECE);
    }
}

/// Returns the resident memory of a process, in bytes.
fn memory(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kibibytes << 10
}

#[test]
fn a_reader_that_stops_for_a_minute_gets_everything_and_harms_nobody() {
    let mut sshd = Sshd::new();
    let port = free_port();
    let configuration = format!(
        "[tunnels.bulk]\nlisten = \"127.0.0.1:{port}\"\ntarget = \"127.0.0.1:{}\"\nautostart = false\n\
         route = {{ ssh = \"{}@bastion\", over = \"eice\" }}\n\
         receive_buffer = \"{}MiB\"\n",
        target(),
        user(),
        RECEIVE_BUFFER >> 20,
    );
    let world = World::started(&account(&sshd, free_port()), &configuration);
    sshd.start(&world, INSTANCE, "");
    world.ok(&["up", "bulk"]);

    let neighbour = connect(port, b'e');
    echoes(&neighbour, "before\n");
    let before = memory(world.daemon_id());
    let mut reader = connect(port, b'd');
    read(&mut reader, 0, BEFORE);
    let (stopped, mut longest, mut most) = (Instant::now(), Duration::ZERO, 0);
    while stopped.elapsed() < STOP {
        let began = Instant::now();
        echoes(&neighbour, "meanwhile\n");
        longest = longest.max(began.elapsed());
        most = most.max(memory(world.daemon_id()));
    }
    assert!(longest < LONGEST, "{longest:?}\n{}", world.log());
    let grown = most.saturating_sub(before);
    assert!(grown <= MOST_MEMORY, "{} MiB\n{}", grown >> 20, world.log());
    read(&mut reader, BEFORE, ALL);
    let traffic = &world.tunnel("bulk")["traffic"];
    assert_eq!(traffic["connections_failed"], 0, "{traffic}");
}
