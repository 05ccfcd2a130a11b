//! The whole of the route against the emulator alone: pushed keys, keys on the console, and routes below that are real.

use std::sync::Arc;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tunneld_emulator::{Config as World, Emulator};
use tunneld_wire::eice::CONNECTIONS;

use super::SshFiles;
use super::fake::{PATIENCE, public_key};
use crate::config::Config;
use crate::connector::Environment;
use crate::failure::{Failure, Reason, Remedy, Scope};
use crate::transport::{Link, Shared, Transport, build};

const DATABASE: &str = "prod-db.cabcdefghijk.ap-northeast-1.rds.amazonaws.com";

struct Stage {
    shared: Arc<Shared>,
    database: TcpListener,
    emulator: Emulator,
    state: TempDir,
}

impl Stage {
    async fn new() -> Self {
        let database = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = database.local_addr().unwrap();
        let world = format!(
            r#"
            [[instances]]
            id = "i-0123456789abcdef0"
            name = "bastion"
            private_address = "10.0.1.10"
            os_users = ["ec2-user"]
            ssh = {{ forwarding = "permitted" }}
            ssm = {{ agent = "fast" }}

            [[instances]]
            id = "i-0123456789abcdef1"
            name = "closed"
            private_address = "10.0.1.11"
            ssh = {{ forwarding = "prohibited" }}
            ssm = {{ agent = "fast" }}

            # The bastion's successor, whose agent has not come up yet, and the bastion.
            [[instances]]
            id = "i-0123456789abcdef3"
            name = "twin"
            private_address = "10.0.1.13"
            ssh = {{ forwarding = "permitted" }}
            ssm = {{ agent = "fast", online = false }}

            [[instances]]
            id = "i-0123456789abcdef2"
            name = "twin"
            private_address = "10.0.1.12"
            ssh = {{ forwarding = "permitted" }}
            ssm = {{ agent = "fast" }}

            [[endpoints]]
            id = "eice-0123456789abcdef0"

            [[databases]]
            id = "prod-db"
            kind = "instance"
            engine = "postgres"
            host = "{DATABASE}"
            port = 5432
            address = "{address}"
            "#
        );
        let emulator = Emulator::start(World::parse(&world).unwrap()).await.unwrap();
        let state = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared {
            ssh: SshFiles {
                known_hosts: Some(state.path().join("known_hosts")),
                ..SshFiles::new(state.path(), &Environment::default())
            },
            ..Shared::for_test(&emulator, state.path())
        });
        Self {
            shared,
            database,
            emulator,
            state,
        }
    }

    /// Makes a link to the database by this route.
    async fn connect(&self, route: &str) -> Result<Arc<dyn Link>, Failure> {
        timeout(PATIENCE, self.transport(&to_database(route)).connect())
            .await
            .unwrap()
    }

    /// The transport of a tunnel with these settings.
    fn transport(&self, settings: &str) -> Arc<dyn Transport> {
        let text = format!("[tunnels.db]\nlisten = 15432\n{settings}");
        let config = Config::parse("config.toml".as_ref(), &text);
        let spec = config
            .unwrap_or_else(|problems| panic!("{problems}"))
            .tunnels
            .remove(0);
        build(&spec, &self.shared)
    }

    /// Asks the database something over a link.
    async fn ask(&self, link: &Arc<dyn Link>) {
        let near = async {
            let mut stream = link.open("127.0.0.1:9").await.unwrap();
            stream.write_all(b"select 42").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let far = async {
            let (mut stream, _) = self.database.accept().await.unwrap();
            let mut asked = String::new();
            stream.read_to_string(&mut asked).await.unwrap();
            stream
                .write_all(format!("{asked}: yes").as_bytes())
                .await
                .unwrap();
        };
        let (answer, ()) = timeout(PATIENCE, async { tokio::join!(near, far) })
            .await
            .unwrap();
        assert_eq!(answer, "select 42: yes");
    }
}

fn to_database(route: &str) -> String {
    format!("target = \"rds:prod-db\"\nhost_keys = \"strict\"\nroute = {route}\n")
}

fn well(connected: Result<Arc<dyn Link>, Failure>) -> Arc<dyn Link> {
    connected.unwrap_or_else(|failure| panic!("{} {:?}", failure.in_one_line(), failure.hints()))
}

#[tokio::test]
async fn a_database_is_reached_by_ssh_inside_an_endpoints_websocket() {
    let stage = Stage::new().await;
    for route in [
        r#"{ ssh = "ec2-user@bastion", over = "eice" }"#,
        r#"{ ssh = "ec2-user@bastion", over = { eice = "eice-0123456789abcdef0" } }"#,
    ] {
        let link = well(stage.connect(route).await);
        stage.ask(&link).await;
        let tunnels = stage.emulator.tunnels();
        assert!(tunnels.iter().all(|tunnel| tunnel.port == 22), "{tunnels:?}");
        assert_ne!(tunnels.len(), 0);
        link.close().await;
    }
}

