//! Sessions that are over for good: AWS ends them, or their instance is gone. What a person reads of it, and what their
//! connections see.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use tunneld_emulator::{Conditions, ServiceConditions};

use crate::target::{ECHO, Target, connect, echoes, open};
use crate::world::{World, free_port};
use crate::{account, configuration};

/// What AWS says.
const IDLE: &str = "Your session timed out due to inactivity";
const TOO_OLD: &str = "Your session reached its maximum duration";

/// Has AWS end every session that there is, for being idle or old; returns when they have ended.
fn end_sessions(world: &World, service: ServiceConditions) {
    let open = world.emulator.sessions();
    world.emulator.set_conditions(Conditions {
        service,
        ..Conditions::default()
    });
    world.wait_for("every session has ended", |world| {
        let ended = world.emulator.ended_sessions();
        let is_ended = |id: &str| ended.iter().any(|session| session.id == id);
        open.iter().all(|session| is_ended(&session.id)).then_some(())
    });
    world.emulator.set_conditions(Conditions::default());
}

/// The age at which sessions end: new ones outlive the moment in which that holds.
const AGE: Duration = Duration::from_secs(1);

/// The rule by which AWS ends every session that says nothing.
fn idle() -> ServiceConditions {
    ServiceConditions {
        idle_timeout: Some(AGE),
        ..ServiceConditions::default()
    }
}

/// The rule by which AWS ends every session.
fn too_old() -> ServiceConditions {
    ServiceConditions {
        max_duration: Some(AGE),
        ..ServiceConditions::default()
    }
}

/// Waits until the tunnel is up and shows that AWS has said these words.
fn shows(world: &World, words: &str) {
    world.wait_for_tunnel("prod-db", "the tunnel is up, and says why it was not", |tunnel| {
        tunnel["state"] == "up" && tunnel["last_error"].to_string().contains(words)
    });
    world.wait_for("the log says so too", |world| {
        (world.said(words) > 0).then_some(())
    });
    // Nor was it taken for a lost websocket on the way.
    assert_eq!(world.said("resuming the session"), 0, "{}", world.log());
}

#[test]
fn an_idle_tunnel_gets_a_new_session_and_says_why() {
    let (world, _) = Target::start(0).tunnel();
    end_sessions(&world, idle());
    shows(&world, IDLE);
    let history = world.tunnel("prod-db")["history"].to_string();
    assert!(history.contains(IDLE), "{history}");
    world.wait_for_sessions("prod-db");
}

#[test]
fn a_connection_that_carried_nothing_moves_to_the_new_session() {
    let target = Target::start(0);
    let (world, port) = target.tunnel();
    // There is one session alone, and for a while no other.
    world.emulator.faults().set("throttle-start-session").unwrap();
    let mut socket = open(port).unwrap();
    world.wait_for("its stream has reached the target", |_| {
        (target.accepted() == 1).then_some(())
    });
    end_sessions(&world, idle());
    world.emulator.faults().clear_all();
    world.wait_for("it has another stream", |_| {
        (target.accepted() == 2).then_some(())
    });
    socket.write_all(&[ECHO]).unwrap();
    echoes(&socket, "hello");
    assert_eq!(world.tunnel("prod-db")["traffic"]["connections_failed"], 0);
    shows(&world, IDLE);
}

#[test]
fn a_connection_that_carried_bytes_is_reset_with_its_session() {
    let target = Target::start(0);
    let (world, port) = target.tunnel();
    let mut socket = connect(port, ECHO).unwrap();
    echoes(&socket, "before");
    end_sessions(&world, too_old());
    let end = socket.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    shows(&world, TOO_OLD);
    echoes(&connect(port, ECHO).unwrap(), "after");
}

#[test]
fn a_session_that_nobody_used_ends_in_words_and_the_link_lives_on() {
    let target = Target::start(0);
    let (world, port) = target.tunnel();
    let socket = connect(port, ECHO).unwrap();
    world.wait_for("another session is ready", |world| {
        (world.wait_for_sessions("prod-db") == 2).then_some(())
    });
    let service = idle();
    world.emulator.set_conditions(Conditions {
        service,
        ..Conditions::default()
    });
    world.wait_for("it has timed out, beside one that is in use", |world| {
        echoes(&socket, "still here");
        world.emulator.ended_sessions().pop()
    });
    world.emulator.set_conditions(Conditions::default());
    shows(&world, IDLE);
    echoes(&socket, "as before");
    let tunnel = world.tunnel("prod-db");
    assert_eq!(tunnel["traffic"]["links_lost"], 0, "{tunnel}");
    assert!(!tunnel["history"].to_string().contains("waiting"), "{tunnel}");
}

#[test]
fn an_instance_that_was_replaced_is_followed() {
    let target = Target::start(0);
    let port = free_port();
    let (old, new) = ("i-0123456789abcdef0", "i-0123456789abcdef1");
    let tag = "tags = { Role = \"bastion\" }\n";
    let account = account("stock", target.port).replacen("name = ", &format!("{tag}name = "), 1)
        + &format!("[[instances]]\nid = \"{new}\"\n{tag}ssm = {{}}\n");
    let configuration = configuration(port).replace("\"bastion\"", "\"tag:Role=bastion\"");
    let world = World::started(&account, &configuration);
    world.ok(&["up", "prod-db"]);
    assert_eq!(world.emulator.sessions()[0].target, old);
    for fault in [&format!("agent-offline={old}"), "resume-says-gone*1"] {
        world.emulator.faults().set(fault).unwrap();
    }
    world.emulator.cut();
    world.wait_for("a session goes to the new instance", |world| {
        let sessions = world.emulator.sessions();
        sessions
            .iter()
            .all(|session| session.target == new)
            .then_some(sessions.first()?.clone())
    });
    echoes(&connect(port, ECHO).unwrap(), "hello");
    let tunnel = world.tunnel("prod-db");
    assert!(tunnel["link"]["via"].to_string().contains(new), "{tunnel}");
}
