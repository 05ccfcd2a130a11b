//! Under which conditions clients are served: how the line is, how the services and their agents behave.
//!
//! Where a switch of `Faults` is struck by one call, a condition holds until it is changed, and holds for open
//! sessions from that moment on. The default is a perfect line, a service that is kind and an agent that is as
//! configured. `faults.toml` beside the sources shows every key.

mod file;
pub(crate) mod span;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::file::{ConditionsError, FaultFile};

/// All conditions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Conditions {
    /// The line between a client and the service.
    pub line: LineConditions,
    /// The service.
    pub service: ServiceConditions,
    /// The agents, and what they reach.
    pub agent: AgentConditions,
    /// EC2 Instance Connect and its endpoints.
    pub connect: ConnectConditions,
}

/// The line between a client and the service of sessions or of tunnels. The service relays over TCP, so real frames are lost and overtaken
/// around cuts alone; here they are at any time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LineConditions {
    /// How long a frame travels, each way. Many travel at once: it costs no throughput.
    #[serde(with = "span")]
    pub delay: Duration,
    /// What the noise is drawn from, with the number of the session; `None`: it differs each time.
    pub seed: Option<u64>,
    /// From client to service.
    pub up: Noise,
    /// From service to client.
    pub down: Noise,
    /// Extra frames to the client for each data frame, in turn truncated, with a header longer than the frame, and of
    /// an unknown message type: a share of 1.
    pub junk: f64,
}

/// What one direction does to frames, in shares of 1. Noise is about data and acknowledgements; the service's own
/// messages are spared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Noise {
    /// Data frames that are lost.
    pub drop_data: f64,
    /// Acknowledgements that are lost.
    pub drop_acks: f64,
    /// Frames that come twice.
    pub duplicate: f64,
    /// Frames that are held back for up to 10 ms, past later ones.
    pub reorder: f64,
    /// Data frames whose digest is wrong.
    pub corrupt: f64,
}

/// How the service behaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceConditions {
    /// Closes a websocket with code 1000 and the reason "Bye" once it has been open that long; the real service does
    /// about hourly.
    #[serde(with = "span::optional", skip_serializing_if = "Option::is_none")]
    pub recycle: Option<Duration>,
    /// Closes it likewise with the frame that makes so many bytes, both ways together.
    pub recycle_bytes: Option<u64>,
    /// Whether websocket pings are answered.
    pub pongs: bool,
    /// When a client is told that the agent is there.
    pub start_publication: StartPublication,
    /// Sends pause_publication and start_publication that often.
    #[serde(with = "span::optional", skip_serializing_if = "Option::is_none")]
    pub pause_storm: Option<Duration>,
    /// Most data messages a second from a client; after two seconds of more it is paused and disconnected.
    pub rate_limit: Option<u32>,
    /// Largest payload from a client; after a larger one it is paused and disconnected.
    pub largest_payload: Option<usize>,
    /// What a websocket message in fragments comes to.
    pub fragments: Fragments,
    /// The form of channel_closed.
    pub channel_closed: ChannelClosedForm,
    /// What becomes of frames to a client that is away.
    pub absent_client: AbsentClient,
    /// Whether an agent is told at once that its client has gone. One of kind `fast` sends nothing to nobody anyway.
    pub pause_on_cut: bool,
    /// Ends a session that carries no data for that long. Pings and acknowledgements are none.
    #[serde(with = "span::optional", skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// Ends a session that long after its start.
    #[serde(with = "span::optional", skip_serializing_if = "Option::is_none")]
    pub max_duration: Option<Duration>,
}

/// When start_publication is sent to a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartPublication {
    /// Before anything else, on each websocket.
    #[default]
    First,
    /// After HandshakeComplete; first on later websockets.
    AfterHandshake,
    /// Never.
    Never,
}

/// What a websocket message in fragments comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fragments {
    /// It is put together.
    #[default]
    Accept,
    /// The websocket is closed.
    Refuse,
}

