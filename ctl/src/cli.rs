//! The command line: what can be said, and the help that says so.

pub(crate) mod remote;
pub(crate) mod service;

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::engine::ArgValueCompleter;

use crate::commands::completions;

/// The longest `--timeout`: more is a slip of the finger, and far from overflowing a clock.
const LONGEST_TIMEOUT: Duration = Duration::from_hours(24 * 365);

const ABOUT_THE_WHOLE: &str = "\
Names may be globs, quoted so that the shell leaves them alone: tunnelctl up 'stage-*'

The daemon is looked for at --socket, $TUNNELD_SOCKET, $XDG_RUNTIME_DIR/tunneld/tunneld.sock,
/run/user/UID/tunneld/tunneld.sock and /tmp/tunneld-UID/tunneld.sock.

Exit codes: 0 ok · 1 failed · 2 usage, or problems in the configuration · 3 no daemon
            4 a person must act (log in, free a port, fix the configuration) · 5 timed out
With several names the highest code wins.

With --json the answer is one JSON object per line. Within `schema` 1 fields are only ever added.
  status   {\"schema\":1,\"tunnels\":[TUNNEL…]}
  up, down, restart, watch: a TUNNEL with \"schema\":1, for each that settled or changed
  events   {\"schema\":1,\"at\",\"name\",\"state\",\"reason\",\"connections_lost\"} for each transition
  logs     {\"schema\":1,\"at\",\"level\",\"tunnel\",\"connection\",\"message\",\"source\"} for each line,
           and {\"schema\":1,\"missed\"} where so many came faster than they were read
  reload   {\"schema\":1,\"path\",\"added\",\"changed\",\"removed\",
            \"problems\":[{\"path\",\"line\",\"message\",\"hint\"}]}
  version  {\"schema\":1,\"tunnelctl\",
            \"tunneld\":DAEMON}; so do daemon start and daemon stop
  restart-daemon  {\"schema\":1,\"before\":DAEMON,\"after\":DAEMON}, then a TUNNEL for each that settled
  service  {\"schema\":1,\"manager\",\"installed\",\"enabled\",\"running\",\"file\",\"socket\",\"status\",
            \"lingering\",\"ssh_auth_sock\",\"tunneld\":DAEMON}
  DAEMON   {\"version\",\"pid\",\"started\",\"config\",\"socket\"}
  TUNNEL   {\"name\",\"state\",\"local\":[…],\"target\":{\"spec\",\"host\",\"port\",\"engine\"},
            \"route\",\"since\",\"attempt\",\"retry_at\",\"cause\":{\"reason\",\"chain\",\"hints\"},
            \"traffic\":{\"connections\",\"connections_total\",\"connections_failed\",
            \"bytes_in\",\"bytes_out\",\"held\",\"links_lost\",\"connections_expired\",
            \"connections_refused\",\"connections_unknown\"},
            \"last_error\":{\"at\",\"reason\",\"chain\",\"hints\"},
            \"link\":{\"via\",\"sessions\",\"agent_version\",\"notes\":[…]},
            \"history\":[{\"at\",\"state\",\"reason\",\"connections_lost\"}]}
What is unknown is null; times are RFC 3339 in UTC. `state` is one of down, idle, connecting, up,
waiting and blocked; of a tunnel that a reload removed, `watch` and `events` say removed and little else.";

/// Bring tunnels to AWS up and down, and see how they are
#[derive(Debug, Parser)]
#[command(name = "tunnelctl", version, after_long_help = ABOUT_THE_WHOLE, max_term_width = 110)]
pub(crate) struct Cli {
    /// Talk to the daemon that listens on this Unix socket
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) socket: Option<PathBuf>,

    /// Print the answer as JSON, for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Bring tunnels up and wait until they are
    ///
    /// A tunnel that is up already is left as it is. An on-demand tunnel is brought to listen, and connects on first
    /// use, unless --connect says at once. While a tunnel waits for its next attempt, the cause is told once and
    /// the waiting goes on until --timeout; the daemon goes on trying also afterwards.
    #[command(after_help = "Example:\n  tunnelctl up prod-db 'stage-*' --timeout 30s")]
    Up(Start),

    /// Take tunnels down and wait until they are
    #[command(after_help = "Example:\n  tunnelctl down prod-db")]
    Down {
        #[command(flatten)]
        names: Names,
    },

    /// Take tunnels down and bring them up again
    ///
    /// With --all those that are down stay down.
    #[command(after_help = "Example:\n  tunnelctl restart prod-db")]
    Restart(Start),

    /// Show how tunnels are: a table, or everything about one
    #[command(after_help = "Example:\n  tunnelctl status prod-db")]
    Status {
        /// Tunnels to show, as names or globs; one plain name shows its details
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(completions::names))]
        names: Vec<String>,
    },

    /// Print how tunnels are, then a line for each change, until interrupted
    #[command(
        after_help = "Example:\n  tunnelctl watch --json | jq -r 'select(.state == \"blocked\") | .name'"
    )]
    Watch {
        /// Tunnels to watch, as names or globs; without any, all of them
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(completions::names))]
        names: Vec<String>,
    },

    /// Print every change of the tunnels' states and why, those that were and those that come
    ///
    /// Begins with the latest changes of each tunnel, which the daemon remembers, and goes on until interrupted. Where
    /// `watch` shows how tunnels are, this shows what they went through: repeated attempts for the same reason are told
    /// once.
    #[command(after_help = "Example:\n  tunnelctl events prod-db --no-follow")]
    Events(Events),

    /// Print the latest lines of the daemon's log, of some tunnels or all
    ///
    /// The daemon keeps the latest lines in memory; its standard error, or the journal, has all of them. What is logged
    /// is chosen when the daemon starts, by --log or RUST_LOG.
    #[command(after_help = "Example:\n  tunnelctl logs prod-db -f")]
    Logs(Logs),

    /// Log in to an instance, or run a command there, by the system's ssh
    ///
    /// Needs no tunnel, no key pair and no open port: a key is made for this one connection, and EC2 Instance Connect
    /// has the instance accept it for a minute; with -i it is your own key that is used. What stands after INSTANCE
    /// goes to ssh: its options (-L, -D, -N, -A …), then a command. The exit code is that of ssh, which is the
    /// command's. Without USER it is ec2-user.
    #[command(
        after_help = "Examples:\n  tunnelctl ssh web-1\n  tunnelctl ssh ubuntu@i-0123456789abcdef0 \
                            -L 8080:localhost:80\n  tunnelctl ssh tag:Role=web -- systemctl status nginx"
    )]
    Ssh(remote::Ssh),

    /// Connect standard input and output to a port of an instance: a ProxyCommand
    ///
    /// Says nothing unless it fails. Ends with 0 when both ends have closed.
    #[command(
        after_help = "Example:\n  ssh -o ProxyCommand='tunnelctl stdio %h %p' ec2-user@i-0123456789abcdef0"
    )]
    Stdio(remote::Stdio),

    /// Print the lines for ~/.ssh/config that make ssh, scp and rsync reach instances by themselves
    ///
    /// Whatever uses ssh then works with instance ids as host names, and with the Names that --host takes in: scp, sftp,
    /// rsync, VS Code, Ansible. The key that the lines name is made if there is none yet; an instance accepts it for a
    /// minute with each connection.
    #[command(after_help = "Example:\n  tunnelctl ssh-config --host 'web-*' >> ~/.ssh/config")]
    SshConfig(remote::SshConfig),

    /// Open the desktop of a Windows instance in the system's RDP client
    ///
    /// Listens on a local port for as long as the client runs, and starts xfreerdp or remmina; without any, the port
    /// stays open until Ctrl-C for whatever client there is.
    #[command(after_help = "Example:\n  tunnelctl rdp win-1 -- /u:Administrator")]
    Rdp(remote::Rdp),

    /// Check the configuration file and change nothing
    ///
    /// Works without a daemon too. Checks the file that the running daemon uses, unless --config names another.
    #[command(after_help = "Example:\n  tunnelctl check --config ./config.toml")]
    Check {
        /// Check this file
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        config: Option<PathBuf>,
    },

    /// Have the daemon read its configuration file again
    ///
    /// With problems in the file nothing changes.
    #[command(after_help = "Example:\n  tunnelctl reload")]
    Reload,

    /// Have the installed version of the daemon take the place of the one that runs
    ///
    /// The local addresses stay: whoever connects meanwhile waits. Open connections have a few seconds to end. Returns
    /// once the tunnels that were not down before have settled.
    #[command(after_help = "Example:\n  tunnelctl restart-daemon")]
    RestartDaemon(service::RestartDaemon),

    /// Start the daemon by hand, or stop it
    #[command(subcommand, after_help = "Example:\n  tunnelctl daemon start")]
    Daemon(service::Daemon),

    /// Have the daemon start at login, or no more
    #[command(subcommand, after_help = "Example:\n  tunnelctl service install")]
    Service(service::Service),

    /// Print the versions of this program and of the running daemon
    #[command(after_help = "Example:\n  tunnelctl version --json")]
    Version,

    /// Print the script that makes a shell complete commands and tunnel names
    #[command(after_help = "Example:\n  echo 'source <(tunnelctl completions bash)' >> ~/.bashrc")]
    Completions {
        /// Shell to print the script for
        #[arg(value_parser = PossibleValuesParser::new(completions::shells()))]
        shell: String,
    },
}

