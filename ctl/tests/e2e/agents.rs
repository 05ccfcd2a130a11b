//! Every agent that AWS has released works, or is refused in words; and what the service polices is respected.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use tunneld_emulator::{Conditions, ServiceConditions};

use crate::load::Load;
use crate::postgres::{Postgres, client, psql};
use crate::world::{World, free_port};
use crate::{account, configuration};

/// The last agents of their kind.
const BEFORE_MULTIPLEXING: &str = "3.0.150.0";
const BEFORE_OTHER_HOSTS: &str = "3.1.1187.0";
const BEFORE_SILENCE: &str = "3.1.1500.0";

/// An account with one instance, whose agent is of that version, and on which the target listens itself.
fn instance(id: &str, version: &str, target_port: u16) -> String {
    format!(
        "[[instances]]\nid = \"{id}\"\nname = \"old\"\nprivate_address = \"10.0.1.10\"\n\
         ssm = {{ agent = \"stock\", version = \"{version}\" }}\nports = {{ 5432 = \"127.0.0.1:{target_port}\" }}\n"
    )
}

/// A configuration with the one tunnel `direct`, straight to an instance.
fn straight(instance: &str, port: u16) -> String {
    format!(
        "[tunnels.straight]\nlisten = \"127.0.0.1:{port}\"\ntarget = \"ec2:{instance}:5432\"\nroute = \"ssm\"\n\
         autostart = false\n"
    )
}

/// A machine whose tunnel `straight` to an agent before multiplexing is up.
fn before_multiplexing(target_port: u16, port: u16) -> World {
    let account = instance("i-0123456789abcdef0", BEFORE_MULTIPLEXING, target_port);
    let world = World::started(&account, &straight("old", port));
    world.ok(&["up", "straight"]);
    world
}

fn service(world: &World, service: ServiceConditions) {
    world.emulator.set_conditions(Conditions {
        service,
        ..Conditions::default()
    });
}

/// Waits until all bytes have arrived that were asked for.
fn wait_for_bytes(world: &World, load: &Load) {
    world.wait_for("all bytes have arrived", |world| {
        assert!(
            load.troubles().is_empty(),
            "{:?}\n{}",
            load.troubles(),
            world.log()
        );
        (load.arrived() == load.asked()).then_some(())
    });
}

#[test]
fn psql_runs_through_an_agent_that_carries_one_connection_a_session() {
    let postgres = Postgres::start();
    let port = free_port();
    let world = before_multiplexing(postgres.port, port);
    assert_eq!(
        world.tunnel("straight")["link"]["agent_version"],
        BEFORE_MULTIPLEXING
    );
    let running: Vec<_> = (1..=4)
        .map(|number| {
            client("psql", port)
                .args(["-qAt", "-c", &format!("select {number}")])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for (number, psql) in (1..=4).zip(running) {
        let output = psql.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), number.to_string());
    }
    assert_eq!(psql(port, "select 6 * 7").trim(), "42");
    assert_eq!(world.tunnel("straight")["traffic"]["connections_failed"], 0);
}

#[test]
fn each_connection_through_such_an_agent_has_a_session_that_ends_with_it() {
    let load = Load::start();
    let port = free_port();
    let world = before_multiplexing(load.port, port);
    let mut connections: Vec<_> = (0..3).map(|_| load.connect(port)).collect();
    connections
        .iter()
        .for_each(|connection| connection.exchange(100_000, 100_000));
    wait_for_bytes(&world, &load);
    assert_eq!(world.emulator.sessions().len(), 3);
    while connections.pop().is_some() {
        world.wait_for("the session ends with its connection", |world| {
            (world.emulator.sessions().len() == connections.len()).then_some(())
        });
    }
    world.wait_for("the target has seen all connections end", |_| {
        (load.served() == 0).then_some(())
    });
    assert_eq!(world.tunnel("straight")["state"], "up");
    assert!(load.troubles().is_empty(), "{:?}", load.troubles());
}

#[test]
fn a_target_that_refuses_such_an_agent_resets_that_connection_alone() {
    let port = free_port();
    let world = before_multiplexing(free_port(), port);
    let mut refused = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let error = refused.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let tunnel = world.wait_for_tunnel("straight", "the refusal is shown", |tunnel| {
        !tunnel["last_error"].is_null()
    });
    assert_eq!(tunnel["last_error"]["reason"], "target_refused", "{tunnel}");
    assert_eq!(tunnel["state"], "up");
}

