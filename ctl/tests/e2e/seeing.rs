//! What a person, a program and a scraper see of what the daemon does.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use serde_json::Value;
use tunneld_emulator::Outage;

use crate::target::{ECHO, Target, connect, echoes};
use crate::world::{World, free_port};
use crate::{account, configuration};

/// A second tunnel, straight to the same target.
fn legacy(port: u16, target: &Target) -> String {
    format!(
        "[tunnels.legacy]\nlisten = \"127.0.0.1:{port}\"\ntarget = \"127.0.0.1:{}\"\nroute = \"direct\"\n\
         autostart = false\n",
        target.port
    )
}

/// A `tunnelctl` that goes on, and writes into a file.
struct Follower<'w> {
    world: &'w World,
    child: Child,
}

impl<'w> Follower<'w> {
    fn start(world: &'w World, arguments: &[&str]) -> Self {
        let child = world
            .command("tunnelctl")
            .args(arguments)
            .stdout(File::create(world.path("followed")).unwrap())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Self { world, child }
    }

    fn printed(&self) -> String {
        fs::read_to_string(self.world.path("followed")).unwrap()
    }

    /// Waits until these words are printed.
    fn prints(&self, words: &str) {
        self.world
            .wait_for(words, |_| self.printed().contains(words).then_some(()));
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_log_of_a_tunnel_holds_its_lines_and_no_others() {
    let target = Target::start(0);
    let (port, other) = (free_port(), free_port());
    let world = World::started(
        &account("fast", target.port),
        &(configuration(port) + &legacy(other, &target)),
    );
    world.ok(&["up", "prod-db", "legacy"]);
    let lines = world.ok(&["logs", "prod-db", "-n", "1000"]);
    assert!(
        lines.lines().any(|line| line.ends_with(" info  prod-db: up")),
        "{lines}"
    );
    assert!(lines.lines().all(|line| line.contains(" prod-db")), "{lines}");
    let lines = world.ok(&["logs", "-n", "1000"]);
    for words in [" prod-db: up", " legacy: up", " tunneld: configuration adopted"] {
        assert!(lines.contains(words), "{words}: {lines}");
    }
    let last = world.ok(&["logs", "legacy", "--json", "-n", "1"]);
    let last: Value = serde_json::from_str(&last).unwrap();
    assert_eq!((&last["tunnel"], &last["schema"]), (&"legacy".into(), &1.into()));
}

#[test]
fn whoever_follows_the_log_sees_a_connection_end() {
    let (world, port) = Target::start(0).tunnel();
    let follower = Follower::start(&world, &["logs", "-f", "prod-db"]);
    follower.prints(" prod-db: up");
    echoes(&connect(port, ECHO).unwrap(), "a word");
    follower.prints(" prod-db #1: connection ended: client closed ");
}

/// The states that a program was told of, and how many connections each cost.
fn states(printed: &str) -> Vec<(String, Value)> {
    let events = printed.lines().map(|line| serde_json::from_str(line).unwrap());
    let told = events.map(|event: Value| {
        let state = event["state"].as_str().unwrap().to_owned();
        (state, event["connections_lost"].clone())
    });
    told.collect()
}

#[test]
fn an_outage_is_told_with_its_cause_its_end_and_what_it_cost() {
    let (world, port) = Target::start(0).tunnel();
    let socket = connect(port, ECHO).unwrap();
    echoes(&socket, "before");
    let follower = Follower::start(&world, &["events", "prod-db", "--json"]);
    follower.prints("\"state\":\"up\"");
    world.emulator.begin_outage(Outage::Reset);
    world.wait_for_tunnel("prod-db", "the link is lost", |tunnel| {
        tunnel["state"] == "waiting"
    });
    world.emulator.end_outage();
    world.wait_for_tunnel("prod-db", "the link is back", |tunnel| tunnel["state"] == "up");
    echoes(&socket, "after");
    follower.prints("\"reason\":\"resumed, no connection lost\"");
    let told = states(&follower.printed());
    // What is wrong with a link while it is away may change.
    let mut passed = told.clone();
    passed.dedup();
    let expected = [
        ("connecting", Value::Null),
        ("up", Value::Null),
        ("waiting", Value::Null),
        ("up", 0.into()),
    ];
    assert_eq!(passed, expected.map(|(state, lost)| (state.to_owned(), lost)));
    let shown = world.ok(&["status", "prod-db"]);
    assert!(
        shown.trim_end().ends_with(" resumed, no connection lost"),
        "{shown}"
    );
    assert!(shown.contains(" lost: "), "{shown}");
    assert_eq!(
        world.said("up: resumed, no connection lost"),
        1,
        "{}",
        world.log()
    );
    let told_now = world.ok(&["events", "prod-db", "--no-follow"]);
    assert_eq!(told_now.lines().count(), told.len(), "{told_now}");
}

#[test]
fn a_session_that_is_gone_is_told_with_the_connections_it_took_along() {
    let target = Target::start(0);
    let port = free_port();
    let configuration = configuration(port) + "sessions = { min = 1, max = 1 }\n";
    let world = World::started(&account("fast", target.port), &configuration);
    world.ok(&["up", "prod-db"]);
    let mut socket = connect(port, ECHO).unwrap();
    echoes(&socket, "before");
    world.emulator.faults().set("resume-says-gone*1").unwrap();
    assert_eq!(world.emulator.cut(), 1);
    let end = socket.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    let tunnel = world.wait_for_tunnel("prod-db", "another session is there", |tunnel| {
        tunnel["state"] == "up" && tunnel["traffic"]["links_lost"] == 1
    });
    let last = tunnel["history"].as_array().unwrap().last().unwrap();
    assert_eq!(last["reason"], "connected again, 1 connection lost", "{tunnel}");
    assert_eq!(last["connections_lost"], 1);
}

/// Asks for the metrics, and returns them by name with labels.
fn scraped(mut socket: impl Read + Write) -> BTreeMap<String, f64> {
    socket
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let samples = body.lines().filter(|line| !line.starts_with('#'));
    let samples = samples.map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        (series.to_owned(), value.parse().unwrap())
    });
    samples.collect()
}

