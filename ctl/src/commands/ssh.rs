//! `tunnelctl ssh`: the system's ssh, with a way to the instance and a key for this one connection.

use std::process::{Command, ExitCode};

use crate::cli::remote::{DEFAULT_USER, Reach, Ssh};
use crate::client::Client;
use crate::error::Error;
use crate::json::{Instance, Versioned};
use crate::output::Output;
use crate::remote::key::{self, OneTimeKey, PACKAGE, knows_pushed_keys};
use crate::remote::proxy::ProxyCommand;
use crate::remote::words::Told;
use crate::remote::{SSH_PORT, foreground};
use crate::render;

/// Runs ssh to its end; its exit code is ours.
pub(super) async fn run(told: &Ssh, client: &mut Client, output: &Output) -> Result<ExitCode, Error> {
    let (user, instance) = match told.destination.split_once('@') {
        // What is before a tag is a user; what is in it may be an address of mail.
        Some((user, instance)) if !user.contains(':') => (Some(user), instance),
        Some(_) | None => (None, told.destination.as_str()),
    };
    let words = Told::by(&told.arguments);
    let resolved = client.resolve(told.reach.question(instance, SSH_PORT)).await?;
    if told.verbose && output.json() {
        output.talk_json(&Versioned::new(Instance::from(&resolved)))?;
    } else if told.verbose {
        output.talk(&render::instance(&resolved));
        if user.is_none() && !words.user {
            output.talk(&format!(
                "user {DEFAULT_USER}, the default; USER@INSTANCE names another"
            ));
        }
    }

    // ssh comes back to the instance that was found, the way that was chosen.
    let reach = Reach {
        route: Some(resolved.route),
        ..told.reach.clone()
    };
    let mut proxy = ProxyCommand::new(Some(client.socket()))?.by(&reach);
    let mut ssh = Command::new("ssh");
    let key = if words.identity || !knows_pushed_keys(&resolved.id) {
        None
    } else {
        let folder = client.socket().parent().unwrap_or(client.socket());
        Some(OneTimeKey::new(folder)?)
    };
    if let Some(key) = &key {
        proxy = proxy.pushing(&key::public(&key.private()));
        ssh.args(["-o", "IdentitiesOnly=yes", "-i"]).arg(key.private());
    }
    ssh.arg("-o")
        .arg(format!("ProxyCommand={}", proxy.leading_to(&resolved.id)))
        .arg("-o")
        .arg(format!("HostKeyAlias={}", resolved.id));
    if let Some(user) = user.or((!words.user).then_some(DEFAULT_USER)) {
        ssh.args(["-l", user]);
    }
    ssh.arg(&resolved.id).args(&told.arguments);

    let Some(child) = foreground::start(&mut ssh)? else {
        return Err(Error::failed("there is no `ssh` on this machine").hint(PACKAGE));
    };
    let code = foreground::wait(&child).await;
    drop(key);
    code
}
