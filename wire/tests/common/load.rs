//! What is to cross on one stream, and what has.

use bytes::Bytes;
use tunneld_wire::smux::StreamId;
use tunneld_wire::ssm::Session;

/// How many writes an application is ahead of its session.
const AHEAD: usize = 4;

/// The two directions of one stream.
#[derive(Default)]
pub(crate) struct Load {
    pub(crate) up: Vec<u8>,
    pub(crate) down: Vec<u8>,
    written_up: usize,
    written_down: usize,
    pub(crate) got_up: Vec<u8>,
    pub(crate) got_down: Vec<u8>,
    /// Whether the agent has heard of the stream.
    pub(crate) accepted: bool,
}

impl Load {
    pub(crate) fn new(up: Vec<u8>, down: Vec<u8>) -> Self {
        Self {
            up,
            down,
            ..Self::default()
        }
    }

    pub(crate) fn up_comes(&mut self, id: StreamId, bytes: &[u8]) {
        come(
            &self.up,
            &mut self.got_up,
            bytes,
            &format!("stream {id}, upwards"),
        );
    }

    pub(crate) fn down_comes(&mut self, id: StreamId, bytes: &[u8]) {
        come(
            &self.down,
            &mut self.got_down,
            bytes,
            &format!("stream {id}, downwards"),
        );
    }

    pub(crate) fn is_done(&self) -> bool {
        self.got_up.len() == self.up.len() && self.got_down.len() == self.down.len()
    }

    /// The client's application writes what it has, a few pieces ahead.
    pub(crate) fn write_up(&mut self, id: StreamId, client: &mut Session, random: &mut fastrand::Rng) {
        write(client, id, &self.up, &mut self.written_up, random);
    }

    /// The target writes what it has, a few pieces ahead, once it knows of the stream.
    pub(crate) fn write_down(&mut self, id: StreamId, agent: &mut Session, random: &mut fastrand::Rng) {
        if self.accepted {
            write(agent, id, &self.down, &mut self.written_down, random);
        }
    }

    /// Returns the rest that is to cross upwards; it counts as written.
    pub(crate) fn take_up(&mut self) -> Bytes {
        let rest = Bytes::copy_from_slice(&self.up[self.written_up..]);
        self.written_up = self.up.len();
        rest
    }

    /// Returns the rest that is to cross downwards; it counts as written.
    pub(crate) fn take_down(&mut self) -> Bytes {
        let rest = Bytes::copy_from_slice(&self.down[self.written_down..]);
        self.written_down = self.down.len();
        rest
    }
}

fn come(sent: &[u8], got: &mut Vec<u8>, bytes: &[u8], wherefore: &str) {
    let right = sent.get(got.len()..).is_some_and(|rest| rest.starts_with(bytes));
    assert!(right, "{wherefore}: something else came than was sent");
    got.extend_from_slice(bytes);
}

fn write(session: &mut Session, id: StreamId, all: &[u8], written: &mut usize, random: &mut fastrand::Rng) {
    while *written < all.len() && session.pending_writes(id) < AHEAD {
        let length = random.usize(1..=20_000).min(all.len() - *written);
        session.write(id, Bytes::copy_from_slice(&all[*written..*written + length]));
        *written += length;
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}
