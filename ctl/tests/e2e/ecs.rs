//! ECS tasks: a port of a container, and a way to a database, through whichever task runs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use crate::world::{World, free_port};

/// A server that says its name to whoever connects, and then waits for the end.
fn server(name: &'static str) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            thread::spawn(move || {
                // The session may be over before the name is said.
                let _ = socket.write_all(name.as_bytes());
                let _ = socket.read(&mut [0; 1]);
            });
        }
    });
    port
}

/// A task of the service `api` in the cluster `main`, started in a month of 2025, whose port 8080 is here.
fn task(id: &str, month: u8, port: u16) -> String {
    format!(
        "[[tasks]]\ncluster = \"main\"\nservice = \"api\"\nid = \"{id}\"\nstarted = \"2025-{month:02}-01T00:00:00Z\"\n\
         ssm = {{ agent = \"fast\" }}\nports = {{ 8080 = \"127.0.0.1:{port}\" }}\n\
         [[tasks.containers]]\nname = \"app\"\nruntime_id = \"{id}-0123456789\"\n"
    )
}

/// Returns who answers on a local port.
fn who_answers(port: u16) -> String {
    let mut name = [0; 5];
    TcpStream::connect(("127.0.0.1", port))
        .unwrap()
        .read_exact(&mut name)
        .unwrap();
    String::from_utf8_lossy(&name).into_owned()
}

const FIRST: &str = "0a1b2c3d00000000000000000000000a";
const SECOND: &str = "4e5f607100000000000000000000000b";

#[test]
fn new_connections_go_to_another_task_when_theirs_is_stopped() {
    let (port, through) = (free_port(), free_port());
    let account = task(SECOND, 1, server("older"))
        + &task(FIRST, 2, server("newer"))
        + &format!(
            "[[hosts]]\nhost = \"10.1.2.3\"\nport = 3306\naddress = \"127.0.0.1:{}\"\n",
            server("hosts")
        );
    let configuration = format!(
        "[tunnels.api]\nlisten = \"127.0.0.1:{port}\"\ntarget = \"ecs:main/api:8080\"\nroute = \"ssm\"\n\
         [tunnels.legacy]\nlisten = \"127.0.0.1:{through}\"\ntarget = \"10.1.2.3:3306\"\n\
         route = {{ ssm = \"ecs:main/api/app\" }}\n"
    );
    let world = World::started(&account, &configuration);
    world.ok(&["up", "api", "legacy"]);
    assert_eq!(who_answers(port), "newer");
    assert_eq!(who_answers(through), "hosts");
    let tunnel = world.tunnel("api");
    assert_eq!(tunnel["link"]["via"], "task 0a1b2c3d of api");
    assert_eq!(tunnel["target"]["spec"], "ecs:main/api:8080");

    let mut living = TcpStream::connect(("127.0.0.1", port)).unwrap();
    living.read_exact(&mut [0; 5]).unwrap();
    assert!(world.emulator.stop_task(FIRST).unwrap() >= 2);
    assert!(
        living.read(&mut [0; 1]).is_err(),
        "what a stopped task leaves unfinished looks complete"
    );
    for tunnel in ["api", "legacy"] {
        world.wait_for_tunnel(tunnel, "the other task is used", |tunnel| {
            tunnel["state"] == "up" && tunnel["link"]["via"] == "task 4e5f6071 of api"
        });
    }
    assert_eq!(who_answers(port), "older");
    assert_eq!(who_answers(through), "hosts");

    world.emulator.stop_task(SECOND).unwrap();
    let tunnel = world.wait_for_tunnel("api", "the want of a task shows", |tunnel| {
        tunnel["state"] == "waiting" && tunnel["cause"]["chain"][0].to_string().contains("is running")
    });
    assert_eq!(
        tunnel["cause"]["chain"][0],
        "no task of the service `api` in the cluster `main` is running"
    );
}
