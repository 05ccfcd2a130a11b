//! Many tunnels, many connections, and fewer descriptors than those want. `make bench` measures the first two.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::resources::Resources;
use crate::world::{PATIENCE, World, free_port};
use crate::{account, configuration};

/// On-demand tunnels of one daemon.
const TUNNELS: usize = 300;
/// How long they may take to listen: ten times what a thousand may take where that is measured.
const STARTING: Duration = Duration::from_secs(10);
/// Connections at a time.
const CONNECTIONS: usize = 300;
/// The most memory of one of them, in KiB.
const OF_A_CONNECTION: u64 = 64;
/// What each of them sends and gets back: more than fits beside it if it keeps its buffers.
const PIECE: usize = 128 << 10;

/// A target that sends back whatever comes.
pub(crate) fn echo() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let socket = socket.unwrap();
            // Whoever is at the other end sees what became of it.
            thread::spawn(move || drop(std::io::copy(&mut &socket, &mut &socket)));
        }
    });
    port
}

/// A tunnel straight to a port of this machine.
pub(crate) fn direct(name: &str, port: u16, target: u16) -> String {
    format!(
        "[tunnels.{name}]\nlisten = \"127.0.0.1:{port}\"\ntarget = \"127.0.0.1:{target}\"\nroute = \"direct\"\n"
    )
}

/// Connects through a tunnel.
pub(crate) fn connect(port: u16) -> TcpStream {
    let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends bytes over a connection whose target sends them back.
pub(crate) fn exchange(socket: &TcpStream, length: usize) {
    let (mut writer, mut reader) = (socket, socket);
    let sent: Vec<u8> = (0..length).map(|number| number.to_le_bytes()[0]).collect();
    let mut received = vec![0; length];
    thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&sent).unwrap());
        reader.read_exact(&mut received).unwrap();
    });
    assert!(received == sent);
}

#[test]
fn hundreds_of_tunnels_listen_at_once_and_each_is_connected_on_demand() {
    let held: Vec<_> = (0..TUNNELS)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap())
        .collect();
    let ports: Vec<u16> = held
        .iter()
        .map(|held| held.local_addr().unwrap().port())
        .collect();
    drop(held);
    let target = echo();
    let tunnel = |(number, port): (usize, &u16)| {
        direct(&format!("db-{number}"), *port, target) + "mode = \"on-demand\"\n"
    };
    let configuration: String = ports.iter().enumerate().map(tunnel).collect();
    let began = Instant::now();
    let world = World::started(&account("fast", target), &configuration);
    let states = |world: &World| -> Vec<String> {
        let all: serde_json::Value = serde_json::from_str(&world.ok(&["status", "--json"])).unwrap();
        let tunnels = all["tunnels"].as_array().unwrap();
        let state = |tunnel: &serde_json::Value| tunnel["state"].as_str().unwrap().to_owned();
        tunnels.iter().map(state).collect()
    };
    assert_eq!(states(&world), vec!["idle"; TUNNELS]);
    assert!(began.elapsed() < STARTING, "{:?}", began.elapsed());
    let client = connect(ports[TUNNELS / 2]);
    exchange(&client, 1);
    let mut wanted = vec!["idle"; TUNNELS];
    wanted[TUNNELS / 2] = "up";
    assert_eq!(states(&world), wanted);
}

#[test]
fn hundreds_of_connections_cost_little_once_they_are_quiet() {
    let port = free_port();
    let world = World::started(&account("fast", 1), &direct("crowd", port, echo()));
    exchange(&connect(port), PIECE);
    let before = Resources::of(&world);
    let connections: Vec<_> = (0..CONNECTIONS).map(|_| connect(port)).collect();
    for connection in &connections {
        exchange(connection, PIECE);
    }
    let tunnel = world.tunnel("crowd");
    assert_eq!(tunnel["traffic"]["connections"], CONNECTIONS);
    assert_eq!(tunnel["traffic"]["connections_failed"], 0);
    let more = Resources::of(&world).memory.saturating_sub(before.memory);
    let of_each = more / CONNECTIONS as u64;
    assert!(of_each <= OF_A_CONNECTION, "{of_each} KiB for each connection");
    drop(connections);
    world.wait_for_tunnel("crowd", "its connections have ended", |tunnel| {
        tunnel["traffic"]["connections"] == 0
    });
    world.wait_for("their descriptors are free", |world| {
        (Resources::of(world).files <= before.files).then_some(())
    });
}

#[test]
fn connections_beyond_the_limit_of_open_files_wait_and_the_daemon_goes_on() {
    const FILES: u32 = 128;
    const CLIENTS: usize = 150;
    let (port, other) = (free_port(), free_port());
    let target = echo();
    let configuration = direct("crowd", port, target) + &configuration(other);
    let mut world = World::new(&account("fast", target), &configuration);
    world.limit_files(FILES);
    world.start();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| connect(port)).collect();
    for client in &mut clients {
        client.write_all(b"x").unwrap();
    }
    world.wait_for("the daemon says that connections wait", |world| {
        (world.said("more wait") == 1).then_some(())
    });
    let served = world.tunnel("crowd")["traffic"]["connections"].as_u64().unwrap();
    // Three quarters of the descriptors are for two listeners, and two for each connection.
    assert_eq!(served, 47);

    // Names, calls to AWS and websockets have what they need.
    world.ok(&["up", "prod-db", "--timeout", "60s"]);
    world.ok(&["status"]);

    for mut client in clients {
        client.read_exact(&mut [0]).unwrap();
    }
    world.wait_for_tunnel("crowd", "all connections were served", |tunnel| {
        let traffic = &tunnel["traffic"];
        traffic["connections"] == 0
            && traffic["connections_total"] == CLIENTS
            && traffic["connections_failed"] == 0
    });
    exchange(&connect(other), PIECE);
}
