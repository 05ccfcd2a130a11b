//! An instance's own port through an endpoint of Instance Connect: bytes, limits, and refusals in words.

use std::io::{ErrorKind, Read};
use std::thread;

use tunneld_emulator::{EndpointState, TunnelEnd};

use crate::target::{ECHO, Target, connect, echoes};
use crate::world::{World, free_port};

const ENDPOINT: &str = "eice-0123456789abcdef0";
/// Bytes of a transfer: enough that it takes many frames, and passes in a second.
const LENGTH: usize = 64 << 20;
/// Connections at once: twice what an endpoint takes.
const CROWD: usize = 40;

/// A tunnel to port 22 of `bastion`, behind which is a target.
fn stage(target: &Target, more: &str) -> (World, u16) {
    let port = free_port();
    let account = format!(
        "[[endpoints]]\nid = \"{ENDPOINT}\"\n\
         [[instances]]\nid = \"i-0123456789abcdef0\"\nname = \"bastion\"\nprivate_address = \"127.0.1.10\"\n\
         ports = {{ 22 = \"127.0.0.1:{}\" }}\n",
        target.port
    );
    let configuration = format!(
        "[tunnels.shell]\nlisten = \"127.0.0.1:{port}\"\ntarget = \"ec2:bastion:22\"\nroute = \"eice\"\n\
         autostart = false\n{more}"
    );
    (World::started(&account, &configuration), port)
}

/// Brings the tunnel up, which has to fail; returns its exit code, and what the status says.
fn fails(world: &World, arguments: &[&str]) -> (Option<i32>, serde_json::Value) {
    let output = world.tunnelctl(&[&["up", "shell"], arguments].concat());
    (output.status.code(), world.tunnel("shell"))
}

#[test]
fn bytes_are_exact_both_ways() {
    let target = Target::start(LENGTH);
    let (world, port) = stage(&target, "");
    world.ok(&["up", "shell"]);
    assert!(target.download(port).end().0);
    assert!(target.upload(port).end().0);
    // A connection that has ended has left the endpoint too.
    world.wait_for("no tunnel is open", |world| {
        world.emulator.tunnels().is_empty().then_some(())
    });
    assert_eq!(world.emulator.ended_tunnels().len(), 2);
}

#[test]
fn a_crowd_waits_for_the_twenty_places_of_an_endpoint_and_all_are_served() {
    let target = Target::start(1 << 20);
    let (world, port) = stage(&target, "");
    world.ok(&["up", "shell"]);
    let crowd: Vec<_> = (0..CROWD)
        .map(|number| {
            thread::spawn(move || {
                let socket = connect(port, ECHO).unwrap();
                echoes(&socket, &format!("number {number}"));
            })
        })
        .collect();
    for one in crowd {
        one.join().unwrap();
    }
    let opened = world.emulator.calls()["ec2-instance-connect:OpenTunnel"];
    assert_eq!(opened, CROWD as u64, "none was refused and tried again");
}

#[test]
fn a_connection_that_waits_for_a_place_is_shown() {
    let target = Target::start(0);
    let (world, port) = stage(&target, "");
    world.ok(&["up", "shell"]);
    let crowd: Vec<_> = (0..20)
        .map(|number| {
            let socket = connect(port, ECHO).unwrap();
            echoes(&socket, &format!("number {number}"));
            socket
        })
        .collect();
    let waiting = connect(port, ECHO).unwrap();
    world.wait_for_tunnel("shell", "it is shown that one waits", |tunnel| {
        tunnel["link"]["notes"].to_string().contains(ENDPOINT)
    });
    drop(crowd);
    echoes(&waiting, "at last");
}

#[test]
fn a_target_that_is_down_resets_that_connection_and_is_told() {
    let target = Target::start(0);
    let (world, port) = stage(&target, "");
    world.ok(&["up", "shell"]);
    world.emulator.faults().set("eice-unreachable*1").unwrap();
    let end = connect(port, ECHO).unwrap().read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    let tunnel = world.wait_for_tunnel("shell", "the refusal is shown", |tunnel| {
        !tunnel["last_error"].is_null()
    });
    assert_eq!(tunnel["last_error"]["reason"], "target_refused", "{tunnel}");
    echoes(&connect(port, ECHO).unwrap(), "as before");
}

