use std::collections::HashMap;

use tokio::net::TcpStream;

use super::*;
use crate::tunnel::fake::{self, Attempts, FakeFar};

/// A daemon whose transports the test holds in its hand.
struct Rig {
    daemon: Arc<Daemon>,
    /// The attempts of the transport made last for each name.
    attempts: Arc<Mutex<HashMap<String, Attempts>>>,
    made: Arc<Mutex<Vec<String>>>,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Rig {
    async fn new(specs: Vec<TunnelSpec>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let attempts: Arc<Mutex<HashMap<String, Attempts>>> = Arc::default();
        let made: Arc<Mutex<Vec<String>>> = Arc::default();
        let transports: Transports = {
            let (attempts, made) = (Arc::clone(&attempts), Arc::clone(&made));
            Arc::new(move |spec| {
                let (transport, received) = fake::transport();
                attempts.lock().unwrap().insert(spec.name.to_string(), received);
                made.lock().unwrap().push(spec.name.to_string());
                transport
            })
        };
        let daemon = Daemon::start(
            Config {
                path: path.clone(),
                daemon: DaemonSettings::default(),
                tunnels: specs,
                defaults: Arc::default(),
            },
            Means::for_test(transports),
        )
        .await;
        Self {
            daemon,
            attempts,
            made,
            path,
            _folder: folder,
        }
    }

    /// Lets the next attempt of a tunnel make a link, and waits until it is up.
    async fn connect(&self, name: &str) -> FakeFar {
        let mut attempts = self.attempts.lock().unwrap().remove(name).unwrap();
        let far = attempts.next().await.succeed();
        self.attempts.lock().unwrap().insert(name.to_owned(), attempts);
        let mut changes = self.daemon.watch();
        while self.state(name) != "up" {
            changes.next().await.unwrap();
        }
        far
    }

    fn state(&self, name: &str) -> &'static str {
        self.daemon.list(&names([name])).unwrap()[0].state.name()
    }

    fn made(&self) -> Vec<String> {
        std::mem::take(&mut self.made.lock().unwrap())
    }
}

fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

fn automatic(name: &str) -> TunnelSpec {
    TunnelSpec {
        autostart: true,
        ..fake::spec(name)
    }
}

#[tokio::test(start_paused = true)]
async fn only_tunnels_that_start_by_themselves_do() {
    let rig = Rig::new(vec![
        automatic("a"),
        TunnelSpec {
            autostart: false,
            ..fake::spec("b")
        },
    ])
    .await;
    assert_eq!((rig.state("a"), rig.state("b")), ("connecting", "down"));
}