/// Whose transitions to print.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Tunnels, as names or globs; without any, all of them
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(completions::names))]
    pub(crate) names: Vec<String>,

    /// End after the transitions that were
    #[arg(long)]
    pub(crate) no_follow: bool,
}

/// Which lines of the log to print.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Tunnels, as names or globs; without any, every line, also those of the daemon itself
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(completions::names))]
    pub(crate) names: Vec<String>,

    /// Go on with the lines that come, until interrupted
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// Begin with so many of the latest lines
    #[arg(short = 'n', long, value_name = "LINES", default_value_t = 100)]
    pub(crate) lines: u32,
}

/// The tunnels a command acts on.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Tunnels, as names or globs
    #[arg(
        value_name = "NAME",
        required_unless_present = "all",
        conflicts_with = "all",
        add = ArgValueCompleter::new(completions::names)
    )]
    pub(crate) names: Vec<String>,

    /// Act on every configured tunnel
    #[arg(long)]
    pub(crate) all: bool,
}

/// What to bring up, and how patiently.
#[derive(Debug, Args)]
pub(crate) struct Start {
    #[command(flatten)]
    pub(crate) names: Names,

    /// Connect on-demand tunnels at once, not on first use
    #[arg(long)]
    pub(crate) connect: bool,

    /// Return once the local addresses are bound, whether the way to the target is made or not
    #[arg(long)]
    pub(crate) no_wait: bool,