#[test]
fn a_tunnel_that_is_reset_or_closed_by_aws_resets_its_connection() {
    let target = Target::start(0);
    let (world, port) = stage(&target, "");
    world.ok(&["up", "shell"]);
    for end in [
        TunnelEnd::Reset,
        TunnelEnd::Fin,
        TunnelEnd::Close(1011, "going away".to_owned()),
    ] {
        let mut socket = connect(port, ECHO).unwrap();
        echoes(&socket, "before");
        assert_eq!(world.emulator.end_tunnels(&end), 1);
        let error = socket.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{end:?}");
    }
}

#[test]
fn a_connection_that_outlives_its_hour_is_reset_counted_and_told() {
    let target = Target::start(0);
    let (world, port) = stage(&target, "max_tunnel_duration = \"2s\"\n");
    world.ok(&["up", "shell"]);
    let mut socket = connect(port, ECHO).unwrap();
    echoes(&socket, "before");
    assert_eq!(world.emulator.tunnels()[0].duration, Some(2));
    let end = socket.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    let tunnel = world.wait_for_tunnel("shell", "the cut is counted", |tunnel| {
        tunnel["traffic"]["connections_expired"] == 1
    });
    assert_eq!(tunnel["last_error"]["reason"], "expired", "{tunnel}");
    echoes(&connect(port, ECHO).unwrap(), "after");
}

#[test]
fn an_endpoint_that_is_being_deleted_is_told_and_its_return_is_noticed() {
    let target = Target::start(0);
    let (world, port) = stage(&target, "");
    assert!(
        world
            .emulator
            .set_endpoint_state(ENDPOINT, EndpointState::DeleteInProgress)
    );
    let (code, tunnel) = fails(&world, &["--timeout", "20s"]);
    assert_ne!(code, Some(0));
    assert_eq!(tunnel["cause"]["reason"], "not_found", "{tunnel}");
    let words = tunnel["cause"].to_string();
    assert!(words.contains("create-instance-connect-endpoint"), "{words}");
    world
        .emulator
        .set_endpoint_state(ENDPOINT, EndpointState::UpdateInProgress);
    world.ok(&["up", "shell"]);
    echoes(&connect(port, ECHO).unwrap(), "hello");
    // One that goes while the tunnel is up is felt by the next connection.
    world
        .emulator
        .set_endpoint_state(ENDPOINT, EndpointState::DeleteInProgress);
    let end = connect(port, ECHO).unwrap().read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    world.wait_for_tunnel("shell", "it is told", |tunnel| !tunnel["last_error"].is_null());
}

#[test]
fn a_throttled_api_is_waited_for() {
    let target = Target::start(0);
    let (world, port) = stage(&target, "");
    world.ok(&["up", "shell"]);
    world.emulator.faults().set("eice-throttled*2").unwrap();
    echoes(&connect(port, ECHO).unwrap(), "in the end");
    assert_eq!(world.emulator.calls()["ec2-instance-connect:OpenTunnel"], 3);
}

#[test]
fn a_login_that_has_expired_blocks_and_what_is_open_lives_on() {
    let target = Target::start(0);
    let (world, port) = stage(&target, "");
    world.ok(&["up", "shell"]);
    let open = connect(port, ECHO).unwrap();
    echoes(&open, "before");
    world.emulator.faults().set("expired-token").unwrap();
    let end = connect(port, ECHO).unwrap().read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    let tunnel = world.wait_for_tunnel("shell", "the login is asked for", |tunnel| {
        !tunnel["last_error"].is_null()
    });
    assert_eq!(tunnel["last_error"]["reason"], "login", "{tunnel}");
    echoes(&open, "as before");
    world.emulator.faults().clear_all();
    world.ok(&["up", "shell"]);
    echoes(&connect(port, ECHO).unwrap(), "after");
}

#[test]
fn a_policy_that_wants_a_duration_is_told_with_the_key_to_set() {
    let target = Target::start(0);
    let (world, port) = stage(&target, "");
    world.ok(&["up", "shell"]);
    world.emulator.faults().set("eice-denied").unwrap();
    let end = connect(port, ECHO).unwrap().read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    let tunnel = world.wait_for_tunnel("shell", "the denial is shown", |tunnel| {
        !tunnel["last_error"].is_null()
    });
    assert_eq!(tunnel["last_error"]["reason"], "denied", "{tunnel}");
    let words = tunnel["last_error"].to_string();
    assert!(
        words.contains("OpenTunnel") && words.contains("max_tunnel_duration"),
        "{words}"
    );
}
