//! The protocols tunneld speaks, as state machines without I/O.
//!
//! Nothing in this crate reads a clock, a socket, randomness or the environment: all of them come in as arguments, so
//! every run can be repeated and a test owns the time. Each machine has the same four verbs:
//!
//! - `handle_*` takes a fact and the time it became one;
//! - commands (`open`, `write`, …) ask for something;
//! - `poll_*` gives back work: a frame to send, an event to act on;
//! - `poll_timeout` says when `handle_timeout` wants to be called next.
//!
//! After any call, poll until there is nothing left. Bytes from the network never panic and never allocate more than
//! the documented bounds.

pub mod eice;
mod queue;
pub mod smux;
pub mod ssm;
pub mod text;
