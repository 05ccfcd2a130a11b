//! A small fake AWS on one loopback port: what our calls need of SSM, EC2, EC2 Instance Connect, ECS, RDS and STS, the
//! SSM data channel with an agent behind it, and the tunnels of Instance Connect's endpoints.
//!
//! Every request's signature is verified against the emulator's own fake keys; wire formats and errors are those of
//! AWS. It never listens beyond loopback, because whoever reaches it reaches every port that it is told of.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use tunneld_emulator::{Conditions, Config, Emulator};
//!
//! let emulator = Emulator::start(Config::parse("[[instances]]\nid = \"i-0123\"\nssm = {}")?).await?;
//! for (name, value) in emulator.environment() {
//!     println!("{name}={value}"); // points any SDK here
//! }
//! emulator.faults().set("throttle-start-session*3")?; // one call after the other
//! emulator.set_conditions(Conditions::parse("[line]\ndelay = \"50ms\"")?); // from now on, open sessions too
//! emulator.cut(); // at once
//! emulator.shutdown().await;
//! # Ok(())
//! # }
//! ```

mod actions;
mod admin;
mod api;
mod authority;
mod calls;
mod clock;
mod conditions;
mod config;
mod documents;
mod eice;
mod faults;
mod gateway;
mod keys;
mod network;
mod proxy;
mod pushed_keys;
mod secrets;
mod server;
mod sessions;
mod sigv4;
mod socket;
mod ssh_server;
mod upgrade;
mod websocket;
mod world;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use authority::AuthorityError;
pub use conditions::{
    AbsentClient, AgentConditions, AgentTimer, ChannelClosedForm, Conditions, ConditionsError,
    ConnectConditions, Dials, FaultFile, Fragments, LineConditions, Noise, ServiceConditions,
    StartPublication, TunnelExpiry, TunnelMessages,
};
pub use config::{Config, ConfigError, Credentials, EndpointState};
pub use eice::{TunnelEnd, TunnelSummary};
pub use faults::{ActiveFault, FaultError, Faults};
pub use network::Outage;
pub use sessions::SessionSummary;

use authority::Authority;
use ssh_server::SshServers;
use world::World;

/// How long a shutdown waits for sessions to drain. An agent drains for at most two seconds.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// A running emulator. Dropped, it stops; [`Emulator::shutdown`] waits until it has.
pub struct Emulator {
    address: SocketAddr,
    ca_pem: String,
    world: Arc<World>,
    stop: CancellationToken,
}

/// Why the emulator did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The address could be reached from elsewhere.
    #[error("cannot listen on `{0}`: the emulator serves loopback alone")]
    NotLoopback(SocketAddr),
    /// The address cannot be had.
    #[error("cannot listen on `{address}`")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no certificate for TLS.
    #[error("cannot make a certificate authority")]
    Authority(#[from] AuthorityError),
}

