//! The daemon's command line: arguments, logging, exit codes.
//!
//! Exit codes: 0 stopped in order, 1 failed, 2 wrong arguments or a configuration with problems. Whoever is started by
//! a service manager does not end because of the configuration: it is asked what is wrong.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tunneld::aws::Aws;
use tunneld::config::{Config, Problems, default_path};
use tunneld::connector::Environment;
use tunneld::failure::Failure;
use tunneld::heritage::{Heritage, Inherited};
use tunneld::logging::RecentLines;
use tunneld::restart::Program;
use tunneld::rpc::{BindError, ControlSocket};
use tunneld::service_manager::ServiceManager;
use tunneld::signals::Signals;
use tunneld::transport::{Ledger, SshFiles};
use tunneld::wishes::Wishes;
use tunneld::{Ending, Options, limits, logging, rpc};

/// Exit code for wrong arguments and for a configuration with problems.
const USAGE: u8 = 2;

/// How long the threads of a runtime may take to end before the program begins anew: nothing that they do counts then.
const LAST_THREADS: Duration = Duration::from_millis(100);

/// Hold persistent tunnels to AWS databases and instances
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// Read this configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Serve the control API on this Unix socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Keep what outlives the daemon in this folder: open sessions, host keys, which tunnels are wanted
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,

    /// Run as root, which reaches everything that a fault in it would then reach
    #[arg(long)]
    allow_root: bool,

    /// Log from this level on: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the configuration file and tell every problem
    #[command(after_help = "Example:\n  tunneld check --config config.toml")]
    Check {
        /// Check this file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match &arguments.command {
        Some(Command::Check { config, json }) => file(config.clone()).and_then(|file| check(&file, *json)),
        None => start(&arguments),
    };
    outcome.unwrap_or_else(|error| {
        complain(format_args!("tunneld: {error:#}"));
        for hint in hints(&error) {
            complain(format_args!("  {hint}"));
        }
        ExitCode::FAILURE
    })
}

fn file(explicit: Option<PathBuf>) -> Result<PathBuf> {
    explicit
        .or_else(default_path)
        .context("cannot tell where the configuration is: there is no home folder; use `--config`")
}

fn start(arguments: &Arguments) -> Result<ExitCode> {
    let inherited = Inherited::of_this_process();
    let program = Program::of_this_process().context("cannot tell which program this is")?;
    let program = Arc::new(program);
    if rustix::process::geteuid().is_root() && !arguments.allow_root {
        complain(format_args!(
            "tunneld: refuses to run as root: it needs none of root's rights, and a fault in it would have them all\n  \
             tunneld --allow-root          (where root is the user whose tunnels these are)"
        ));
        return Ok(ExitCode::from(USAGE));
    }
    let from_environment = std::env::var("RUST_LOG").ok();
    let log = match logging::init(arguments.log.as_deref(), from_environment.as_deref()) {
        Ok(log) => log,
        Err(error) => {
            complain(format_args!("tunneld: {:#}", anyhow::Error::new(error)));
            return Ok(ExitCode::from(USAGE));
        }
    };
    let environment = Environment::from_process();
    let manager = ServiceManager::find(&environment).map(Arc::new);
    let by_hand = manager.is_none() && inherited.is_empty();
    let path = file(arguments.config.clone())?;
    let config = Config::load(&path);
    if let Err(problems) = &config
        && by_hand
    {
        complain(format_args!("{problems}"));
        return Ok(ExitCode::from(USAGE));
    }
    limits::raise_open_files();
    limits::forbid_core_files();
    // One thread: a byte passes through tasks that wait for each other, and to wake another thread for each of them took
    // more of the processor than they do themselves. It carries far more than AWS lets through.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let origin = Origin {
        environment,
        heritage: Arc::new(Heritage::new(inherited, manager.clone())),
        manager,
        program: Arc::clone(&program),
    };
    match runtime.block_on(run(path, config, log, origin, arguments))? {
        Ending::Stopped => Ok(ExitCode::SUCCESS),
        Ending::Restart(legacy) => {
            runtime.shutdown_timeout(LAST_THREADS);
            info!(program = %program.path().display(), "restarting");
            let error = program.begin_anew(legacy);
            Err(error).with_context(|| format!("cannot run `{}` anew", program.path().display()))
        }
    }
}

