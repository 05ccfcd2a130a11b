//! Life on a laptop: it sleeps, its network changes, its logins expire. A person does what a person has to, and no more.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use tokio::time::Instant;

use crate::skipped::skip;
use crate::target::{ECHO, Target, connect, echoes};
use crate::world::{World, free_port};
use crate::{account, configuration};

/// How long the daemon is stopped: longer than a look at the clocks may be late.
const SLEEP: Duration = Duration::from_secs(7);
/// How long after that a connection may take to work again: ten times the goal, which `make bench` checks.
const LONGEST_WAKE: Duration = Duration::from_secs(20);

/// Stops the daemon for a while, in which all its connections to AWS die. Returns when it goes on.
fn sleep(world: &World) -> Instant {
    world.signal("STOP");
    let stopped = Instant::now();
    assert_ne!(world.emulator.freeze(), 0);
    world.wait_for("it has slept", |_| (stopped.elapsed() >= SLEEP).then_some(()));
    world.signal("CONT");
    Instant::now()
}

#[test]
fn a_laptop_that_slept_works_again_at_once() {
    let target = Target::start(0);
    let (world, port) = target.tunnel();
    let old = connect(port, ECHO).unwrap();
    echoes(&old, "before");
    world.wait_for_sessions("prod-db");
    let woke = sleep(&world);
    echoes(&old, "after");
    let old_took = woke.elapsed();
    let new = connect(port, ECHO).unwrap();
    echoes(&new, "new");
    let new_took = woke.elapsed();
    println!("after a sleep the old connection went on in {old_took:?}, a new one worked after {new_took:?}");
    assert!(new_took < LONGEST_WAKE, "{}", world.log());
    assert!(world.said("the daemon stood still for") > 0, "{}", world.log());
    let tunnel = world.tunnel("prod-db");
    assert_eq!(tunnel["traffic"]["links_lost"], 0, "{tunnel}");
    assert_eq!(tunnel["traffic"]["connections_failed"], 0, "{tunnel}");
    assert!(tunnel["history"].to_string().contains("stood still"), "{tunnel}");
}

/// Runs a program as its own user would, where that may be more than the tests may; says why it did not work.
fn try_run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {arguments:?}: {}", said.trim()))
}

#[test]
fn a_new_network_is_noticed_and_a_new_address_on_it() {
    if let Err(why) = try_run("unshare", &["--net", "true"]) {
        return skip(format_args!("no network can be made here ({why})"));
    }
    let mut world = World::new(&account("fast", free_port()), &configuration(free_port()));
    world.launch_by(&["unshare", "--net", "--"]);
    world.start();
    let pid = world.daemon_id().to_string();
    let inside = |command: &str| {
        let arguments = ["-t", &pid, "-n", "ip"].into_iter().chain(command.split(' '));
        try_run("nsenter", &arguments.collect::<Vec<_>>())
    };
    let noticed = |world: &World| world.said("the network changed");
    inside("link set lo up").unwrap();
    if let Err(why) = inside("link add here type veth peer name there") {
        return skip(format_args!("no network interface can be made here ({why})"));
    }
    for change in [
        "link set here up",
        "address add 192.0.2.7/24 dev here",
        "route add 198.51.100.0/24 via 192.0.2.1",
    ] {
        // What came before has been told.
        let settled = Instant::now();
        world.wait_for("the network is quiet", |_| {
            (settled.elapsed() > Duration::from_secs(1)).then_some(())
        });
        let before = noticed(&world);
        inside(change).unwrap();
        let began = Instant::now();
        world.wait_for("the change is noticed", |world| {
            (noticed(world) > before).then_some(())
        });
        println!("`ip {change}` was noticed after {:?}", began.elapsed());
    }
}

/// A tunnel of a profile whose login has expired, and what it leads to.
fn expired() -> (World, Target, u16) {
    let (target, port) = (Target::start(0), free_port());
    let configuration = configuration(port) + "profile = \"dev\"\n";
    let mut world = World::new(&account("fast", target.port), &configuration);
    world.log_in("dev");
    world.emulator.rotate_credentials();
    world.start();
    let refused = world.tunnelctl(&["up", "prod-db"]);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    (world, target, port)
}

