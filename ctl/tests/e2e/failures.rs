//! What goes wrong, and what a person and their programs see of it.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use crate::world::{World, free_port};
use crate::{account, configuration};

/// Returns what a command exited with and said on stderr.
fn refusal(world: &World, arguments: &[&str]) -> (Option<i32>, String) {
    let output = world.tunnelctl(arguments);
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// A database that sends bytes without end to whoever connects.
fn endless() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            thread::spawn(move || while socket.write_all(&[7; 4096]).is_ok() {});
        }
    });
    port
}

#[test]
fn a_target_that_refuses_resets_that_connection_alone() {
    let (listening, refusing) = (endless(), free_port());
    let (port, other) = (free_port(), free_port());
    let account = account("fast", listening)
        + &format!("[[hosts]]\nhost = \"10.1.2.3\"\nport = 3306\naddress = \"127.0.0.1:{refusing}\"\n");
    let configuration = configuration(port)
        + &format!(
            "[tunnels.legacy]\nlisten = \"127.0.0.1:{other}\"\ntarget = \"10.1.2.3:3306\"\n\
             route = {{ ssm = \"bastion\" }}\nautostart = false\n"
        );
    let world = World::started(&account, &configuration);
    world.ok(&["up", "prod-db", "legacy"]);
    let mut living = TcpStream::connect(("127.0.0.1", port)).unwrap();
    living.read_exact(&mut [0; 1024]).unwrap();

    let mut refused = TcpStream::connect(("127.0.0.1", other)).unwrap();
    let error = refused.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    let tunnel = world.wait_for_tunnel("legacy", "the refusal is shown", |tunnel| {
        !tunnel["last_error"].is_null()
    });
    assert_eq!(tunnel["state"], "up");
    assert_eq!(tunnel["last_error"]["reason"], "target_refused");
    assert!(
        tunnel["last_error"]["chain"][0]
            .as_str()
            .unwrap()
            .contains("10.1.2.3:3306"),
        "{tunnel}"
    );
    assert!(
        world.log().contains("10.1.2.3:3306 refused the connection"),
        "{}",
        world.log()
    );
    living.read_exact(&mut [0; 1024]).unwrap();
}

#[test]
fn a_session_that_can_not_be_saved_ends_in_a_reset_never_in_a_clean_end() {
    let port = free_port();
    let world = World::started(&account("fast", endless()), &configuration(port));
    world.ok(&["up", "prod-db"]);
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.read_exact(&mut [0; 100_000]).unwrap();
    world.emulator.faults().set("resume-says-gone").unwrap();
    assert_ne!(world.emulator.cut(), 0);
    let end = loop {
        match client.read(&mut [0; 65_536]) {
            Ok(0) => panic!("the truncated download looks complete"),
            Ok(_) => {}
            Err(error) => break error.kind(),
        }
    };
    assert_eq!(end, ErrorKind::ConnectionReset);
    world.emulator.faults().clear_all();
    // And the tunnel makes a new session by itself.
    world.wait_for_tunnel("prod-db", "the tunnel is up again", |tunnel| {
        tunnel["state"] == "up"
    });
    TcpStream::connect(("127.0.0.1", port))
        .unwrap()
        .read_exact(&mut [0; 1024])
        .unwrap();
}

#[test]
fn a_wrong_signature_blocks_and_says_so() {
    // EC2 says only that it can't validate the credentials; RDS, which is asked first without a bastion, says why.
    let direct =
        "[tunnels.direct]\nlisten = \"127.0.0.1:PORT\"\ntarget = \"rds:prod-db\"\nroute = \"direct\"\n\
                  autostart = false\n"
            .replace("PORT", &free_port().to_string());
    let mut world = World::new(
        &account("fast", free_port()),
        &(configuration(free_port()) + &direct),
    );
    world.set(
        "AWS_SECRET_ACCESS_KEY",
        "not/the/secret/00000000000000000000000000",
    );
    world.start();
    for (tunnel, words) in [
        ("prod-db", "not able to validate the provided access credentials"),
        ("direct", "signature"),
    ] {
        let (code, said) = refusal(&world, &["up", tunnel]);
        assert_eq!(code, Some(4), "{said}");
        assert!(said.contains("blocked") && said.contains(words), "{said}");
    }
    assert!(!world.log().contains("not/the/secret"), "the log holds a secret");
}

