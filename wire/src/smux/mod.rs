//! smux v1: streams multiplexed over one ordered byte pipe, as `xtaci/smux` 1.5 speaks it in the official client and
//! agent.
//!
//! ```text
//!   offset  size  field
//!        0     1  version, 1
//!        1     1  command: 0 SYN, 1 FIN, 2 PSH, 3 NOP
//!        2     2  length of the payload, u16 LE
//!        4     4  stream id, u32 LE
//! ```
//!
//! There is no answer to SYN, no flow control and no half-close: FIN ends both directions. Frames may be cut anywhere
//! by the layer below.

mod event;
mod frame;
mod mux;
mod stream;

pub use event::Event;
pub(crate) use frame::HEADER_LENGTH;
pub use frame::{Decoder, Header, Item, ProtocolError, StreamId};
pub use mux::{Framing, Mux, Side};
