//! `tunnelctl ssh-config`: the lines by which ssh, and whatever uses it, reaches instances by itself.

use std::path::Path;

use crate::cli::remote::{Reach, SshConfig};
use crate::client::Client;
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::remote::proxy::ProxyCommand;
use crate::remote::{SSH_PORT, key};

/// Prints the lines. Asks the daemon for instances that are named, and for nothing else.
pub(super) async fn run(
    told: &SshConfig,
    socket: Option<&Path>,
    connect: impl Future<Output = Result<Client, Error>>,
    output: &Output,
) -> Result<Exit, Error> {
    let names: Vec<&String> = told
        .hosts
        .iter()
        .filter(|host| !host.contains(['*', '?']))
        .collect();
    let mut aliases = Vec::new();
    if !names.is_empty() {
        let mut client = connect.await?;
        for name in names {
            let resolved = client.resolve(told.reach.question(name, SSH_PORT)).await?;
            aliases.push((name.as_str(), resolved.id));
        }
    }
    let private = key::lasting()?;
    let proxy = |reach: &Reach| Ok::<_, Error>(ProxyCommand::new(socket)?.by(reach));
    let pushing = proxy(&told.reach)?.pushing(&key::public(&private)).to_any();
    let plain = proxy(&told.reach)?.to_any();
    output.answer(&lines(told, &private, &pushing, &plain, &aliases))?;
    Ok(Exit::Ok)
}

fn lines(told: &SshConfig, private: &Path, pushing: &str, plain: &str, aliases: &[(&str, String)]) -> String {
    let SshConfig { user, hosts, .. } = told;
    let hosts = ["i-*"].into_iter().chain(hosts.iter().map(String::as_str));
    let hosts = hosts.collect::<Vec<_>>().join(" ");
    let private = private.display();
    let mut lines = format!(
        "# Printed by `tunnelctl ssh-config` for ~/.ssh/config, before any `Host *`: ssh, scp, sftp, rsync and whatever\n\
         # uses them reach these hosts through tunneld. An instance accepts the key for a minute with each connection.\n\
         Host {hosts}\n    \
             User {user}\n    \
             IdentityFile \"{private}\"\n    \
             IdentitiesOnly yes\n    \
             ProxyCommand {pushing}\n\
         # Managed instances accept no such key: for these it is one of yours.\n\
         Host mi-*\n    \
             ProxyCommand {plain}"
    );
    if !aliases.is_empty() {
        lines +=
            "\n# Host keys belong to an instance. When another one gets its name, print these lines again.";
    }
    for (name, id) in aliases {
        lines += &format!("\nHost {name}\n    HostKeyAlias {id}");
    }
    lines
}