#[tokio::test]
async fn a_database_is_reached_by_ssh_over_ssm_with_a_pushed_key_and_the_key_on_the_console() {
    let stage = Stage::new().await;
    let link = well(
        stage
            .connect(r#"{ ssh = "ec2-user@bastion", over = "ssm" }"#)
            .await,
    );
    let details = link.health().borrow().details.clone();
    assert_eq!(
        (details.via.as_str(), details.target_host.as_str()),
        ("`bastion` (i-0123456789abcdef0)", DATABASE)
    );
    assert_eq!((details.target_port, details.engine.as_str()), (5432, "postgres"));
    stage.ask(&link).await;
    link.close().await;
    drop(link);
    stage.shared.tasks.close();
    timeout(PATIENCE, stage.shared.tasks.wait())
        .await
        .expect("nothing is left, below neither");
}

#[tokio::test]
async fn a_user_that_the_instance_does_not_have_is_told_in_words() {
    let stage = Stage::new().await;
    let route = r#"{ ssh = "admin@bastion", over = "ssm" }"#;
    let failure = stage.connect(route).await.err().unwrap();
    assert_eq!(
        (failure.reason(), failure.remedy(), failure.scope()),
        (Reason::Denied, &Remedy::Fix, Scope::Link),
        "{}",
        failure.in_one_line()
    );
    assert!(
        failure.to_string().contains("as `admin`"),
        "{}",
        failure.in_one_line()
    );
    assert!(failure.hints()[0].contains("ubuntu on Ubuntu"));
}

#[tokio::test]
async fn a_server_that_forwards_nothing_refuses_streams_and_keeps_its_link() {
    let stage = Stage::new().await;
    let link = well(
        stage
            .connect(r#"{ ssh = "ec2-user@closed", over = "ssm" }"#)
            .await,
    );
    let failure = link.open("127.0.0.1:9").await.err().unwrap();
    assert_eq!(
        (failure.reason(), failure.scope()),
        (Reason::TargetRefused, Scope::Stream),
        "{}",
        failure.in_one_line()
    );
}

#[tokio::test]
async fn a_server_behind_another_one_is_reached_through_it() {
    let stage = Stage::new().await;
    let route = r#"{ ssh = "ec2-user@closed", over = { ssh = "ec2-user@bastion", over = "ssm" } }"#;
    let link = well(stage.connect(route).await);
    assert_eq!(
        link.health().borrow().details.via,
        "`closed` (i-0123456789abcdef1)"
    );
}

#[tokio::test]
async fn of_two_servers_with_one_name_the_keys_are_of_the_one_that_carries_the_bytes() {
    let stage = Stage::new().await;
    let link = well(stage.connect(r#"{ ssh = "ec2-user@twin", over = "ssm" }"#).await);
    assert_eq!(link.health().borrow().details.via, "`twin` (i-0123456789abcdef2)");
    stage.ask(&link).await;
}

#[tokio::test]
async fn a_spare_connection_leaves_the_last_places_of_an_endpoint_to_others() {
    let stage = Stage::new().await;
    let plain = "target = \"ec2:bastion:22\"\nroute = \"eice\"\n";
    let plain = well(stage.transport(plain).connect().await);
    let mut others = Vec::new();
    for _ in 0..CONNECTIONS - 1 {
        others.push(plain.open("127.0.0.1:9").await.unwrap());
    }
    let by_ssh = r#"{ ssh = "ec2-user@bastion", over = "eice" }"#;
    let link = well(stage.connect(by_ssh).await);
    // With a stream on it a spare one is wished for, and there is no place.
    stage.ask(&link).await;
    let next = plain.open("127.0.0.1:9");
    others.pop();
    let next = timeout(PATIENCE, next).await.expect("nobody was before it");
    others.push(next.unwrap());

    // Whoever needs a place waits, and says so.
    let second = stage.transport(&to_database(by_ssh));
    let mut delays = second.delays();
    let free = async {
        delays.wait_for(|waits| !waits.is_empty()).await.unwrap();
        others.pop();
    };
    let (second, ()) = timeout(PATIENCE, async { tokio::join!(second.connect(), free) })
        .await
        .expect("it gets the place");
    stage.ask(&well(second)).await;
}

#[tokio::test]
async fn strict_believes_the_console_where_known_hosts_may_mean_another_machine() {
    let stage = Stage::new().await;
    let route = r#"{ ssh = "ec2-user@bastion", over = "ssm" }"#;
    let known_hosts = stage.state.path().join("known_hosts");
    let other = public_key().to_openssh().unwrap();
    for name in ["10.0.1.10", "bastion"] {
        std::fs::write(&known_hosts, format!("{name} {other}\n")).unwrap();
        well(stage.connect(route).await).close().await;
        // Without what was learned of the console, which is asked again.
        std::fs::remove_file(stage.state.path().join("host_keys")).unwrap();
    }
    std::fs::write(&known_hosts, format!("i-0123456789abcdef0 {other}\n")).unwrap();
    let failure = stage.connect(route).await.err().unwrap();
    assert_eq!(failure.reason(), Reason::Denied);
    assert!(
        failure.in_one_line().contains("under `i-0123456789abcdef0`"),
        "{}",
        failure.in_one_line()
    );
}
