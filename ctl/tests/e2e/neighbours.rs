//! Other users of the machine: who gets in, and where. Only root can be somebody else, so that without root these tests
//! are skipped.

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::account;
use crate::skipped::skip;
use crate::target::{ECHO, Target, connect, echoes, open};
use crate::world::{World, free_port};

/// A user that no account is needed for.
const NEIGHBOUR: u32 = 54_321;
/// Another one.
const STRANGER: u32 = 54_322;

/// Returns whether we can be somebody else; says so where we cannot.
fn can_be_somebody_else() -> bool {
    let is_root = rustix::process::getuid().is_root();
    if !is_root {
        skip("only root can start a program of another user");
    }
    is_root
}

/// Has a program of this user connect to an address; returns what came of it.
fn connects(user: u32, address: &str) -> String {
    let output = Command::new("python3")
        .args(["-c", include_str!("neighbour.py"), address])
        .uid(user)
        .gid(user)
        .current_dir("/")
        .output()
        .expect("python3 is installed");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An on-demand tunnel to an echo, straight.
fn tunnel(name: &str, listen: &str, target: &Target, more: &str) -> String {
    format!(
        "[tunnels.{name}]\nlisten = {listen}\ntarget = \"127.0.0.1:{}\"\nroute = \"direct\"\nmode = \"on-demand\"\n{more}\n",
        target.port
    )
}

fn refused(world: &World, name: &str) -> u64 {
    world.tunnel(name)["traffic"]["connections_refused"]
        .as_u64()
        .unwrap()
}

#[test]
fn another_user_is_reset_before_a_byte_flows_and_the_owner_is_served() {
    if !can_be_somebody_else() {
        return;
    }
    let (target, port) = (Target::start(0), free_port());
    let world = World::started(
        &account("fast", free_port()),
        &tunnel("echo", &port.to_string(), &target, ""),
    );
    let mut addresses = vec![format!("127.0.0.1:{port}")];
    // A machine may be without IPv6.
    addresses.extend(
        TcpListener::bind(("::1", 0))
            .ok()
            .map(|_| format!("[::1]:{port}")),
    );
    for address in &addresses {
        assert_eq!(connects(NEIGHBOUR, address), "reset", "{address}");
    }
    let shown = world.tunnel("echo");
    assert_eq!(shown["traffic"]["connections_refused"], addresses.len());
    assert_eq!(
        world.said(&format!("it is the user's with uid {NEIGHBOUR}")),
        1,
        "{}",
        world.log()
    );
    assert!(world.ok(&["status", "echo"]).contains(" of other users, whom"));
    assert_eq!(shown["state"], "idle");
    assert_eq!(target.accepted(), 0);

    let ours = connect(port, ECHO).unwrap();
    echoes(&ours, "ours");
    assert_eq!(connects(0, &addresses[0]), "answered");
    assert_eq!(refused(&world, "echo"), addresses.len() as u64);
}

#[test]
fn users_that_are_allowed_are_served() {
    if !can_be_somebody_else() {
        return;
    }
    let (target, listed, open) = (Target::start(0), free_port(), free_port());
    let configuration = tunnel(
        "listed",
        &listed.to_string(),
        &target,
        &format!("allow_users = [{NEIGHBOUR}]"),
    ) + &tunnel("open", &open.to_string(), &target, "allow_users = \"any\"");
    let world = World::started(&account("fast", free_port()), &configuration);
    assert_eq!(connects(NEIGHBOUR, &format!("127.0.0.1:{listed}")), "answered");
    assert_eq!(connects(STRANGER, &format!("127.0.0.1:{listed}")), "reset");
    assert_eq!(connects(STRANGER, &format!("127.0.0.1:{open}")), "answered");
    assert_eq!((refused(&world, "listed"), refused(&world, "open")), (1, 0));
}

#[test]
fn a_unix_socket_is_for_the_same_users() {
    if !can_be_somebody_else() {
        return;
    }
    let (target, folder) = (Target::start(0), tempfile::tempdir().unwrap());
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let listen = |name: &str| format!("\"unix:{}\"", path(name));
    let configuration = tunnel("own", &listen("own"), &target, "")
        + &tunnel(
            "shared",
            &listen("shared"),
            &target,
            &format!("allow_users = [{NEIGHBOUR}]"),
        );
    let world = World::started(&account("fast", free_port()), &configuration);
    assert_eq!(connects(NEIGHBOUR, &path("own")), "kept out");
    assert_eq!(connects(0, &path("own")), "answered");
    assert_eq!(connects(NEIGHBOUR, &path("shared")), "answered");
    // A Unix socket has no reset of its own; what was sent and not read makes one.
    let stranger = connects(STRANGER, &path("shared"));
    assert!(["reset", "closed"].contains(&stranger.as_str()), "{stranger}");
    assert_eq!((refused(&world, "own"), refused(&world, "shared")), (0, 1));
}

#[test]
fn the_control_socket_answers_its_owner_alone() {
    if !can_be_somebody_else() {
        return;
    }
    let (target, port) = (Target::start(0), free_port());
    let world = World::started(
        &account("fast", free_port()),
        &tunnel("echo", &port.to_string(), &target, ""),
    );
    let socket = world.path("run/t.sock");
    assert_eq!(connects(NEIGHBOUR, &socket.display().to_string()), "kept out");
    // Handed a way around the folder and the mode, another user is known for one.
    let folder = tempfile::tempdir_in(world.folder.path().parent().unwrap()).unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let around = folder.path().join("around.sock");
    fs::hard_link(&socket, &around).unwrap();
    fs::set_permissions(&around, Permissions::from_mode(0o666)).unwrap();
    let came = connects(NEIGHBOUR, &around.display().to_string());
    assert!(["reset", "closed"].contains(&came.as_str()), "{came}");
    assert_eq!(
        world.said(&format!("another user's connection was refused uid={NEIGHBOUR}")),
        1,
        "{}",
        world.log()
    );
    assert_eq!(world.tunnel("echo")["state"], "idle");
}

/// Root reads the daemon's memory if it likes; but a container's program, which is root inside, is not let in by
/// mistake.
#[test]
fn root_is_another_user_like_all_others() {
    if !can_be_somebody_else() {
        return;
    }
    let (target, own, shared) = (Target::start(0), free_port(), free_port());
    let configuration = tunnel("own", &own.to_string(), &target, "")
        + &tunnel("shared", &shared.to_string(), &target, "allow_users = [\"root\"]");
    let world = World::started_by(NEIGHBOUR, &account("fast", free_port()), &configuration);
    let mut ours = open(own).unwrap();
    assert_eq!(
        ours.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(refused(&world, "own"), 1);
    echoes(&connect(shared, ECHO).unwrap(), "root");
    for port in [own, shared] {
        assert_eq!(connects(NEIGHBOUR, &format!("127.0.0.1:{port}")), "answered");
    }
}
