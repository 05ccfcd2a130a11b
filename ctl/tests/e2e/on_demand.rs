//! Tunnels that have a session at AWS only while somebody uses them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use crate::world::{World, free_port};
use crate::{account, configuration};

/// A database that greets whoever connects, and then waits for them to leave.
fn greeter() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            thread::spawn(move || {
                // Whoever left early needs no greeting.
                let _ = socket.write_all(b"hello");
                let _ = socket.read(&mut [0; 1]);
            });
        }
    });
    port
}

/// A daemon with the one tunnel `prod-db`, which starts by itself and is connected on demand.
fn on_demand(port: u16, idle_after: &str) -> World {
    let mode = format!("mode = \"on-demand\"\nidle_after = \"{idle_after}\"");
    let configuration = configuration(port).replace("autostart = false", &mode);
    World::started(&account("fast", greeter()), &configuration)
}

/// Connects to the tunnel and reads the greeting.
fn greeted(port: u16) -> TcpStream {
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut greeting = [0; 5];
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"hello");
    client
}

#[test]
fn an_on_demand_tunnel_has_a_session_only_while_somebody_uses_it() {
    let port = free_port();
    let world = on_demand(port, "1s");
    assert_eq!(world.tunnel("prod-db")["state"], "idle", "from the start");
    assert_eq!(
        world.ok(&["up", "prod-db"]),
        format!("prod-db listens on 127.0.0.1:{port} and connects on first use\n")
    );
    assert_eq!(world.emulator.sessions(), []);
    assert_eq!(world.emulator.calls().get("ssm:StartSession"), None);

    for _ in 0..2 {
        let client = greeted(port);
        assert_eq!(world.tunnel("prod-db")["state"], "up");
        assert_ne!(world.emulator.sessions(), []);
        drop(client);
        let tunnel = world.wait_for_tunnel("prod-db", "the quiet time passes", |tunnel| {
            tunnel["state"] == "idle"
        });
        assert_eq!(tunnel["traffic"]["links_lost"], 0, "{tunnel}");
        world.wait_for("its sessions are ended at AWS", |world| {
            world.emulator.sessions().is_empty().then_some(())
        });
    }
}

#[test]
fn a_session_that_aws_ended_leaves_an_on_demand_tunnel_idle_until_its_next_use() {
    let port = free_port();
    let world = on_demand(port, "1h");
    let said = world.ok(&["up", "prod-db", "--connect"]);
    assert!(
        said.starts_with(&format!("prod-db is up on 127.0.0.1:{port}")),
        "{said}"
    );
    assert_eq!(world.emulator.sessions().len(), 1);

    world.emulator.faults().set("resume-says-gone*1").unwrap();
    assert_eq!(world.emulator.cut(), 1);
    let tunnel = world.wait_for_tunnel("prod-db", "the session is known to be gone", |tunnel| {
        tunnel["state"] == "idle"
    });
    assert!(!tunnel["last_error"].is_null(), "{tunnel}");
    assert_eq!(tunnel["traffic"]["links_lost"], 1, "{tunnel}");
    assert_eq!(world.emulator.sessions(), []);

    let _client = greeted(port);
    assert_eq!(world.tunnel("prod-db")["state"], "up");
    assert_ne!(world.emulator.sessions(), []);
}
