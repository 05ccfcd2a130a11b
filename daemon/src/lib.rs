//! The daemon: everything that runs.

pub mod aws;
pub mod config;
pub mod connector;
pub mod failure;
pub mod transport;
