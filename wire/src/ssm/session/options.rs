//! What a session is told when it is made.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::smux::Framing;
use crate::ssm::policy::Policy;

/// What a session can't find out by itself.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// Where message ids come from. They need to differ, not to be secret.
    pub seed: u64,
    /// A reading of the monotonic clock…
    pub began: Instant,
    /// …and of the wall clock at the same moment, as time since 1970.
    pub began_unix: Duration,
    /// How long a stream's FIN is held back after the far end's last byte: smux has no half-close.
    pub half_close_grace: Duration,
}

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// How it sends.
    pub policy: Policy,
    /// Sends a sign of life that often, which counts as activity for the session's idle timeout; `None`: never.
    pub keep_alive: Option<Duration>,
    /// How long the far end may take nothing before the suspected stream is given up.
    pub stall_timeout: Duration,
}

/// Whether an agent looks at the digests of what it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digests {
    /// It does not, as the official agent (ssm.md section 3.3).
    Trusted,
    /// It takes no message whose digest is wrong, which shows the mistakes of a client.
    Checked,
}

/// How an agent presents itself.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// Its version, four numbers.
    pub version: String,
    /// The properties of the session document.
    pub properties: BTreeMap<String, String>,
    /// How it sends.
    pub policy: Policy,
    /// Frames of up to 32 KiB that span messages, as the official agent's, or such that fit their message.
    pub framing: Framing,
    /// Whether it looks at the digests of what it is sent.
    pub digests: Digests,
    /// How long it is silent after HandshakeComplete: the official client ends its reader at any frame that comes
    /// while it sets itself up (ssm.md section 6.7).
    pub quiet: Duration,
}
