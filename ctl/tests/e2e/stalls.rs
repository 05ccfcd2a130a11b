//! Whoever stops reading harms nobody else: a local client on a shared session, and a target behind it.

use std::io::ErrorKind;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::load::{Connection, Load};
use crate::world::{World, free_port};
use crate::{account, configuration};

/// More than sockets, buckets and windows hold on the way to a target that does not read.
const MUCH: u32 = 32 << 20;
/// Enough that one slow one among them shows.
const EXCHANGES: usize = 100;

struct Stage {
    load: Load,
    world: World,
    port: u16,
}

fn stage(settings: &str) -> Stage {
    let load = Load::start();
    let port = free_port();
    let configuration = configuration(port) + settings;
    let world = World::started(&account("fast", load.port), &configuration);
    world.ok(&["up", "prod-db"]);
    Stage { load, world, port }
}

impl Stage {
    fn connect(&self) -> Connection {
        self.load.connect(self.port)
    }

    /// Exchanges single bytes, one after the other; returns how long that took.
    fn ping_pong(&self, connection: &Connection) -> Duration {
        let began = Instant::now();
        for _ in 0..EXCHANGES {
            let before = connection.arrived();
            connection.exchange(1, 1);
            self.world.wait_for("the answer comes", |_| {
                (connection.arrived() > before).then_some(())
            });
        }
        began.elapsed()
    }

    /// Opens an upload to a target that never reads and, on the same session, a connection that is quiet; returns both
    /// once the stall shows, which names the upload.
    fn stall(&self) -> (Connection, Connection) {
        let (upload, neighbour) = (self.connect(), self.connect());
        self.ping_pong(&neighbour);
        upload.stall_target();
        upload.exchange(MUCH, 0);
        let tunnel = self
            .world
            .wait_for_tunnel("prod-db", "the stall shows", |tunnel| {
                notes(tunnel).next().is_some()
            });
        let suspected = format!("the connection of {}", upload.address);
        assert!(
            notes(&tunnel).any(|note| note.contains(&suspected)),
            "{suspected}: {tunnel}"
        );
        (upload, neighbour)
    }
}

/// Returns what a tunnel's status remarks on its link.
fn notes(tunnel: &Value) -> impl Iterator<Item = &str> {
    let notes = tunnel["link"]["notes"].as_array();
    notes.into_iter().flatten().filter_map(Value::as_str)
}

#[test]
fn a_client_that_does_not_read_a_download_delays_nobody_on_its_session_and_gets_every_byte() {
    let stage = stage("sessions = { max = 1 }\n");
    let (slow, quick) = (stage.connect(), stage.connect());
    let quiet = stage.ping_pong(&quick);
    slow.ask(0, MUCH);
    // The target is rid of all of it, so it waits in the daemon.
    stage.world.wait_for("the target has sent everything", |_| {
        (stage.load.sent() >= u64::from(MUCH)).then_some(())
    });
    let beside = stage.ping_pong(&quick);
    assert!(beside < quiet * 10, "quiet: {quiet:?}, beside: {beside:?}");
    assert_eq!(slow.arrived(), 0);
    assert_eq!(stage.world.emulator.sessions().len(), 1);
    slow.read(MUCH);
    stage.world.wait_for("every byte has arrived", |_| {
        (slow.arrived() == u64::from(MUCH)).then_some(())
    });
    assert!(stage.load.troubles().is_empty(), "{:?}", stage.load.troubles());
}

#[test]
fn beyond_the_receive_buffer_that_connection_alone_is_reset_and_the_setting_named() {
    let stage = stage("sessions = { max = 1 }\nreceive_buffer = \"1MiB\"\n");
    let (slow, quick) = (stage.connect(), stage.connect());
    stage.ping_pong(&quick);
    slow.ask(0, MUCH);
    let tunnel = stage
        .world
        .wait_for_tunnel("prod-db", "the reset shows", |tunnel| {
            !tunnel["last_error"].is_null()
        });
    let error = tunnel["last_error"].to_string();
    for words in [
        "receive_buffer",
        "more than 1 MiB unread",
        &slow.address.to_string(),
    ] {
        assert!(error.contains(words), "{error}");
    }
    assert!(stage.world.log().contains("more than 1 MiB unread"));
    assert_eq!(slow.end(), Some(ErrorKind::ConnectionReset));
    assert_eq!(tunnel["state"], "up");
    assert_eq!(stage.world.emulator.sessions().len(), 1);
    stage.ping_pong(&quick);
}

#[test]
fn a_target_that_never_reads_loses_its_connection_then_its_session_and_nothing_else() {
    let stage = stage("sessions = { max = 1 }\nstall_timeout = \"5s\"\n");
    let stalled = stage.world.emulator.sessions()[0].id.clone();
    let (upload, neighbour) = stage.stall();
    // Whoever comes gets another session, at once.
    let other = stage.connect();
    stage.ping_pong(&other);
    stage.world.wait_for("the upload is reset", |_| {
        let troubles = stage.load.troubles();
        troubles
            .iter()
            .any(|trouble| trouble.contains("reset"))
            .then_some(())
    });
    let error = stage.world.tunnel("prod-db")["last_error"].to_string();
    assert!(error.contains("stall_timeout"), "{error}");
    assert!(error.contains(&upload.address.to_string()), "{error}");

    // The agent's bucket is full, and nothing empties it.
    assert_eq!(neighbour.end(), Some(ErrorKind::ConnectionReset));
    let error = stage.world.tunnel("prod-db")["last_error"].to_string();
    assert!(error.contains("a target behind it does not read"), "{error}");
    stage.world.wait_for("the session is ended", |world| {
        let open = world.emulator.sessions();
        open.iter().all(|session| session.id != stalled).then_some(())
    });
    stage.ping_pong(&other);
    assert_eq!(stage.world.tunnel("prod-db")["state"], "up");
}

#[test]
fn a_target_that_reads_again_in_time_gets_every_byte() {
    let stage = stage("sessions = { max = 1 }\n");
    let (upload, neighbour) = stage.stall();
    upload.release_target();
    stage.world.wait_for("every byte has arrived", |_| {
        (stage.load.arrived() == stage.load.asked()).then_some(())
    });
    stage.ping_pong(&neighbour);
    let tunnel = stage
        .world
        .wait_for_tunnel("prod-db", "the note is gone", |tunnel| {
            notes(tunnel).next().is_none()
        });
    assert_eq!(tunnel["traffic"]["connections_failed"], 0);
    assert!(stage.load.troubles().is_empty(), "{:?}", stage.load.troubles());
}