    /// Give up waiting after this long, with exit code 5
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = timeout)]
    pub(crate) timeout: Duration,
}

fn timeout(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error} (write for example `30s`, `5m` or `1h30m`)"))?;
    if duration > LONGEST_TIMEOUT {
        return Err("longer than a year".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example_and_a_summary_without_a_full_stop() {
        let cli = Cli::command();
        let named = |command: &clap::Command| (command.get_name().to_owned(), command.clone());
        let commands: Vec<_> = cli
            .get_subcommands()
            .flat_map(|command| {
                let inner = command.get_subcommands().map(|inner| {
                    (
                        format!("{} {}", command.get_name(), inner.get_name()),
                        inner.clone(),
                    )
                });
                std::iter::once(named(command)).chain(inner).collect::<Vec<_>>()
            })
            .collect();
        for (name, command) in commands {
            let summary = command.get_about().unwrap().to_string();
            assert!(!summary.ends_with('.'), "{name}: {summary}");
            let after = command.get_after_help().unwrap().to_string();
            assert!(after.contains(&format!("tunnelctl {name}")), "{name}: {after}");
        }
    }

    #[test]
    fn timeouts_are_durations_with_a_unit_and_an_end() {
        assert_eq!(timeout("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(timeout("0s"), Ok(Duration::ZERO));
        assert!(timeout("90").unwrap_err().contains("write for example `30s`"));
        assert_eq!(timeout("400days").unwrap_err(), "longer than a year");
    }
}
