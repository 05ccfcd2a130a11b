//! `tunnelctl service`: has the daemon start at login, or no more, and says whether it does.

use std::path::Path;

use tunneld_proto::socket;

use crate::cli::service::{Install, Service};
use crate::client::Client;
use crate::error::{Error, Exit};
use crate::json::{self, Versioned};
use crate::output::Output;
use crate::program;
use crate::render::words::Clock;
use crate::service::{Installed, Manager, State};

/// The variable by which programs find the ssh-agent.
const AGENT: &str = "SSH_AUTH_SOCK";

/// Does what is asked with the service.
pub(super) async fn run(asked: &Service, socket: Option<&Path>, output: &Output) -> Result<Exit, Error> {
    match asked {
        Service::Install(told) => install(told, socket, output).await,
        Service::Uninstall => uninstall(output),
        Service::Status => status(socket, output).await,
    }
}

async fn install(told: &Install, socket: Option<&Path>, output: &Output) -> Result<Exit, Error> {
    let arguments: &[&str] = if rustix::process::geteuid().is_root() {
        if !told.allow_root {
            return Err(Error::new(Exit::Usage, "tunneld does not run as root")
                .because("the tunnels would be root's, and so would every program that a profile names")
                .hint("tunnelctl service install                 (as the user whose tunnels they are)")
                .hint("tunnelctl service install --allow-root    (if that is root)"));
        }
        &["--allow-root"]
    } else {
        &[]
    };
    let program = program::lasting_daemon()?;
    let manager = Manager::find()?;
    let served = manager.socket().or(socket);
    refuse_another(&manager, served).await?;
    let installed = manager.install(&program, arguments)?;
    let mut client = Client::started(served, || Ok(())).await?;
    client.compare(output);
    if output.json() {
        tell_json(&manager, Some(&client), output)?;
    } else {
        let listening = manager.socket().map_or("", |_| ", listening on its socket");
        let running = if installed.restarted {
            "was restarted"
        } else {
            "is running"
        };
        output.answer(&format!(
            "tunneld starts at login from now on ({}{listening}) and {running}.",
            manager.kind()
        ))?;
    }
    tell_surroundings(&manager, &installed, socket, output)?;
    // It runs, but there may be trouble with its file, which a person who installs wants to hear of at once.
    if let Err(error) = client.list().await {
        error.tell(output);
    }
    Ok(Exit::Ok)
}

/// Refuses while a daemon that is not the service's has the socket: two cannot, and it is not ours to end.
async fn refuse_another(manager: &Manager, socket: Option<&Path>) -> Result<(), Error> {
    // Who listens is the manager itself then, and to connect would start a service that perhaps cannot start.
    if manager.listens() {
        return Ok(());
    }
    let client = match Client::quietly(socket).await {
        Ok(client) => client,
        Err(error) if error.exit() == Exit::NoDaemon => return Ok(()),
        Err(error) => return Err(error),
    };
    let pid = client.daemon().pid;
    if manager.state()?.pid == Some(pid) {
        return Ok(());
    }
    Err(Error::new(
        Exit::MustAct,
        format!("a tunneld that was started by hand runs already (pid {pid})"),
    )
    .because(format!("it listens on `{}`", client.socket().display()))
    .hint("tunnelctl daemon stop"))
}

/// Tells what differs between the service and what a person who typed the command may expect.
fn tell_surroundings(
    manager: &Manager,
    installed: &Installed,
    socket: Option<&Path>,
    output: &Output,
) -> Result<(), Error> {
    for path in &installed.replaced {
        output.talk(&format!("replaced `{}`, which had other content", path.display()));
    }
    let ours = socket::default_path(socket)?;
    if let Some(served) = manager.socket().filter(|served| *served != ours) {
        output.talk(&format!(
            "warning: the service listens on `{}`, and here `{}` is meant\n  unset {}",
            served.display(),
            ours.display(),
            socket::VARIABLE
        ));
    }
    match manager.lingers() {
        Some(true) => output.talk("it goes on while you are logged out (lingering is on)"),
        Some(false) => {
            output.talk("it ends when you log out; to have it go on, and start with the machine:\n  loginctl enable-linger");
        }
        None => {}
    }
    if let Some(words) = agent_words(manager) {
        output.talk(&words);
    }
    Ok(())
}