#[test]
fn an_agent_that_would_dial_itself_instead_of_the_database_is_refused_in_words() {
    let account = account("stock", free_port()).replace(
        "ssm = { agent = \"stock\" }",
        &format!("ssm = {{ agent = \"stock\", version = \"{BEFORE_OTHER_HOSTS}\" }}"),
    );
    let world = World::started(&account, &configuration(free_port()));
    let refused = world.tunnelctl(&["up", "prod-db"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(4), "{said}");
    for words in [
        BEFORE_OTHER_HOSTS,
        "can't forward to another host",
        "update the SSM agent",
    ] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(world.tunnel("prod-db")["state"], "blocked");
    assert_eq!(world.emulator.sessions(), []);
}

#[test]
fn an_agent_that_needs_signs_of_life_gets_them() {
    let load = Load::start();
    let ids = ["i-0123456789abcdef0", "i-0123456789abcdef1"];
    let account = instance(ids[0], BEFORE_SILENCE, load.port) + &instance(ids[1], "3.3.1142.0", load.port);
    let configuration =
        straight(ids[0], free_port()) + &straight(ids[1], free_port()).replace("straight]", "modern]");
    let world = World::started(&account, &configuration);
    // Signs of life, one in ten seconds, are what keeps an idle session.
    service(
        &world,
        ServiceConditions {
            idle_timeout: Some(Duration::from_secs(15)),
            ..ServiceConditions::default()
        },
    );
    world.ok(&["up", "straight", "modern"]);
    world.wait_for("the session without signs of life idles out", |world| {
        let ended = world.emulator.ended_sessions();
        ended.iter().any(|session| session.target == ids[1]).then_some(())
    });
    let open = world.emulator.sessions();
    assert!(open.iter().any(|session| session.target == ids[0]), "{open:?}");
    let ended = world.emulator.ended_sessions();
    assert!(ended.iter().all(|session| session.target == ids[1]), "{ended:?}");
}

#[test]
fn an_upload_falls_back_to_payloads_that_the_service_takes() {
    let load = Load::start();
    let port = free_port();
    let world = World::started(&account("fast", load.port), &configuration(port));
    service(
        &world,
        ServiceConditions {
            largest_payload: Some(4_096),
            ..ServiceConditions::default()
        },
    );
    world.ok(&["up", "prod-db"]);
    let connection = load.connect(port);
    connection.exchange(4 << 20, 0);
    wait_for_bytes(&world, &load);
    assert!(
        world.log().contains("session resumed"),
        "no payload was too large"
    );
    assert_eq!(world.tunnel("prod-db")["traffic"]["connections_failed"], 0);
}

#[test]
fn an_upload_keeps_to_a_rate_that_the_service_does_not_mind() {
    let load = Load::start();
    let port = free_port();
    let configuration = configuration(port) + "largest_payload = \"1KiB\"\n";
    let world = World::started(&account("fast", load.port), &configuration);
    service(
        &world,
        ServiceConditions {
            rate_limit: Some(1_000),
            ..ServiceConditions::default()
        },
    );
    world.ok(&["up", "prod-db"]);
    // Five seconds at full rate; more than two of too many messages would be policed.
    let connection = load.connect(port);
    connection.exchange(5 * 900 * 1_024, 0);
    wait_for_bytes(&world, &load);
    assert!(!world.log().contains("resuming the session"), "{}", world.log());
}

#[test]
fn a_session_that_idled_out_is_replaced_and_its_end_told_in_the_words_of_aws() {
    let load = Load::start();
    let port = free_port();
    let world = World::started(&account("fast", load.port), &configuration(port));
    service(
        &world,
        ServiceConditions {
            idle_timeout: Some(Duration::from_secs(2)),
            ..ServiceConditions::default()
        },
    );
    world.ok(&["up", "prod-db"]);
    let first = world.emulator.sessions()[0].id.clone();
    world.wait_for("another session is there", |world| {
        let open = world.emulator.sessions();
        (open.len() == 1 && open[0].id != first).then_some(())
    });
    assert!(
        world.log().contains("timed out due to inactivity"),
        "{}",
        world.log()
    );
    let connection = load.connect(port);
    connection.exchange(1_000, 1_000);
    wait_for_bytes(&world, &load);
}