fn metrics_on(address: &str, port: u16) -> String {
    format!("[daemon]\nmetrics = \"{address}\"\n{}", configuration(port))
}

#[test]
fn metrics_follow_the_bytes_wherever_they_are_served() {
    let target = Target::start(0);
    let (port, metrics) = (free_port(), free_port());
    let address = format!("127.0.0.1:{metrics}");
    let world = World::started(&account("fast", target.port), &metrics_on(&address, port));
    world.ok(&["up", "prod-db"]);
    let by_tcp = || scraped(TcpStream::connect(("127.0.0.1", metrics)).unwrap());
    let received = r#"tunneld_tunnel_received_bytes_total{tunnel="prod-db"}"#;
    let first = by_tcp();
    assert_eq!(first[received], 0.0);
    assert_eq!(first[r#"tunneld_tunnel_state{tunnel="prod-db",state="up"}"#], 1.0);
    let started = r#"tunneld_aws_calls_total{service="SSM",operation="StartSession",outcome="answered"}"#;
    assert!(first[started] >= 1.0, "{first:?}");
    echoes(&connect(port, ECHO).unwrap(), "seven b");
    world.wait_for("the bytes are counted", |_| {
        (by_tcp()[received] == 7.0).then_some(())
    });

    let socket = world.path("metrics.sock");
    fs::write(
        world.path("config.toml"),
        metrics_on(&format!("unix:{}", socket.display()), port),
    )
    .unwrap();
    world.ok(&["reload"]);
    world.wait_for("the metrics are served on the socket", |_| {
        socket.exists().then_some(())
    });
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let by_socket = || scraped(UnixStream::connect(&socket).unwrap());
    assert_eq!(by_socket()[received], 7.0);
    assert_eq!(
        TcpStream::connect(("127.0.0.1", metrics)).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );

    fs::write(world.path("config.toml"), configuration(port)).unwrap();
    world.ok(&["reload"]);
    world.wait_for("the socket is gone", |_| (!socket.exists()).then_some(()));
    assert_eq!(world.tunnel("prod-db")["state"], "up", "no tunnel was touched");
}

#[test]
fn a_taken_address_of_metrics_hinders_no_tunnel_and_is_tried_again_on_reload() {
    let target = Target::start(0);
    let holder = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let (port, metrics) = (free_port(), holder.local_addr().unwrap());
    let world = World::started(
        &account("fast", target.port),
        &metrics_on(&metrics.to_string(), port),
    );
    world.ok(&["up", "prod-db"]);
    assert_eq!(world.said("cannot serve metrics on"), 1, "{}", world.log());
    drop(holder);
    world.ok(&["reload"]);
    world.wait_for("the metrics are served", |world| {
        (world.said("metrics are served on") == 1).then_some(())
    });
    assert!(!scraped(TcpStream::connect(metrics).unwrap()).is_empty());
}
