//! The daemon's own life: killed, stopped, asked by others, given bad files.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::target::Target;
use crate::world::{World, free_port};
use crate::{account, configuration};

#[test]
fn a_killed_daemon_leaves_nothing_behind_that_the_next_one_does_not_mend() {
    let mut world = World::started(&account("fast", free_port()), &configuration(free_port()));
    world.ok(&["up", "prod-db"]);
    let orphan = world.emulator.sessions()[0].id.clone();
    world.kill();
    world.start();
    world.ok(&["up", "prod-db"]);
    world.wait_for("the orphan is ended", |world| {
        let open = world.emulator.sessions();
        (open.len() == 1 && open[0].id != orphan).then_some(())
    });
}

/// A tunnel with several sessions, and the connections that keep them.
fn with_sessions() -> (World, Vec<TcpStream>) {
    let (target, port) = (Target::start(0), free_port());
    let world = World::started(&account("fast", target.port), &configuration(port));
    world.ok(&["up", "prod-db"]);
    let connections = (0..3)
        .map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap())
        .collect();
    world.wait_for("each connection has a session, and one is ready", |world| {
        (world.wait_for_sessions("prod-db") == 4).then_some(())
    });
    (world, connections)
}

#[test]
fn sessions_that_a_killed_daemon_left_open_are_ended_at_the_next_start() {
    let (mut world, _connections) = with_sessions();
    let ledgers = ledgers(&world);
    assert_eq!(ledgers.len(), 1);
    let mode = fs::metadata(&ledgers[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    world.kill();
    let orphans = world.emulator.sessions();
    assert_eq!(orphans.len(), 4);
    world.start();
    world.wait_for("they are ended", |world| {
        let open = world.emulator.sessions();
        (!orphans
            .iter()
            .any(|orphan| open.iter().any(|open| open.id == orphan.id)))
        .then_some(())
    });
    world.wait_for_tunnel("prod-db", "what was up is up again", |tunnel| {
        tunnel["state"] == "up"
    });
}

/// The files in which open sessions are written down.
fn ledgers(world: &World) -> Vec<PathBuf> {
    let files = fs::read_dir(world.path("state")).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect()
}

#[test]
fn no_session_is_left_after_down_and_none_after_the_end() {
    let (world, _connections) = with_sessions();
    world.ok(&["down", "prod-db"]);
    assert_eq!(world.emulator.sessions(), []);
    drop(world);
    let (mut world, connections) = with_sessions();
    drop(connections);
    assert!(world.stop(), "{}", world.log());
    assert_eq!(world.emulator.sessions(), []);
    assert!(ledgers(&world).is_empty());
}

#[test]
fn a_daemon_that_is_asked_to_stop_ends_its_sessions_and_exits_with_0() {
    let mut world = World::started(&account("fast", free_port()), &configuration(free_port()));
    world.ok(&["up", "prod-db"]);
    assert_eq!(world.emulator.sessions().len(), 1);
    assert!(world.stop(), "{}", world.log());
    assert_eq!(world.emulator.sessions(), []);
    assert_eq!(world.tunnelctl(&["status"]).status.code(), Some(3));
    assert!(!world.path("run/t.sock").exists());
}

#[test]
fn a_second_daemon_is_refused_with_the_pid_of_the_first() {
    let world = World::started(&account("fast", free_port()), &configuration(free_port()));
    let second = world
        .command("tunneld")
        .arg("--config")
        .arg(world.path("config.toml"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains(&world.daemon_id().to_string()), "{said}");
}

#[test]
fn a_bad_file_on_reload_leaves_the_running_tunnels_as_they_are() {
    let world = World::started(&account("fast", free_port()), &configuration(free_port()));
    world.ok(&["up", "prod-db"]);
    let session = world.emulator.sessions();
    fs::write(world.path("config.toml"), "[tunnels.prod-db]\nlisten = 99999\n").unwrap();
    let reloaded = world.tunnelctl(&["reload"]);
    assert_eq!(reloaded.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&reloaded.stderr).contains("config.toml:2"),
        "{reloaded:?}"
    );
    assert_eq!(world.tunnel("prod-db")["state"], "up");
    assert_eq!(world.emulator.sessions(), session);
}

#[test]
fn a_bad_file_at_the_start_is_refused_whole_with_exit_code_2() {
    let world = World::new(
        &account("fast", free_port()),
        "[tunnels.a]\nlisten = 0\nroute = \"moon\"\n",
    );
    let refused = world
        .command("tunneld")
        .arg("--config")
        .arg(world.path("config.toml"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(
        said.contains("config.toml:2") && said.contains("config.toml:3"),
        "{said}"
    );
    assert!(!world.path("run").exists());
}

/// Any gRPC client can look around: this one is Python's, and knows the service by reflection alone.
#[test]
fn a_client_not_written_here_lists_the_tunnels_by_reflection() {
    let world = World::started(&account("fast", free_port()), &configuration(free_port()));
    world.ok(&["up", "prod-db"]);
    let environment = concat!(env!("CARGO_TARGET_TMPDIR"), "/grpcio");
    let python = format!("{environment}/bin/python");
    if !fs::exists(format!("{environment}/ready")).unwrap() {
        run(Command::new("python3").args(["-m", "venv", "--clear", environment]));
        run(Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "-q",
            "grpcio",
            "grpcio-reflection",
            "grpcio-health-checking",
        ]));
        fs::write(format!("{environment}/ready"), "").unwrap();
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/reflection.py");
    let said = run(Command::new(&python).arg(script).arg(world.path("run/t.sock")));
    assert_eq!(said, "SERVING\nprod-db up\n");
}

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}: `make test` installs what is needed"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
