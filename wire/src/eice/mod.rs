//! EC2 Instance Connect Endpoints: what they carry, for how long, and how one is asked for a connection.
//!
//! ```text
//!   choose ──► Opening ──► 101 ──────► binary frames ──► End ──► what it means
//!   endpoint   its query   400, 403… ─► Denial
//! ```
//!
//! A connection is one websocket whose binary frames are the bytes of one TCP connection; there is no other framing,
//! no half-close and nothing to resume, so there is no machine here, only the rules around it.

mod choice;
mod denial;
mod ending;
mod opening;

use std::ops::RangeInclusive;
use std::time::Duration;

pub use self::choice::{AddressType, Candidate, State, choose};
pub use self::denial::Denial;
pub use self::ending::{End, Meaning, meaning};
pub use self::opening::{Opening, PATH, encoded};

/// The only ports that an endpoint connects to: SSH and RDP. AWS refuses others since June 2023.
pub const PORTS: [u16; 2] = [22, 3389];

/// How long a connection lasts that asked for nothing shorter.
pub const LONGEST_DURATION: Duration = Duration::from_secs(3600);

/// The durations that may be asked for (official client, `--max-tunnel-duration`).
pub const DURATIONS: RangeInclusive<Duration> = Duration::from_secs(1)..=LONGEST_DURATION;

/// Connections that an endpoint serves at a time, for everybody in its VPC (EC2 quotas; it cannot be raised).
pub const CONNECTIONS: usize = 20;

/// The most bytes of one frame to an endpoint. The official client sends at most 65,000, others whatever they have; this
/// is the power of two nearest to it.
pub const LARGEST_FRAME: usize = 64 << 10;

/// The largest frame from an endpoint that is taken. None is documented; the official client takes 64 MiB, which would
/// be too much memory for what one connection is worth.
pub const LARGEST_FRAME_TAKEN: usize = 16 << 20;
