//! EC2 Instance Connect Endpoints: what they carry, for how long, and how one is asked for a connection.
//!
//! A connection is one websocket whose binary frames are the bytes of one TCP connection; there is no other framing,
//! so there is no machine here, only the rules around it.

use std::ops::RangeInclusive;
use std::time::Duration;

/// The only ports that an endpoint connects to: SSH and RDP. AWS refuses others since June 2023.
pub const PORTS: [u16; 2] = [22, 3389];

/// How long a connection lasts that asked for nothing shorter.
pub const LONGEST_DURATION: Duration = Duration::from_secs(3600);

/// The durations that may be asked for (official client, `--max-tunnel-duration`).
pub const DURATIONS: RangeInclusive<Duration> = Duration::from_secs(1)..=LONGEST_DURATION;
