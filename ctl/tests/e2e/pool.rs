//! A link is a pool of sessions: how connections spread over them, and what that gains.

use std::time::Duration;

use tokio::time::Instant;

use crate::load::{Connection, Load};
use crate::world::{World, free_port};
use crate::{account, configuration};

struct Stage {
    load: Load,
    world: World,
    port: u16,
}

fn stage(agent: &str) -> Stage {
    let load = Load::start();
    let port = free_port();
    let world = World::started(&account(agent, load.port), &configuration(port));
    world.ok(&["up", "prod-db"]);
    Stage { load, world, port }
}

impl Stage {
    /// Waits until there are so many sessions, which AWS and status agree on.
    fn wait_for_sessions(&self, count: usize) {
        self.world
            .wait_for_tunnel("prod-db", &format!("there are {count} sessions"), |tunnel| {
                tunnel["link"]["sessions"] == count && self.world.emulator.sessions().len() == count
            });
    }

    fn wait_for_bytes(&self) {
        self.world.wait_for("all bytes have arrived", |_| {
            (self.load.arrived() == self.load.asked()).then_some(())
        });
        assert!(self.load.troubles().is_empty(), "{:?}", self.load.troubles());
    }

    /// Returns how long downloads of so many bytes take together.
    fn download(&self, connections: &[Connection], length: u32) -> Duration {
        let began = Instant::now();
        connections
            .iter()
            .for_each(|connection| connection.exchange(0, length));
        self.wait_for_bytes();
        began.elapsed()
    }
}

#[test]
fn connections_opened_together_spread_over_four_sessions_which_go_with_the_tunnel() {
    let stage = stage("fast");
    let connections: Vec<_> = (0..6).map(|_| stage.load.connect(stage.port)).collect();
    connections
        .iter()
        .for_each(|connection| connection.exchange(1, 1));
    stage.wait_for_bytes();
    stage.wait_for_sessions(4);
    drop(connections);
    stage.world.ok(&["down", "prod-db"]);
    assert_eq!(stage.world.emulator.sessions(), []);
}

#[test]
fn a_session_is_kept_ready_while_a_connection_is_open() {
    let stage = stage("fast");
    stage.wait_for_sessions(1);
    let first = stage.load.connect(stage.port);
    stage.wait_for_sessions(2);
    // The next connection finds it, and leaves another one to come.
    let second = stage.load.connect(stage.port);
    stage.wait_for_sessions(3);
    first.exchange(1, 1);
    second.exchange(1, 1);
    stage.wait_for_bytes();
}

#[test]
fn four_downloads_from_the_paced_agent_take_about_the_time_of_one() {
    let stage = stage("stock");
    let mut connections = Vec::new();
    for sessions in [2, 3, 4, 4] {
        connections.push(stage.load.connect(stage.port));
        stage.wait_for_sessions(sessions);
    }
    let length = 2 << 20;
    let one = stage.download(&connections[..1], length);
    let four = stage.download(&connections, length);
    assert!(four < one * 2, "one: {one:?}, four: {four:?}");
}

#[test]
fn tunnels_of_one_profile_share_the_pause_after_a_throttled_start() {
    let load = Load::start();
    let names = ["prod-db", "second", "third", "fourth"];
    let configuration = names.map(|name| configuration(free_port()).replace("prod-db]", &format!("{name}]")));
    let world = World::started(&account("fast", load.port), &configuration.concat());
    let starts = |world: &World| world.emulator.calls().get("ssm:StartSession").copied();

    world.emulator.faults().set("throttle-start-session*1").unwrap();
    world.ok(&["up", names[0], "--no-wait"]);
    world.wait_for("a start is refused", |world| {
        (starts(world) == Some(1)).then_some(())
    });
    let refused = Instant::now();
    world.ok(&["up", names[1], names[2], names[3]]);
    let waited = refused.elapsed();
    // The first pause is a second, from when the daemon read the refusal.
    assert!(waited > Duration::from_millis(900), "they waited for {waited:?}");
    world.ok(&["up", names[0]]);
    assert_eq!(
        starts(&world),
        Some(5),
        "one was refused, and each tunnel has one"
    );
}
