//! The SSH server behind the endpoint: the system's OpenSSH, one child process for the whole run.
//!
//! It runs as whoever runs the bench, who is also the only one that can log in to it, with a key made for this run.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::client::free_address;
use crate::process::Process;

/// The server's program, which wants to be called by its path.
const PROGRAM: &str = "/usr/sbin/sshd";
/// Where it wants to find an empty folder when it runs as root: Debian makes it when it starts its own server.
const PRIVILEGE_SEPARATION: &str = "/run/sshd";

pub(crate) struct Server {
    /// Ended with the server.
    _process: Process,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Who can log in.
    pub(crate) user: String,
    /// With this key.
    pub(crate) identity: PathBuf,
}

impl Server {
    pub(crate) fn start(folder: &Path) -> anyhow::Result<Self> {
        let user = Command::new("id").arg("-un").output()?.stdout;
        let user = String::from_utf8(user)?.trim().to_owned();
        if user == "root" {
            fs::create_dir_all(PRIVILEGE_SEPARATION)?;
        }
        let (host_key, identity) = (key(folder, "host-key")?, key(folder, "identity")?);
        let address = free_address()?;
        let file = folder.join("sshd_config");
        // The folder lies below /tmp, which its strict modes distrust.
        let configuration = format!(
            "ListenAddress {address}\nHostKey {}\nPidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nAuthorizedKeysFile {}\n",
            host_key.display(),
            identity.with_extension("pub").display()
        );
        fs::write(&file, configuration)?;
        let mut command = Command::new(PROGRAM);
        command.env_clear().args(["-D", "-e", "-f"]).arg(file);
        let mut process = Process::start(&mut command, "sshd", folder)?;
        process.wait_until_it_listens(address)?;
        Ok(Self {
            _process: process,
            address,
            user,
            identity,
        })
    }
}

/// Makes a key; its public half stands beside it in a file that ends with `.pub`.
fn key(folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let file = folder.join(name);
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&file)
        .status()
        .context("cannot start ssh-keygen")?;
    ensure!(made.success(), "ssh-keygen made no key: {made}");
    Ok(file)
}
