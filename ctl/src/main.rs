//! `tunnelctl`: the thin client of `tunneld`.
//!
//! ```text
//!   argv ──► cli ──► commands/* ──► client ──► tunneld
//!                     │  │
//!                     │  └──► render (for people), json (for programs) ──► output
//!                     ├──► remote (connections without a tunnel) ──► ssh, RDP clients
//!                     └──► service (starting at login) ──► systemd, launchd
//! ```
//!
//! It knows neither AWS nor the tunnels' protocols, and it never parses the configuration: what it shows, the daemon
//! said. Standard output carries the answer, standard error the talk, and the exit code the outcome (`error::Exit`).

mod cli;
mod client;
mod commands;
mod error;
mod folders;
mod json;
mod output;
mod program;
mod remote;
mod render;
mod select;
mod service;
mod tunnel;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::CompleteEnv;

use crate::cli::Cli;
use crate::error::Error;
use crate::output::Output;

fn main() -> ExitCode {
    CompleteEnv::with_factory(Cli::command).complete();
    let cli = Cli::parse();
    let output = Output::standard(cli.json);
    run(&cli, &output).unwrap_or_else(|error| {
        error.tell(&output);
        error.exit().into()
    })
}

fn run(cli: &Cli, output: &Output) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::failed("cannot start").because(error.to_string()))?;
    let ended = runtime.block_on(commands::run(cli, output));
    // A read of standard input that nobody waits for any more must not keep the program.
    runtime.shutdown_background();
    ended
}
