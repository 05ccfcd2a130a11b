//! The servers for SSH of the emulator's own, through a tunnel: pushed keys let in, and what the account holds is
//! reached.

mod common;

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use common::Caller;
use common::client::PATIENCE;
use futures_util::{SinkExt, StreamExt};
use russh::client::{self, Handle};
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{ChannelOpenFailure, Error};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tunneld_emulator::{Config, Emulator};

const ENDPOINT: &str = "eice-0123456789abcdef0";
const HOST: &str =
    "eice-0123456789abcdef0.b67b86ba.ec2-instance-connect-endpoint.ap-northeast-1.amazonaws.com";

/// An instance, and its address.
const BASTION: (&str, &str) = ("i-0123456789abcdef0", "10.0.1.10");
/// One whose server forwards nothing.
const CLOSED: (&str, &str) = ("i-0123456789abcdef1", "10.0.1.11");

struct Stage {
    emulator: Emulator,
    caller: Caller,
    database: TcpListener,
    key: Arc<PrivateKey>,
    tunnels: JoinSet<()>,
}

/// Takes the key that it expects of a server.
struct Expects(String);

impl client::Handler for Expects {
    type Error = Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => Ok(key.to_openssh()? == self.0),
            PublicKeyOrCertificate::Certificate(_) => Ok(false),
        }
    }
}

impl Stage {
    async fn start() -> Self {
        let database = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = database.local_addr().expect("an address");
        let config = Config::parse(&format!(
            "[[endpoints]]\nid = \"{ENDPOINT}\"\n\
             [[instances]]\nid = \"{}\"\nprivate_address = \"{}\"\nos_users = [\"ec2-user\"]\nssh = {{}}\n\
             [[instances]]\nid = \"{}\"\nprivate_address = \"{}\"\nssh = {{ forwarding = \"prohibited\" }}\n\
             [[hosts]]\nhost = \"db.example\"\nport = 5432\naddress = \"{address}\"\n",
            BASTION.0, BASTION.1, CLOSED.0, CLOSED.1
        ))
        .expect("a good configuration");
        let emulator = Emulator::start(config).await.expect("the emulator starts");
        Self {
            caller: Caller::of(&emulator),
            emulator,
            database,
            key: Arc::new(PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]))),
            tunnels: JoinSet::new(),
        }
    }

    async fn push(&self, instance: (&str, &str), user: &str) {
        let key = self.key.public_key().to_openssh().expect("it can be written");
        assert_eq!(self.caller.push_key(instance.0, user, &key).await.status, 200);
    }

    /// Connects to port 22 of an instance, whose host key has to be that of its console.
    async fn connect(&mut self, instance: (&str, &str)) -> Handle<Expects> {
        let parameters = format!("InstanceId={}", instance.0);
        let answer = self.caller.ec2_call("GetConsoleOutput", &parameters).await;
        let console = BASE64_STANDARD.decode(answer.texts("output")[0]).expect("base64");
        let console = String::from_utf8(console).expect("text");
        let key = console
            .lines()
            .find(|line| line.starts_with("ssh-"))
            .expect("a key");
        let key = key.strip_suffix(" root@emulator").expect("whose it is");
        let stream = self.tunnel(instance).await;
        client::connect_stream(Arc::default(), stream, Expects(key.to_owned()))
            .await
            .expect("the host key is the console's")
    }

    async fn log_in(&self, handle: &mut Handle<Expects>, user: &str) -> bool {
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&self.key), None);
        let tried = handle.authenticate_publickey(user, key).await;
        tried.expect("the server answers").success()
    }

    /// Returns the bytes of a tunnel to port 22 of an instance.
    async fn tunnel(&mut self, instance: (&str, &str)) -> DuplexStream {
        let query = format!(
            "instanceConnectEndpointId={ENDPOINT}&remotePort=22&privateIpAddress={}",
            instance.1
        );
        let request = self.caller.opening(HOST, &query);
        let tcp = TcpStream::connect(self.emulator.address())
            .await
            .expect("it listens");
        let (socket, _) = tokio_tungstenite::client_async(request, tcp)
            .await
            .expect("a good request");
        let (near, far) = tokio::io::duplex(65_536);
        self.tunnels.spawn(async move {
            let (mut sink, mut stream) = socket.split();
            let (mut reader, mut writer) = tokio::io::split(far);
            let up = async {
                let mut buffer = BytesMut::new();
                while let Ok(1..) = reader.read_buf(&mut buffer).await {
                    let bytes: Bytes = buffer.split().freeze();
                    sink.send(Message::Binary(bytes)).await.expect("it is taken");
                }
            };
            let down = async {
                while let Some(Ok(Message::Binary(bytes))) = stream.next().await {
                    writer.write_all(&bytes).await.expect("it is taken");
                }
            };
            tokio::join!(up, down);
        });
        near
    }
}

#[tokio::test]
async fn a_pushed_key_lets_in_whom_it_is_for_and_what_the_account_holds_is_reached() {
    let mut stage = Stage::start().await;
    stage.push(BASTION, "ec2-user").await;
    stage.push(BASTION, "root").await;
    let mut handle = stage.connect(BASTION).await;
    assert!(!stage.log_in(&mut handle, "root").await, "nobody is by that name");
    assert!(stage.log_in(&mut handle, "ec2-user").await);
    let channel = handle
        .channel_open_direct_tcpip("db.example", 5432, "127.0.0.1", 1)
        .await
        .expect("it forwards");
    let mut stream = channel.into_stream();
    stream.write_all(b"select 42").await.expect("it is taken");
    stream.shutdown().await.expect("half of it can be closed");
    let (mut database, _) = stage.database.accept().await.expect("it is dialled");
    let mut asked = Vec::new();
    timeout(PATIENCE, database.read_to_end(&mut asked))
        .await
        .expect("the half-close comes")
        .expect("a clean end");
    assert_eq!(asked, b"select 42");
    database.write_all(b"42").await.expect("it is taken");
    drop(database);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("a clean end");
    assert_eq!(answer, b"42");

    let nowhere = handle
        .channel_open_direct_tcpip("db.example", 5433, "127.0.0.1", 1)
        .await;
    assert!(matches!(
        nowhere,
        Err(Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed))
    ));
    // It runs nothing.
    assert!(handle.channel_open_session().await.is_err());
}

#[tokio::test]
async fn a_server_can_be_told_to_forward_nothing() {
    let mut stage = Stage::start().await;
    let mut handle = stage.connect(CLOSED).await;
    assert!(!stage.log_in(&mut handle, "admin").await, "no key was pushed");
    stage.push(CLOSED, "admin").await;
    assert!(stage.log_in(&mut handle, "admin").await);
    let refused = handle
        .channel_open_direct_tcpip("db.example", 5432, "127.0.0.1", 1)
        .await;
    assert!(matches!(
        refused,
        Err(Error::ChannelOpenFailure(
            ChannelOpenFailure::AdministrativelyProhibited
        ))
    ));
}
