//! The daemon: everything that runs.

pub mod config;
pub mod failure;