/// The form of channel_closed: both have been seen (ssm.md section 4.5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelClosedForm {
    /// As every other frame.
    #[default]
    Hl116,
    /// Without a payload type, the message type padded with NULs.
    Hl112,
}

/// What becomes of frames to a client that is away: what the real service does is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AbsentClient {
    /// They are lost.
    #[default]
    Lose,
    /// They are kept for its next websocket, up to a bound.
    Keep,
}

/// How agents behave, beside their kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConditions {
    /// How much longer each dial takes. Dials are serial, so later streams wait.
    #[serde(with = "span")]
    pub dial_delay: Duration,
    /// How dials to the target end.
    pub dials: Dials,
    /// How the agent's sleep of 1 ms is timed.
    pub timer: AgentTimer,
    /// Bytes a second that each target takes; 0: none at all, as of one that hangs.
    pub target_rate: Option<u64>,
    /// How often HandshakeRequest is sent.
    pub handshake_requests: u32,
    /// Whether HandshakeComplete overtakes the acknowledgement of HandshakeResponse: the official agent sends them
    /// from two threads.
    pub late_handshake_ack: bool,
    /// Whether the agent sends, once data may flow, a flag and a payload type that clients don't know.
    pub oddities: bool,
}

/// How dials to the target end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dials {
    /// As the target answers.
    #[default]
    Connect,
    /// Refused.
    Refuse,
    /// Not at all, which blocks every later one too.
    BlackHole,
}

/// How the agent's sleep of 1 ms is timed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentTimer {
    /// As Linux does: the agent is paced as its kind says.
    #[default]
    Fine,
    /// In ticks of 15.6 ms, as older Windows: one message a tick.
    Coarse,
}

/// How EC2 Instance Connect and its endpoints behave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectConditions {
    /// How long a pushed key lets somebody log in.
    #[serde(with = "span")]
    pub key_lifetime: Duration,
    /// How long a tunnel lives that asks for no duration, and the longest that one lives.
    #[serde(with = "span")]
    pub longest_tunnel: Duration,
    /// Most tunnels at once through an endpoint.
    pub most_tunnels: u32,
    /// How a tunnel ends whose time is over: how AWS does it is not public.
    pub expiry: TunnelExpiry,
    /// The messages in which a target's bytes come.
    pub messages: TunnelMessages,
}

/// How a tunnel ends whose time is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelExpiry {
    /// With a close, and a code other than 1000.
    #[default]
    Close,
    /// The connection ends without a close.
    Fin,
    /// The connection is reset.
    Reset,
}

/// The messages in which a target's bytes come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelMessages {
    /// One frame for what there is at the moment, up to 64 KiB.
    #[default]
    Plain,
    /// Each in three fragments, with a ping between the first two.
    Fragmented,
    /// Of up to 4 MiB, held back until so much is there or the target pauses.
    Giant,
}

impl Default for ConnectConditions {
    fn default() -> Self {
        Self {
            key_lifetime: Duration::from_secs(60),
            longest_tunnel: Duration::from_secs(3600),
            most_tunnels: 20,
            expiry: TunnelExpiry::Close,
            messages: TunnelMessages::Plain,
        }
    }
}

impl Default for ServiceConditions {
    fn default() -> Self {
        Self {
            recycle: None,
            recycle_bytes: None,
            pongs: true,
            start_publication: StartPublication::First,
            pause_storm: None,
            rate_limit: None,
            largest_payload: None,
            fragments: Fragments::Accept,
            channel_closed: ChannelClosedForm::Hl116,
            absent_client: AbsentClient::Lose,
            pause_on_cut: true,
            idle_timeout: None,
            max_duration: None,
        }
    }
}

impl Default for AgentConditions {
    fn default() -> Self {
        Self {
            dial_delay: Duration::ZERO,
            dials: Dials::Connect,
            timer: AgentTimer::Fine,
            target_rate: None,
            handshake_requests: 1,
            late_handshake_ack: false,
            oddities: false,
        }
    }
}
