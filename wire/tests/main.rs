//! The protocol machines from outside: golden frames, recorded conversations, a bad network.

#![cfg(test)]

mod chaos;
mod common;
mod flow;
mod fuzz;
mod golden;
mod pair;
mod session;
mod transcripts;
mod trouble;
