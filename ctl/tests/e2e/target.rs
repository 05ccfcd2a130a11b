//! A target that is no database: it does what the first byte of a connection says, with a text whose bytes tell their
//! place.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::time::Instant;

use crate::world::{PATIENCE, World, free_port};
use crate::{account, configuration};

/// The target sends the whole text.
pub(crate) const DOWNLOAD: u8 = b'd';
/// The target takes the whole text, and answers with 1 if it is right.
pub(crate) const UPLOAD: u8 = b'u';
/// The target sends back what comes.
pub(crate) const ECHO: u8 = b'e';

/// The target.
pub(crate) struct Target {
    pub(crate) port: u16,
    text: Arc<[u8]>,
    accepted: Arc<AtomicUsize>,
    upload: Arc<Progress>,
}

/// The whole text on its way through a tunnel.
pub(crate) struct Transfer {
    progress: Arc<Progress>,
    running: JoinHandle<io::Result<bool>>,
}

/// How far a transfer is.
#[derive(Default)]
struct Progress {
    moved: AtomicUsize,
    longest_silence: Mutex<Duration>,
}

impl Target {
    /// Starts a target whose text has so many bytes.
    pub(crate) fn start(length: usize) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let words = 0..u32::try_from(length / 4).unwrap();
        let target = Self {
            port: listener.local_addr().unwrap().port(),
            text: words.flat_map(u32::to_be_bytes).collect(),
            accepted: Arc::default(),
            upload: Arc::default(),
        };
        let text = Arc::clone(&target.text);
        let (accepted, upload) = (Arc::clone(&target.accepted), Arc::clone(&target.upload));
        thread::spawn(move || {
            for socket in listener.incoming() {
                accepted.fetch_add(1, Ordering::Relaxed);
                let (text, upload) = (Arc::clone(&text), Arc::clone(&upload));
                // A client may leave at any time.
                thread::spawn(move || serve(socket.unwrap(), &text, &upload).ok());
            }
        });
        target
    }

    /// Brings up a tunnel to the target, through an agent that is paced; returns its port.
    pub(crate) fn tunnel(&self) -> (World, u16) {
        let port = free_port();
        let world = World::started(&account("stock", self.port), &configuration(port));
        world.ok(&["up", "prod-db"]);
        (world, port)
    }

    /// Returns how many connections there have been.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Downloads the text through the tunnel on a port.
    pub(crate) fn download(&self, port: u16) -> Transfer {
        let progress = Arc::new(Progress::default());
        let (text, of_it) = (Arc::clone(&self.text), Arc::clone(&progress));
        let running = thread::spawn(move || {
            let mut socket = connect(port, DOWNLOAD)?;
            Ok(of_it.take(&mut socket, text.len())? == *text)
        });
        Transfer { progress, running }
    }

    /// Uploads the text through the tunnel on a port. A target takes one upload.
    pub(crate) fn upload(&self, port: u16) -> Transfer {
        let progress = Arc::clone(&self.upload);
        let text = Arc::clone(&self.text);
        let running = thread::spawn(move || {
            let mut socket = connect(port, UPLOAD)?;
            socket.write_all(&text)?;
            let mut verdict = [0];
            socket.read_exact(&mut verdict)?;
            Ok(verdict == [1])
        });
        Transfer { progress, running }
    }
}

impl Transfer {
    /// Returns how many bytes have come.
    pub(crate) fn moved(&self) -> usize {
        self.progress.moved.load(Ordering::Relaxed)
    }

    /// Waits for the end; returns whether the text came as it is, and the longest time without a byte of it.
    pub(crate) fn end(self) -> (bool, Duration) {
        let is_exact = self.running.join().unwrap().unwrap();
        let longest_silence = *self.progress.longest_silence.lock().unwrap();
        (is_exact, longest_silence)
    }
}

impl Progress {
    /// Reads so many bytes.
    fn take(&self, socket: &mut TcpStream, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut filled = 0;
        let mut last = Instant::now();
        while filled < length {
            match socket.read(&mut bytes[filled..])? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
            self.moved.store(filled, Ordering::Relaxed);
            let mut longest = self.longest_silence.lock().unwrap();
            *longest = last.elapsed().max(*longest);
            last = Instant::now();
        }
        Ok(bytes)
    }
}

/// Connects to a target through the tunnel on a port, and says nothing.
pub(crate) fn open(port: u16) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Connects to a target through the tunnel on a port, and says what is wanted of it.
pub(crate) fn connect(port: u16, wanted: u8) -> io::Result<TcpStream> {
    let mut socket = open(port)?;
    socket.write_all(&[wanted])?;
    Ok(socket)
}

/// Sends a line to an echo, and waits for it.
pub(crate) fn echoes(mut socket: &TcpStream, line: &str) {
    socket.write_all(line.as_bytes()).unwrap();
    let mut back = vec![0; line.len()];
    socket.read_exact(&mut back).unwrap();
    assert_eq!(back, line.as_bytes());
}

fn serve(mut socket: TcpStream, text: &[u8], upload: &Progress) -> io::Result<()> {
    let mut wanted = [0];
    socket.read_exact(&mut wanted)?;
    match wanted {
        [DOWNLOAD] => socket.write_all(text),
        [UPLOAD] => {
            let is_right = upload.take(&mut socket, text.len())? == text;
            socket.write_all(&[u8::from(is_right)])
        }
        [ECHO] => io::copy(&mut socket.try_clone()?, &mut socket).map(drop),
        [_] => Err(ErrorKind::InvalidData.into()),
    }
}
