//! An AWS Session Manager port session.
//!
//! ```text
//!   stream 3 ──┐                                               ┌── stream 3
//!   stream 5 ──┤ smux        one byte pipe                smux ├── stream 5
//!              ▼                                               ▼
//!           channel      numbered, acknowledged messages    channel
//!              ▼                                               ▼
//!           message      one per binary websocket message   message
//!              └───────────────► websocket ◄───────────────────┘
//! ```
//!
//! ```text
//!   client                                        service and agent
//!     │ attach: OpenDataChannelInput (text)  ───────►│
//!     │◄──────────────────────── HandshakeRequest    │  0
//!     │ acknowledge 0, HandshakeResponse  ──────────►│  0
//!     │◄──────────────────────── HandshakeComplete   │  1
//!     │ data  ──────────────────────────────────────►│  1…
//!     │◄────────────────────────────────────── data  │  2…
//!     │            websocket lost: detach            │
//!     │ attach: OpenDataChannelInput, all un-acked ─►│      nothing is negotiated again
//!     │ flag TerminateSession  ─────────────────────►│
//!     │◄─────────────────────────── channel_closed   │
//! ```
//!
//! [`Session`] is all of it, for either side. Facts: `ssm.md` of the protocol notes; each rule that is not obvious
//! names the client or agent version that has it.

mod basic;
mod channel;
mod handshake;
pub mod message;
pub mod payload;
mod policy;
mod probe;
mod rtt;
mod session;
mod version;

pub use basic::TooEarly;
pub use handshake::HandshakeError;
pub use policy::{LARGEST_PAYLOAD, MESSAGE_RATE, Pace, Policy, SMALLEST_PAYLOAD};
pub use probe::PayloadProbe;
pub use session::{AgentOptions, ClientOptions, Digests, End, Event, Frame, Origin, Session};
pub use version::{CLIENT_VERSION, Version};
