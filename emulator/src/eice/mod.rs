//! Endpoints of EC2 Instance Connect: each websocket at `/openTunnel` is one TCP connection to a target.
//!
//! ```text
//!   client ─► upgrade ─101─► tunnel ─► line ─► target
//!             403, 400, …           ◄─ line ◄─
//! ```
//!
//! What AWS answers is public in part (a port's refusal, words for an unreachable target); for the rest, an error's code
//! and status are a guess, and only their class can be relied on.

mod line;
mod tunnel;
mod upgrade;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::mpsc;

use crate::socket::SocketControl;

pub(crate) use self::upgrade::{PATH, answer};

/// Ended tunnels that stay known. Tests ask about some dozens; a demo that runs for days must not grow.
const MOST_ENDED: usize = 1000;

/// A tunnel, for whoever asks what is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TunnelSummary {
    /// The endpoint it goes through.
    pub endpoint: String,
    /// The address that it was asked to reach.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
    /// The duration that was asked for, in seconds.
    pub duration: Option<u64>,
    /// What ended it; `None`: it is open.
    pub ended: Option<String>,
}

/// How a tunnel is ended from afar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelEnd {
    /// The connection is reset.
    Reset,
    /// The connection ends without a close.
    Fin,
    /// The websocket is closed with this code and reason.
    Close(u16, String),
}

/// Every tunnel there has been.
#[derive(Default)]
pub(crate) struct Tunnels(Mutex<Vec<Arc<Tunnel>>>);

/// One tunnel.
struct Tunnel {
    endpoint: String,
    address: IpAddr,
    port: u16,
    duration: Option<Duration>,
    control: SocketControl,
    orders: mpsc::Sender<TunnelEnd>,
    /// Gone before its client is told of the end.
    place: Weak<Place>,
    ended: OnceLock<String>,
}

/// A tunnel's place among those of its endpoint, free again once nobody holds it.
struct Place;

/// What an accepted upgrade has asked for.
struct Opening {
    endpoint: String,
    address: IpAddr,
    port: u16,
    duration: Option<Duration>,
    /// Where that really is; `None`: it cannot be reached.
    target: Option<SocketAddr>,
}

impl Tunnels {
    /// Returns every tunnel, oldest first.
    pub(crate) fn all(&self) -> Vec<TunnelSummary> {
        self.lock().iter().map(|tunnel| tunnel.summary()).collect()
    }

    /// Ends every open tunnel in this way; returns how many those are.
    pub(crate) fn end(&self, end: &TunnelEnd) -> usize {
        let tunnels = self.lock().clone();
        let open = tunnels.iter().filter(|tunnel| tunnel.is_open());
        open.map(|tunnel| tunnel.end(end.clone())).count()
    }

    /// Adds a tunnel, unless its endpoint has so many open already.
    fn add(&self, tunnel: Tunnel, most: u32) -> Option<Arc<Tunnel>> {
        let mut tunnels = self.lock();
        let open = tunnels
            .iter()
            .filter(|other| other.endpoint == tunnel.endpoint && other.place.strong_count() > 0);
        if open.count() >= most as usize {
            return None;
        }
        let ended = tunnels.iter().filter(|tunnel| !tunnel.is_open()).count();
        if ended >= MOST_ENDED
            && let Some(oldest) = tunnels.iter().position(|tunnel| !tunnel.is_open())
        {
            tunnels.remove(oldest);
        }
        let tunnel = Arc::new(tunnel);
        tunnels.push(Arc::clone(&tunnel));
        Some(tunnel)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Tunnel>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tunnel {
    fn is_open(&self) -> bool {
        self.ended.get().is_none()
    }

    fn end(&self, end: TunnelEnd) {
        match end {
            TunnelEnd::Reset => self.control.reset(),
            // One that has an order already is about to end.
            TunnelEnd::Fin | TunnelEnd::Close(..) => drop(self.orders.try_send(end)),
        }
    }

    fn summary(&self) -> TunnelSummary {
        TunnelSummary {
            endpoint: self.endpoint.clone(),
            address: self.address,
            port: self.port,
            duration: self.duration.map(|duration| duration.as_secs()),
            ended: self.ended.get().cloned(),
        }
    }
}