#[tokio::test(start_paused = true)]
async fn an_on_demand_tunnel_that_starts_by_itself_listens_and_makes_no_attempt() {
    let spec = TunnelSpec {
        autostart: true,
        ..fake::on_demand("db")
    };
    let rig = Rig::new(vec![spec.clone()]).await;
    assert_eq!(rig.state("db"), "idle");
    assert!(rig.attempts.lock().unwrap().get_mut("db").unwrap().is_quiet());
    let _client = TcpStream::connect(fake::address(&spec)).await.unwrap();
    rig.connect("db").await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_name_stops_the_request_and_near_names_are_told() {
    let specs = ["prod-db", "stage-db", "billing"];
    let rig = Rig::new(
        specs
            .map(|name| TunnelSpec {
                autostart: false,
                ..fake::spec(name)
            })
            .to_vec(),
    )
    .await;
    let error = rig
        .daemon
        .up(&names(["billing", "prd-db", "zzz"]), Wish::Listen)
        .await
        .unwrap_err();
    let told = "there is no tunnel `prd-db`; did you mean `prod-db`; there is no tunnel `zzz`";
    assert!(
        error
            .to_string()
            .starts_with("there is no tunnel `prd-db`; did you mean `prod-db`"),
        "{error}"
    );
    assert!(
        error.to_string().ends_with("there is no tunnel `zzz`"),
        "{error}, not {told}"
    );
    assert_eq!(rig.state("billing"), "down", "all or nothing");
}

#[tokio::test(start_paused = true)]
async fn answers_come_in_the_order_of_the_request() {
    let rig = Rig::new(vec![fake::spec("a"), fake::spec("b"), fake::spec("c")]).await;
    let statuses = rig.daemon.up(&names(["c", "a"]), Wish::Listen).await.unwrap();
    assert_eq!(
        statuses
            .iter()
            .map(|status| status.name.as_str())
            .collect::<Vec<_>>(),
        ["c", "a"]
    );
    assert!(statuses.iter().all(|status| status.state.name() == "connecting"));
}

#[tokio::test(start_paused = true)]
async fn a_reload_leaves_unchanged_tunnels_alone() {
    let specs = vec![automatic("same"), automatic("changed"), automatic("gone")];
    let rig = Rig::new(specs.clone()).await;
    let same = rig.connect("same").await;
    let changed = rig.connect("changed").await;
    let gone = rig.connect("gone").await;
    rig.made();

    let [same_spec, changed_spec, gone_spec] = &specs[..] else {
        unreachable!()
    };
    let new_spec = TunnelSpec {
        hold: Duration::from_secs(1),
        ..changed_spec.clone()
    };
    let reloaded = rig
        .daemon
        .adopt(vec![automatic("new"), same_spec.clone(), new_spec])
        .await;

    let named = |names: &[TunnelName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(named(&reloaded.added), ["new"]);
    assert_eq!(named(&reloaded.changed), ["changed"]);
    assert_eq!(named(&reloaded.removed), ["gone"]);
    assert_eq!(rig.made(), ["new", "changed"]);
    assert_eq!(
        (rig.state("same"), rig.state("changed"), rig.state("new")),
        ("up", "connecting", "connecting")
    );
    changed.goodbye().await;
    gone.goodbye().await;
    assert!(!same.has_goodbye());
    TcpStream::connect(fake::address(gone_spec))
        .await
        .expect_err("its port is free");
    let order = rig.daemon.list(&[]).unwrap();
    assert_eq!(
        order
            .iter()
            .map(|status| status.name.as_str())
            .collect::<Vec<_>>(),
        ["new", "same", "changed"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_changed_tunnel_that_was_down_stays_down() {
    let spec = TunnelSpec {
        autostart: false,
        ..fake::spec("db")
    };
    let rig = Rig::new(vec![spec.clone()]).await;
    rig.daemon
        .adopt(vec![TunnelSpec {
            hold: Duration::from_secs(1),
            ..spec
        }])
        .await;
    assert_eq!(rig.state("db"), "down");
}

#[tokio::test(start_paused = true)]
async fn a_changed_tunnel_that_a_person_wanted_up_stays_wanted() {
    let spec = TunnelSpec {
        autostart: false,
        ..fake::spec("db")
    };
    let rig = Rig::new(vec![spec.clone()]).await;
    rig.daemon.up(&names(["db"]), Wish::Listen).await.unwrap();
    rig.daemon
        .adopt(vec![TunnelSpec {
            hold: Duration::from_secs(1),
            ..spec
        }])
        .await;
    assert_eq!(rig.state("db"), "connecting");
}

#[tokio::test(start_paused = true)]
async fn two_tunnels_can_swap_their_ports() {
    let (first, second) = (automatic("first"), automatic("second"));
    let rig = Rig::new(vec![first.clone(), second.clone()]).await;
    rig.connect("first").await;
    rig.connect("second").await;
    let swapped = vec![
        TunnelSpec {
            listen: second.listen.clone(),
            ..first.clone()
        },
        TunnelSpec {
            listen: first.listen.clone(),
            ..second.clone()
        },
    ];
    rig.daemon.adopt(swapped).await;
    assert_eq!(
        (rig.state("first"), rig.state("second")),
        ("connecting", "connecting"),
        "both are bound"
    );
}

#[tokio::test(start_paused = true)]
async fn connections_of_a_changed_tunnel_may_end_while_new_ones_go_the_new_way() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let spec = automatic("db");
    let rig = Rig::new(vec![spec.clone()]).await;
    let far = rig.connect("db").await;
    let mut old = TcpStream::connect(fake::address(&spec)).await.unwrap();
    let mut target = far.accept().await;
    rig.daemon
        .adopt(vec![TunnelSpec {
            hold: Duration::from_secs(1),
            ..spec.clone()
        }])
        .await;
    let new_far = rig.connect("db").await;
    let mut new = TcpStream::connect(fake::address(&spec)).await.unwrap();
    new_far.accept().await.write_all(b"n").await.unwrap();
    assert_eq!(new.read_u8().await.unwrap(), b'n');
    target.write_all(b"o").await.unwrap();
    assert_eq!(old.read_u8().await.unwrap(), b'o');
    assert_eq!(
        rig.daemon.list(&[]).unwrap()[0].meter.read().connections,
        2,
        "the counters are the tunnel's"
    );
}

#[tokio::test(start_paused = true)]
async fn a_bad_file_changes_nothing() {
    let spec = automatic("db");
    let rig = Rig::new(vec![spec]).await;
    let far = rig.connect("db").await;
    std::fs::write(&rig.path, "[tunnels.db]\nlissen = 1\n").unwrap();
    let Err(Error::Problems(problems)) = rig.daemon.reload().await else {
        panic!("accepted")
    };
    assert!(!problems.as_slice().is_empty());
    assert_eq!(rig.state("db"), "up");
    assert!(!far.has_goodbye());
}

#[tokio::test(start_paused = true)]
async fn a_reload_reads_the_file_again() {
    let rig = Rig::new(Vec::new()).await;
    let port = fake::free_port();
    let text = format!("[tunnels.db]\nlisten = {port}\ntarget = \"127.0.0.1:5432\"\nroute = \"direct\"\n");
    std::fs::write(&rig.path, text).unwrap();
    let reloaded = rig.daemon.reload().await.unwrap();
    assert_eq!(
        reloaded.added.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["db"]
    );
}

#[tokio::test(start_paused = true)]
async fn shutdown_drains_every_tunnel_and_refuses_new_work() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (first, second) = (automatic("first"), automatic("second"));
    let rig = Rig::new(vec![first.clone(), second]).await;
    let (far, other) = (rig.connect("first").await, rig.connect("second").await);
    let mut client = TcpStream::connect(fake::address(&first)).await.unwrap();
    let mut target = far.accept().await;
    let stopping = rig.daemon.shutdown(Duration::from_secs(10), Afterwards::Free);
    let transfer = async {
        other.goodbye().await;
        assert!(matches!(
            rig.daemon.up(&names(["first"]), Wish::Listen).await,
            Err(Error::Stopping)
        ));
        target.write_all(b"the rest").await.unwrap();
        drop(target);
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        drop(client);
        rest
    };
    let ((), rest) = tokio::join!(stopping, transfer);
    assert_eq!(rest, b"the rest");
    assert!(far.has_goodbye());
    assert_eq!((rig.state("first"), rig.state("second")), ("down", "down"));
}

#[tokio::test]
async fn what_was_typed_last_outlives_a_reload_and_not_a_change() {
    let spec = automatic("db");
    let rig = Rig::new(vec![spec.clone()]).await;
    rig.daemon.down(&names(["db"])).await.unwrap();
    rig.daemon.adopt(Vec::new()).await;
    rig.daemon.adopt(vec![spec.clone()]).await;
    assert_ne!(rig.state("db"), "down", "an entry that was gone begins anew");
    rig.daemon.down(&names(["db"])).await.unwrap();
    assert!(!rig.daemon.wishes.wants(&spec));
    rig.daemon.adopt(vec![spec.clone()]).await;
    assert_eq!(rig.state("db"), "down");
    assert!(!rig.daemon.wishes.wants(&spec), "nothing was changed");
}

#[tokio::test]
async fn what_was_typed_goes_with_a_tunnel_to_its_changed_entry() {
    let typed = automatic("typed");
    let untouched = automatic("untouched");
    let rig = Rig::new(vec![typed.clone(), untouched.clone()]).await;
    rig.daemon.down(&names(["typed"])).await.unwrap();
    let change = |spec: &TunnelSpec| TunnelSpec {
        hold: Duration::from_secs(1),
        ..spec.clone()
    };
    let (typed, untouched) = (change(&typed), change(&untouched));
    rig.daemon.adopt(vec![typed.clone(), untouched.clone()]).await;
    assert_eq!(rig.state("typed"), "down");
    assert!(!rig.daemon.wishes.wants(&typed), "nor after a restart");
    assert!(!rig.daemon.wishes.has(&untouched));
}

#[tokio::test]
async fn without_a_configuration_a_daemon_waits_for_a_good_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let problems = Config::load(&path).unwrap_err();
    let (transport, _attempts) = fake::transport();
    let transports: Transports = Arc::new(move |_| Arc::clone(&transport) as _);
    let daemon = Daemon::without_tunnels(path.clone(), problems, Means::for_test(transports));
    assert!(matches!(daemon.ready(), Err(Error::NoTunnels(_))));

    std::fs::write(&path, "[tunnels.db]\nlissen = 1\n").unwrap();
    let error = daemon.reload().await.unwrap_err();
    assert!(matches!(&error, Error::NoTunnels(_)), "{error}");
    let told = daemon.ready().unwrap_err().to_string();
    assert!(told.contains("lissen"), "the latest problems: {told}");

    let port = fake::free_port();
    let text = format!("[tunnels.db]\nlisten = {port}\ntarget = \"127.0.0.1:5432\"\nroute = \"direct\"\n");
    std::fs::write(&path, text).unwrap();
    daemon.reload().await.unwrap();
    daemon.ready().unwrap();
    TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    std::fs::write(&path, "[tunnels.db]\nlissen = 1\n").unwrap();
    assert!(matches!(daemon.reload().await, Err(Error::Problems(_))));
    daemon.ready().unwrap();
}
