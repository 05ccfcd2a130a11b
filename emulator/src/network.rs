//! The way between clients and the emulator, which can be out.
//!
//! ```text
//!              begin(Reset)   every connection is reset, later ones with their first byte
//!   working ──────────────────────────────────────────────────────────────────────────────► out
//!      ▲       begin(Frozen)  every connection hangs for ever, later ones are never answered  │
//!      └────────────────────────────────────── end ───────────────────────────────────────────┘
//! ```
//!
//! What asks for the emulator's own endpoints is spared, so that an outage can be ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpStream;

use crate::socket::{ClientSocket, SocketControl};

/// Most frozen connections that are held: a test makes a few, a client that tries again for days must not use up all
/// file descriptors.
const MOST_FROZEN: usize = 512;

/// How the network fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// Connections are reset, later ones as soon as they say something.
    Reset,
    /// Connections stay open and nothing comes of them, not even once the outage is over.
    Frozen,
}

/// Every connection, and how they fare.
#[derive(Default)]
pub(crate) struct Network(Mutex<State>);

#[derive(Default)]
struct State {
    outage: Option<Outage>,
    sockets: Vec<SocketControl>,
    frozen: VecDeque<TcpStream>,
}

impl Network {
    /// Takes up a connection; returns it with the outage that there is.
    pub(crate) fn accept(self: &Arc<Self>, tcp: TcpStream) -> (ClientSocket, Option<Outage>) {
        let socket = ClientSocket::new(tcp, Arc::clone(self));
        let mut state = self.lock();
        state.sockets.retain(SocketControl::is_connected);
        state.sockets.push(socket.control());
        (socket, state.outage)
    }

    /// Begins an outage, or changes its kind.
    pub(crate) fn begin(&self, outage: Outage) {
        let mut state = self.lock();
        state.outage = Some(outage);
        let sockets = state.sockets.clone();
        drop(state);
        for socket in sockets.iter().filter(|socket| !socket.is_spared()) {
            match outage {
                Outage::Reset => socket.reset(),
                Outage::Frozen => socket.freeze(),
            }
        }
    }

    /// Ends an outage: later connections work.
    pub(crate) fn end(&self) {
        self.lock().outage = None;
    }

    /// Keeps a frozen connection open whose owner has given it up.
    pub(crate) fn keep(&self, tcp: TcpStream) {
        let mut state = self.lock();
        state.frozen.push_back(tcp);
        if state.frozen.len() > MOST_FROZEN {
            state.frozen.pop_front();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