/// Says how the service finds the ssh-agent, or how to have it found.
fn agent_words(manager: &Manager) -> Option<String> {
    let Manager::Systemd(_) = manager else {
        return None;
    };
    let here = std::env::var(AGENT).ok().filter(|value| !value.is_empty());
    let words = match (manager.variable(AGENT), here) {
        (Some(there), Some(here)) if there != here => format!(
            "it uses the ssh-agent at `{there}`, and this shell `{here}`; to have it use this one:\n  {}",
            import_agent()
        ),
        (Some(there), _) => format!("it uses the ssh-agent at `{there}` ({AGENT} of systemd's user manager)"),
        (None, Some(_)) => format!(
            "it knows no ssh-agent, because systemd's user manager has no {AGENT}; to have it use this shell's:\n  {}",
            import_agent()
        ),
        (None, None) => {
            format!("it knows no ssh-agent: neither systemd's user manager nor this shell has {AGENT}")
        }
    };
    Some(words)
}

fn import_agent() -> String {
    format!("systemctl --user import-environment {AGENT} && systemctl --user restart tunneld")
}

fn uninstall(output: &Output) -> Result<Exit, Error> {
    let manager = Manager::find()?;
    let uninstalled = manager.uninstall()?;
    if output.json() {
        tell_json(&manager, None, output)?;
    } else if uninstalled.removed.is_empty() {
        output.answer("tunneld is no service that was installed by tunnelctl")?;
    } else {
        output.answer(
            "tunneld has stopped and starts at login no more; its configuration and state are kept",
        )?;
    }
    for path in &uninstalled.left {
        output.talk(&format!(
            "left `{}` alone, which tunnelctl has not written",
            path.display()
        ));
    }
    Ok(Exit::Ok)
}

async fn status(socket: Option<&Path>, output: &Output) -> Result<Exit, Error> {
    let manager = Manager::find()?;
    let state = manager.state()?;
    // Asked only where it runs: to connect would start it.
    let client = match state.pid {
        Some(_) => Some(Client::connect(manager.socket().or(socket), output).await?),
        None => None,
    };
    if output.json() {
        tell_json(&manager, client.as_ref(), output)?;
    } else {
        output.answer(&describe(&manager, &state, client.as_ref()))?;
    }
    Ok(match (&state.file, state.pid) {
        (None, _) => Exit::Failed,
        (Some(_), None) => Exit::NoDaemon,
        (Some(_), Some(_)) => Exit::Ok,
    })
}

/// Describes the service: a sentence, then a line for each thing to know.
fn describe(manager: &Manager, state: &State, client: Option<&Client>) -> String {
    let Some(file) = &state.file else {
        return "tunneld is not installed as a service\n  tunnelctl service install".to_owned();
    };
    let running = client.map_or_else(
        || "does not run".to_owned(),
        |client| {
            let words = client.words(&Clock::read());
            format!("runs (version {}, {words})", client.daemon().version)
        },
    );
    let login = if state.enabled {
        "starts at login"
    } else {
        "does not start at login"
    };
    let lines = [
        ("file", Some(file.display().to_string())),
        (
            "socket",
            manager.socket().map(|socket| socket.display().to_string()),
        ),
        ("tunnels", state.words.clone()),
        ("agent", manager.variable(AGENT).map(str::to_owned)),
    ];
    lines
        .into_iter()
        .filter_map(|(name, value)| Some(format!("\n  {name:<8} {}", value?)))
        .fold(
            format!("tunneld is a {}, {login}, and {running}", manager.kind()),
            |told, line| told + &line,
        )
}

fn tell_json(manager: &Manager, client: Option<&Client>, output: &Output) -> Result<(), Error> {
    let state = manager.state()?;
    let daemon = client.map(|client| json::Daemon::new(client.daemon(), client.socket()));
    output.answer_json(&Versioned::new(json::Service {
        manager: manager.name(),
        installed: state.file.is_some(),
        enabled: state.enabled,
        running: state.pid.is_some(),
        file: state.file.as_deref().map(Path::to_string_lossy),
        socket: manager.socket().map(Path::to_string_lossy),
        status: state.words.as_deref(),
        lingering: manager.lingers(),
        ssh_auth_sock: manager.variable(AGENT),
        tunneld: daemon,
    }))
}