fn is_blocked_for_a_login(tunnel: &serde_json::Value) -> bool {
    tunnel["state"] == "blocked" && tunnel["cause"]["reason"] == "login"
}

fn calls(world: &World) -> BTreeMap<String, u64> {
    world.emulator.calls()
}

#[test]
fn a_login_frees_what_waits_for_it_without_a_command() {
    let (world, _target, port) = expired();
    assert!(is_blocked_for_a_login(&world.tunnel("prod-db")));
    let waiting = connect(port, ECHO).unwrap();
    world.wait_for_tunnel("prod-db", "a connection waits", |tunnel| {
        tunnel["traffic"]["held"] == 1
    });
    let asked = calls(&world);
    // A file that changes and is of no use costs one attempt, and leads back.
    let file = world.path(".aws/credentials");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text + "\n").unwrap();
    world.wait_for("one more attempt", |world| (calls(world) != asked).then_some(()));
    world.wait_for_tunnel("prod-db", "it waits again", is_blocked_for_a_login);
    world.log_in("dev");
    world.wait_for_tunnel("prod-db", "it goes on by itself", |tunnel| {
        tunnel["state"] == "up"
    });
    echoes(&waiting, "held meanwhile");
}

#[test]
fn a_connection_outlives_a_login_that_expires_while_its_websocket_is_replaced() {
    let (target, port) = (Target::start(0), free_port());
    let configuration = configuration(port) + "profile = \"dev\"\n";
    let mut world = World::new(&account("stock", target.port), &configuration);
    world.log_in("dev");
    world.start();
    world.ok(&["up", "prod-db"]);
    let socket: TcpStream = connect(port, ECHO).unwrap();
    echoes(&socket, "before");
    world.wait_for_sessions("prod-db");
    world.emulator.rotate_credentials();
    world.emulator.recycle();
    let tunnel = world.wait_for_tunnel("prod-db", "it waits for a login", is_blocked_for_a_login);
    assert!(
        tunnel["cause"]["hints"].to_string().contains("--profile dev"),
        "{tunnel}"
    );
    world.log_in("dev");
    echoes(&socket, "after");
    world.wait_for_tunnel("prod-db", "it is up", |tunnel| tunnel["state"] == "up");
    let traffic = &world.tunnel("prod-db")["traffic"];
    assert_eq!(traffic["connections_failed"], 0, "{}", world.log());
}

#[test]
fn a_missing_login_is_told_on_the_desktop_once_where_that_is_wanted() {
    let port = free_port();
    let other =
        configuration(free_port()).replace("tunnels.prod-db", "tunnels.other") + "profile = \"other\"\n";
    let configuration =
        configuration(port) + "profile = \"dev\"\n" + &other + "[daemon]\ndesktop_notifications = true\n";
    let mut world = World::new(&account("fast", free_port()), &configuration);
    let (folder, told) = (world.path("bin"), world.path("told"));
    fs::create_dir(&folder).unwrap();
    let program = folder.join("notify-send");
    let script = format!(
        "#!/bin/sh\n{{ printf '%s|' \"$@\"; echo; }} >> '{}'\n",
        told.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    world.set("PATH", &format!("{}:/usr/bin:/bin", folder.display()));
    world.log_in("dev");
    // The same credentials for another profile, whose login is missing too.
    let file = world.path(".aws/credentials");
    let dev = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{dev}{}", dev.replace("[dev]", "[other]"))).unwrap();
    world.emulator.rotate_credentials();
    world.start();
    // What is told of the other one comes after whatever else is told of the first.
    for name in ["prod-db", "prod-db", "other"] {
        assert_eq!(world.tunnelctl(&["up", name]).status.code(), Some(4));
    }
    let words = world.wait_for("the other one is told", |_| {
        let words = fs::read_to_string(&told).ok()?;
        (words.contains("other waits") && words.ends_with("|\n")).then_some(words)
    });
    let records: Vec<_> = words.split_terminator("|\n").collect();
    let [first, second] = records[..] else {
        panic!("once each: {words}")
    };
    for (record, what) in [
        (first, "prod-db waits for a login of profile dev."),
        (second, "other waits for a login of profile other."),
    ] {
        let begin = format!("--app-name=tunneld|--|tunneld: a login is missing|{what}");
        assert!(record.starts_with(&begin), "{record}");
    }
}
