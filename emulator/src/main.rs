//! `tunneld-emulator`: the fake AWS as a program, until SIGINT or SIGTERM.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tunneld_emulator::{Config, Emulator, FaultFile, Faults};

/// Serve a small fake AWS on one loopback port
///
/// Prints the environment that points any SDK, the AWS CLI and its plugin at it, as lines for a shell:
///
///     tunneld-emulator --config example.toml > emulator.env &
///     . ./emulator.env
///     aws sts get-caller-identity
#[derive(Parser)]
#[command(version, verbatim_doc_comment)]
struct Arguments {
    /// Read the instances, databases and hosts from this file
    #[arg(long, value_name = "FILE", required_unless_present = "list_faults")]
    config: Option<PathBuf>,

    /// Listen on this loopback address; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// Write the certificate of the TLS endpoint's authority to this file
    #[arg(long, value_name = "PATH")]
    ca_file: Option<PathBuf>,

    /// Print the environment for the TLS endpoint; both are served in any case
    #[arg(long, requires = "ca_file")]
    tls: bool,

    /// Switch a fault on from the start, as NAME, NAME=SUBJECT or NAME*COUNT
    #[arg(long, value_name = "FAULT")]
    fault: Vec<String>,

    /// Take switches and the conditions of line, service and agents from this file
    ///
    /// The tables [line], [service] and [agent] of faults.toml hold delay, loss, recycles, pauses, policing, timeouts,
    /// slow dials and the like; `--list-faults` lists what `switches` may hold. All can be changed at run time, and
    /// cuts, recycles, freezes, outages, restarts and key rotations made, under /_emulator/.
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,

    /// List the faults that can be switched on, and exit
    #[arg(long)]
    list_faults: bool,
}

// One thread: whoever is measured against it has the machine's other cores.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let Some(config) = arguments.config.as_deref().filter(|_| !arguments.list_faults) else {
        return list_faults().or_else(unless_broken_pipe);
    };
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .init();

    let config = Config::load(config)?;
    let faults = arguments.faults.as_deref().map(FaultFile::load).transpose()?;
    let emulator = Emulator::start_on(config, arguments.listen).await?;
    if let Some(faults) = &faults {
        emulator.misbehave(faults)?;
    }
    for fault in &arguments.fault {
        emulator.faults().set(fault)?;
    }
    if let Some(ca_file) = &arguments.ca_file {
        std::fs::write(ca_file, emulator.ca_pem())
            .with_context(|| format!("cannot write `{}`", ca_file.display()))?;
    }
    // Before the environment is out: whoever reads it may send a signal at once.
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;

    print_environment(&arguments, &emulator).or_else(unless_broken_pipe)?;
    print_notes(&emulator)?;
    tokio::select! {
        _ = interrupted.recv() => (),
        _ = terminated.recv() => (),
    }
    emulator.shutdown().await;
    Ok(())
}

fn list_faults() -> io::Result<()> {
    let mut out = io::stdout().lock();
    for (name, effect) in Faults::catalogue() {
        writeln!(out, "{name:<24} {effect}")?;
    }
    Ok(())
}

fn print_environment(arguments: &Arguments, emulator: &Emulator) -> io::Result<()> {
    let environment = match &arguments.ca_file {
        Some(ca_file) if arguments.tls => emulator.tls_environment(&std::path::absolute(ca_file)?),
        Some(_) | None => emulator.environment(),
    };
    let mut out = io::stdout().lock();
    for (name, value) in environment {
        writeln!(out, "export {name}='{}'", value.replace('\'', r"'\''"))?;
    }
    out.flush()
}

fn print_notes(emulator: &Emulator) -> io::Result<()> {
    let (plain, encrypted) = (emulator.url(), emulator.tls_url());
    let mut talk = io::stderr().lock();
    writeln!(
        talk,
        "\
serving SSM, EC2, EC2 Instance Connect, ECS, RDS, STS, SSM data channels and tunnels on {plain} and {encrypted}
faults, conditions, sessions, tunnels and calls: {plain}/_emulator/faults, …/conditions, …/sessions, …/tunnels, …/calls
to do at once: POST …/cut, …/recycle, …/freeze, …/outage (DELETE ends it), …/agent-outage?for=2s, …/restart-agents,
…/rotate-credentials, …/tunnels/end?how=reset
With the official AWS CLI and session-manager-plugin (up to 1.2.835: later ones refuse a host that is not AWS's),
in a shell that has the exported lines:
    aws ssm start-session --target INSTANCE --document-name AWS-StartPortForwardingSession \\
        --parameters portNumber=PORT,localPortNumber=LOCAL
With the official AWS CLI of version 2, which takes HTTPS_PROXY={plain} and trusts the file of --ca-file as
SSL_CERT_FILE:
    aws ec2-instance-connect open-tunnel --instance-id INSTANCE --local-port LOCAL"
    )
}

/// Whoever stopped reading has read enough.
fn unless_broken_pipe(error: io::Error) -> anyhow::Result<()> {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Ok(())
    } else {
        Err(error.into())
    }
}
