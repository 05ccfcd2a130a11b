//! The route `direct`: plain TCP from this machine. A link holds nothing open, so it is never lost; where streams go is
//! looked up once, and again when it leads nowhere.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Health, Link, LinkDetails, Stream, Transport};
use crate::aws::Aws;
use crate::config::{AccountSpec, SSH_PORT, Target, TunnelSpec};
use crate::connector::{authority, connect_tcp};
use crate::failure::{Failure, Reason, Remedy};

/// Reaches a target over plain TCP.
#[derive(Clone)]
pub(crate) struct Direct {
    target: Target,
    account: AccountSpec,
    aws: Arc<Aws>,
}

impl Direct {
    /// The route to a target, with a tunnel's account.
    pub(super) fn new(spec: &TunnelSpec, target: Target, aws: Arc<Aws>) -> Self {
        Self {
            target,
            account: spec.account.clone(),
            aws,
        }
    }

    /// Looks up where streams go.
    async fn find(&self) -> Result<LinkDetails, Failure> {
        let (target_host, target_port, engine) = self.resolve().await?;
        Ok(LinkDetails {
            target_host,
            target_port,
            engine,
            ..LinkDetails::default()
        })
    }

    /// Host, port and database engine of the target.
    async fn resolve(&self) -> Result<(String, u16, String), Failure> {
        match &self.target {
            Target::Host { host, port } => Ok((host.clone(), *port, String::new())),
            Target::Rds { id } => {
                let database = self.aws.account(&self.account).await?.find_database(id).await?;
                Ok((database.host, database.port, database.engine))
            }
            Target::Instance { instance, port } => {
                let found = self
                    .aws
                    .account(&self.account)
                    .await?
                    .find_instance(instance)
                    .await?;
                // A client of an instance is in its network already; an SSH server is reached from anywhere.
                let place = found.place().filter(|_| *port == SSH_PORT);
                let public =
                    place.and_then(|place| place.public_address.as_deref().or(place.ipv6_address.as_deref()));
                let address = public.or(found.private_address());
                let Some(address) = address else {
                    let doing = format!("cannot find an address of {found}");
                    return Err(Failure::new(Reason::NotFound, Remedy::Fix, doing)
                        .hint("give the tunnel a target HOST:PORT, or the route \"ssm\""));
                };
                Ok((address.to_owned(), *port, String::new()))
            }
        }
    }
}

#[async_trait]
impl Transport for Direct {
    async fn connect(&self) -> Result<Arc<dyn Link>, Failure> {
        let details = self.find().await?;
        Ok(Arc::new(DirectLink {
            route: self.clone(),
            health: watch::Sender::new(Health {
                impaired: None,
                ended: None,
                details,
            }),
        }))
    }
}

struct DirectLink {
    route: Direct,
    /// Always well; its details are where the streams go.
    health: watch::Sender<Health>,
}

#[async_trait]
impl Link for DirectLink {
    async fn open(&self, _: &str) -> Result<Box<dyn Stream>, Failure> {
        let known = self.health.borrow().details.clone();
        let failure = match connect(&known).await {
            Ok(stream) => return Ok(stream),
            Err(failure) => failure,
        };
        match self.route.find().await {
            Ok(found) if found != known => {
                self.health.send_modify(|health| health.details = found.clone());
                connect(&found).await
            }
            Err(gone) if gone.reason() == Reason::NotFound => Err(gone),
            // Whether it is another one now cannot be told without AWS, and what is known may still be right.
            Ok(_) | Err(_) => Err(failure),
        }
    }

    async fn closed(&self) -> Arc<Failure> {
        std::future::pending().await
    }

    async fn close(&self) {}

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn probe(&self) {}
}

