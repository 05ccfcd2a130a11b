//! The network goes, or the agent does, and comes back: what was open goes on where it was, or ends in words.

use std::cell::Cell;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use tokio::time::Instant;
use tunneld_emulator::{Conditions, Outage, ServiceConditions};

use crate::target::{DOWNLOAD, ECHO, Target, connect, echoes};
use crate::world::{World, free_port};
use crate::{account, configuration};

/// What is moved each way: five seconds of a paced agent.
const LENGTH: usize = 4 << 20;
/// What has come before an outage begins.
const BEGUN: usize = 1 << 20;
/// Sessions that a link may have.
const MOST_SESSIONS: usize = 4;

/// Takes the network away for that long.
fn outage(world: &World, how: Outage, length: Duration) {
    let began = Instant::now();
    world.emulator.begin_outage(how);
    world.wait_for("the outage has lasted", |_| {
        (began.elapsed() >= length).then_some(())
    });
    world.emulator.end_outage();
}

/// Moves a text both ways over an outage; returns how long the download and the upload stood still.
fn transfers_survive(how: Outage, length: Duration) -> [Duration; 2] {
    let target = Target::start(LENGTH);
    let (world, port) = target.tunnel();
    let download = target.download(port);
    world.wait_for("the download is on its way", |_| {
        (download.moved() > BEGUN).then_some(())
    });
    let upload = target.upload(port);
    world.wait_for("the upload is on its way", |_| (upload.moved() > 0).then_some(()));
    outage(&world, how, length);
    let transfers = [download, upload];
    for transfer in &transfers {
        assert!(transfer.moved() < LENGTH, "it was not cut in the middle");
    }
    let stood_still = transfers.map(|transfer| {
        let (is_exact, stood_still) = transfer.end();
        assert!(is_exact, "{}", world.log());
        stood_still
    });
    let traffic = &world.tunnel("prod-db")["traffic"];
    assert_eq!(
        (&traffic["connections_failed"], &traffic["links_lost"]),
        (&0.into(), &0.into()),
        "{}",
        world.log()
    );
    stood_still
}

#[test]
fn transfers_go_on_after_a_network_that_was_gone() {
    for length in [500, 5_000].map(Duration::from_millis) {
        let [download, upload] = transfers_survive(Outage::Reset, length);
        println!(
            "{length:?} of resets: the download stood still for {download:?}, the upload for {upload:?}"
        );
    }
}

#[test]
fn transfers_go_on_after_a_network_that_froze() {
    for length in [500, 5_000].map(Duration::from_millis) {
        let [download, upload] = transfers_survive(Outage::Frozen, length);
        println!(
            "{length:?} of silence: the download stood still for {download:?}, the upload for {upload:?}"
        );
    }
}

#[test]
fn a_connection_that_was_idle_while_the_network_froze_goes_on() {
    let target = Target::start(0);
    let (world, port) = target.tunnel();
    let socket = connect(port, ECHO).unwrap();
    echoes(&socket, "before");
    world.wait_for_sessions("prod-db");
    outage(&world, Outage::Frozen, Duration::from_secs(1));
    let began = Instant::now();
    echoes(&socket, "after");
    println!("an idle connection went on after {:?}", began.elapsed());
    assert_eq!(world.tunnel("prod-db")["traffic"]["links_lost"], 0);
}

#[test]
fn a_profile_that_is_just_being_written_costs_no_connection() {
    let (target, port) = (Target::start(0), free_port());
    let configuration = configuration(port) + "profile = \"dev\"\n";
    let mut world = World::new(&account("stock", target.port), &configuration);
    world.log_in("dev");
    world.start();
    world.ok(&["up", "prod-db"]);
    let socket = connect(port, ECHO).unwrap();
    echoes(&socket, "before");
    world.wait_for_sessions("prod-db");
    fs::write(world.path(".aws/credentials"), "").unwrap();
    world.emulator.recycle();
    let tunnel = world.wait_for_tunnel("prod-db", "the profile is missed", |tunnel| {
        tunnel["cause"].to_string().contains("no AWS profile")
    });
    assert_eq!(tunnel["state"], "waiting");
    world.log_in("dev");
    echoes(&socket, "after");
    assert_eq!(world.tunnel("prod-db")["traffic"]["connections_failed"], 0);
}

#[test]
fn an_outage_under_an_agent_that_goes_on_ends_in_a_new_session_and_says_so() {
    let target = Target::start(16 << 20);
    let (world, port) = target.tunnel();
    world.emulator.set_conditions(Conditions {
        service: ServiceConditions {
            pause_on_cut: false,
            ..ServiceConditions::default()
        },
        ..Conditions::default()
    });
    let mut download = connect(port, DOWNLOAD).unwrap();
    download.read_exact(&mut [0; 100_000]).unwrap();
    outage(&world, Outage::Reset, Duration::from_secs(2));
    let end = loop {
        match download.read(&mut [0; 65_536]) {
            Ok(0) => panic!("the truncated download looks complete"),
            Ok(_) => {}
            Err(error) => break error.kind(),
        }
    };
    assert_eq!(end, ErrorKind::ConnectionReset);
    let words = "messages of the SSM agent were lost";
    world.wait_for_tunnel("prod-db", "the tunnel is up, and says what happened", |tunnel| {
        tunnel["state"] == "up" && tunnel["last_error"].to_string().contains(words)
    });
    world.wait_for("the log says so too", |world| {
        (world.said(words) > 0).then_some(())
    });
    echoes(&connect(port, ECHO).unwrap(), "a new session");
}

#[test]
fn connections_live_on_while_the_agent_is_away() {
    let target = Target::start(0);
    let (world, port) = target.tunnel();
    // One on each session: the link as a whole waits.
    let sockets: Vec<TcpStream> = (0..MOST_SESSIONS)
        .map(|number| {
            let socket = connect(port, ECHO).unwrap();
            echoes(&socket, "before");
            world.wait_for_tunnel("prod-db", "one more session is ready", |tunnel| {
                tunnel["link"]["sessions"].as_u64() >= Some((number + 2).min(MOST_SESSIONS) as u64)
            });
            socket
        })
        .collect();
    assert_eq!(world.emulator.agent_outage(Duration::from_secs(3)), MOST_SESSIONS);
    let said = Cell::new(0);
    let tunnel = world.wait_for_tunnel("prod-db", "the tunnel waits", |tunnel| {
        // That an agent is away shows where there is something for it.
        for mut socket in &sockets {
            socket.write_all(&[said.get()]).unwrap();
        }
        said.update(|said| said + 1);
        tunnel["state"] == "waiting"
    });
    let cause = tunnel["cause"]["chain"].to_string();
    assert!(cause.contains("the SSM agent is away"), "{tunnel}");
    world.wait_for_tunnel("prod-db", "the tunnel is up", |tunnel| tunnel["state"] == "up");
    let expected: Vec<u8> = (0..said.get()).collect();
    for mut socket in &sockets {
        let mut back = vec![0; expected.len()];
        socket.read_exact(&mut back).unwrap();
        assert_eq!(back, expected);
    }
    assert_eq!(world.tunnel("prod-db")["traffic"]["connections_failed"], 0);
}
