//! The protocol machines from outside: golden frames, recorded conversations, a bad network.

#![cfg(test)]

mod chaos;
mod common;
mod eice;
mod flow;
mod fuzz;
mod golden;
mod pair;
mod session;
mod transcripts;
mod trouble;