async fn connect(to: &LinkDetails) -> Result<Box<dyn Stream>, Failure> {
    let (host, port) = (&to.target_host, to.target_port);
    match connect_tcp(host, port).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => {
            let doing = format!("cannot connect to the target `{}`", authority(host, port));
            Err(Failure::new(Reason::TargetRefused, Remedy::Retry, doing)
                .of_stream()
                .because(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tunneld_emulator::{Config as World, Emulator};

    use super::*;
    use crate::config::Instance;
    use crate::connector::Environment;
    use crate::failure::Scope;
    use crate::tunnel::fake::{self, free_port};

    async fn link_to(host: &str, port: u16) -> Arc<dyn Link> {
        let aws = Arc::new(Aws::new(Environment::default()).unwrap());
        let target = Target::Host {
            host: host.to_owned(),
            port,
        };
        Direct {
            target,
            account: AccountSpec::default(),
            aws,
        }
        .connect()
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn half_close_passes_exactly() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let link = link_to("127.0.0.1", listener.local_addr().unwrap().port()).await;
        let far = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = String::new();
            stream.read_to_string(&mut asked).await.unwrap();
            stream
                .write_all(format!("{asked} back").as_bytes())
                .await
                .unwrap();
        };
        let near = async {
            let mut stream = link.open("127.0.0.1:9").await.unwrap();
            stream.write_all(b"there and").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        assert_eq!(tokio::join!(near, far).0, "there and back");
    }

    #[tokio::test]
    async fn a_target_that_refuses_concerns_one_stream_and_is_named() {
        let port = free_port();
        let failure = link_to("127.0.0.1", port)
            .await
            .open("127.0.0.1:9")
            .await
            .err()
            .unwrap();
        assert_eq!(
            (failure.reason(), failure.scope()),
            (Reason::TargetRefused, Scope::Stream)
        );
        assert!(
            failure.to_string().contains(&format!("127.0.0.1:{port}")),
            "{failure}"
        );
    }

    #[tokio::test]
    async fn an_instance_is_a_neighbour_and_its_ssh_server_may_be_far_away() {
        let world = r#"
            [[instances]]
            id = "i-0123456789abcdef0"
            private_address = "10.0.1.10"
            public_address = "203.0.113.10"
            [[instances]]
            id = "i-0123456789abcdef1"
            private_address = "10.0.1.11"
        "#;
        let emulator = Emulator::start(World::parse(world).unwrap()).await.unwrap();
        let aws = Arc::new(Aws::new(Environment::from_iter(emulator.environment())).unwrap());
        let spec = fake::spec("db");
        for (id, port, address) in [
            ("i-0123456789abcdef0", 5432, "10.0.1.10"),
            ("i-0123456789abcdef0", SSH_PORT, "203.0.113.10"),
            ("i-0123456789abcdef1", SSH_PORT, "10.0.1.11"),
        ] {
            let instance = Instance::Id(id.to_owned());
            let route = Direct::new(&spec, Target::Instance { instance, port }, Arc::clone(&aws));
            let link = route.connect().await.unwrap();
            assert_eq!(link.health().borrow().details.target_host, address, "{id}:{port}");
        }
    }

    #[tokio::test]
    async fn a_target_that_has_moved_is_looked_up_anew() {
        let (old, new) = (free_port(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let port = new.local_addr().unwrap().port();
        let world = format!(
            "[[databases]]\nid = \"db\"\nkind = \"instance\"\nengine = \"postgres\"\nhost = \"127.0.0.1\"\n\
             port = {port}\naddress = \"127.0.0.1:{port}\"\n"
        );
        let emulator = Emulator::start(World::parse(&world).unwrap()).await.unwrap();
        let aws = Arc::new(Aws::new(Environment::from_iter(emulator.environment())).unwrap());
        let target = Target::Rds { id: "db".to_owned() };
        let route = Direct::new(&fake::spec("db"), target, aws);
        let found = route.find().await.unwrap();
        let link = DirectLink {
            route,
            health: watch::Sender::new(Health {
                impaired: None,
                ended: None,
                details: LinkDetails {
                    target_port: old,
                    ..found.clone()
                },
            }),
        };
        link.open("127.0.0.1:9").await.unwrap();
        assert_eq!(link.health.borrow().details, found);
        drop(new);
        let failure = link.open("127.0.0.1:9").await.err().unwrap();
        assert_eq!(
            failure.reason(),
            Reason::TargetRefused,
            "it has not moved: {failure}"
        );
    }

    #[tokio::test]
    async fn the_link_is_well_says_where_it_goes_and_never_closes() {
        let link = link_to("::1", 5432).await;
        let health = link.health().borrow().clone();
        assert!(health.impaired.is_none());
        assert_eq!(
            (health.details.target_host.as_str(), health.details.target_port),
            ("::1", 5432)
        );
        link.close().await;
        assert!(link.closed().now_or_never().is_none());
    }
}