impl Emulator {
    /// Starts an emulator on a free port of 127.0.0.1.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_on(config, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
    }

    /// Starts an emulator on a loopback address; port 0 takes a free one.
    pub async fn start_on(mut config: Config, address: SocketAddr) -> Result<Self, StartError> {
        if !address.ip().is_loopback() {
            return Err(StartError::NotLoopback(address));
        }
        let authority = Authority::new(&config.regions)?;
        let listen = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let ssh_servers = SshServers::open(&mut config).await.map_err(listen)?;
        let world = Arc::new(World::new(config));
        let stop = CancellationToken::new();
        ssh_servers.serve(&world, &stop);
        let accepting = server::serve(listener, authority.acceptor, Arc::clone(&world), stop.clone());
        world.tasks.spawn(accepting);
        Ok(Self {
            address,
            ca_pem: authority.pem,
            world,
            stop,
        })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the endpoint for plain HTTP.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the endpoint for TLS, on the same port.
    pub fn tls_url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Returns the certificate of the authority behind the TLS endpoint.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Returns the environment that points any SDK, the AWS CLI and its plugin at the plain endpoint, and tunneld's
    /// tunnels of Instance Connect too.
    pub fn environment(&self) -> BTreeMap<&'static str, String> {
        let config = &self.world.config;
        let region = config.region_of(None);
        let credentials = self.world.keys.current();
        let mut environment = BTreeMap::from([
            ("AWS_ACCESS_KEY_ID", credentials.access_key_id),
            ("AWS_SECRET_ACCESS_KEY", credentials.secret_access_key),
            ("AWS_DEFAULT_REGION", region.to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("AWS_ENDPOINT_URL", self.url()),
            ("AWS_REGION", region.to_owned()),
            ("TUNNELD_ENDPOINT_URL_EICE", format!("ws://{}", self.address)),
        ]);
        if let Some(token) = credentials.session_token {
            environment.insert("AWS_SESSION_TOKEN", token);
        }
        environment
    }

    /// Returns the environment for the TLS endpoint; `ca_file` holds, or will hold, [`Emulator::ca_pem`].
    pub fn tls_environment(&self, ca_file: &Path) -> BTreeMap<&'static str, String> {
        let mut environment = self.environment();
        environment.insert("AWS_ENDPOINT_URL", self.tls_url());
        environment.insert("AWS_CA_BUNDLE", ca_file.display().to_string());
        environment.insert("TUNNELD_ENDPOINT_URL_EICE", format!("wss://{}", self.address));
        environment
    }

    /// Returns the switches of what goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.world.faults
    }

    /// Returns the open sessions, oldest first.
    pub fn sessions(&self) -> Vec<SessionSummary> {
        self.summaries(|session| session.ended.is_none())
    }

    /// Returns the ended sessions, oldest first, each with what ended it.
    pub fn ended_sessions(&self) -> Vec<SessionSummary> {
        self.summaries(|session| session.ended.is_some())
    }

    /// Returns the open tunnels of Instance Connect's endpoints, oldest first.
    pub fn tunnels(&self) -> Vec<TunnelSummary> {
        let mut tunnels = self.world.tunnels.all();
        tunnels.retain(|tunnel| tunnel.ended.is_none());
        tunnels
    }

    /// Returns the ended tunnels, oldest first, each with what ended it.
    pub fn ended_tunnels(&self) -> Vec<TunnelSummary> {
        let mut tunnels = self.world.tunnels.all();
        tunnels.retain(|tunnel| tunnel.ended.is_some());
        tunnels
    }

    /// Ends every open tunnel in this way, and returns how many those are.
    pub fn end_tunnels(&self, end: &TunnelEnd) -> usize {
        self.world.tunnels.end(end)
    }

    /// Changes the state of an endpoint of Instance Connect; returns whether there is one. Open tunnels live on.
    pub fn set_endpoint_state(&self, id: &str, state: EndpointState) -> bool {
        self.world.set_endpoint_state(id, state)
    }

    /// Returns the public keys by which a user can log in to an instance at this moment, as lines of
    /// `authorized_keys`. A server of one's own gets them from `/_emulator/keys?instance=…&user=…`.
    pub fn authorized_keys(&self, instance: &str, user: &str) -> Vec<String> {
        self.world.authorized_keys(instance, user)
    }

    /// Returns the conditions under which clients are served.
    pub fn conditions(&self) -> Conditions {
        Conditions::clone(&self.world.conditions.borrow())
    }

    /// Changes the conditions under which clients are served; open sessions feel it at once.
    pub fn set_conditions(&self, conditions: Conditions) {
        self.world.conditions.send_replace(Arc::new(conditions));
    }

    /// Switches on what a file says, beside the switches that are on, and sets its conditions.
    pub fn misbehave(&self, faults: &FaultFile) -> Result<(), FaultError> {
        for switch in &faults.switches {
            self.world.faults.set(switch)?;
        }
        self.set_conditions(faults.conditions.clone());
        Ok(())
    }

    /// Resets the websocket of every open session, and returns how many sessions those are.
    pub fn cut(&self) -> usize {
        self.world.cut()
    }

    /// Closes the websocket of every open session with code 1000 and "Bye", as the service does about hourly; returns
    /// how many sessions those are.
    pub fn recycle(&self) -> usize {
        self.world.recycle()
    }

    /// Makes the websocket of every open session half-open: it is neither read nor written any more, for ever, and its
    /// TCP connection stays. Later websockets work. Returns how many sessions those are.
    pub fn freeze(&self) -> usize {
        self.world.freeze()
    }

    /// Takes the network away from all clients, API and websockets, until [`Emulator::end_outage`].
    pub fn begin_outage(&self, outage: Outage) {
        self.world.network.begin(outage);
    }

    /// Ends an outage; connections that it froze stay dead.
    pub fn end_outage(&self) {
        self.world.network.end();
    }

    /// Takes the agent's own websocket away from every open session for that long: what the agent sends is numbered
    /// and lost, and data of the client is answered with pause_publication. An agent of kind `fast` sends nothing
    /// meanwhile. Returns how many sessions those are.
    pub fn agent_outage(&self, duration: Duration) -> usize {
        self.world.agent_outage(duration)
    }

    /// Ends every open session, and has no agent online for that long. Returns how many sessions those are.
    pub fn restart_agents(&self, away: Duration) -> usize {
        self.world.restart_agents(away)
    }

    /// Replaces the long-term key; whoever signs with the one before is told that it has expired.
    pub fn rotate_credentials(&self) -> Credentials {
        self.world.rotate_credentials()
    }

    /// Returns what must not be shown by whoever uses the emulator: the secret keys and session tokens of its
    /// credentials, the tokens and cell numbers of its sessions, and the signatures that it has taken.
    pub fn secrets(&self) -> Vec<String> {
        let mut secrets = self.world.keys.secrets();
        secrets.extend(self.world.secrets.all());
        secrets
    }

    /// Stops an ECS task, and ends its sessions; returns how many those are. `None`: there is no such task.
    pub fn stop_task(&self, id: &str) -> Option<usize> {
        self.world.stop_task(id)
    }

    /// Returns how often each operation was called, by names such as `ssm:StartSession`; websocket upgrades are
    /// `ssmmessages:OpenDataChannel` and `ec2-instance-connect:OpenTunnel`.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        self.world.calls.all()
    }

    /// Stops accepting, ends every session, and waits for what is still running, for some seconds at most.
    pub async fn shutdown(self) {
        self.stop();
        self.world.tasks.close();
        if tokio::time::timeout(SHUTDOWN, self.world.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("some connections did not end in time");
        }
    }

    fn stop(&self) {
        self.stop.cancel();
        for session in self.world.sessions.all() {
            session.terminate("the emulator stopped");
        }
        self.world.tunnels.end(&TunnelEnd::Reset);
    }

    fn summaries(&self, of: impl Fn(&SessionSummary) -> bool) -> Vec<SessionSummary> {
        self.world
            .sessions
            .all()
            .iter()
            .map(|session| session.summary())
            .filter(of)
            .collect()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.stop();
    }
}