#[test]
fn an_expired_token_blocks_for_a_login_and_asks_aws_nothing_more() {
    let world = World::started(&account("fast", free_port()), &configuration(free_port()));
    world.emulator.faults().set("expired-token").unwrap();
    let (code, said) = refusal(&world, &["up", "prod-db"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("expired"), "{said}");
    let tunnel = world.tunnel("prod-db");
    assert_eq!(
        (&tunnel["state"], &tunnel["cause"]["reason"]),
        (&"blocked".into(), &"login".into()),
        "{tunnel}"
    );
    world.emulator.faults().clear_all();
    world.ok(&["up", "prod-db"]);
}

#[test]
fn an_unknown_instance_blocks_and_is_named() {
    let configuration = configuration(free_port()).replace("\"bastion\"", "\"no-such-bastion\"");
    let world = World::started(&account("fast", free_port()), &configuration);
    let (code, said) = refusal(&world, &["up", "prod-db"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("no-such-bastion"), "{said}");
    assert_eq!(world.tunnel("prod-db")["cause"]["reason"], "not_found");
}

#[test]
fn an_agent_that_is_offline_is_waited_for() {
    let world = World::started(&account("fast", free_port()), &configuration(free_port()));
    world.emulator.faults().set("agent-offline").unwrap();
    let (code, said) = refusal(&world, &["up", "prod-db", "--timeout", "1s"]);
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("SSM agent of `bastion`"), "{said}");
    let tunnel = world.tunnel("prod-db");
    assert_eq!(tunnel["cause"]["reason"], "agent_offline", "{tunnel}");
    world.emulator.faults().clear_all();
    world.wait_for_tunnel("prod-db", "the agent is back", |tunnel| tunnel["state"] == "up");
}

#[test]
fn throttled_sessions_are_waited_for() {
    let world = World::started(&account("fast", free_port()), &configuration(free_port()));
    world.emulator.faults().set("throttle-start-session").unwrap();
    world.ok(&["up", "prod-db", "--no-wait"]);
    let tunnel = world.wait_for_tunnel("prod-db", "throttling shows", |tunnel| {
        tunnel["state"] == "waiting"
    });
    assert_eq!(tunnel["cause"]["reason"], "throttled", "{tunnel}");
    world.emulator.faults().clear_all();
    world.wait_for_tunnel("prod-db", "sessions start again", |tunnel| {
        tunnel["state"] == "up"
    });
}

#[test]
fn a_port_that_another_program_holds_blocks_that_tunnel_alone() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let world = World::started(&account("fast", endless()), &configuration(port));
    let (code, said) = refusal(&world, &["up", "prod-db"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains(&format!("pid {}", std::process::id())), "{said}");
    drop(taken);
    world.wait_for_tunnel("prod-db", "the port is free and taken", |tunnel| {
        tunnel["state"] == "up"
    });
}

#[test]
fn what_a_client_sent_before_it_left_still_reaches_the_target() {
    let target = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = free_port();
    let world = World::started(
        &account("fast", target.local_addr().unwrap().port()),
        &configuration(port),
    );
    world.ok(&["up", "prod-db"]);
    let sent: Vec<u8> = (0..1_000_000u32).map(|number| number as u8).collect();
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    // One that leaves before anybody asked whose it is is not served at all.
    world.wait_for_tunnel("prod-db", "the client is let in", |tunnel| {
        tunnel["traffic"]["connections"] == 1
    });
    client.write_all(&sent).unwrap();
    drop(client);
    let mut received = Vec::new();
    let (mut socket, _) = target.accept().unwrap();
    socket.read_to_end(&mut received).unwrap();
    assert!(
        received == sent,
        "{} of {} bytes came",
        received.len(),
        sent.len()
    );
}
