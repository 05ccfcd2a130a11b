//! The servers for SSH on port 22 of instances that are configured with `ssh`: for a demo on a machine without OpenSSH.
//!
//! ```text
//!   client ─► public key ─► pushed a moment ago? ─► direct-tcpip ─► what the account holds, on loopback
//! ```
//!
//! They forward, and run nothing. Each has a host key of its own for as long as the emulator runs, which its instance
//! has written to the console.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{PrivateKey, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelOpenFailure, MethodKind, MethodSet};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Forwarding, SSH};
use crate::world::World;

/// The servers of an account, before they serve.
pub(crate) struct SshServers(Vec<SshServer>);

struct SshServer {
    instance: String,
    listener: TcpListener,
    key: PrivateKey,
    forwarding: Forwarding,
}

impl SshServers {
    /// Gives each instance that wants one a server: where it is and its host key are written to the configuration.
    pub(crate) async fn open(config: &mut Config) -> std::io::Result<Self> {
        let mut servers = Vec::new();
        for instance in &mut config.instances {
            let Some(ssh) = &instance.ssh else { continue };
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            instance.ports.insert(SSH, listener.local_addr()?);
            // It guards what everybody on this machine can reach.
            let seed = std::array::from_fn(|_| fastrand::u8(..));
            let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
            instance.console.push_str(&host_keys(key.public_key()));
            servers.push(SshServer {
                instance: instance.id.clone(),
                listener,
                key,
                forwarding: ssh.forwarding,
            });
        }
        Ok(Self(servers))
    }

    /// Serves until told to stop.
    pub(crate) fn serve(self, world: &Arc<World>, stop: &CancellationToken) {
        for server in self.0 {
            let (world_of_it, stop_of_it) = (Arc::clone(world), stop.clone());
            world.tasks.spawn(async move {
                tokio::select! {
                    () = stop_of_it.cancelled() => {}
                    () = accept(server, &world_of_it, &stop_of_it) => {}
                }
            });
        }
    }
}

/// Returns host keys as cloud-init writes them to the console.
fn host_keys(key: &PublicKey) -> String {
    let line = key.to_openssh().expect("an Ed25519 key can be written");
    format!("-----BEGIN SSH HOST KEY KEYS-----\n{line} root@emulator\n-----END SSH HOST KEY KEYS-----\n")
}

async fn accept(server: SshServer, world: &Arc<World>, stop: &CancellationToken) {
    let config = Arc::new(russh::server::Config {
        keys: vec![server.key],
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        inactivity_timeout: None,
        ..russh::server::Config::default()
    });
    while let Ok((tcp, _)) = server.listener.accept().await {
        let config = Arc::clone(&config);
        let visitor = Visitor {
            instance: server.instance.clone(),
            forwarding: server.forwarding,
            world: Arc::clone(world),
        };
        let stop = stop.clone();
        world.tasks.spawn(async move {
            let served = async {
                tcp.set_nodelay(true)?;
                russh::server::run_stream(config, tcp, visitor).await?.await
            };
            tokio::select! {
                () = stop.cancelled() => {}
                ended = served => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "an SSH connection ended badly");
                    }
                }
            }
        });
    }
}

/// Whoever has connected.
struct Visitor {
    instance: String,
    forwarding: Forwarding,
    world: Arc<World>,
}

impl Visitor {
    fn judge(&self, user: &str, offered: &PublicKey) -> Auth {
        let keys = self.world.authorized_keys(&self.instance, user);
        let mut known = keys.iter().filter_map(|key| PublicKey::from_openssh(key).ok());
        match known.any(|key| key.key_data() == offered.key_data()) {
            true => Auth::Accept,
            false => Auth::reject(),
        }
    }

    fn address_of(&self, host: &str, port: u32) -> Option<SocketAddr> {
        let config = &self.world.config;
        let instance = config
            .instances
            .iter()
            .find(|instance| instance.id == self.instance);
        let none = BTreeMap::new();
        let ports = instance.map_or(&none, |instance| &instance.ports);
        config
            .address_of(ports, host, port.try_into().ok()?)
            .filter(|address| address.ip().is_loopback())
    }
}

impl Handler for Visitor {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.judge(user, offer.public_key))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(self.judge(user, key.public_key))
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.forwarding == Forwarding::Prohibited {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        }
        let address = self.address_of(host, port);
        self.world.tasks.spawn(async move {
            let dialled = match address {
                Some(address) => TcpStream::connect(address).await.ok(),
                None => None,
            };
            let Some(mut target) = dialled else {
                reply.reject(ChannelOpenFailure::ConnectFailed).await;
                return;
            };
            reply.accept().await;
            let mut stream = channel.into_stream();
            // Either side may leave at any time.
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut target).await;
        });
        Ok(())
    }
}