/// What a process is born with.
struct Origin {
    environment: Environment,
    manager: Option<Arc<ServiceManager>>,
    heritage: Arc<Heritage>,
    program: Arc<Program>,
}

async fn run(
    path: PathBuf,
    config: Result<Config, Problems>,
    log: RecentLines,
    origin: Origin,
    arguments: &Arguments,
) -> Result<Ending> {
    // First of all, so that a signal during the start is not lost.
    let signals = Signals::install().context("cannot handle signals")?;
    let Origin {
        environment,
        manager,
        heritage,
        program,
    } = origin;
    let socket = ControlSocket::bind(&rpc::default_path(arguments.socket.as_deref())?, &heritage)?;
    let folder = state_folder(arguments.state.as_deref())?;
    let ssh = SshFiles::new(&folder, &environment);
    let aws = Arc::new(Aws::new(environment)?);
    let ledger = Ledger::open(&folder)
        .with_context(|| format!("cannot keep the list of open sessions in `{}`", folder.display()))?;
    let stop = CancellationToken::new();
    let (reload_sender, reload) = mpsc::channel(1);
    let options = Options {
        path,
        config,
        log,
        socket,
        heritage,
        manager,
        program,
        wishes: Wishes::open(&folder),
        aws,
        ledger,
        ssh,
        stop: stop.clone(),
        reload,
    };
    tokio::select! {
        outcome = tunneld::run(options) => outcome.map_err(Into::into),
        code = signals.mind(stop, reload_sender) => std::process::exit(code.into()),
    }
}

/// Returns the folder for what must outlive a crash: `--state`, or the platform's.
fn state_folder(explicit: Option<&Path>) -> Result<PathBuf> {
    let folders = || directories::ProjectDirs::from("", "", "tunneld");
    explicit
        .map(Path::to_owned)
        .or_else(|| {
            folders().map(|folders| folders.state_dir().unwrap_or(folders.data_local_dir()).to_owned())
        })
        .context("cannot tell where to keep state: there is no home folder; use `--state`")
}

fn check(path: &Path, json: bool) -> Result<ExitCode> {
    let loaded = Config::load(path);
    let mut stdout = io::stdout().lock();
    let printed = match &loaded {
        _ if json => writeln!(stdout, "{}", as_json(path, &loaded)),
        Ok(config) => {
            writeln!(
                stdout,
                "{}: {}, no problems",
                path.display(),
                counted(config.tunnels.len(), "tunnel")
            )
        }
        Err(problems) => writeln!(stdout, "{problems}"),
    };
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error).context("cannot print"),
        Ok(()) | Err(_) => {}
    }
    Ok(if loaded.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(USAGE)
    })
}

fn as_json(path: &Path, loaded: &Result<Config, Problems>) -> serde_json::Value {
    let tunnels: Vec<_> = loaded
        .iter()
        .flat_map(|config| &config.tunnels)
        .map(|spec| spec.name.as_str())
        .collect();
    let problems = loaded.as_ref().err().map(Problems::as_slice).unwrap_or_default();
    let problems: Vec<_> = problems
        .iter()
        .map(|problem| {
            serde_json::json!({
                "path": problem.path.to_string_lossy(),
                "line": problem.line,
                "message": problem.message,
                "hint": problem.hint,
            })
        })
        .collect();
    serde_json::json!({ "path": path.to_string_lossy(), "tunnels": tunnels, "problems": problems })
}

fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Returns what a person can do about an error.
fn hints(error: &anyhow::Error) -> Vec<String> {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.hints().to_vec();
    }
    if let Some(error) = error.downcast_ref::<BindError>() {
        return error.hint().into_iter().collect();
    }
    error
        .downcast_ref::<rpc::SocketPathError>()
        .map(|error| error.hint())
        .into_iter()
        .collect()
}

/// Says something on stderr. Where that is closed, nobody can be told.
fn complain(words: std::fmt::Arguments<'_>) {
    writeln!(io::stderr(), "{words}").ok();
}
